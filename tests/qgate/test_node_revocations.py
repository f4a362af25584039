"""A pool takes back one of its nodes, and its peers refuse it at once, whatever they knew of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.federation.pairings import announce_node_revocation
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.peer_revocations import node_revocations
from tests.qgate.gates import Sidecar, control, until
from tests.qgate.log_pools import until as eventually
from tests.qgate.peering import pair, pools
from tunnel_proto.certificate import read_chain
from tunnel_proto.errors import TunnelError
from tunnel_proto.link import TunnelClient


def at(sidecar: Sidecar, gate: Gate) -> TunnelClient:
    """A node that goes to another pool's gate."""
    sidecar.bundle = dataclasses.replace(sidecar.bundle, gates=gate.gate_addresses())
    return sidecar.dial()


async def knows(gate: Gate, home: Gate, sidecar: Sidecar) -> None:
    pool, public = home.parts.keys.pool_key, sidecar.identity.handshake_public
    await until(lambda: gate.parts.directory.guest_node(pool, public) is not None, 30)


async def revoke(client: httpx.AsyncClient, name: str) -> None:
    reply = await client.delete(f"/sidecars/{name}")
    assert reply.is_success, reply.text


async def test_a_guest_whose_home_revokes_it_is_cut_off_at_once(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch), control(branch) as at_branch:
        lost, kept = Sidecar("laptop"), Sidecar("desktop")
        for sidecar in (lost, kept):
            await sidecar.enrol(at_branch)
        await pair(hq, branch)
        for sidecar in (lost, kept):
            await knows(hq, branch, sidecar)
        link, other = at(lost, hq), at(kept, hq)
        await link.wait_up(60)
        await other.wait_up(60)
        began = time.monotonic()
        await revoke(at_branch, "laptop")
        await until(lambda: link.state != "up")
        assert time.monotonic() - began < 20.0, "nobody waits for the next comparison"
        assert other.state == "up"
        refused = hq.authorisation.refused["revoked"]
        await until(lambda: hq.authorisation.refused["revoked"] > refused)
        for client in (link, other):
            await client.close()


async def test_a_revocation_counts_below_level_2_and_for_nodes_that_come_later(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch), control(branch) as at_branch:
        sidecar = Sidecar("laptop")
        await sidecar.enrol(at_branch)
        await pair(hq, branch, level=0)
        await revoke(at_branch, "laptop")
        pool, public = branch.parts.keys.pool_key, sidecar.identity.handshake_public
        serial = read_chain(sidecar.bundle.chain)[1].serial
        await until(lambda: hq.parts.directory.node_revoked(pool, public, serial), 30)
        assert not hq.parts.directory.node_revoked(pool, public, serial + 1), "enrolled again it is another"
        link = at(sidecar, hq)
        with pytest.raises(TunnelError):
            await link.wait_up(1.0)
        await link.close()
        await pair(hq, branch)  # raised: contents come, and what was said stays said
        assert hq.parts.directory.node_revoked(pool, public, serial)


async def test_what_a_peer_says_of_revocations_is_checked(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch)

        async def say(handshake: Any, serial: Any) -> None:
            async with branch.parts.store.store.transaction() as connection:
                await announce_node_revocation(connection, handshake, serial, "client")

        await say(b"k" * 32, 5)
        await say(b"k" * 32, 3)

        async def known() -> dict[tuple[bytes, bytes], int]:
            async with hq.parts.store.store.connection() as connection:
                return await node_revocations(connection)

        pool = branch.parts.keys.pool_key

        await say(b"l" * 32, 1)

        async def heard() -> bool:
            return (pool, b"l" * 32) in await known()

        await eventually(heard)
        before = {(pool, b"k" * 32): 5, (pool, b"l" * 32): 1}
        assert await known() == before, "an older word changes nothing"
        await say(b"short", 1)

        async def failed() -> bool:
            rows = (await hq.logs.status())["items"]
            return any(row["pool"] == "branch" and row["held"] for row in rows)

        await eventually(failed)
        assert await known() == before
