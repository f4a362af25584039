"""`meshctl failover`, `incident` and `worker move`: what is asked, what is shown, what is asked back."""

from __future__ import annotations

import json

from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate

PLAN = {"verb": "move", "of": "hq", "to": "gpu", "reached": ["a", "b"], "moving": ["a"], "dry_run": True}
NODE = {
    "node": "app-host",
    "role": "client",
    "home": "hq",
    "target": "gpu",
    "mode": "auto",
    "pinned": False,
    "serial": 7,
    "streams": 2,
    "address": "10.0.0.9:4711",
    "refused": "",
}
STATUS = {
    "pool": "hq",
    "mode": "auto",
    "targets": [{"pool": "gpu", "level": 2, "gates": 1}],
    "guests_from": ["branch"],
    "guest_apps": [],
    "apps_without_verifier": 1,
    "nodes": [NODE],
}
INCIDENT = {
    "id": 3,
    "kind": "target_dead",
    "subject": "hq",
    "state": "open",
    "severity": "critical",
    "seen": 2,
    "opened_at": 1.8e9,
    "seen_at": 1.8e9,
    "escalated_at": None,
    "answered_by": None,
    "answered_at": None,
    "resolved_at": None,
    "note": "",
}


def test_status_shows_mode_order_and_nodes(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("GET /failover", STATUS)
    code, out, _ = at_gate("failover", "status")
    assert code == 0
    for word in ("hq", "auto", "branch", "FAILS OVER TO", "app-host", "gpu", "10.0.0.9:4711"):
        assert word in out
    code, out, _ = at_gate("failover", "status", "-o", "json")
    assert json.loads(out) == STATUS


def test_the_mode_is_changed_or_only_talked_about(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("PUT /failover/mode", {"mode": "manual", "was": "auto", "targets": ["gpu"], "nodes": []})
    code, _, err = at_gate("failover", "manual", "--dry-run")
    assert (code, gate.body_of("PUT /failover/mode")) == (
        0,
        {"mode": "manual", "dry_run": True, "authority": False},
    )
    assert "would be manual (it was auto)" in err
    assert at_gate("failover", "auto")[0] == 0
    assert gate.body_of("PUT /failover/mode")["mode"] == "auto"


def test_the_catalogues_authority_is_refused_with_the_reason(gate: FakeGate, at_gate: Run) -> None:
    gate.problem(
        "PUT /failover/mode", 409, "two pools and no witness have no majority", "meshctl catalog promote"
    )
    code, _, err = at_gate("failover", "auto", "--authority")
    assert code != 0
    assert "no majority" in err
    assert "meshctl catalog promote" in err


def test_the_authority_may_be_a_majoritys(gate: FakeGate, at_gate: Run) -> None:
    plan = {
        "mode": "auto",
        "was": "manual",
        "voters": ["gpu", "hq", "spare"],
        "needed": 2,
        "targets": ["gpu"],
    }
    gate.answer("PUT /failover/mode", plan)
    code, _, err = at_gate("failover", "auto", "--authority")
    assert (code, gate.body_of("PUT /failover/mode")["authority"]) == (0, True)
    assert "2 of gpu, hq, spare elect" in err
    gate.answer("PUT /failover/mode", {**plan, "mode": "manual", "was": "auto"})
    code, _, err = at_gate("failover", "manual", "--authority")
    assert (code, "a person promotes" in err) == (0, True)


def test_an_order_is_shown_before_it_is_given(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("POST /failover/orders", PLAN)
    code, _, err = at_gate("failover", "to", "gpu", "--dry-run")
    assert code == 0
    assert "would go to gpu: a" in err
    assert gate.body_of("POST /failover/orders")["dry_run"] is True
    assert len(gate.asked) == 1
    code, _, err = at_gate("failover", "to", "gpu", "--node", "a", "--of", "hq", "--yes")
    assert code == 0
    assert gate.body_of("POST /failover/orders") == {
        "verb": "move",
        "pool": "gpu",
        "of": "hq",
        "nodes": ["a"],
    }


def test_history_names_rule_and_cause(gate: FakeGate, at_gate: Run) -> None:
    row = {
        "at": 1.8e9,
        "node": "app-host",
        "home": "hq",
        "rule": "emergency",
        "from": "hq",
        "to": "gpu",
        "cause": "connection refused",
        "by": None,
    }
    gate.answer("GET /failover/history", {"items": [row]})
    code, out, _ = at_gate("failover", "history", "--node", "app-host", "--limit", "5")
    assert code == 0
    assert "emergency" in out
    assert "connection refused" in out
    assert gate.query_of("GET /failover/history") == {"limit": "5", "node": "app-host"}


def test_incidents_are_listed_shown_and_answered(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("GET /incidents", {"items": [INCIDENT]})
    code, out, _ = at_gate("incident", "list")
    assert code == 0
    assert "target_dead" in out
    gate.answer(
        "GET /incidents/3", {**INCIDENT, "evidence": [{"at": 1.8e9, "node": "app-host", "saw": "silence"}]}
    )
    code, out, _ = at_gate("incident", "show", "3")
    assert code == 0
    assert "silence" in out
    gate.answer("POST /incidents/3/ack", {**INCIDENT, "state": "acknowledged"})
    code, _, err = at_gate("incident", "ack", "3", "--note", "on my way")
    assert code == 0
    assert "acknowledged" in err
    assert gate.body_of("POST /incidents/3/ack") == {"note": "on my way"}


def test_no_incident_is_said_in_words(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("GET /incidents", {"items": []})
    code, out, err = at_gate("incident", "list")
    assert (code, out) == (0, "")
    assert err == "No incident is open. Those that are over: --all\n"
    assert at_gate("incident", "list", "-o", "json")[1] == "[]\n"


def test_a_worker_is_moved_by_its_name_here(gate: FakeGate, at_gate: Run) -> None:
    gate.answer("POST /failover/orders", {**PLAN, "moving": ["box"]})
    code, _, err = at_gate("worker", "move", "hq/box", "gpu", "--yes")
    assert code == 0
    assert "goes to gpu" in err
    assert gate.body_of("POST /failover/orders") == {
        "verb": "move",
        "pool": "gpu",
        "of": "hq",
        "nodes": ["box"],
    }
    gate.answer("POST /failover/orders", {**PLAN, "moving": []})
    code, _, err = at_gate("worker", "move", "box")
    assert code == 0
    assert "at gpu already" in err
