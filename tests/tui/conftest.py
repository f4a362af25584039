"""A fake gate, and the control room opened over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from meshctl.client import Gate
from meshctl.tui.preferences import Preferences
from meshctl.tui.room import Launch
from tests.kit.mesh import Mesh
from tests.tui.gate import RoomGate, serving
from tests.tui.visit import Visit, visiting

Open = Callable[..., AbstractAsyncContextManager[Visit]]


@pytest.fixture(scope="session")
def bare_mesh() -> Iterator[Mesh]:
    """A real gate with its store and a sidecar, for all tests of a process that leave it as they found it."""
    with Mesh() as found:
        yield found


@pytest.fixture(scope="session")
def worked_mesh() -> Iterator[Mesh]:
    """The same with a worker."""
    with Mesh() as found:
        found.add_daemon("gpu-1").start()
        found.wait_worker("gpu-1")
        yield found


@pytest.fixture(scope="module")
def mesh(worked_mesh: Mesh) -> Mesh:
    """A real gate with its store, a sidecar and a worker. Files that want another one have their own."""
    return worked_mesh


@pytest.fixture
def visit_mesh(mesh: Mesh, tmp_path: Path) -> Open:
    """Open the control room over the real gate: ``async with visit_mesh("workers") as at:``."""

    @asynccontextmanager
    async def open_at(
        section: str = "overview", *, size: tuple[int, int] = (80, 24), liked: Preferences | None = None
    ) -> AsyncIterator[Visit]:
        launch = Launch(mesh.control, "local", liked or Preferences(), tmp_path / "tui.toml", section)
        async with visiting(launch, size=size) as found:
            yield found

    return open_at


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[RoomGate]:
    """A fake gate."""
    with serving(tmp_path / "admin.sock") as fake:
        yield fake


@pytest.fixture
def visit(gate: RoomGate, tmp_path: Path) -> Open:
    """Open the control room over the fake gate: ``async with visit("workers") as at:``."""

    @asynccontextmanager
    async def open_at(
        section: str = "overview", *, size: tuple[int, int] = (80, 24), liked: Preferences | None = None
    ) -> AsyncIterator[Visit]:
        launch = Launch(Gate(gate.socket), "local", liked or Preferences(), tmp_path / "tui.toml", section)
        async with visiting(launch, size=size) as found:
            yield found

    return open_at
