"""A fake gate and a way to run command lines in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshctl.__main__ import run
from meshctl.contexts import Context, Contexts
from tests.meshctl.fake_gate import FakeGate, serving
from tests.meshctl.fake_pools import ADMIN, PASSWORD, FakePools, fake_pools

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[FakeGate]:
    """A gate's directory with a fake gate behind its admin socket."""
    directory = tmp_path / "gate"
    directory.mkdir()
    with serving(directory / "admin.sock") as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's own folder."""
    folder = tmp_path / "person"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def meshctl(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a command line in ``tmp_path``, with nothing of the tester's own; exit code, stdout, stderr."""
    del home
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("meshctl.client.SYSTEM_GATE", tmp_path / "no system's gate")

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


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[FakePools]:
    """Three pools that honour each other's admins."""
    with fake_pools(tmp_path / "pools", "hq", "gpu", "branch") as made:
        yield made


@pytest.fixture
def ops(home: Path, pools: FakePools, meshctl: Run) -> Context:
    """The context "ops", enrolled at hq and logged in."""
    del home
    code, offer, _ = meshctl("context", "offer", "ops")
    assert code == 0
    code, _, err = meshctl("context", "add", "ops", "-", "--admin", ADMIN, stdin=pools.bundle(offer))
    assert code == 0, err
    code, _, err = meshctl("login", "--password-file", "-", stdin=PASSWORD)
    assert code == 0, err
    return Contexts().existing("ops")
