"""Keys typed, or pasted, faster than a dialog comes up are for the dialog and for nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from textual import events

from tests.tui.conftest import Open
from tests.tui.gate import RoomGate
from tests.tui.terminal import AVAILABLE, Terminal
from tests.tui.test_terminal import command
from tests.tui.visit import NAMES, Visit


def at_once(at: Visit, text: str) -> None:
    """All of these keys in one go, as a paste without brackets or a fast typist brings them."""
    for char in text:
        key = {"\r": "enter", "\x1b": "escape", "\x7f": "delete", "\b": "backspace"}.get(char) or NAMES.get(
            char, char
        )
        at.room.post_message(events.Key(key, char if char.isprintable() else None))


async def test_what_follows_an_action_goes_into_its_form(visit: Open, gate: RoomGate) -> None:
    gate.answer("PUT /settings/audit.retention_days", {"name": "audit.retention_days", "value": 7})
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        at_once(at, "e\b\b123jtrSW4")
        await at.sees("audit.retention_days", "123jtrSW4")
        assert len(at.room.screen_stack) == 2
        at_once(at, "\x1b")
        await at.until(lambda: len(at.room.screen_stack) == 1)
        await at.sees("Advanced settings")
    assert not gate.calls("P")


async def test_letters_are_in_before_what_sends_them(visit: Open, gate: RoomGate) -> None:
    gate.answer("PUT /settings/audit.retention_days", {"name": "audit.retention_days", "value": 7})
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        await at.press("e")
        await at.sees("meshctl settings set")
        at_once(at, "\b\b365")
        at.room.post_message(events.Key("tab", None))
        at_once(at, "by law")
        at.room.post_message(events.Key("ctrl+s", None))
        await at.told("audit.retention_days is changed.")
    sent = gate.last("PUT /settings/audit.retention_days")
    assert (sent.body, sent.query) == ({"value": 365}, {"reason": "by law"})


async def test_a_name_typed_before_it_is_asked_for(visit: Open, gate: RoomGate) -> None:
    gate.answer("DELETE /sidecars/gpu-2", {"name": "gpu-2"})
    async with visit("workers") as at:
        await at.sees("gpu-1")
        at_once(at, "jjk\x7fgpu-2\r")
        await at.told("gpu-2 is revoked.")
    assert [one.call for one in gate.calls("DELETE")] == ["DELETE /sidecars/gpu-2"]
    assert not gate.calls("POST")  # neither t nor p were the table's


async def test_keys_wait_through_what_is_asked_of_the_gate_first(visit: Open, gate: RoomGate) -> None:
    asked, answer = threading.Event(), threading.Event()

    def plan(_query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        if body.get("dry_run"):
            asked.set()
            answer.wait(10)
        return 200, {"moving": ["gpu-1"], "to": "lyon", "orders": []}

    gate.answers["POST /failover/orders"] = plan
    async with visit("workers") as at:
        await at.sees("gpu-1")
        at_once(at, "vlyon\ry")
        assert await asyncio.to_thread(asked.wait, 10)
        await at.pilot.pause()
        assert len(at.room.screen_stack) == 1
        assert at.room.section is not None
        assert not at.room.section.trail  # y describes nothing: it is the answer to what comes
        answer.set()
        await at.told("gpu-1 goes there.")
    assert [one.body.get("dry_run") for one in gate.calls("POST")] == [True, None]


async def test_escape_leaves_what_a_slow_gate_still_thinks_about(visit: Open, gate: RoomGate) -> None:
    asked, answer = threading.Event(), threading.Event()

    def plan(_query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        asked.set()
        answer.wait(10)
        return 200, {"moving": [], "to": "lyon"}

    gate.answers["POST /failover/orders"] = plan
    async with visit("workers") as at:
        await at.sees("gpu-1")
        at_once(at, "vlyon\r")
        assert await asyncio.to_thread(asked.wait, 10)
        at_once(at, "jjy\x1b")
        await at.press("j")
        await at.sees("▸ gpu-2")
        answer.set()
        await at.pilot.pause()
        assert len(at.room.screen_stack) == 1


async def test_what_was_typed_for_a_refused_action_is_for_nobody(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /session", {"name": "bob", "role": "operator", "pool": "", "read_only": False})
    async with visit("workers") as at:
        await at.sees("gpu-1", "operator")
        at_once(at, "\x7ftgpu-2\r")
        await at.told("This needs the role admin; yours is operator.")
        await at.sees("▸ gpu-1")
        assert at.room.section is not None
        assert not at.room.section.trail
        await at.press("j")
        await at.sees("▸ gpu-2")
    assert not gate.calls("POST")


async def test_an_action_without_a_question_holds_nothing_up(visit: Open, gate: RoomGate) -> None:
    asked, answer = threading.Event(), threading.Event()

    def drained(_query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        asked.set()
        answer.wait(10)
        return 200, {}

    gate.answers["POST /workers/gpu-1/drain"] = drained
    async with visit("workers") as at:
        await at.sees("gpu-1")
        at_once(at, "tj")
        assert await asyncio.to_thread(asked.wait, 10)
        await at.sees("▸ gpu-2")
        answer.set()
        await at.told("gpu-1 takes no more jobs.")


async def test_the_menu_and_the_palette_take_what_is_typed_after_them(visit: Open, gate: RoomGate) -> None:
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        at_once(at, ".e7")
        await at.sees("= meshctl settings set audit.retention_days 907")
        at_once(at, "\x1b")
        await at.until(lambda: len(at.room.screen_stack) == 1)
        at.room.post_message(events.Key("ctrl+p", None))
        at_once(at, "Workers")
        await at.sees("Go to this section (W)")


@pytest.mark.skipif(not AVAILABLE, reason="needs tmux")
def test_keys_pasted_into_a_real_terminal(gate: RoomGate) -> None:
    gate.answer("DELETE /sidecars/gpu-2", {"name": "gpu-2"})
    with Terminal(command(gate, "--section", "workers")) as terminal:
        terminal.sees("gpu-1", "3 of 3")
        terminal.type("j\x1b[3~gpu-2\r")
        terminal.sees("gpu-2 is revoked.")
        terminal.type(":settings\r")
        terminal.sees("audit.retention_days")
        terminal.type("e\x7f\x7fTWjtz")
        terminal.sees("Change: audit.retention_days", "TWjtz")
    assert [one.call for one in gate.calls("DELETE")] == ["DELETE /sidecars/gpu-2"]
    assert not gate.calls("POST")


async def test_keys_after_a_jump_are_for_where_it_goes(visit: Open, gate: RoomGate) -> None:
    gate.answer("POST /workers/gpu-1/drain", {})
    async with visit("settings") as at:
        await at.sees("audit.retention_days")  # rows that are not here yet can be meant by nobody
        await at.press("W")
        await at.sees("gpu-1")
        at_once(at, "O:settings\re")
        await at.sees("meshctl settings set audit.retention_days")
        at_once(at, "\x1b")
        await at.until(lambda: len(at.room.screen_stack) == 1)
        at_once(at, "Wt")
        await at.told("gpu-1 takes no more jobs.")
