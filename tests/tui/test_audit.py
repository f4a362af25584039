"""The audit in the control room, over a real gate: read, narrowed, paged back, exported, proved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.outcome import audited

CHANGED = 230


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate whose audit has more than one page."""
    with Mesh() as found:
        for number in range(CHANGED):
            found.control.put("/settings/audit.retention_days", {"value": 3100 + number % 2})
        found.control.delete("/settings/audit.retention_days")
        audited(found, "setting.reset", name="audit.retention_days")
        yield found


async def test_entries_are_read_narrowed_and_paged_back(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("overview") as at:
        await at.type(":audit")
        await at.press("enter")
        await at.sees("setting.reset audit.retention_days", "uid=", "1 to 200 of")
        mesh.control.put("/settings/audit.merge_interval_s", {"value": 9.0})
        await at.sees("setting.set audit.merge_interval_s")  # by itself, as it is written
        await at.press("enter")
        await at.sees("BEFORE", "AFTER", "9", "hash", "uid=")
        await at.press("escape")
        await at.type("/merge_interval")
        await at.press("enter")
        await at.sees("setting.set audit.merge_interval_s", "1 of 1")
        await at.press("escape", "o")
        await at.sees("only what administrators did", "1 to 200 of")
        await at.press("G", "pagedown")
        await at.sees("201 to ")
        await at.press("g", "pageup")
        await at.sees("1 to 200 of")
    mesh.control.delete("/settings/audit.merge_interval_s")


async def test_the_chain_is_proved_here_and_from_an_export(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = mesh.control.get("/key")["pool"]["fingerprint"]
    async with visit_mesh("overview") as at:
        await at.press("2")
        await at.sees("1 to 200 of")
        await at.press("v")
        await at.sees("PASSED", "entries", "signed at")
        await at.press("escape", "w")
        await at.sees("Export the whole trail", "meshctl audit export --out audit.ndjson")
        await at.press("ctrl+s")
        file = tmp_path / "audit.ndjson"
        await at.told(f"Written: {file}")
        lines = file.read_text().splitlines()
        assert len(lines) > CHANGED
        assert "head" in json.loads(lines[-1])
        await at.press("f")
        await at.sees("Check an export", "no gate is asked")
        await at.type(str(file))
        await at.press("enter")
        await at.type("aaaa-bbbb")
        await at.press("ctrl+s")
        await at.sees("cannot be trusted", "meshctl key show")
        await at.press("enter", *["backspace"] * 9)
        await at.type(pool)
        await at.press("ctrl+s")
        await at.sees("PASSED")
        await at.press("escape")
        at_fault = next(number for number, line in enumerate(lines) if "3101" in line)
        lines[at_fault] = lines[at_fault].replace("3101", "3102")
        await asyncio.to_thread(file.write_text, "\n".join(lines) + "\n")
        await at.press("f")
        await at.type(str(file))
        await at.press("enter")
        await at.type(pool)
        await at.press("ctrl+s")
        await at.sees("FAILED", "first bad entry", "compare it with an export")
