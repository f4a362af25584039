"""The control room in a real terminal: tmux at the smallest and at a usual size, and without a terminal."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.tui.gate import RoomGate
from tests.tui.terminal import AVAILABLE, MESHCTL, Terminal

needs_tmux = pytest.mark.skipif(not AVAILABLE, reason="needs tmux")


def command(gate: RoomGate, *options: str) -> list[str]:
    return [str(MESHCTL), "tui", "--socket", str(gate.socket), *options]


@needs_tmux
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_sections_by_key_and_jump_and_an_end(gate: RoomGate, size: tuple[int, int]) -> None:
    with Terminal(command(gate), size=size) as terminal:
        terminal.sees("alice", "owner", "requests/s", "live")
        terminal.keys("W")
        terminal.sees("gpu-1", "gpu-2", "3 of 3")
        terminal.type("/old")
        terminal.keys("Enter")
        terminal.sees("1 of 3", "old-3")
        terminal.keys("Escape")
        terminal.sees("3 of 3")
        terminal.type(":settings")
        terminal.keys("Enter")
        terminal.sees("audit.retention_days")
        terminal.keys("q")
        terminal.sees("ended 0")


@needs_tmux
def test_draws_nothing_but_ascii_where_that_is_asked(gate: RoomGate) -> None:
    with Terminal(command(gate, "--ascii", "--section", "workers")) as terminal:
        text = terminal.sees("gpu-1", "! away")
        assert text.isascii()
        terminal.keys("?")
        assert terminal.sees("Everywhere").isascii()
        terminal.keys("Escape")
        terminal.keys("Delete")
        assert terminal.sees("This cannot be undone").isascii()


def test_says_what_to_do_without_a_terminal(gate: RoomGate) -> None:
    done = subprocess.run(command(gate), capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
    assert "meshctl --help" in done.stderr


@needs_tmux
def test_refuses_a_terminal_that_cannot_be_drawn_on(gate: RoomGate) -> None:
    with Terminal(command(gate), term="dumb") as terminal:
        terminal.sees("TERM=dumb", "ended 2")


@needs_tmux
def test_a_small_terminal_shows_what_it_can(gate: RoomGate) -> None:
    with Terminal(command(gate, "--section", "workers"), size=(34, 8)) as terminal:
        terminal.sees("gpu-1")
        terminal.keys("q")
        terminal.sees("ended 0")


def test_plain_commands_do_not_import_it(tmp_path: Path) -> None:
    script = (
        "import sys, meshctl.__main__; "
        "sys.exit(any(name.startswith(('textual', 'meshctl.tui')) for name in sys.modules))"
    )
    done = subprocess.run(
        [MESHCTL.with_name("python"), "-c", script], cwd=tmp_path, env={**os.environ}, timeout=30
    )
    assert done.returncode == 0
