"""Gates of paired pools hold tunnels to each other, and carry what both sides allow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qgate.federation.links import Carrier
from qgate.federation.peer import Peer, Permissions
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import Ear, until
from tests.qgate.peering import know, meet, pair, peer_of, pools
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import Stream


class Hall:
    """Serves a kind of stream and remembers who came."""

    def __init__(self, gate: Gate, kind: str, flow: str) -> None:
        self.came: list[tuple[str, Ear, Stream]] = []
        gate.peering.links.serve(kind, flow, self._accept)

    def _accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        ear = Ear()
        stream.receiver = ear
        self.came.append((peer.name, ear, stream))


def key(gate: Gate) -> bytes:
    return gate.parts.keys.pool_key


async def test_paired_gates_reach_each_other_and_nobody_else(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch", "stranger") as (hq, branch, stranger):
        hall, other = Hall(hq, "test", "jobs"), Hall(branch, "test", "jobs")
        told: list[bytes] = []
        hq.peering.links.on_change(told.append)
        await pair(hq, branch)
        await know(stranger, peer_of(hq))  # one side alone pairs nobody
        await until(lambda: hq.peering.links.up(key(branch)) and branch.peering.links.up(key(hq)))
        assert key(branch) in told
        ear = Ear()
        stream = hq.peering.links.open(key(branch), "test", {"n": 1}, ear)
        stream.write(b"good morning")
        await until(lambda: other.came and other.came[0][1].data == b"good morning")
        name, _, arrived = other.came[0]
        assert (name, arrived.metadata) == ("hq", {"n": 1})
        arrived.write(b"to you too")
        await until(lambda: ear.data == b"to you too")
        await until(lambda: hq.authorisation.refused["unpaired"] > 0)
        assert not stranger.peering.links.up(key(hq))
        assert not hall.came
        assert [row["pool"] for row in hq.peering.links.state()] == ["branch"]
        with pytest.raises(LocalProtocolError, match="no stream of the kind"):
            hq.peering.links.open(key(stranger), "test", {}, Ear())


async def test_a_flow_needs_both_sides_and_lowering_cuts_it_at_once(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        for gate in (hq, branch):
            Hall(gate, "test", "jobs")
        await pair(hq, branch)
        links = hq.peering.links
        await until(lambda: links.up(key(branch)))
        kept = Ear()
        links.open(key(branch), "test", {}, kept)
        await know(branch, peer_of(hq, level=1))
        await until(kept.closed.is_set)
        assert kept.error is not None
        assert "no longer allowed" in kept.error.message
        refused = Ear()
        links.open(key(branch), "test", {}, refused)
        await until(refused.closed.is_set)
        assert refused.error is not None
        assert refused.error.message == "jobs is not accepted from your pool here"
        await know(hq, peer_of(branch, permissions=Permissions(deny_send=frozenset({"jobs"}))))
        with pytest.raises(LocalProtocolError, match="jobs may not go to the pool branch"):
            links.open(key(branch), "test", {}, Ear())


async def test_revocation_cuts_tunnels_and_keeps_the_pool_out(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        Hall(hq, "test", "jobs")
        Hall(branch, "test", "jobs")
        await pair(hq, branch)
        await until(lambda: hq.peering.links.up(key(branch)) and branch.peering.links.up(key(hq)))
        await know(branch, peer_of(hq, state="revoked", level=0))
        await until(lambda: not hq.peering.links.up(key(branch)))
        await until(lambda: not branch.tunnel.sessions and not hq.tunnel.sessions)
        await until(lambda: branch.authorisation.refused["revoked"] > 0)


async def test_who_was_unpaired_is_told_and_who_was_never_paired_is_not(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch", "stranger") as (hq, branch, stranger):
        await pair(hq, branch)
        await know(stranger, peer_of(branch))
        await until(lambda: hq.peering.links.up(key(branch)))
        await hq.parts.watch.refresh()
        await know(branch, peer_of(hq, state="unpaired", level=0))
        await until(
            lambda: hq.peering.links.problem(key(branch)).endswith("refuses this node for now: unpaired")
        )
        await know(branch, peer_of(hq, state="paired"))
        await until(lambda: hq.peering.links.up(key(branch)))
        assert "unpaired" not in stranger.peering.links.problem(key(branch))


async def test_any_pool_sees_who_is_paired_with_whom_and_trusts_nobody_for_it(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "gpu", "branch") as (hq, gpu, branch):
        await meet(hq, gpu)
        await meet(hq, branch)

        async def paired_with(gate: Gate, name: str) -> list[str]:
            return list((await gate.administration.pools.show(name))["paired_with"])

        await eventually(lambda: paired_with(gpu, "hq"), ["branch", "gpu"])
        await eventually(lambda: paired_with(branch, "hq"), ["branch", "gpu"])
        assert gpu.parts.directory.peer(key(branch)) is None
        await until(lambda: hq.replication.head(key(branch)).seq > 0)
        await hq.administration.pools.revoke("branch", by="test")
        await eventually(lambda: paired_with(gpu, "hq"), ["gpu"])
        async with hq.parts.store.store.connection() as connection:
            kept = await connection.fetchval("SELECT last_accepted FROM peers WHERE name = 'branch'")
        assert kept["seq"] > 0


async def eventually(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Wait until an answer is the one that is wanted."""
    async with asyncio.timeout(60):
        while await ask() != wanted:
            await asyncio.sleep(0.02)


async def test_a_pool_that_cannot_be_dialled_is_reached_over_its_own_tunnel(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        Hall(hq, "test", "jobs")
        hall = Hall(branch, "test", "jobs")
        await know(hq, peer_of(branch, gates=()))
        await know(branch, peer_of(hq))
        await until(lambda: hq.peering.links.up(key(branch)))
        hq.peering.links.open(key(branch), "test", {}, Ear()).write(b"hello")
        await until(lambda: hall.came and hall.came[0][1].data == b"hello")
        await know(branch, peer_of(hq, level=0))
        await until(hall.came[0][1].closed.is_set)
