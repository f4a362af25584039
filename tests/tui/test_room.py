"""The control room as a person sees it, over a fake gate."""

from __future__ import annotations

from tests.tui.conftest import Open


async def test_opens_on_the_overview_and_says_where_and_as_whom(visit: Open) -> None:
    async with visit() as at:
        await at.sees("hq", "gate-1", "alice", "owner", "requests/s", "live")
        print(at.text())


async def test_every_key_of_a_section_leads_there(visit: Open) -> None:
    async with visit() as at:
        await at.press("W")
        await at.sees("gpu-1", "gpu-2", "3 of 3")
        print(at.text())
        await at.press("S")
        await at.sees("audit.retention_days")
        print(at.text())
        await at.press("I")
        await at.sees("target_dead", "lyon")
        print(at.text())
