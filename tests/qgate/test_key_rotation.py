"""A pool replaces its online key: peers take the new one and refuse gates that show the old one."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import pytest

from meshctl.errors import NotFoundError
from meshctl.key_rotation import rotate_online
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.sequencer import Sequencer
from qgate.federation.pairings import announce_node_revocation
from qgate.federation.rotation import Rotation, read_rotation
from qgate.gate import Gate
from qgate.store import outbox
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.peers import put_own_pool
from tests.qgate.gates import gate_settings, make_directory, running, until
from tests.qgate.peering import hasten, meet, pools
from tunnel_proto.certificate import read_online
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.errors import RemoteProtocolError, TunnelError
from tunnel_proto.identity import Identity
from tunnel_proto.link import TunnelClient

BOTH = "the key before it, and the pool key"


def known_serial(gate: Gate, other: Gate) -> int:
    peer = gate.parts.directory.peer(other.parts.keys.pool_key)
    assert peer is not None
    return read_online(peer.online_certificate).serial


async def test_a_rotated_online_key_is_learnt_and_the_old_one_refused(
    tmp_path: Path, store_server: EmbeddedPostgres, store_dsn: str
) -> None:
    settings = gate_settings(tmp_path / "hq", store_dsn, name="hq-gate")
    make_directory(tmp_path / "hq", settings)
    async with pools(tmp_path, store_server, "branch") as (branch,):
        await hasten(branch)
        async with running(settings) as hq:
            await hasten(hq)
            async with hq.parts.store.store.transaction() as connection:
                await put_own_pool(connection, "hq", "headquarters", hq.administration.office.now())
            await hq.parts.watch.refresh()
            await meet(hq, branch, level=1)
            key, old_node = hq.parts.keys.pool_key, hq.parts.keys.node
            old_serial, old_chain = known_serial(branch, hq), hq.peering.chain()
            unanswered = await hq.administration.pools.pairing.offer(
                valid_s=None, online=False, new=True, by="test"
            )
            await until(lambda: branch.peering.links.up(key))
        rotated = rotate_online(tmp_path / "hq", now=time.time())
        async with running(settings) as hq:
            assert hq.parts.keys.online.fingerprint == rotated.fingerprint
            assert hq.parts.keys.pool_key == key
            await until(lambda: known_serial(branch, hq) > old_serial, 30)
            await until(lambda: branch.peering.links.up(key) and hq.peering.links.up(_key(branch)), 30)
            await _an_old_chain_is_refused(branch, old_chain, old_node)
            # Both keys have signed it, and the log says from which entry on it counts.
            await until(lambda: branch.replication.head(key).seq == hq.replication.head(key).seq > 1, 30)
            assert [row["by"] for row in await _keys(branch, "hq")] == [BOTH, "the pool key"]
            assert await _keys(branch, "hq") == await _keys(hq, None)
            assert (await branch.logs.verify("hq"))["ok"]
            # An offer from before cannot be gone on with: its nonce came from the old key.
            answer = await branch.administration.pools.pairing.answer(
                unanswered["offer"], name=None, by="test"
            )
            with pytest.raises(Exception, match="online key was replaced") as refused:
                await hq.administration.pools.pairing.confirm(answer["answer"], name=None, by="test")
            assert getattr(refused.value, "code", "") == "pairing-rotated"


async def test_a_rotation_is_said_once_and_an_old_key_signs_no_more(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "hq", store_dsn, name="hq-gate")
    make_directory(tmp_path / "hq", settings)
    async with running(settings) as hq:
        old = hq.parts.online
    rotate_online(tmp_path / "hq", now=time.time())
    for _ in range(2):  # a restart says nothing again
        async with running(settings) as hq:
            head = functools.partial(hq.replication.head, hq.parts.keys.pool_key)
            await until(lambda head=head: head().seq == 2, 20)
            assert [row["after"] for row in await _keys(hq, None)] == [0, None]
    async with running(settings) as hq:
        late = Sequencer(
            hq.parts.store.store, online=old, pool_key=hq.parts.keys.pool_key, gate="late", note=None
        )
        with pytest.raises(LogProblem, match="signs with the old one"):
            await _sign(hq, late)
        await _all_signed(hq)  # by hq itself: the log's end stays where it is now
        end = (await late.look()).own.head
        for signing in (late.erase([1], "too late"), late.open(end, "too late")):
            with pytest.raises(LogProblem, match="signs with the old one"):
                await signing
        assert (await late.look()).own.head == end
        assert (await hq.logs.verify(None))["ok"]


async def _sign(gate: Gate, sequencer: Sequencer) -> None:
    """Have another gate of the pool sign something; this one may be faster, so it is offered often."""
    for _ in range(50):
        async with gate.parts.store.store.transaction() as connection:
            await announce_node_revocation(connection, b"k" * 32, 1, "client")
        await sequencer.run_batch()


async def _all_signed(gate: Gate) -> None:
    async with asyncio.timeout(60), gate.parts.store.store.connection() as connection:
        while await outbox.waiting(connection):
            await asyncio.sleep(0.02)


def test_a_statement_needs_both_signatures() -> None:
    old, new = Identity.generate(), Identity.generate()
    statement = Rotation(b"p" * 32, old.verify_key, new.verify_key, 7, 12)
    said = statement.signed(old, new)
    assert read_rotation(b"p" * 32, said) == statement
    for changes in (
        {"old_signature": said["new_signature"]},
        {"new_signature": bytes(64)},
        {"after": 11},
        {"serial": True},
        {"new": old.verify_key},
        {"old": b"short"},
    ):
        with pytest.raises(RemoteProtocolError):
            read_rotation(b"p" * 32, {**said, **changes})
    with pytest.raises(RemoteProtocolError, match="does not hold"):
        read_rotation(b"q" * 32, said)


async def _keys(gate: Gate, pool: str | None) -> list[dict[str, Any]]:
    replicating = gate.governing.replicating
    return await replicating.vouching.keys_of(pool, replicating.pool_key)


async def _an_old_chain_is_refused(branch: Gate, chain: bytes, node: object) -> None:
    before = branch.authorisation.refused["superseded"]
    client = TunnelClient(
        identity=node,  # type: ignore[arg-type]
        chain=chain,
        gate=branch.gate_addresses()[0],
        settings=TunnelSettings(retry_min_s=0.02, retry_max_s=0.05),
        role="peer",
        next_timestamp=time.time_ns,
        on_state=lambda _client: None,
    )
    client.start()
    with pytest.raises(TunnelError):
        await client.wait_up(1.0)
    await client.close()
    assert branch.authorisation.refused["superseded"] > before


def _key(gate: Gate) -> bytes:
    return gate.parts.keys.pool_key


def test_nothing_is_rotated_without_the_pool_key(tmp_path: Path) -> None:
    settings = gate_settings(tmp_path / "hq", "postgresql://nobody@localhost/none")
    make_directory(tmp_path / "hq", settings)
    key = tmp_path / "hq" / "keys" / "pool.key"
    key.rename(tmp_path / "safe")
    with pytest.raises(NotFoundError, match="only the pool key certifies"):
        rotate_online(tmp_path / "hq", now=time.time())
    (tmp_path / "safe").rename(key)
    first = rotate_online(tmp_path / "hq", now=time.time())
    again = rotate_online(tmp_path / "hq", now=time.time())
    assert first.fingerprint != again.fingerprint
    keys = sorted(path.name for path in (tmp_path / "hq" / "keys").iterdir())
    assert "online.key.next" not in keys
    assert read_online((tmp_path / "hq" / "keys" / "online.cert").read_bytes()).verify_key
