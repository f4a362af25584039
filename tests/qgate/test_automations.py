"""Automations: each has a switch and says what it would do; those that run here do so on one gate."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from qgate.federation.peer import Peer
from qgate.governance.automations import Automation, Automations
from qgate.governance.inactive import InactivePeers
from qgate.governance.pools import Pools
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.governance.standing_offers import StandingOffers
from qgate.store.peers import put_peer
from tests.qgate.gates import control, gate_settings, make_directory, running
from tests.qgate.pool import BY, DAY, GATE, Pool


@dataclasses.dataclass
class Mower:
    """An automation that counts."""

    done: int = 0
    grass: str = "high"
    slow: asyncio.Event | None = None

    async def preview(self) -> list[str]:
        return [f"the grass is {self.grass}"] if self.grass else []

    async def run(self) -> str:
        if self.slow is not None:
            await self.slow.wait()
        if not self.grass:
            return ""
        self.done += 1
        self.grass = ""
        return "mown"


def automations(pool: Pool, mower: Mower, gate: str = "gate-1") -> Automations:
    made = Automation("mower", "automation.pairing_offers", "mows", 0.01, mower.preview, run=mower.run)
    shown = Automation("sun", "automation.fanout", "shines", 0.0, mower.preview)
    return Automations(pool.office, gate, pool.settings, {"mower": made, "sun": shown})


async def test_it_says_what_it_would_do_and_what_it_did(pool: Pool) -> None:
    mower = Mower()
    kept = automations(pool, mower)
    row = await kept.show("mower")
    assert (row["on"], row["would"], row["last_outcome"]) == (False, ["the grass is high"], None)
    assert (await kept.run_now("mower", by=BY))["outcome"] == "mown"
    assert (await kept.run_now("mower", by=BY))["outcome"] == "nothing to do"
    sibling = automations(pool, Mower(), "gate-2")
    row = next(row for row in await sibling.list() if row["name"] == "mower")
    assert (row["last_outcome"], row["last_gate"], row["last_ok"]) == ("mown", "gate-1", True)
    with pytest.raises(ConflictError, match="runs by itself"):
        await kept.run_now("sun", by=BY)
    with pytest.raises(UnknownNameError, match="no automation rain"):
        await kept.show("rain")


async def test_it_runs_while_its_switch_is_on(pool: Pool) -> None:
    mower = Mower()
    kept = automations(pool, mower)
    task = asyncio.create_task(kept.run())
    await asyncio.sleep(0.05)
    assert mower.done == 0
    row = await kept.switch("mower", on=True, by=BY)
    assert (row["on"], pool.directory.setting("automation.pairing_offers")) == (True, True)
    async with asyncio.timeout(60):
        while not mower.done:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_two_gates_do_not_do_it_at_once(pool: Pool) -> None:
    slow = asyncio.Event()
    first, second = automations(pool, Mower(slow=slow)), automations(pool, Mower(), "gate-2")
    task = asyncio.create_task(first.run_now("mower", by=BY))
    async with asyncio.timeout(60):
        while True:
            try:
                await second.run_now("mower", by=BY)
            except ConflictError:
                break
            await asyncio.sleep(0.01)
    slow.set()
    assert (await task)["outcome"] == "mown"


async def test_one_that_is_cut_off_ends_as_it_was_told(pool: Pool) -> None:
    task = asyncio.create_task(automations(pool, Mower(slow=asyncio.Event())).run_now("mower", by=BY))
    second = automations(pool, Mower(grass=""), "gate-2")
    async with asyncio.timeout(60):
        while await second._once(second.each["mower"]) is not None:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await automations(pool, Mower()).run_now("mower", by=BY))["outcome"] == "mown", "it holds no lock"


async def test_one_offer_is_always_open(pool: Pool) -> None:
    pools = Pools(pool.office)
    await pools.name("berlin", "pool", by=BY)
    offers = StandingOffers(pool.office, pools.pairing)
    assert await offers.lacking() == "no offer is open"
    assert (await offers.renew()).startswith("made the offer")
    assert await offers.renew() == ""
    pool.clock.now = time.time() + 10 * DAY
    assert (await offers.renew()).startswith("made the offer")


async def test_pools_that_were_not_seen_for_long_are_unpaired(pool: Pool) -> None:
    up: set[bytes] = set()
    for number, name in enumerate(("seen", "gone", "carried"), 1):
        peer = Peer(
            bytes([number]) * 32,
            name,
            level=2,
            gates=() if name == "carried" else (GATE,),
            paired_at=pool.clock.now,
            online_certificate=pool.certificate,
        )
        async with pool.store.transaction() as connection:
            await put_peer(connection, peer, pool.office.now())
    await pool.watch.refresh()
    pools = Pools(pool.office)
    peers = InactivePeers(pool.office, pools, up=up.__contains__)
    up.add(b"\1" * 32)
    pool.clock.now += 89 * DAY
    await peers.look()
    up.clear()
    assert await peers.gone() == []
    pool.clock.now += 2 * DAY
    assert await peers.gone() == ["gone"]
    assert await peers.purge() == "unpaired gone"
    assert await peers.purge() == ""
    states = {row["name"]: row["state"] for row in await pools.list()}
    assert states == {"seen": "paired", "gone": "unpaired", "carried": "paired"}
    told = [one for one in await pool.told() if one[0] == "pool.unpair"]
    assert told == [("pool.unpair", "gone")]


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        rows = {row["name"]: row for row in (await client.get("/automations")).json()["items"]}
        assert set(rows) == {
            "balancer",
            "migrations",
            "replication",
            "failsafe",
            "pairing-offers",
            "purge-peers",
            "fan-out",
            "smart-routing",
        }
        for name, row in rows.items():
            shown = (await client.get(f"/automations/{name}")).json()
            assert isinstance(shown["would"], list)
            for on in (not row["on"], row["on"]):
                done = await client.put(f"/automations/{name}", json={"on": on})
                assert (done.status_code, done.json()["on"]) == (200, on), done.text
        ran = await client.post("/automations/purge-peers/run")
        assert ran.json() == {"name": "purge-peers", "outcome": "nothing to do"}
        assert (await client.post("/automations/balancer/run")).status_code == 409
        assert (await client.post("/automations/rain/run")).status_code == 404
