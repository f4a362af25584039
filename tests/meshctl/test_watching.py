"""A watch prints what changed, and outlives the gate that it looks at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from meshctl import watching
from meshctl.contexts import Context
from meshctl.errors import GateError, UnreachableError
from meshctl.render import Output
from meshctl.view import Table
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate
from tests.meshctl.fake_pools import FakePools

TABLE = Table(("A",), (("x",),))


def looks(*found: object) -> tuple[Callable[[], watching.Shown], Callable[[float], None]]:
    """A look that finds these one after the other, then somebody presses Ctrl-C."""
    left: Iterator[object] = iter(found)

    def look() -> watching.Shown:
        try:
            value = next(left)
        except StopIteration:
            raise KeyboardInterrupt from None
        if isinstance(value, Exception):
            raise value
        return value, Table(("A",), ((str(value),),))

    return look, lambda _seconds: None


def nap_by(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Have every watch wait by ``sleep``."""
    defaults = watching.watch.__kwdefaults__ or {}
    monkeypatch.setattr(watching.watch, "__kwdefaults__", {**defaults, "sleep": sleep})


def test_only_changes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    look, sleep = looks(1, 1, 2, 2, 1)
    watching.watch(look, Output.TABLE, sleep=sleep)
    assert capsys.readouterr().out == "A\n1\n\nA\n2\n\nA\n1\n"
    look, sleep = looks({"n": 1}, {"n": 1}, {"n": 2})
    watching.watch(look, Output.JSON, sleep=sleep)
    out = capsys.readouterr().out
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(out)
    assert (first, decoder.raw_decode(out[end:].lstrip())[0]) == ({"n": 1}, {"n": 2})


def test_a_figure_that_nobody_is_shown_is_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    values = iter([1, 2, 3])

    def look() -> watching.Shown:
        try:
            return next(values), TABLE
        except StopIteration:
            raise KeyboardInterrupt from None

    watching.watch(look, Output.TABLE, sleep=lambda _seconds: None)
    assert capsys.readouterr().out == "A\nx\n"


def test_a_gate_that_is_away_is_told_of_once_and_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    gone = UnreachableError("No gate is running.")
    look, sleep = looks(1, gone, gone, 1)
    watching.watch(look, Output.TABLE, sleep=sleep)
    out, err = capsys.readouterr()
    assert out == "A\n1\n\nA\n1\n"
    assert err.count("No gate is running.") == 1


def test_an_answer_that_is_a_refusal_ends_it() -> None:
    look, sleep = looks(1, GateError("no", status=403))
    with pytest.raises(GateError):
        watching.watch(look, Output.TABLE, sleep=sleep)


def test_status_is_watched_until_ctrl_c(
    at_gate: Run, gate: FakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.answer("GET /pool", {"name": "hq"})
    gate.answer("GET /pools", {"items": []})
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        gate.answer("GET /pool", {"name": f"hq-{len(naps)}"})
        if len(naps) == 2:
            raise KeyboardInterrupt

    nap_by(monkeypatch, sleep)
    code, out, _ = at_gate("pool", "list", "--watch", "--every", "0.5", "-o", "yaml")
    assert (code, naps) == (0, [0.5, 0.5])
    assert "name: hq-1" in out


def test_a_watch_goes_on_at_the_next_pool(
    ops: Context, pools: FakePools, meshctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    del ops
    for name in ("hq", "gpu"):
        pools[name].gate.answer("GET /pool", {"name": name})
        pools[name].gate.answer("GET /pools", {"items": []})
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 1:
            pools.stop("hq")
        else:
            raise KeyboardInterrupt

    nap_by(monkeypatch, sleep)
    code, out, err = meshctl("pool", "list", "--watch", "-o", "yaml")
    assert code == 0
    assert out.index("name: hq") < out.index("name: gpu")
    assert err == "The pool hq does not answer; going on at gpu.\n"
