"""A pool of several gates to its peers: the next gate takes over, and addresses settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from qgate.store.embedded import EmbeddedPostgres
from qgate.store.peers import put_own_pool
from tests.qgate.gates import gate_settings, make_directory, running, until
from tests.qgate.peering import hasten, know, meet, peer_of, pools
from tests.qgate.test_siblings import join


async def settled(look: Callable[[], object], still_s: float = 3.0) -> None:
    """Wait until what is seen has not changed for a while: here more than one telling of both gates."""
    seen, since = look(), time.monotonic()
    async with asyncio.timeout(60):
        while time.monotonic() - since < still_s:
            await asyncio.sleep(0.05)
            if (now := look()) != seen:
                seen, since = now, time.monotonic()


async def test_the_next_gate_of_a_peer_is_dialled_when_the_first_is_gone(
    tmp_path: Path, store_server: EmbeddedPostgres, store_dsn: str
) -> None:
    first = gate_settings(tmp_path / "one", store_dsn, name="one")
    make_directory(tmp_path / "one", first)
    async with pools(tmp_path, store_server, "branch") as (branch,):
        await hasten(branch)
        async with running(first) as one:
            await hasten(one)
            async with one.parts.store.store.transaction() as connection:
                await put_own_pool(connection, "hq", "headquarters", one.administration.office.now())
            await one.parts.watch.refresh()
            second = join(tmp_path / "one", tmp_path / "two", store_dsn, "two")
            async with running(second) as two:
                await meet(one, branch, level=1)
                key, links = one.parts.keys.pool_key, branch.peering.links
                own = branch.parts.keys.pool_key

                def gates() -> list[str]:
                    peer = branch.parts.directory.peer(key)
                    return [] if peer is None else sorted(gate.name for gate in peer.gates)

                def heard() -> set[str]:
                    held = branch.peering.vitals.heard.get(key)
                    return set() if held is None else set(held.newest)

                def dialled() -> dict[str, str]:
                    rows = {row["pool"]: row["dialled"] for row in links.state()}
                    return {one["gate"]: one["state"] for one in rows.get("hq", ())}

                # Both gates beat, each from its own point of view, and the branch learns one list of both.
                await until(lambda: gates() == ["one", "two"], 20)
                await until(lambda: heard() == {"one", "two"}, 20)
                # The branch's tunnel leads to the first only, and the second, which dialled, hears it too.
                for gate in (one, two):
                    await until(lambda at=gate: at.peering.vitals.heard.get(own) is not None, 20)
                    standing = gate.peering.vitals.standing(own)
                    assert standing is not None
                    assert standing.state == "alive"
                await until(lambda: dialled().get("one") == "up", 20)
                await settled(lambda: branch.parts.directory.peer(key))
                assert gates() == ["one", "two"]
                await one.tunnel.close()
                await until(lambda: dialled().get("two") == "up", 20)
                assert links.up(key)
                assert two.peering.links.up(branch.parts.keys.pool_key)


async def test_a_peers_clock_that_is_off_is_told_and_decides_nothing(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        for gate in (hq, branch):
            await hasten(gate)
        branch.peering.vitals.clock = lambda: hq.administration.office.clock() - 600
        await know(hq, peer_of(branch, level=1))
        await know(branch, peer_of(hq, level=1))
        key = branch.parts.keys.pool_key
        await until(lambda: hq.peering.liveness(key)["problem"] == "its clock is -600 s off ours", 20)
        row = hq.peering.liveness(key)
        assert (row["link"], row["health"]) == ("up", "alive")
