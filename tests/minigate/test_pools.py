"""Which pool takes an app's stream, as pools come and go; what becomes of those that stay behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from minigate import pools as pools_module
from minigate.pools import Pools
from tests.minigate.conftest import until
from tests.minigate.gates import RecordedGate, address
from tunnel_proto.certificate import issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.failover import Ready
from tunnel_proto.identity import Identity
from tunnel_proto.link import TunnelClient
from tunnel_proto.roster import ROSTER_LIFE_S, Order, Roster, RosterPool, seal_order, seal_roster
from tunnel_proto.whereabouts import ROSTER_FILE, STATE_FILE, Whereabouts

HQ, GPU, BRANCH, HQ_ONLINE, GPU_ONLINE = (
    Identity(bytes((n,)) * 32, bytes((n + 1,)) * 32) for n in (1, 3, 5, 7, 9)
)
GATES = {
    HQ.verify_key: address("hq-1"),
    GPU.verify_key: address("gpu-1", "10.0.0.2"),
    BRANCH.verify_key: address("branch-1", "10.0.0.3"),
}
NAMES = {HQ.verify_key: "hq", GPU.verify_key: "gpu", BRANCH.verify_key: "branch"}


def sealed_roster(*pools: Identity, mode: str = "auto", serial: int = 1, issued: int | None = None) -> bytes:
    now = int(time.time()) if issued is None else issued
    certificate = issue_online(HQ, HQ_ONLINE.verify_key, not_before=0, not_after=2**40, serial=1)
    listed = tuple(
        RosterPool(pool.verify_key, NAMES[pool.verify_key], (GATES[pool.verify_key],))
        for pool in (HQ, *pools)
    )
    roster = Roster(HQ.verify_key, "hq", serial, now, now + ROSTER_LIFE_S, mode, listed)
    return seal_roster(HQ_ONLINE, certificate, roster)


def sealed_order(verb: str, target: Identity, number: int) -> bytes:
    now = int(time.time())
    certificate = issue_online(GPU, GPU_ONLINE.verify_key, not_before=0, not_after=2**40, serial=1)
    order = Order(
        GPU.verify_key, HQ.verify_key, number, now, now + 600, verb, target.verify_key, ("laptop",), "uid=0"
    )
    return seal_order(GPU_ONLINE, certificate, order)


class Setup:
    def __init__(self, directory: Path) -> None:
        self.made: list[tuple[bytes, RecordedGate]] = []
        self.ups = 0
        self.directory = directory
        self.where = Whereabouts(
            directory,
            pool_key=HQ.verify_key,
            node="laptop",
            home=(GATES[HQ.verify_key],),
            share=0.0,
            act=self._act,
        )
        self.pools = Pools(self.connect, self._up, asyncio.get_running_loop(), self.where, failover_s=0.05)

    def _act(self, ready: Ready) -> None:
        self.pools.act(ready)

    def connect(self, pool: bytes, gate: GateAddress, chain: bytes, on_state: object) -> TunnelClient:
        client = RecordedGate(gate, on_state)  # type: ignore[arg-type]
        self.made.append((pool, client))
        return client

    def _up(self) -> None:
        self.ups += 1

    def gate(self, pool: Identity) -> RecordedGate:
        return next(client for key, client in reversed(self.made) if key == pool.verify_key)

    def dialled(self) -> set[str]:
        return {NAMES[key] for key, _ in self.made}

    def used(self) -> str:
        client = self.pools.available()
        return client.gate.name if client is not None else ""


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    one = Setup(tmp_path)
    one.pools.open(b"chain")
    yield one
    for _, client in one.made:
        client.alive.clear()
    await one.pools.close(0)


async def test_without_a_roster_there_is_only_home(setup: Setup) -> None:
    setup.gate(HQ).become("up")
    assert (setup.used(), setup.dialled()) == ("hq-1", {"hq"})
    setup.gate(HQ).become("lost", "reset")
    setup.gate(HQ).become("lost", "connection refused")
    await asyncio.sleep(0.5)
    assert setup.dialled() == {"hq"}
    assert setup.pools.outage().sqlstate == "08006"


async def test_a_dead_home_is_left_at_once_and_returned_to_later(setup: Setup) -> None:
    setup.where.take_roster(sealed_roster(GPU, BRANCH))
    setup.gate(HQ).become("up")
    assert setup.dialled() == {"hq"}
    setup.gate(HQ).become("lost", "reset")
    assert setup.used() == ""
    setup.gate(HQ).become("lost", "connection refused")
    assert setup.dialled() == {"hq", "gpu"}
    ups = setup.ups
    setup.gate(GPU).become("up")
    assert (setup.used(), setup.ups > ups) == ("gpu-1", True)
    setup.gate(HQ).become("up")
    assert setup.used() == "gpu-1", "home has to prove itself first"
    assert [row["pool"] for row in setup.pools.pools() if row["used"]] == ["gpu"]


async def test_a_home_that_only_answers_late_is_doubted_and_kept(setup: Setup) -> None:
    setup.where.take_roster(sealed_roster(GPU))
    setup.pools.failover_s = 60
    for uplink in setup.pools._uplinks.values():
        uplink.failover_s = 60
    setup.gate(HQ).become("up")
    setup.gate(HQ).become("lost", "reset")
    await until(lambda: "gpu" in setup.dialled())  # 0.25 s into the doubt
    setup.gate(GPU).become("up")
    assert setup.used() == ""
    setup.gate(HQ).become("up")
    assert setup.used() == "hq-1"


async def test_where_it_was_is_known_after_a_restart(setup: Setup, tmp_path: Path) -> None:
    setup.where.take_roster(sealed_roster(GPU))
    setup.gate(HQ).become("up")
    setup.gate(HQ).become("closed", "gone")
    setup.gate(GPU).become("up")
    assert setup.used() == "gpu-1"
    again = Setup(tmp_path)
    again.pools.open(b"chain")
    assert again.where.target == GPU.verify_key
    assert again.dialled() == {"hq", "gpu"}
    assert [record.rule for record in again.where.journal] == ["emergency"]
    await again.pools.close(0)


async def test_damaged_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text('{"machine": {"version": 1}, "journal": [')
    (tmp_path / ROSTER_FILE).write_bytes(sealed_roster(GPU)[:-7])
    setup = Setup(tmp_path)
    setup.pools.open(b"chain")
    assert (setup.where.target, setup.dialled()) == (HQ.verify_key, {"hq"})
    await setup.pools.close(0)


async def test_the_bundles_roster_helps_a_node_that_was_never_at_home(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.pools.open(b"chain", sealed_roster(GPU, serial=5))
    setup.gate(HQ).become("closed", "no route to host")
    setup.gate(GPU).become("up")
    assert setup.used() == "gpu-1"
    await setup.pools.close(0)


async def test_the_newer_of_two_rosters_counts(tmp_path: Path) -> None:
    (tmp_path / ROSTER_FILE).write_bytes(sealed_roster(BRANCH, serial=6))
    setup = Setup(tmp_path)
    setup.pools.open(b"chain", sealed_roster(GPU, serial=5))
    assert setup.where.standing().serial == 6
    await setup.pools.close(0)


async def test_a_roster_that_has_expired_leaves_only_home(tmp_path: Path) -> None:
    (tmp_path / ROSTER_FILE).write_bytes(sealed_roster(GPU, issued=int(time.time()) - ROSTER_LIFE_S - 10))
    setup = Setup(tmp_path)
    setup.pools.open(b"chain")
    assert setup.where.alone()
    await setup.pools.close(0)


async def test_manual_mode_keeps_a_standby_by_which_it_is_ordered(setup: Setup) -> None:
    setup.where.take_roster(sealed_roster(GPU, mode="manual"))
    setup.gate(HQ).become("up")
    assert setup.dialled() == {"hq", "gpu"}
    setup.gate(GPU).become("up")
    setup.gate(HQ).become("lost", "reset")
    setup.gate(HQ).become("lost", "no route to host")
    assert setup.used() == ""
    assert [record.rule for record in setup.where.journal] == ["target_dead"]
    setup.where.take_order(GPU.verify_key, sealed_order("move", GPU, 1))
    assert setup.used() == "gpu-1"
    assert setup.where.standing().pinned


async def test_a_pool_that_the_roster_drops_is_left(setup: Setup) -> None:
    setup.where.take_roster(sealed_roster(GPU, BRANCH))
    setup.gate(HQ).become("closed", "gone")
    setup.gate(GPU).become("up")
    assert setup.used() == "gpu-1"
    setup.where.take_roster(sealed_roster(BRANCH, serial=2))
    assert setup.used() != "gpu-1"
    await until(lambda: setup.gate(BRANCH).state == "connecting")
    setup.gate(BRANCH).become("up")
    assert setup.used() == "branch-1"


async def test_tunnels_that_nobody_wants_are_left_after_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "LEAVE_S", 0.05)
    setup.where.take_roster(sealed_roster(GPU))
    setup.gate(HQ).become("up")
    setup.gate(HQ).become("lost", "reset")
    await until(lambda: "gpu" in setup.dialled())
    setup.gate(HQ).become("up")
    await until(lambda: setup.gate(GPU).state == "closed")
    assert setup.used() == "hq-1"


async def test_gates_of_a_newer_roster_are_added_to_the_bundles(setup: Setup) -> None:
    added = GateAddress("hq-2", "10.0.0.9", 7443, b"n" * 32)
    certificate = issue_online(HQ, HQ_ONLINE.verify_key, not_before=0, not_after=2**40, serial=1)
    now = int(time.time())
    pool = RosterPool(HQ.verify_key, "hq", (added, GATES[HQ.verify_key]))
    roster = Roster(HQ.verify_key, "hq", 1, now, now + 60, "auto", (pool,))
    setup.where.take_roster(seal_roster(HQ_ONLINE, certificate, roster))
    assert [link.gate.name for link in setup.pools.links] == ["hq-1", "hq-2"]


async def test_counters_and_clients_of_all_pools_are_one(setup: Setup) -> None:
    setup.where.take_roster(sealed_roster(GPU, mode="manual"))
    setup.gate(HQ).stats.bytes_wire_in = 3
    setup.gate(GPU).stats.bytes_wire_in = 4
    assert setup.pools.ledger.totals(setup.pools.clients())["bytes_wire_in"] == 7
