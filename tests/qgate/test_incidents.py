"""The journal of a pool over a real store: moves, incidents, answers, and the failsafe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qgate.federation.incidents import Journal
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.governance.registry import DEFAULTS
from tests.qgate.pool import Pool
from tunnel_proto.movement import Record

HQ, GPU = (bytes((n,)) * 32 for n in (1, 2))
NAMES = {HQ: "hq", GPU: "gpu"}


class Desk:
    """A journal whose settings and clock the test holds."""

    def __init__(self, pool: Pool) -> None:
        self.clock = pool.clock
        self.settings: dict[str, Any] = dict(DEFAULTS)
        self.journal = Journal(
            pool.store,
            gate="gpu-1",
            name=lambda key: NAMES.get(key, "?"),
            setting=self.settings.__getitem__,
            clock=self.clock,
        )
        self.number = 0

    def record(self, kind: str, rule: str, source: bytes = HQ, to: bytes = GPU, cause: str = "") -> Record:
        self.number += 1
        return Record(self.number.to_bytes(16, "big"), self.clock(), kind, rule, source, to, cause, "")

    async def hear(self, *records: Record, node: str = "laptop") -> None:
        await self.journal.take(records, node=node, role="client", home=HQ)


@pytest.fixture
def desk(pool: Pool) -> Desk:
    return Desk(pool)


async def test_moves_are_kept_once_and_shown_newest_first(desk: Desk) -> None:
    first = desk.record("move", "emergency", cause="connection refused")
    await desk.hear(first)
    desk.clock.now += 60
    await desk.hear(first, desk.record("move", "return", GPU, HQ))
    rows = await desk.journal.history()
    assert [(row["rule"], row["from"], row["to"]) for row in rows] == [
        ("return", "gpu", "hq"),
        ("emergency", "hq", "gpu"),
    ]
    assert rows[1]["cause"] == "connection refused"
    assert (rows[1]["node"], rows[1]["role"], rows[1]["home"], rows[1]["gate"]) == (
        "laptop",
        "client",
        "hq",
        "gpu-1",
    )
    assert await desk.journal.history(node="other") == []


async def test_one_trouble_is_one_incident_however_many_see_it(desk: Desk) -> None:
    for node in ("laptop", "desktop", "box"):
        await desk.hear(desk.record("incident", "target_dead", cause=f"{node} hears nothing"), node=node)
    (incident,) = await desk.journal.incidents()
    assert (incident["kind"], incident["subject"], incident["seen"], incident["state"]) == (
        "target_dead",
        "hq",
        3,
        "open",
    )
    assert incident["severity"] == "critical"
    evidence = (await desk.journal.show(incident["id"]))["evidence"]
    assert [one["node"] for one in evidence] == ["laptop", "desktop", "box"]
    assert evidence[0]["saw"] == "laptop hears nothing"


async def test_evidence_is_bounded_and_counted_on(desk: Desk) -> None:
    await desk.hear(*(desk.record("incident", "nowhere_to_go") for _ in range(60)))
    (incident,) = await desk.journal.incidents()
    assert incident["seen"] == 60
    assert len((await desk.journal.show(incident["id"]))["evidence"]) == 50


async def test_a_record_told_twice_is_seen_once(desk: Desk) -> None:
    record = desk.record("incident", "target_dead")
    await desk.hear(record)
    await desk.hear(record)
    (incident,) = await desk.journal.incidents()
    assert incident["seen"] == 1


async def test_a_return_ends_what_it_was_about(desk: Desk) -> None:
    await desk.hear(desk.record("incident", "target_dead"))
    await desk.hear(desk.record("move", "return", GPU, HQ))
    assert await desk.journal.incidents() == []
    (incident,) = await desk.journal.incidents(all_=True)
    assert incident["note"] == "laptop returned there"
    await desk.hear(desk.record("incident", "target_dead"))
    assert len(await desk.journal.incidents()) == 1, "the same trouble again is another incident"


async def test_who_answers_is_noted_and_an_end_is_an_end(desk: Desk) -> None:
    await desk.hear(desk.record("incident", "target_dead"))
    number = (await desk.journal.incidents())[0]["id"]
    shown = await desk.journal.acknowledge(number, by="uid=0", note="on my way")
    assert (shown["state"], shown["answered_by"], shown["note"]) == ("acknowledged", "uid=0", "on my way")
    shown = await desk.journal.resolve(number, by="uid=7")
    assert (shown["state"], shown["answered_by"]) == ("resolved", "uid=0")
    assert (await desk.journal.resolve(number, by="uid=8"))["resolved_at"] == shown["resolved_at"]
    with pytest.raises(ConflictError, match="resolved already"):
        await desk.journal.acknowledge(number, by="uid=0")
    with pytest.raises(UnknownNameError, match="no incident 999"):
        await desk.journal.show(999)


async def test_an_unanswered_incident_is_escalated_once_with_its_hook(desk: Desk, tmp_path: Path) -> None:
    said, hook = tmp_path / "said", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> '{said}'\n")
    hook.chmod(0o700)
    desk.settings["incident.hook"] = str(hook)
    await desk.hear(desk.record("incident", "target_dead"))
    assert await desk.journal.escalate() == []
    desk.clock.now += DEFAULTS["incident.escalate_s"]
    (number,) = await desk.journal.escalate()
    assert await desk.journal.escalate() == []
    told = json.loads(said.read_text())
    assert (told["id"], told["kind"], told["subject"]) == (number, "target_dead", "hq")
    assert (await desk.journal.show(number))["escalated_at"] == desk.clock()


async def test_an_answered_incident_is_not_escalated(desk: Desk) -> None:
    await desk.hear(desk.record("incident", "target_dead"))
    await desk.journal.acknowledge((await desk.journal.incidents())[0]["id"], by="uid=0")
    desk.clock.now += 10_000
    assert await desk.journal.escalate() == []
    desk.settings["incident.escalate_s"] = 0.0
    await desk.hear(desk.record("incident", "nowhere_to_go"))
    desk.clock.now += 10_000
    assert await desk.journal.escalate() == []


@pytest.mark.parametrize("hook", ["/nonexistent/program", "'unfinished", "false"])
async def test_a_hook_that_does_not_work_stops_nothing(desk: Desk, hook: str) -> None:
    desk.settings["incident.hook"] = hook
    await desk.hear(desk.record("incident", "target_dead"))
    desk.clock.now += 1000
    assert len(await desk.journal.escalate()) == 1


async def test_a_peer_that_is_dead_is_an_incident_until_it_is_heard_again(desk: Desk) -> None:
    for _ in range(2):  # two gates of the pool see it
        await desk.journal.raise_incident("peer_dead", "hq", {"saw": "no heartbeat for 3 s"})
    (incident,) = await desk.journal.incidents()
    assert (incident["kind"], incident["seen"]) == ("peer_dead", 2)
    await desk.journal.settle("peer_dead", "hq", "it is alive again")
    await desk.journal.settle("peer_dead", "hq", "it is alive again")
    assert await desk.journal.incidents() == []


async def test_a_gates_own_sight_is_an_incident_too(desk: Desk) -> None:
    number = await desk.journal.raise_incident("disk_full", "gpu-1", {"saw": "no space left"})
    assert (await desk.journal.show(number))["evidence"][0]["saw"] == "no space left"
