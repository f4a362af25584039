"""The pairing as a conversation: who mistypes is asked again, and nothing ends for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from meshctl.client import Gate
from meshctl.errors import GateError
from meshctl.pairing import converse

PEER = {"name": "hq", "kind": "pool", "fingerprint": "abcd"}
PAIRING = {"id": "1", "state": "answered", "online": False, "peer": PEER, "answer": "{}", "string": "s"}


class Desk:
    """An admin that types `lines`, and a gate that answers by path."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.calls: list[tuple[str, Any]] = []
        self.replies: dict[str, Callable[[Any], Any]] = {}

    def ask(self, question: str, *, default: str | None = None) -> str:
        del question
        return self.lines.pop(0) or default or ""

    def call(self, path: str, body: Any = None) -> Any:
        self.calls.append((path, body))
        return self.replies[path](body)

    get = post = put = call

    def items(self, path: str) -> list[Any]:
        del path
        return []


def named(body: Any) -> Any:
    return {"named": body is not None, "name": "hq", "kind": "branch", "fingerprint": "ef"}


def test_every_mistake_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    offer, confirmation, other = (tmp_path / name for name in ("offer", "confirmation", "other"))
    for file in (offer, confirmation, other):
        file.write_text(file.name)
    names = ["head quarters", "hq"]
    kinds = ["hq", "br"]
    sides = ["x", "a"]
    files = [str(tmp_path / "nowhere"), str(other), str(offer), "not a name", "main", str(confirmation)]
    desk = Desk([*names, *kinds, *sides, *files, "9", "compute", "wrong", "right"])
    monkeypatch.setattr("meshctl.pairing.ask", desk.ask)

    def answered(body: Any) -> Any:
        if body["file"] == "other":
            raise GateError("this is no offer", status=422, problem="invalid", hint="name the offer")
        if body["name"] is None:
            raise GateError("the name hq is taken here", status=409, problem="name-taken", hint="--as NAME")
        return {**PAIRING, "peer": {**PEER, "name": body["name"]}}

    def trusted(body: Any) -> Any:
        if body["string"] == "wrong":
            raise GateError("that is not the string", status=422, problem="pairing-string", hint="again")

    desk.replies = {
        "/pool": named,
        "/pairings/answer": answered,
        "/pairings/finish": lambda _: {**PAIRING, "peer": {**PEER, "name": "main"}},
        "/pools/main/trust": trusted,
    }
    converse(cast("Gate", desk))
    assert not desk.lines
    assert ("/pool", {"name": "hq", "kind": "branch"}) in desk.calls
    assert desk.calls[-1] == ("/pools/main/trust", {"level": 2, "string": "right"})
    said = capsys.readouterr().err
    for words in ("letters, digits", "offer or answer.", "nowhere", "This is no offer", "is taken here"):
        assert words in said, words


def test_what_no_other_file_would_mend_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "offer"
    file.write_text("offer")
    desk = Desk(["a", str(file)])
    monkeypatch.setattr("meshctl.pairing.ask", desk.ask)

    def refused(_: Any) -> Any:
        raise GateError("only an owner may do that", status=403, problem="forbidden")

    desk.replies = {"/pool": lambda _: named({}), "/pairings/answer": refused}
    with pytest.raises(GateError, match="only an owner"):
        converse(cast("Gate", desk))
