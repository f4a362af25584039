"""Onboarding: steps are done when what they make is there; what is skipped can be taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgate.control import machine
from qgate.governance.onboarding import STEPS, Facts, Onboarding
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from tests.qgate.gates import control, gate_settings, make_directory, running
from tests.qgate.pool import BY, Pool, unchecked

GIB = 1 << 30


class Machine:
    """A machine that tests change."""

    def __init__(self) -> None:
        self.models = 0
        self.verdict = "PASSED"

    def facts(self) -> Facts:
        return Facts(
            lambda: "embedded, PostgreSQL 18",
            lambda: self.models,
            lambda: [{"name": "disk", "verdict": self.verdict, "detail": "x", "next": None}],
        )


async def states(onboarding: Onboarding) -> dict[str, str]:
    return {row["step"]: row["state"] for row in (await onboarding.show())["steps"]}


async def test_steps_are_done_when_what_they_make_is_there(pool: Pool) -> None:
    found = Machine()
    onboarding = Onboarding(pool.office, found.facts())
    shown = await onboarding.show()
    assert (shown["done"], shown["next"]) == (False, "machine")
    assert await states(onboarding) == {
        "machine": "open",
        "admin": "open",
        "store": "done",
        "database": "open",
        "model": "open",
        "pair": "open",
    }
    assert (await onboarding.check_machine(by=BY))["ok"]
    await pool.databases.add(unchecked(), by=BY)
    found.models = 2
    assert (await onboarding.show())["next"] == "admin"
    await onboarding.skip("admin", by=BY)
    await onboarding.skip("pair", by=BY)
    shown = await onboarding.show()
    assert (shown["done"], shown["next"]) == (True, None)
    assert "skipped by uid=1000" in shown["steps"][1]["detail"]
    await pool.databases.remove("shop", force=False, by=BY)
    assert (await onboarding.show())["next"] == "database"
    assert (await onboarding.reopen("pair", by=BY))["steps"][-1]["state"] == "open"
    assert [one for one in await pool.told() if one[0].startswith("onboarding")] == [
        ("onboarding.machine", "machine"),
        ("onboarding.skip", "admin"),
        ("onboarding.skip", "pair"),
        ("onboarding.reopen", "pair"),
    ]


async def test_a_machine_that_fails_is_looked_at_again(pool: Pool) -> None:
    found = Machine()
    onboarding = Onboarding(pool.office, found.facts())
    await onboarding.check_machine(by=BY)
    found.verdict = "FAILED"
    assert not (await onboarding.check_machine(by=BY))["ok"]
    assert (await states(onboarding))["machine"] == "open"


async def test_what_cannot_be_skipped_is_not(pool: Pool) -> None:
    onboarding = Onboarding(pool.office, Machine().facts())
    for name in ("machine", "store"):
        with pytest.raises(InvalidRequestError, match="cannot be skipped"):
            await onboarding.skip(name, by=BY)
    with pytest.raises(UnknownNameError) as refused:
        await onboarding.skip("coffee", by=BY)
    assert all(step.name in refused.value.hint for step in STEPS)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (machine.disk(GIB // 2, Path("/x")), "FAILED"),
        (machine.disk(5 * GIB, Path("/x")), "WARNING"),
        (machine.disk(50 * GIB, Path("/x")), "PASSED"),
        (machine.memory(GIB // 4), "FAILED"),
        (machine.memory(GIB), "WARNING"),
        (machine.memory(4 * GIB), "PASSED"),
        (machine.open_files(1024), "WARNING"),
        (machine.open_files(-1), "PASSED"),
        (machine.clock(0.0), "FAILED"),
        (machine.clock(1.8e9), "PASSED"),
        (machine.addresses(()), "WARNING"),
        (machine.addresses(("127.0.0.1:1", "[::1]:2", "localhost:3")), "WARNING"),
        (machine.addresses(("gate.example:11437",)), "PASSED"),
        (machine.private(0o40755, Path("/x")), "WARNING"),
        (machine.private(0o40700, Path("/x")), "PASSED"),
    ],
)
def test_a_look_at_the_machine(found: machine.Verdict, verdict: str) -> None:
    assert found["verdict"] == verdict
    assert (found["next"] is None) == (verdict == "PASSED")


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        assert (await client.get("/onboarding")).json()["next"] == "machine"
        checked = (await client.post("/onboarding/machine")).json()
        assert {one["name"] for one in checked["checks"]} >= {"disk", "memory", "clock"}
        assert (await client.put("/onboarding/pair", json={"state": "skipped"})).status_code == 200
        assert (await client.put("/onboarding/store", json={"state": "skipped"})).status_code == 422
        assert (await client.put("/onboarding/tea", json={"state": "open"})).status_code == 404
        claimed = await client.post("/session/first", json={"name": "alice", "password": "correct horse 7"})
        assert claimed.status_code == 201, claimed.text
        steps = {row["step"]: row for row in (await client.get("/onboarding")).json()["steps"]}
        assert (steps["admin"]["state"], steps["store"]["state"]) == ("done", "done")
        assert "external, PostgreSQL" in steps["store"]["detail"]
