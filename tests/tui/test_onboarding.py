"""The first steps over a fresh gate: done, skipped, taken up again, broken off and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.outcome import audited


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as found:
        yield found


def steps(mesh: Mesh) -> dict[str, Any]:
    return {row["step"]: row for row in mesh.control.get("/onboarding")["steps"]}


async def test_the_steps_are_gone_through(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("onboarding") as at:
        await at.sees("Step 1: check this machine", "enter  Check the machine", "1 of 6 done or skipped")
        await at.press("f")  # which this step does not have
        await at.press("enter")
        await at.sees("Onboarding › Check the machine", "VERDICT", "disk", "PASSED")
        assert steps(mesh)["machine"]["state"] == "done"
        await at.press("escape")
        await at.sees("Step 2: make the first owner")
        await at.press("enter")
        await at.sees("The first owner", "POST /session/first", "meshctl onboard --step admin")
        await at.press("ctrl+s")
        await at.sees("This is needed.")
        await at.press("escape")

    async with visit_mesh("onboarding") as at:  # broken off, and gone on with
        await at.sees("Step 2: make the first owner", "2 of 6 done or skipped")
        await at.press("a")
        await at.type("correct-horse-battery")
        await at.press("enter")
        await at.type("correct-horse-batterx")
        await at.press("enter")
        await at.sees("The two entries differ.")
        await at.press("tab", "tab", "end", "backspace", "y", "enter")
        await at.told("The first owner is there.")
        await at.sees("Step 4: add the first database")
        await at.press("f")
        await at.told("database is skipped.")
        assert steps(mesh)["database"]["state"] == "skipped"
        await at.sees("Step 5: have the first model")
        await at.press("u")
        await at.sees("Take back: Skip?", "meshctl onboard skip database --undo")
        await at.press("y")
        await at.told("Taken back")
        await at.sees("Step 4: add the first database")
        await at.press("b")
        await at.sees("Add a database", "POST /databases")
        await at.type("postgresql://nobody@127.0.0.1:1/none")
        await at.press("ctrl+s")
        await at.until(lambda: bool(at.room.screen.query(".modal--bad")), "why it cannot be reached")
        await at.press("escape")
        assert steps(mesh)["database"]["state"] == "open"
        await at.sees_no("POST /databases")
        await at.press("enter")
        await at.sees("Make the sample database shop?", "POST /sample")
        await at.press("y")
        await at.told("The sample database shop is there.")
        for name, step in (("model", "Step 5: have the first model"), ("pair", "Step 6: pair with")):
            await at.sees(step)
            await at.press("f")
            await at.told(f"{name} is skipped.")
        await at.sees("Every step is done or was skipped.")
        await at.press("g", "down")
        await at.sees("Make the first owner  (It is done already.)")
        await at.press("G")
        await at.sees("Step 6: pair with another pool")
        await at.press("v")
        await at.told("pair is open again.")
        await at.sees("5 of 6 done or skipped")
    assert {name: row["state"] for name, row in steps(mesh).items()} == {
        "machine": "done",
        "admin": "done",
        "store": "done",
        "database": "done",
        "model": "skipped",
        "pair": "open",
    }
    assert audited(mesh, "onboarding.reopen", name="pair")
    assert audited(mesh, "onboarding.skip", name="model")


async def test_in_french_and_on_a_wide_terminal(visit_mesh: Open, mesh: Mesh) -> None:
    from meshctl.tui.preferences import Preferences

    async with visit_mesh("onboarding", size=(120, 40), liked=Preferences(language="fr")) as at:
        await at.sees("ÉTAPE", "examiner cette machine", "fait")
