"""The licence's section over a real gate: verified, installed, warned of, refused and removed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kit.mesh import Mesh
from tests.qgate.licences import VENDOR, licence
from tests.tui.conftest import Open
from tests.tui.outcome import audited, eventually


@pytest.fixture(scope="module")
def mesh(bare_mesh: Mesh) -> Mesh:
    return bare_mesh


class Vendor:
    """Someone who issues licences, trusted by the pool."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.folder = folder
        mesh.control.put("/settings/licence.vendors", {"value": VENDOR})

    def file(self, name: str, *, ends: int = 365, begins: int = -1) -> Path:
        """A licence of 25 seats that begins and ends so many days from now."""
        path = self.folder / f"{name}.licence"
        path.write_text(licence(time.time(), begins=begins, ends=ends, seats=25, id_=name) + "\n")
        return path


@pytest.fixture
def vendor(mesh: Mesh, tmp_path: Path) -> Vendor:
    return Vendor(mesh, tmp_path)


async def test_a_licence_is_verified_installed_and_removed(
    visit_mesh: Open, mesh: Mesh, vendor: Vendor
) -> None:
    soon = vendor.file("soon", ends=20)
    async with visit_mesh("licence") as at:
        await at.sees("state", "none", "seats used", "Without a licence", "licence.vendors")
        await at.press("delete")
        await at.told("No licence is installed.")
        await at.press("v")
        await at.sees("How a licence would stand here", "POST /licence/verify")
        await at.type(str(soon))
        await at.press("ctrl+s")
        await at.sees("License › Verify", "Example Ltd", "valid", "white-label")
        assert mesh.control.get("/licence")["state"] == "none"
        await at.press("escape", "i")
        await at.sees("Install a licence")
        await at.type(f"'{soon}'")  # as terminals paste what is dropped on them
        await at.press("ctrl+s")
        await at.sees("Install this licence?", "Example Ltd", "PUT /licence", "meshctl license install")
        await at.press("y")
        await at.told("The licence is installed.")
        await at.sees("0 of 25", "It ends in 20 days", "What ends with it")
        shown = mesh.control.get("/licence")
        assert (shown["state"], shown["seats"], shown["id"]) == ("valid", 25, "soon")
        assert audited(mesh, "licence.install", name="Example Ltd")
        await at.press("delete")
        await at.sees("Remove the licence of Example Ltd?", "This cannot be undone.")
        await at.type("Example Ltd")
        await at.press("enter")
        await at.told("The licence is removed.")
        await eventually(lambda: mesh.control.get("/licence")["state"] == "none", "no licence")
    assert audited(mesh, "licence.remove")["before"]["id"] == "soon"


async def test_what_is_no_licence_is_refused_with_the_reason(
    visit_mesh: Open, mesh: Mesh, vendor: Vendor, tmp_path: Path
) -> None:
    ended = vendor.file("ended", ends=-40, begins=-400)
    long, short = vendor.file("long", ends=300), vendor.file("short", ends=100)
    large = tmp_path / "large.licence"
    large.write_text("x" * 100_000)
    header, claims, _ = long.read_text().strip().split(".")
    token = long.read_text().strip()
    async with visit_mesh("licence", size=(120, 40)) as at:
        await at.sees("state", "none")
        for typed, said in (
            (str(tmp_path / "nowhere"), "machine"),
            (str(tmp_path), "a file."),
            (str(large), "too large"),
            (str(ended), "it has ended"),
        ):
            await at.press("i")
            await at.sees("Install a licence")
            await at.type(typed)
            await at.press("ctrl+s")
            await at.sees(said)
            if said == "it has ended":
                await at.press("y")
                await at.sees("is not taken: it has ended")
            await at.press("escape")
            await at.sees_no("Install a licence")
        for forged in (f"eyJhbGciOiJub25lIn0.{claims}.", f"{header}.{claims}.{'A' * 86}"):
            await at.press("i", "tab")
            await at.type(forged)
            await at.press("ctrl+s")
            await at.sees("Install a licence")
            await at.until(lambda: bool(at.room.screen.query(".modal--bad")), "a refusal")
            await at.press("escape")
            await at.sees_no("Install a licence")
        assert mesh.control.get("/licence")["state"] == "none"
        mesh.control.put("/licence", {"token": token})
        await at.press("r", "i")
        await at.type(str(short))
        await at.press("ctrl+s", "y")
        await at.sees("before the one that is in force")
        await at.press("tab", "tab", "right", "ctrl+s", "y")
        await at.told("The licence is installed.")
        assert mesh.control.get("/licence")["id"] == "short"
    mesh.control.delete("/licence")
