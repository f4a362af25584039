"""Scheduled orders: carried out once, in time, by one gate; or missed, and somebody hears of it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qgate.federation.peer import Peer
from qgate.governance.authors import author_problem
from qgate.governance.orders import Kind, Orders
from qgate.governance.principal import Role
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.store.admins import add_admin
from tests.qgate.gates import control, gate_settings, make_directory, running, until
from tests.qgate.pool import BY, DAY, Pool
from tunnel_proto.enrolment import make_offer
from tunnel_proto.errors import MeshError
from tunnel_proto.identity import Identity


class Bell:
    """Something that can be ordered."""

    def __init__(self) -> None:
        self.rung: list[tuple[Any, str]] = []
        self.broken = ""
        self.away = ""
        self.hold: asyncio.Event | None = None

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if "times" not in arguments:
            raise InvalidRequestError("how often?")
        return {"times": int(arguments["times"])}

    def able(self, arguments: Mapping[str, Any]) -> str:
        del arguments
        return self.away

    async def do(self, arguments: Mapping[str, Any], by: str) -> str:
        self.rung.append((arguments["times"], by))
        if self.hold is not None:
            await self.hold.wait()
        if self.broken:
            raise MeshError(self.broken)
        return f"rung {arguments['times']} times"

    def kind(self) -> Kind:
        return Kind("ring", "ring the bell", self.check, self.able, self.do)


@dataclasses.dataclass
class Tower:
    """Two gates of one pool with one bell."""

    pool: Pool
    bell: Bell
    gates: tuple[Orders, Orders]
    incidents: list[tuple[str, str, Mapping[str, Any]]]

    async def add(self, in_s: float = 60.0, **fields: Any) -> int:
        row = await self.gates[0].add("ring", {"times": 3}, at=self.pool.clock.now + in_s, by=BY, **fields)
        return int(row["number"])

    async def look(self) -> list[list[int]]:
        return [await one.look() for one in self.gates]


@pytest.fixture
def tower(pool: Pool) -> Tower:
    bell, incidents = Bell(), []

    async def raise_incident(kind: str, subject: str, evidence: Mapping[str, Any]) -> None:
        incidents.append((kind, subject, evidence))

    gates = tuple(
        Orders(pool.office, name, {"ring": bell.kind()}, raise_incident) for name in ("gate-1", "gate-2")
    )
    assert len(gates) == 2
    return Tower(pool, bell, (gates[0], gates[1]), incidents)


async def test_it_is_carried_out_once_at_its_time(tower: Tower) -> None:
    number = await tower.add(reason="maintenance")
    assert await tower.look() == [[], []]
    tower.pool.clock.now += 61
    assert sorted(map(len, await asyncio.gather(*(one.look() for one in tower.gates)))) == [0, 1]
    assert await tower.look() == [[], []]
    assert tower.bell.rung == [(3, f"order {number} of {BY}")]
    row = await tower.gates[0].show(number)
    assert (row["state"], row["outcome"], row["reason"]) == ("done", "rung 3 times", "maintenance")
    assert [what for what, _ in await tower.pool.told()] == ["order.add", "order.run"]
    assert await tower.gates[0].list() == []
    assert [one["number"] for one in await tower.gates[0].list(all_=True)] == [number]


async def test_the_one_gate_that_can_does_it(tower: Tower) -> None:
    number = await tower.add(0)
    tower.bell.away = "the bell is elsewhere"
    assert await tower.look() == [[], []]
    tower.bell.away = ""
    assert await tower.gates[1].look() == [number]
    assert (await tower.gates[0].show(number))["gate"] == "gate-2"


async def test_what_nobody_can_do_in_time_is_missed_and_an_incident(tower: Tower) -> None:
    number = await tower.add(0)
    tower.bell.away = "the bell is elsewhere"
    await tower.look()
    tower.pool.clock.now += 299
    await tower.look()
    assert (await tower.gates[0].show(number))["state"] == "waiting"
    tower.pool.clock.now += 2
    await asyncio.gather(*(one.look() for one in tower.gates))
    row = await tower.gates[0].show(number)
    assert (row["state"], row["outcome"]) == ("missed", "the bell is elsewhere")
    assert [(kind, subject) for kind, subject, _ in tower.incidents] == [("order_missed", f"order {number}")]
    tower.bell.away = ""
    await tower.look()
    assert tower.bell.rung == []


async def test_what_was_due_while_every_gate_was_away_is_not_done_late(tower: Tower) -> None:
    number = await tower.add(60)
    tower.pool.clock.now += DAY
    await tower.look()
    assert (await tower.gates[0].show(number))["outcome"] == "no gate was there at its time"
    assert len(tower.incidents) == 1


async def test_while_the_automation_is_off_they_are_missed(tower: Tower) -> None:
    await tower.pool.settings.set("automation.orders", False, by=BY)
    number = await tower.add(0)
    await tower.look()
    tower.pool.clock.now += 400
    await tower.look()
    assert (await tower.gates[0].show(number))["outcome"] == "automation.orders is off"


async def test_one_that_fails_says_why_and_is_not_tried_again(tower: Tower) -> None:
    number = await tower.add(0)
    tower.bell.broken = "the rope broke"
    await tower.look()
    await tower.look()
    row = await tower.gates[0].show(number)
    assert (row["state"], row["outcome"], len(tower.bell.rung)) == ("failed", "the rope broke", 1)
    assert tower.incidents[0][0] == "order_failed"


async def test_a_gate_that_ends_in_the_middle_leaves_it_failed(tower: Tower) -> None:
    number = await tower.add(0)
    tower.bell.hold = asyncio.Event()
    task = asyncio.create_task(tower.gates[0].look())
    async with asyncio.timeout(60):
        while not tower.bell.rung:
            await asyncio.sleep(0.01)
    await tower.gates[1].look()
    assert (await tower.gates[1].show(number))["state"] == "running"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await tower.gates[1].look()
    row = await tower.gates[1].show(number)
    assert (row["state"], len(tower.bell.rung)) == ("failed", 1)
    assert "gate-1 ended in the middle" in row["outcome"]
    assert tower.incidents[0][0] == "order_failed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE admins SET disabled_at = now() WHERE name = 'alice'", "was disabled since"),
        ("UPDATE admins SET role = 'viewer' WHERE name = 'alice'", "is viewer now"),
        ("DELETE FROM admins WHERE name = 'alice'", "no admin of this pool any more"),
        ("UPDATE admins SET created_at = created_at + interval '1 day'", "no admin of this pool any more"),
        ("", ""),
    ],
)
async def test_one_of_somebody_who_may_not_any_more_is_missed(tower: Tower, change: str, words: str) -> None:
    now = tower.pool.office.now()
    async with tower.pool.store.transaction() as connection:
        assert await add_admin(connection, "alice", "operator", "no verifier", at=now, by=BY)
    orders = tower.gates[0]
    row = await orders.add("ring", {"times": 1}, at=tower.pool.clock.now + 60, by="alice")
    if change:
        async with tower.pool.store.transaction() as connection:
            await connection.execute(change)
    tower.pool.clock.now += 61
    await asyncio.gather(*(one.look() for one in tower.gates))
    after = await orders.show(row["number"])
    if not words:
        assert (after["state"], len(tower.bell.rung), tower.incidents) == ("done", 1, [])
        return
    assert (after["state"], tower.bell.rung) == ("missed", [])
    assert words in after["outcome"]
    assert [(kind, evidence["saw"]) for kind, _, evidence in tower.incidents] == [
        ("order_missed", after["outcome"])
    ]


async def test_one_of_a_paired_pools_admin_needs_that_pools_trust(tower: Tower) -> None:
    office = tower.pool.office
    given = office.now()
    paired = Peer(bytes(32), "hq", level=4, paired_at=given.timestamp() - DAY)

    async def problem(peer: Peer | None, need: Role = Role.OPERATOR) -> str:
        peers = {} if peer is None else {peer.pool_key: peer}
        office.directory.replace(dataclasses.replace(office.directory.snapshot, peers=peers))
        async with tower.pool.store.connection() as connection:
            return await author_problem(office, connection, "alice@hq", since=given, need=need)

    assert await problem(paired) == ""
    assert "is not paired any more" in await problem(None)
    assert "is not paired any more" in await problem(dataclasses.replace(paired, state="unpaired"))
    later = dataclasses.replace(paired, paired_at=given.timestamp() + 60)
    assert "is not paired any more" in await problem(later)
    assert "is not trusted" in await problem(dataclasses.replace(paired, level=3))
    assert "admins of hq are operator here" in await problem(paired, Role.ADMIN)


async def test_it_can_be_cancelled_until_it_begins(tower: Tower) -> None:
    number = await tower.add(60)
    assert (await tower.gates[1].cancel(number, by="bob"))["state"] == "cancelled"
    tower.pool.clock.now += 61
    await tower.look()
    assert tower.bell.rung == []
    with pytest.raises(ConflictError, match="cancelled already"):
        await tower.gates[0].cancel(number, by=BY)
    with pytest.raises(UnknownNameError):
        await tower.gates[0].cancel(number + 1, by=BY)


async def test_what_can_never_be_done_is_refused(tower: Tower) -> None:
    orders, now = tower.gates[0], tower.pool.clock.now
    for what, arguments, at, words in (
        ("sing", {}, now, "choose from ring"),
        ("ring", {}, now, "how often"),
        ("ring", {"times": 1}, now - 60, "is past"),
        ("ring", {"times": 1}, now + 400 * DAY, "366 days"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            await orders.add(what, arguments, at=at, by=BY)
        assert words in f"{refused.value.message} {refused.value.hint}"
    assert await orders.list(all_=True) == []


async def test_a_dry_run_keeps_nothing(tower: Tower) -> None:
    tower.bell.away = "the bell is elsewhere"
    seen = await tower.gates[0].add("ring", {"times": 1}, at=tower.pool.clock.now, dry_run=True, by=BY)
    assert (seen["able_now"], seen["problem"]) == (False, "the bell is elsewhere")
    assert await tower.gates[0].list(all_=True) == []


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        kinds = {row["what"] for row in (await client.get("/orders/kinds")).json()["items"]}
        assert kinds == {"failover", "drain", "undrain", "mode"}
        order = {"what": "mode", "arguments": {"mode": "manual"}, "in_s": 0.2}
        made = await client.post("/orders", json=order)
        assert made.status_code == 201, made.text
        await until(lambda: gate.parts.directory.setting("failover.mode") == "manual")
        changes = (await client.get("/settings/history", params={"name": "failover.mode"})).json()["items"]
        assert changes[0]["by"] == f"order {made.json()['number']} of {made.json()['by']}"
        unknown = await client.post("/orders", json={"what": "drain", "arguments": {"worker": "nobody"}})
        assert (unknown.status_code, unknown.json()["next"]) == (404, "meshctl worker list")
        refused = await client.post("/orders", json={"what": "mode", "arguments": {"mode": "manual", "x": 1}})
        assert refused.status_code == 422
        assert (await client.delete("/orders/999")).status_code == 404


async def test_a_worker_and_a_pool_are_checked_when_the_order_is_given(
    tmp_path: Path, store_dsn: str
) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        offer = make_offer(Identity.generate(), role="daemon", name="gpu-1", now=time.time())
        assert (await client.post("/sidecars", json={"offer": offer})).status_code == 201
        drain = {"what": "drain", "arguments": {"worker": "gpu-1"}, "in_s": 60}
        seen = (await client.post("/orders", json={**drain, "dry_run": True})).json()
        assert (seen["able_now"], "not connected" in seen["problem"]) == (False, True)
        made = await client.post("/orders", json=drain)
        assert (made.status_code, made.json()["arguments"]) == (201, {"worker": "gpu-1"})
        move = {"what": "failover", "arguments": {"pool": "hq"}, "in_s": 60}
        refused = await client.post("/orders", json=move)
        assert (refused.status_code, refused.json()["next"]) == (404, "meshctl pool list")
        gone = await client.delete(f"/orders/{made.json()['number']}")
        assert gone.json()["state"] == "cancelled"
