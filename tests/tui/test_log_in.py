"""Logging in where a context asks for it, and going to another context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshctl.client import Gate
from meshctl.contexts import Contexts
from meshctl.dialling import UnixDialler
from meshctl.errors import GateError
from meshctl.tui.room import Launch
from tests.tui.gate import RoomGate
from tests.tui.visit import visiting


class Locked(UnixDialler):
    """A context's dialler in small: the gate behind a socket, once somebody has logged in."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.settings = SimpleNamespace(admin="alice")
        self.home = "hq"
        self.kept: Mapping[str, Any] | None = None
        self.context: Any = None

    def headers(self, place: str) -> Mapping[str, str]:
        if self.kept is None:
            raise GateError(
                "Nobody is logged in.", status=401, problem="unauthenticated", hint="meshctl login"
            )
        return {"Authorization": f"Bearer {self.kept['token']}"}

    def go(self, place: str) -> None:
        assert place == "hq"

    def without_login(self) -> UnixDialler:
        return UnixDialler(self.path)

    def keep(self, reply: Mapping[str, Any], *, name: str, read_only: bool) -> None:
        assert (name, read_only) == ("alice", True)
        self.kept = reply


async def test_a_log_in_is_asked_for_once_and_refusals_come_back(gate: RoomGate) -> None:
    gate.problem("POST /session", 401, "name or password is wrong", "meshctl login", "unauthenticated")
    dialler = Locked(gate.socket)
    async with visiting(Launch(Gate(dialler), "hq")) as at:
        await at.sees("Log in", "Admin", "alice", "One log-in holds on every pool")
        await at.type("wrong")
        await at.press("ctrl+s")
        await at.sees("name or password is wrong")
        assert "wrong" not in at.text().replace("name or password is wrong", "")
        gate.answer("POST /session", {"token": "qgt1.x", "grant": "qgs1.y"}, 201)
        await at.type("right horse")
        await at.press("enter", "enter", "space", "enter")
        await at.sees("alice owner", "requests/s")
        assert gate.last("POST /session").body == {
            "name": "alice",
            "password": "right horse",
            "read_only": True,
        }
        assert gate.last("GET /overview").headers["Authorization"] == "Bearer qgt1.x"
        await at.sees("live")
        gate.problem("GET /session", 401, "the session is over", "meshctl login", "unauthenticated")
        gate.problem("GET /live", 401, "the session is over", "meshctl login", "unauthenticated")
        gate.live = False
        gate.cut()
        await at.sees("Log in", "alice")
        gate.live = True
        gate.answer("GET /session", {"name": "alice", "role": "admin"})
        await at.type("again")
        await at.press("enter", "enter", "space", "enter")
        await at.sees("alice admin", "live", "requests/s")


async def test_without_a_log_in_it_ends(gate: RoomGate) -> None:
    async with visiting(Launch(Gate(Locked(gate.socket)), "hq")) as at:
        await at.sees("Log in")
        await at.press("escape")
        await at.until(lambda: at.room._exit, "the end")


async def test_another_context_is_gone_on_with(
    gate: RoomGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    context = Contexts().named("lyon")
    context.root.mkdir(parents=True)
    for file in (context.key, context.bundle):
        file.write_text("there")
    async with visiting(Launch(Gate(gate.socket), "local")) as at:
        await at.sees("requests/s")
        await at.press("ctrl+o")
        await at.sees("Contexts", "lyon")
        await at.press("enter")
        await at.until(lambda: at.room.return_value == "lyon", "the other context")


async def test_the_gate_of_this_machine_is_gone_back_to(
    gate: RoomGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    async with visiting(Launch(Gate(gate.socket), "hq", at_home=True)) as at:
        await at.sees("requests/s")
        await at.type(":context nowhere")
        await at.press("enter")
        await at.told("There is no context nowhere.")
        await at.press("ctrl+o")
        await at.sees("Contexts", "local", "the gate of this machine")
        await at.press("enter")
        await at.until(lambda: at.room.return_value == "local", "the gate of this machine")


async def test_a_session_is_ended_from_the_list_of_contexts(
    gate: RoomGate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = tmp_path / "session"
    session.write_text("grant")
    dialler = Locked(gate.socket)
    dialler.kept = {"token": "qgt1.x"}
    dialler.context = SimpleNamespace(name="hq", session=session)
    gate.answer("GET /session", {"name": "alice", "role": "viewer", "kind": "session"})
    gate.problem("DELETE /session", 503, "the store is away", "meshctl doctor", "store-unavailable")
    async with visiting(Launch(Gate(dialler), "hq")) as at:
        await at.sees("alice viewer")
        await at.press("ctrl+o")
        await at.sees("Contexts", "x log out")
        await at.press("x")
        await at.sees("Log out, here and at every pool", "DELETE /session", "= meshctl logout")
        await at.press("y")
        await at.told("the store is away")
        assert session.exists()  # nobody has ended it
        gate.answer("DELETE /session", None, 204)
        await at.press("ctrl+o")
        await at.sees("x log out")
        await at.press("x")
        await at.sees("= meshctl logout")
        await at.press("y")
        await at.until(lambda: not session.exists(), "the session forgotten")
    assert "Idempotency-Key" not in gate.last("DELETE /session").headers
    assert "Logged out" in capsys.readouterr().err


async def test_whoever_owns_the_socket_has_nothing_to_log_out_of(gate: RoomGate) -> None:
    gate.answer("GET /session", {"name": "uid=0", "role": "owner", "kind": "local"})
    async with visiting(Launch(Gate(gate.socket), "local")) as at:
        await at.sees("requests/s")
        await at.press("ctrl+o")
        await at.sees("x log out")
        await at.press("x")
        await at.told("whoever owns the gate's socket needs no session")
