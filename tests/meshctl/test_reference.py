from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshctl.__main__ import app
from meshctl.cli.root import command_line

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("rich", "textual", "yaml", "http.client", "asyncio", "cryptography", "nacl", "ssl")


def test_the_reference_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, "tools/cli_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["db", "add", "--help"], ["--version"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom meshctl.__main__ import run\n"
        f"code = run({arguments!r})\n"
        f"sys.stderr.write(','.join(name for name in {HEAVY!r} if name in sys.modules))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_a_table_on_a_terminal_needs_rich() -> None:
    script = (
        "import sys\nfrom meshctl.render import Output, emit\nfrom meshctl.view import Table\n"
        "emit([1], Table(('A',), (('x',),)), Output.TABLE)\n"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("words", [["--help"], ["db", "--help"], ["db", "add", "--help"], ["status", "-h"]])
def test_what_is_left_out_of_a_short_command_is_not_missed(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], words):
        command_line(app, arguments).main(args=words, prog_name="meshctl", standalone_mode=False)
    whole, part = capsys.readouterr().out.split("Usage: ")[1:]
    assert whole == part


def test_a_noun_that_is_none_is_told_with_those_there_are() -> None:
    assert "db" in command_line(app, ["bd", "list"]).commands
