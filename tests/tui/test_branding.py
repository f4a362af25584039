"""What the pool shows of itself over a real gate: seen while it is typed, set, worn, taken back, reset."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from meshctl.tui.preferences import Preferences
from tests.kit.mesh import Mesh
from tests.qgate.licences import VENDOR, licence
from tests.tui.conftest import Open
from tests.tui.outcome import audited

LOGO = ["  /\\  ", " /__\\ example"]


@pytest.fixture(scope="module")
def mesh(bare_mesh: Mesh) -> Mesh:
    return bare_mesh


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_it_is_seen_while_it_is_typed_and_worn_when_it_is_set(
    visit_mesh: Open, mesh: Mesh, size: tuple[int, int]
) -> None:
    async with visit_mesh("branding", size=size) as at:
        await at.sees("qgate-mesh", "This is the product's own", "foreground")
        await at.press("delete")
        await at.told("It is the product's own already.")
        await at.press("e")
        await at.sees("Name  40 cells at most", "PATCH /branding")
        await at.type("Example AI")
        await at.sees("Example AI (qgate-mesh)", "--name 'Example AI'")  # before anything is sent
        assert mesh.control.get("/branding")["name"] == ""
        await at.press(*["tab"] * 5)
        assert at.room.focused is at.room.screen.widgets["colours.foreground"]  # type: ignore[attr-defined]
        await at.type("#112233")
        await at.sees("contrast of")
        await at.press("ctrl+s")
        await at.until(lambda: bool(getattr(at.room.screen, "problem", "")), "the form with the refusal")
        await at.sees("contrast of", "PATCH /branding")
        assert mesh.control.get("/branding")["colours"] == {}
        await at.press(*["tab"] * 5, "end", *["backspace"] * 7)
        await at.press("tab")
        await at.type("#ffaa00")
        await at.sees("--colour primary=#ffaa00")
        await at.press("ctrl+s")
        await at.told("The branding is changed.")
        shown = mesh.control.get("/branding")
        assert (shown["name"], shown["colours"]) == ("Example AI", {"primary": "#ffaa00"})
        await at.until(lambda: at.room.theme == "pool", "the pool's colours")
        await at.sees(" Example AI (qgate-mesh)", "set")
        assert at.room.current_theme.primary == "#FFAA00"
        await at.press("u")
        await at.sees("Take back: Change the branding?")
        await at.press("y")
        await at.told("Taken back")
        await at.until(lambda: at.room.theme == "dark", "the product's colours")
        assert mesh.control.get("/branding")["name"] == ""
    assert audited(mesh, "branding.set", name="Example AI")


async def test_a_logo_comes_from_a_file_and_hostile_ones_do_not(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path
) -> None:
    good, hostile, wide = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    good.write_text("\n".join(LOGO))
    hostile.write_text("\x1b[2Jgone")
    wide.write_text("x" * 200)
    async with visit_mesh("branding", liked=Preferences(theme="light")) as at:
        await at.sees("This is the product's own")
        for path, said in ((hostile, "U+001B"), (wide, "at most 60 by 12")):
            await at.press("f")
            await at.sees("Logo from a file")
            await at.type(str(path))
            await at.press("ctrl+s")
            await at.sees(said)
            await at.press("escape")
            await at.sees_no("PATCH /branding")
        await at.press("f")
        await at.sees("Logo from a file")
        await at.type(str(good))
        await at.press("ctrl+s")
        await at.sees("Show this logo?", "/__\\ example", "meshctl branding set --logo")
        await at.press("y")
        await at.told("The branding is changed.")
        await at.sees("/__\\ example")
        assert mesh.control.get("/branding")["logo"] == [one.rstrip() for one in LOGO]
        mesh.control.call("PATCH", "/branding", body={"colours": {"primary": "#ffaa00"}})
        await at.press("r")
        await at.sees("#ffaa00")
        assert at.room.theme == "light"  # which somebody chose
        await at.press("delete")
        await at.sees("Forget the pool's name, logo and colours?")
        await at.press("y")
        await at.told("The product's own is shown again.")
    assert mesh.control.get("/branding")["logo"] == []
    assert audited(mesh, "branding.reset")


async def test_only_a_licence_leaves_out_the_products_name(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("branding") as at:
        await at.sees("This is the product's own")
        await at.press("e")
        await at.sees("Name  40 cells at most")
        await at.type("Example AI")
        await at.press("tab", "tab", "left", "ctrl+s")
        await at.sees("only under a licence with the feature", "White label  ", "ctrl+s send")
        await at.press("escape")
        mesh.control.put("/settings/licence.vendors", {"value": VENDOR})
        mesh.control.put("/licence", {"token": licence(time.time())})
        await at.press("e")
        await at.sees("Name  40 cells at most")
        await at.type("Example AI")
        await at.press("tab", "tab", "left", "ctrl+s")
        await at.told("The branding is changed.")
        await at.sees(" Example AI")
        await at.sees_no("qgate-mesh")
    mesh.control.delete("/branding")
    mesh.control.delete("/licence")
