"""The configuration as one document over a real gate: edited, compared, applied, taken back, reverted."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import TextArea

from meshctl.tui.screens.configuration import DifferenceView
from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.outcome import audited
from tests.tui.visit import Visit

NAME = "audit.merge_interval_s"


@pytest.fixture(scope="module")
def mesh(bare_mesh: Mesh) -> Mesh:
    return bare_mesh


async def written(at: Visit, before: str, after: str) -> None:
    """Somebody replaces a text in the editor."""
    await at.until(lambda: isinstance(at.room.focused, TextArea), "the editor")
    area = at.room.focused
    assert isinstance(area, TextArea)
    assert before in area.text
    area.text = area.text.replace(before, after)


async def test_the_document_is_edited_applied_taken_back_and_reverted(visit_mesh: Open, mesh: Mesh) -> None:
    mesh.control.put(f"/settings/{NAME}", {"value": 3.0})
    async with visit_mesh("configuration") as at:
        await at.sees("format: 1", "etag:", "settings:")
        await at.type(f"/{NAME}")
        await at.press("enter", "e")
        await at.sees("ctrl+s shows what would change")
        await written(at, f"{NAME}: 3.0", f"{NAME}: [")
        await at.press("ctrl+s")
        await at.sees("is neither JSON nor YAML at line")
        await written(at, f"{NAME}: [", f"{NAME}: 900.0")
        await at.press("ctrl+s")
        await at.sees(NAME, "60")
        await written(at, f"{NAME}: 900.0", f"{NAME}: 7.5")
        await at.press("ctrl+s")
        await at.sees("Cluster config › edit › FILE", f"settings/{NAME}", "-   3.0", "+   7.5", "1 changes")
        assert mesh.control.get(f"/settings/{NAME}")["value"] == 3.0
        await at.press("a")
        await at.sees("Apply a document", "POST /configuration/apply", "meshctl config apply FILE")
        await at.type("slower")
        await at.press("ctrl+s")
        await at.sees("Make 1 changes?")
        await at.press("y")
        await at.told("The document is applied.")
        await at.sees("Nothing differs.")
        assert mesh.control.get(f"/settings/{NAME}")["value"] == 7.5
        assert audited(mesh, "configuration.apply", reason="slower")
        await at.press("escape", "escape")  # the editor has nothing that is not kept
        await at.sees("format: 1")
        await at.press("2")
        await at.sees("REVISION", "slower", "uid=")
        await at.press("u")
        await at.sees("Take back: Apply a document?", "meshctl config revert 1")
        await at.press("y")
        await at.told("Taken back")
        assert mesh.control.get(f"/settings/{NAME}")["value"] == 3.0
        await at.sees("back to revision 1")
        await at.press("enter")  # the cursor stayed with its revision
        await at.sees("Cluster config › 2", "slower", "-   3.0", "+   7.5")
        await at.press("v")
        await at.sees("Cluster config › 2 › 2", "+   7.5")
        await at.press("a")
        await at.sees("POST /configuration/revisions/2/revert")
        await at.press("ctrl+s")
        await at.sees("Go back to revision 2?")
        await at.press("y")
        await at.told("It is as revision 2 was.")
        assert mesh.control.get(f"/settings/{NAME}")["value"] == 7.5
    assert audited(mesh, "configuration.revert", reverts=2)


async def test_a_document_of_a_file_and_what_is_wrong_with_it(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path
) -> None:
    empty, good = tmp_path / "list.yaml", tmp_path / "new.yaml"
    empty.write_text("- 1\n")
    impossible = tmp_path / "impossible.yaml"
    impossible.write_text("format: 1\napps: {nobody: {read_only: true}}\n")
    good.write_text("format: 1\naliases: {fast: qwen3-8b}\n")
    async with visit_mesh("configuration", size=(120, 40)) as at:
        await at.sees("format: 1")
        await at.press("f")
        await at.sees("Compare a document of a file")
        await at.type(str(empty))
        await at.press("ctrl+s")
        await at.sees("holds no document")
        await at.press("end", "ctrl+u")
        await at.type(str(impossible))
        await at.press("ctrl+s")
        await at.sees("nobody is not there", "0 changes")
        await at.press("a")
        await at.told("It asks for what no document can do.")
        await at.press("escape", "f")
        await at.sees("Compare a document of a file")
        await at.type(str(good))
        await at.press("ctrl+s")
        await at.sees("aliases/fast", '+   "qwen3-8b"')
        mesh.control.put(f"/settings/{NAME}", {"value": 4.0})  # somebody else, after this was looked at
        await at.press("a", "ctrl+s")
        await at.sees("Make 1 changes?")
        await at.press("y")
        await at.told("the configuration was changed since")
        etag = mesh.control.get("/configuration")["etag"]
        seen = at.room.pane
        assert isinstance(seen, DifferenceView)
        await at.until(lambda: seen.seen is not None and seen.seen["etag"] == etag, "another look, by itself")
        await at.press("a", "ctrl+s")
        await at.sees("Make 1 changes?")
        await at.press("y")
        await at.told("The document is applied.")
    rows = mesh.control.items("/aliases")
    assert [row["name"] for row in rows] == ["fast"]
    mesh.control.delete("/aliases/fast")
    mesh.control.delete(f"/settings/{NAME}")


async def test_what_was_written_is_not_lost_by_a_key(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("configuration") as at:
        await at.sees("format: 1")
        await at.press("e")
        await written(at, "format: 1", "format: 1 # mine")
        await at.press("escape")
        await at.sees("Leave, and forget what was written?")
        await at.press("n")
        await at.sees("# mine")
        await at.press("escape")
        await at.sees("Leave, and forget what was written?")
        await at.press("y")
        await at.sees("Cluster config   ", "etag:")
    assert mesh.control.get("/configuration")["format"] == 1
