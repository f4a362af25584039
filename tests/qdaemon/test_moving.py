"""A worker between two pools, over real tunnels: whom it serves, whom it only stands by, and how it parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.qdaemon.gate import DAY, Mesh, WorkerGate, mesh
from tests.qdaemon.scripted import ScriptedRuntime
from tunnel_proto.certificate import issue_online
from tunnel_proto.identity import Identity
from tunnel_proto.messages import Report
from tunnel_proto.roster import Order, Roster, RosterPool, seal_order, seal_roster

GPU, ONLINE = Identity.generate(), Identity.generate()


@asynccontextmanager
async def two_pools(folder: Path, *, mode: str = "auto") -> AsyncIterator[tuple[Mesh, WorkerGate]]:
    """A worker at home with a roster that names gpu, and gpu's gate, which takes home's nodes."""
    async with mesh(folder, runtime=ScriptedRuntime()) as one:
        gpu = WorkerGate(folder, pool=one.gate.pool, name="gpu-1")
        await gpu.start()
        try:
            one.daemon.node.where.take_roster(roster(one, gpu, mode))
            yield one, gpu
        finally:
            await one.daemon.close()
            await gpu.stop()


def roster(one: Mesh, gpu: WorkerGate, mode: str) -> bytes:
    now, home = int(time.time()), one.gate.pool
    pools = (
        RosterPool(home.verify_key, "hq", (one.gate.address,)),
        RosterPool(GPU.verify_key, "gpu", (gpu.address,)),
    )
    return seal_roster(
        ONLINE, certificate(home), Roster(home.verify_key, "hq", 1, now, now + DAY, mode, pools)
    )


def certificate(pool: Identity) -> bytes:
    now = int(time.time())
    return issue_online(pool, ONLINE.verify_key, not_before=now - DAY, not_after=now + DAY, serial=1)


def ordered(one: Mesh, verb: str, target: bytes, number: int) -> bytes:
    now, home = int(time.time()), one.gate.pool
    order = Order(home.verify_key, home.verify_key, number, now, now + 60, verb, target)
    return seal_order(ONLINE, certificate(home), order)


def serving(one: Mesh) -> list[str]:
    return [link.gate.name for link in one.daemon.uplink.up()]


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_at_home_only_home_is_told_of_the_worker(tmp_path: Path) -> None:
    async with two_pools(tmp_path) as (one, gpu):
        assert serving(one) == ["hq"]
        assert gpu.session is None


async def test_a_dead_home_is_left_for_the_next_pool(tmp_path: Path) -> None:
    async with two_pools(tmp_path) as (one, gpu):
        await one.gate.stop()
        control = await gpu.reported()
        assert (await control.heard(Report)).full
        assert serving(one) == ["gpu-1"]
        assert [record.rule for record in one.daemon.node.where.journal] == ["emergency"]


async def test_a_standby_is_told_nothing_until_the_worker_is_ordered_there(tmp_path: Path) -> None:
    async with two_pools(tmp_path, mode="manual") as (one, gpu):
        await until(lambda: gpu.session is not None)
        assert gpu.control is None
        await one.gate.stop()
        await until(lambda: bool(one.daemon.node.where.journal))
        assert one.daemon.node.where.journal[0].rule == "target_dead"
        assert (serving(one), gpu.control) == ([], None)
        one.daemon.node.where.take_order(one.gate.pool.verify_key, ordered(one, "move", GPU.verify_key, 1))
        await gpu.reported()
        assert serving(one) == ["gpu-1"]
        await until(lambda: {record.rule for record in gpu.records} == {"target_dead", "order"})


async def test_a_pool_that_is_left_by_order_is_parted_from_and_gone_back_to(tmp_path: Path) -> None:
    async with two_pools(tmp_path) as (one, gpu):
        home = await one.gate.reported()
        one.daemon.node.where.take_order(one.gate.pool.verify_key, ordered(one, "move", GPU.verify_key, 1))
        await gpu.reported()
        await home.over()
        assert not any(report.draining for report in gpu.reports())
        assert serving(one) == ["gpu-1"]
        one.gate.forget()
        one.daemon.node.where.take_order(
            one.gate.pool.verify_key, ordered(one, "back", one.gate.pool.verify_key, 2)
        )
        again = await one.gate.reported()
        assert serving(one) == ["hq"]
        assert (await again.heard(Report)).full
