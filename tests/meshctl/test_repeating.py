"""A change whose answer was cut off: sent again under its key, done once, and never at another pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshctl.client import KEY, KEYED_MAX, REPEAT_S, Gate
from meshctl.errors import GateError, UnreachableError
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate

Guard = Callable[[str, dict[str, str], Any], tuple[int, Any] | None]


class Heard:
    """Plays a gate that carries out what it is asked and is cut off before it has said so, ``cuts`` times."""

    def __init__(self, cuts: int) -> None:
        self.cuts = cuts
        self.keys: list[str] = []
        self.paused: list[float] = []

    def __call__(self, call: str, headers: dict[str, str], body: Any) -> tuple[int, Any] | None:
        if call.startswith("GET"):
            return None
        self.keys.append(headers.get(KEY, ""))
        if len(self.keys) <= self.cuts:
            raise ConnectionResetError("cut off")
        return None


def patient(fake: FakeGate, guard: Guard, paused: list[float]) -> Gate:
    fake.guard = guard
    gate = Gate(fake.socket)
    gate.pause = paused.append
    return gate


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_each_change_has_a_key_and_a_repeated_one_keeps_it(gate: FakeGate, method: str) -> None:
    gate.answer(f"{method} /apps/web", {"name": "web"})
    heard = Heard(cuts=2)
    client = patient(gate, heard, heard.paused)
    assert client.call(method, "/apps/web", body={"queue": 3}).body == {"name": "web"}
    assert len(heard.keys) == 3
    assert len(set(heard.keys)) == 1
    assert heard.paused == list(REPEAT_S[:2])
    assert client.call(method, "/apps/web", body={"queue": 3}).body == {"name": "web"}
    assert heard.keys[3] not in {"", heard.keys[0]}  # another request, another key


def test_one_that_still_runs_is_waited_for(gate: FakeGate) -> None:
    gate.answer("POST /models/load", {"items": []})
    heard, paused = Heard(cuts=1), list[float]()

    def guard(call: str, headers: dict[str, str], body: Any) -> tuple[int, Any] | None:
        heard(call, headers, body)
        return (409, {"code": "in-progress", "detail": "it still runs"}) if len(heard.keys) < 4 else None

    assert patient(gate, guard, paused).post("/models/load", {}) == {"items": []}
    assert len(set(heard.keys)) == 1
    with pytest.raises(GateError, match="it still runs"):  # nobody of ours asked before: no reason to wait
        patient(gate, lambda *_: (409, {"code": "in-progress", "detail": "it still runs"}), paused).post("/a")


def test_a_gate_that_stays_away_is_said_not_to_have_answered(gate: FakeGate) -> None:
    heard = Heard(cuts=100)
    with pytest.raises(UnreachableError, match="whether the change was made there is not known"):
        patient(gate, heard, heard.paused).delete("/apps/web")
    assert heard.paused == list(REPEAT_S)


def test_a_gate_without_a_memory_for_keys_is_asked_without(gate: FakeGate) -> None:
    gate.answer("POST /workers/gpu-1/drain", {"drained": True})
    keys: list[str] = []

    def guard(_call: str, headers: dict[str, str], _body: Any) -> tuple[int, Any] | None:
        keys.append(headers.get(KEY, ""))
        return (503, {"code": "keys-unavailable", "detail": "the store is away"}) if keys[-1] else None

    assert patient(gate, guard, []).post("/workers/gpu-1/drain", {}) == {"drained": True}
    assert [bool(key) for key in keys] == [True, False]


def test_log_in_and_what_is_too_long_have_no_key(gate: FakeGate) -> None:
    for path in ("/session", "/session/token", "/configuration"):
        gate.answer(f"POST {path}", {})
    heard = Heard(cuts=0)
    client = patient(gate, heard, heard.paused)
    client.post("/session", {"name": "alice"})
    client.post("/session/token", {"grant": "g"})
    client.post("/configuration", {"text": "x" * KEYED_MAX})
    assert heard.keys == ["", "", ""]
    heard.cuts = 4
    with pytest.raises(UnreachableError):
        client.post("/session", {"name": "alice"})
    assert not heard.paused


# --- changes of what was seen -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["unpair", "revoke"])
def test_what_is_ended_is_what_was_seen(at_gate: Run, gate: FakeGate, verb: str) -> None:
    gate.answer("GET /pools/hq", {"name": "hq", "version": 41, "fingerprint": "abcd"})
    gate.answer(f"POST /pools/hq/{verb}", {"name": "hq"})
    named: list[str] = []
    gate.guard = lambda call, headers, _body: named.append(f"{call} {headers.get('If-Match')}")
    assert at_gate("pool", verb, "hq", "--yes")[0] == 0
    assert named[-1] == f'POST /pools/hq/{verb} "41"'


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--add-db", "b"], {"databases": ["a", "b"]}),
        (["--drop-db", "a", "--add-db", "b"], {"databases": ["b"]}),
        (["--expires", "30d"], {"expires_in_s": 2_592_000.0}),
        (["--expires", "never"], {"expires_at": None}),
        (["--expires", "2027-01-31"], {"expires_at": "2027-01-31T00:00:00Z"}),
        (["--expires", "2027-01-31T12:00:00Z"], {"expires_at": "2027-01-31T12:00:00Z"}),
        (["--sidecar", "x,y"], {"sidecars": ["x", "y"]}),
        (["--sidecar", "any", "--access", "read-only"], {"sidecars": None, "read_only": True}),
        (
            ["--queue", "3", "--max-connections", "none", "--idle-timeout", "15m"],
            {"limits": {"max_connections": None, "queue": 3, "idle_timeout_s": 900.0}},
        ),
    ],
)
def test_an_app_is_changed_where_it_is_what_was_seen(
    at_gate: Run, gate: FakeGate, options: list[str], body: dict[str, Any]
) -> None:
    gate.answer("GET /apps/web", {"name": "web", "databases": ["a"], "version": 7})
    gate.answer("PATCH /apps/web", {"name": "web", "databases": ["a"]})
    seen: list[str | None] = []
    gate.guard = lambda call, headers, _body: seen.append(headers.get("If-Match"))
    code, _, err = at_gate("app", "set", "web", *options)
    assert code == 0, err
    assert gate.body_of("PATCH /apps/web") == body
    assert seen == [None, '"7"']


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--queue", "many"],
        ["--access", "all"],
        ["--db", "b", "--add-db", "c"],
        ["--drop-db", "z"],
        ["--expires", "soon"],
        ["--expires", "2027-02-30"],
    ],
)
def test_what_cannot_be_meant_of_an_app_changes_nothing(
    at_gate: Run, gate: FakeGate, options: list[str]
) -> None:
    gate.answer("GET /apps/web", {"name": "web", "databases": ["a"], "version": 7})
    assert at_gate("app", "set", "web", *options)[0] == 2
    assert not [call for call, _, _ in gate.asked if call.startswith("PATCH")]
