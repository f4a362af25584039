"""A fake gate and a way to run command lines in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshctl.__main__ import run
from tests.meshctl.fake_gate import FakeGate, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[FakeGate]:
    """A gate's directory with a fake gate behind its admin socket."""
    directory = tmp_path / "gate"
    directory.mkdir()
    with serving(directory / "admin.sock") as fake:
        yield fake


@pytest.fixture
def meshctl(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in ``tmp_path``; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as into:
            into.write(stdin or "")
        with os.fdopen(reader) as source:
            monkeypatch.setattr("sys.stdin", source)
            code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return go


@pytest.fixture
def at_gate(meshctl: Run, gate: FakeGate) -> Run:
    """As ``meshctl``, with ``--socket`` of the fake gate appended."""

    def go(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        return meshctl(*arguments, "--socket", gate.socket, stdin=stdin)

    return go
