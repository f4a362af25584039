"""The first sections over a real gate: what is done there is in the control API and in the audit."""

from __future__ import annotations

import pytest

from meshctl.errors import GateError
from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.outcome import audited, eventually


async def test_the_overview_of_a_real_gate(visit_mesh: Open) -> None:
    async with visit_mesh() as at:
        await at.sees("live", "uid=", "owner", "gate-1", "1 of 1 serve", "0 open", "tunnels")


async def test_a_worker_is_drained_described_and_taken_back(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("workers", size=(120, 40)) as at:
        await at.sees("gpu-1", "present", "1 of 1")
        await at.press("t")
        await at.told("gpu-1 takes no more jobs.")
        await eventually(lambda: bool(mesh.control.get("/workers/gpu-1")["draining"]), "a draining worker")
        await at.press("u")
        await at.sees("Take back: Drain?")
        await at.press("y")
        await at.told("Taken back")
        await eventually(lambda: not mesh.control.get("/workers/gpu-1")["draining"], "a worker that serves")
        await at.press("enter")
        await at.sees("Workers › gpu-1", "memory bandwidth")
    assert audited(mesh, "worker.drain")["name"] == "gpu-1"
    assert audited(mesh, "worker.undrain")


async def test_a_setting_is_changed_reset_and_its_history_shown(visit_mesh: Open, mesh: Mesh) -> None:
    name = "audit.merge_interval_s"
    async with visit_mesh("settings") as at:
        await at.sees("admin.require_second_factor")
        await at.type(f"/{name}")
        await at.press("enter")
        await at.sees(f"▸ {name}")
        await at.press("e")
        await at.sees("from 0", "to 60")
        await at.press("backspace", "7", "enter")
        await at.type("tried here")
        await at.press("enter")
        await at.told(f"{name} is changed.")
        assert mesh.control.get(f"/settings/{name}")["value"] == 7.0
        await at.sees("database")
        await at.press("e", "backspace", "9", "9", "9", "ctrl+s")
        await at.sees("At most 60.")
        await at.press("escape")
        mesh.control.put(f"/settings/{name}", {"value": 3.0})  # somebody else, meanwhile
        await at.sees("3          database")
        await at.press("delete")
        await at.sees(f"Reset {name} to its default?")
        await at.press("y")
        await at.told("is at its default again")
        assert mesh.control.get(f"/settings/{name}")["source"] == "default"
        await at.press("i")
        await at.sees(f"Advanced settings › {name}", "tried here")
    assert audited(mesh, "setting.set")["after"] == 3.0
    assert audited(mesh, "setting.reset")["name"] == name


async def test_moves_nodes_and_the_mode_of_a_pool_without_peers(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("incidents") as at:
        await at.sees("nothing is wrong")
        await at.press("2")
        await at.sees("No node has moved yet.")
        await at.press("3")
        await at.sees("gpu-1")
        await at.press("4")
        await at.sees("mode", "auto")
        await at.press("o")
        await at.sees("How nodes move", "< auto >")
        await at.press("right", "ctrl+s")
        await at.sees("auto -> manual", "PUT /failover/mode")
        await at.press("y")
        await at.told("The mode is changed.")
        assert mesh.control.get("/failover")["mode"] == "manual"
        await at.press("u")
        await at.sees("meshctl failover auto")
        await at.press("y")
        await at.told("no pool is paired to which nodes may fail over")
        await at.told("Next: meshctl pool pair")
        await at.press("w")
        await at.sees("Why would a request go")
        await at.press("ctrl+s")
        await at.sees("Why there?", "weights")
    assert audited(mesh, "setting.set")["name"] == "failover.mode"
    mesh.control.delete("/settings/failover.mode")


async def test_an_incident_is_acknowledged_and_resolved(visit_mesh: Open, mesh: Mesh) -> None:
    mesh.control.put("/settings/order.late_s", {"value": 1.0})
    mesh.control.put("/automations/migrations", {"on": False})
    try:
        async with visit_mesh("incidents", size=(120, 40)) as at:
            await at.sees("nothing is wrong")
            await at.press("5")
            await at.sees("No order is to come.")
            await at.press("a")
            await at.sees("Have something done at a time", "< drain >")
            await at.press("tab", "1", "s", "tab", "tab")
            await at.type("gpu-1")
            await at.press("ctrl+s")
            await at.sees("meshctl order add drain", "--worker gpu-1")
            await at.press("y")
            await at.told("It is scheduled.")
            await eventually(lambda: bool(mesh.control.items("/incidents")), "a missed order")
            await at.press("1")
            await at.sees("order_missed")
            await at.press("a")
            await at.type("I look")
            await at.press("ctrl+s")
            await at.told("is acknowledged.")
            found = mesh.control.items("/incidents")[0]
            assert (found["state"], found["note"]) == ("acknowledged", "I look")
            await at.press("e", "ctrl+s")
            await at.sees("It cannot be opened again.")
            await at.press("y")
            await at.told("is resolved.")
            assert not mesh.control.items("/incidents")
            await at.press("o")
            await at.sees("resolved")
    finally:
        mesh.control.put("/automations/migrations", {"on": True})
        mesh.control.delete("/settings/order.late_s")
    assert audited(mesh, "incident.ack")["by"].startswith("uid=")
    assert audited(mesh, "incident.resolve")


async def test_an_order_is_scheduled_and_cancelled_and_automations_are_switched(
    visit_mesh: Open, mesh: Mesh
) -> None:
    async with visit_mesh("incidents", size=(160, 40)) as at:
        await at.press("5", "a")
        await at.press("tab", "1", "2", "h", "tab", "tab")
        await at.type("gpu-1")
        await at.press("ctrl+s")
        await at.sees("y yes")
        await at.press("y")
        await at.told("It is scheduled.")
        await at.sees("waiting", "worker=gpu-1")
        number = mesh.control.items("/orders")[0]["number"]
        await at.press("delete")
        await at.sees(f"Cancel order {number}?", f"meshctl order cancel {number}")
        await at.press("y")
        await at.told(f"Order {number} is cancelled.")
        assert not mesh.control.items("/orders")
        await at.press("6")
        await at.sees("migrations", "● on")
        await at.type("/migrations")
        await at.press("enter", "w")
        await at.sees("What it would do", "would")
        await at.press("escape", "f")
        await at.told("migrations is off.")
        assert mesh.control.get("/automations/migrations")["on"] is False
        await at.press("u")
        await at.sees("meshctl automation on migrations")
        await at.press("y")
        await at.told("Taken back")
        assert mesh.control.get("/automations/migrations")["on"] is True
    assert audited(mesh, "order.cancel")["name"] == str(number)


async def test_a_worker_is_labelled_found_by_it_and_taken_back(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("workers", size=(160, 40)) as at:
        await at.sees("1 of 1")
        await at.press("b")
        await at.type("site=lyon, rack=b2")
        await at.press("enter")
        await at.told("gpu-1 is labelled.")
        assert mesh.control.get("/workers/gpu-1")["labels"] == {"site": "lyon", "rack": "b2"}
        await at.sees("rack=b2 site=lyon")
        await at.type("/-l site=paris")
        await at.sees("0 of 1")
        await at.press("escape")
        await at.type("/-l site=lyon")
        await at.press("enter")
        await at.sees("1 of 1")
        await at.press("b")
        await at.type("rack-")
        await at.press("enter")
        await at.until(lambda: mesh.control.get("/workers/gpu-1")["labels"] == {"site": "lyon"})
        await at.until(lambda: "rack=b2" not in at.text())
        await at.press("u")
        await at.sees("meshctl worker label gpu-1 rack=b2")
        await at.press("y")
        await at.told("Taken back")
        assert mesh.control.get("/workers/gpu-1")["labels"] == {"site": "lyon", "rack": "b2"}
    entry = audited(mesh, "worker.label")
    assert entry["before"]["labels"] != entry["after"]["labels"]
    assert entry["by"].startswith("uid=")
    stale = {"If-Match": '"12"'}
    with pytest.raises(GateError, match="is not what you saw"):
        mesh.control.call("PUT", "/workers/gpu-1/labels", body={"labels": {}}, headers=stale)
    with pytest.raises(GateError, match="cannot be a label's key"):
        mesh.control.put("/workers/gpu-1/labels", {"labels": {"a b": "c"}})
    with pytest.raises(GateError, match="there is no worker"):
        mesh.control.put("/workers/nobody/labels", {"labels": {}})
