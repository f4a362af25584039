"""The first steps, by answers of a file: in order, resumed, skipped; without a terminal nothing is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshctl.contexts import Context
from meshctl.onboarding import KEYS, STEPS, read_answers
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate
from tests.meshctl.fake_pools import FakePools

ANSWERS = """
[admin]
name = "alice"
password_file = "password.txt"

[database]
name = "shop"
dsn = "postgresql://owner@db.example/shop"
password_file = "password.txt"

[model]
provider = "cloud"
models = ["gpt"]

[pair]
skip = true
"""


def steps(gate: FakeGate, **states: str) -> None:
    rows: list[dict[str, Any]] = [
        {"step": one, "title": one, "state": states.get(one, "open"), "detail": "x", "next": None}
        for one in STEPS
    ]
    waiting = [row["step"] for row in rows if row["state"] == "open"]
    gate.answer("GET /onboarding", {"done": not waiting, "next": (waiting or [None])[0], "steps": rows})


@pytest.fixture
def ready(gate: FakeGate, tmp_path: Path) -> FakeGate:
    """A gate that takes everything, and a file of answers."""
    (tmp_path / "answers.toml").write_text(ANSWERS)
    (tmp_path / "password.txt").write_text("correct horse\n")
    (tmp_path / "password.txt").chmod(0o600)
    steps(gate, store="done")
    gate.answer("POST /onboarding/machine", {"ok": True, "checks": [{"verdict": "PASSED"}]})
    gate.answer("POST /session/first", {"name": "alice"}, 201)
    gate.answer("POST /databases", {"name": "shop"}, 201)
    gate.answer("POST /providers", {"name": "cloud"}, 201)
    gate.answer("PUT /onboarding/pair", {})
    return gate


def test_the_next_commands_name_the_gate_that_was_named(at_gate: Run, ready: FakeGate) -> None:
    row = {"step": "model", "title": "t", "state": "open", "detail": "x"}
    ready.answer(
        "GET /onboarding",
        {"done": False, "next": "model", "steps": [{**row, "next": "meshctl a, or: meshctl b"}]},
    )
    shown = at_gate("onboard", "status")[1]
    assert f"meshctl a --socket {ready.socket}, or: meshctl b --socket {ready.socket}" in shown
    told = json.loads(at_gate("onboard", "status", "-o", "json")[1])
    assert told["steps"][0]["next"] == "meshctl a, or: meshctl b", "a program is told what the gate says"


def test_the_steps_are_done_over_a_context_too(ops: Context, pools: FakePools, meshctl: Run) -> None:
    del ops
    steps = [{"step": "store", "title": "t", "state": "done", "detail": "embedded", "next": None}]
    pools["hq"].gate.answer("GET /onboarding", {"done": True, "next": None, "steps": steps})
    code, _, err = meshctl("onboard", "--context", "ops")
    assert (code, "Every step is done" in err) == (0, True), err


def changes(gate: FakeGate) -> list[str]:
    return [call for call, _, _ in gate.asked if not call.startswith("GET")]


def test_open_steps_are_done_in_order_from_a_file(at_gate: Run, ready: FakeGate) -> None:
    code, out, err = at_gate("onboard", "--answers", "answers.toml")
    assert (code, out) == (0, ""), err
    assert changes(ready) == [
        "POST /onboarding/machine",
        "POST /session/first",
        "POST /databases",
        "POST /providers",
        "PUT /onboarding/pair",
    ]
    assert ready.body_of("POST /session/first") == {"name": "alice", "password": "correct horse"}
    assert ready.body_of("POST /databases")["password"] == "correct horse"
    assert ready.body_of("POST /providers")["models"] == [{"name": "gpt"}]
    assert "correct horse" not in err


def test_it_goes_on_where_it_broke_off(at_gate: Run, ready: FakeGate) -> None:
    ready.problem("POST /providers", 502, "the provider does not answer", "try again", code="upstream")
    code, _, err = at_gate("onboard", "--answers", "answers.toml")
    assert (code, "does not answer" in err) == (6, True)
    ready.asked.clear()
    ready.answer("POST /providers", {"name": "cloud"}, 201)
    steps(ready, machine="done", admin="done", store="done", database="done")
    assert at_gate("onboard", "--answers", "answers.toml")[0] == 0
    assert changes(ready) == ["POST /providers", "PUT /onboarding/pair"]


def test_one_step_only(at_gate: Run, ready: FakeGate, tmp_path: Path) -> None:
    (tmp_path / "sample.toml").write_text("[database]\nsample = true\n")
    ready.answer("POST /sample", {})
    assert at_gate("onboard", "--step", "database", "--answers", "sample.toml")[0] == 0
    assert changes(ready) == ["POST /sample"]
    assert at_gate("onboard", "--step", "coffee")[0] == 2


def test_steps_without_answers_stay_open(at_gate: Run, ready: FakeGate, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text("[pair]\nskip = true\n")
    code, _, err = at_gate("onboard", "--answers", "few.toml")
    assert (code, "admin: left open" in err) == (0, True)
    assert changes(ready) == ["POST /onboarding/machine", "PUT /onboarding/pair"]


def test_without_a_terminal_nothing_is_asked(at_gate: Run, ready: FakeGate) -> None:
    code, _, err = at_gate("onboard")
    assert (code, "no terminal to ask on" in err, "[admin]" in err) == (2, True, True)


def test_a_machine_that_fails_ends_it(at_gate: Run, ready: FakeGate) -> None:
    check = {"name": "disk", "verdict": "FAILED", "detail": "0.1 GiB", "next": "free some"}
    ready.answer("POST /onboarding/machine", {"ok": False, "checks": [check]})
    code, _, err = at_gate("onboard", "--answers", "answers.toml")
    assert (code, "free some" in err, changes(ready)) == (6, True, ["POST /onboarding/machine"])


def test_an_offer_is_written_for_the_other_pool(at_gate: Run, ready: FakeGate, tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text('[pair]\nname = "berlin"\noffer_to = "offer.txt"\n')
    ready.answer("GET /pool", {"named": False})
    ready.answer("PUT /pool", {})
    ready.answer("POST /pairings/offer", {"offer": "the offer"}, 201)
    assert at_gate("onboard", "--step", "pair", "--answers", "pair.toml")[0] == 0
    assert (tmp_path / "offer.txt").read_text() == "the offer"
    assert ready.body_of("PUT /pool") == {"name": "berlin", "kind": "pool"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[coffee]\n", "no step [coffee]"),
        ("[admin]\nnam = 1\n", "[admin] has no nam"),
        ("admin = 1\n", "no step [admin]"),
        ("[admin\n", "line 1"),
        ("[admin]\nname = 5\npassword_file = 'password.txt'\n", "needs name"),
        ("[model]\nfile = 'nowhere.gguf'\n", "is no file"),
    ],
)
def test_answers_that_cannot_be_used(
    at_gate: Run, ready: FakeGate, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    code, _, err = at_gate("onboard", "--answers", "wrong.toml")
    assert (code, words in err) == (2, True), err


def test_the_state_is_shown_and_steps_are_skipped(at_gate: Run, ready: FakeGate) -> None:
    assert json.loads(at_gate("onboard", "status", "-o", "json")[1])["next"] == "machine"
    assert "machine" in at_gate("onboard", "status")[1]
    assert at_gate("onboard", "skip", "pair")[0] == 0
    assert at_gate("onboard", "skip", "pair", "--undo")[0] == 0
    assert ready.body_of("PUT /onboarding/pair") == {"state": "open"}


def test_every_step_knows_its_answers(tmp_path: Path) -> None:
    assert set(KEYS) == set(STEPS)
    path = tmp_path / "all.toml"
    path.write_text("\n".join(f"[{one}]\nskip = true" for one in STEPS))
    assert set(read_answers(path)) == set(STEPS)
