"""Settings at work in a whole gate: rates by default, the log's level, seats, and who may change what."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import httpx
import structlog

from qgate.control.access import OPERATIONS
from qgate.gate import Gate
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.principal import Role
from tests.qgate.gates import until
from tests.qgate.licences import VENDOR, licence
from tunnel_proto.configuration import LogSettings

PASSWORD = "correct horse 7 battery"


async def test_apps_without_rates_of_their_own_have_the_pool_s(gate: Gate, client: httpx.AsyncClient) -> None:
    await client.put("/settings/app.requests_per_minute", json={"value": 5})
    bounded = gate.capabilities.intake._bounded
    own = CapabilityPolicy(requests_per_minute=7)
    assert bounded(own) == own
    assert bounded(CapabilityPolicy()) == dataclasses.replace(own, requests_per_minute=5)
    await client.delete("/settings/app.requests_per_minute")
    assert bounded(CapabilityPolicy()) == CapabilityPolicy()
    assert bounded(None) is None


async def test_the_log_s_level_is_set_for_all_gates(gate: Gate, client: httpx.AsyncClient) -> None:
    def level() -> Any:
        return structlog.get_config()["wrapper_class"]

    root = logging.getLogger()
    before, wrapper = root.level, level()
    try:
        await client.put("/settings/debug.log_level", json={"value": "error"})
        await until(lambda: root.level == logging.ERROR)
        gate.reload(dataclasses.replace(gate.settings, log=LogSettings(level="debug")), gate.files)
        gate.governing.configuring.set_log_level()
        assert root.level == logging.ERROR, "what the file says waits for its turn"
        await client.delete("/settings/debug.log_level")
        await until(lambda: root.level == logging.WARNING)
        assert level() is structlog.make_filtering_bound_logger(logging.DEBUG)
    finally:
        root.setLevel(before)
        structlog.configure(wrapper_class=wrapper)


async def test_administrators_and_people_take_the_seats_of_a_licence(client: httpx.AsyncClient) -> None:
    assert (
        await client.post("/session/first", json={"name": "alice", "password": PASSWORD})
    ).status_code == 201
    await client.put("/settings/licence.vendors", json={"value": VENDOR})
    done = await client.put("/licence", json={"token": licence(time.time(), seats=2)})
    assert (done.status_code, done.json()["seats_used"]) == (200, 1)
    admin = {"name": "bob", "role": "viewer", "password": PASSWORD}
    assert (await client.post("/admins", json=admin)).status_code == 201
    refused = await client.post("/admins", json={**admin, "name": "carol"})
    assert (refused.status_code, refused.json()["code"]) == (409, "seats")
    await client.patch("/admins/bob", json={"disabled": True})
    assert (await client.get("/licence")).json()["seats_used"] == 1
    assert (await client.post("/admins", json={**admin, "name": "carol"})).status_code == 201


def test_who_may_change_what() -> None:
    assert OPERATIONS["PUT", "/licence"] is OPERATIONS["DELETE", "/licence"] is Role.OWNER
    assert OPERATIONS["POST", "/configuration/diff"] is Role.VIEWER
    assert OPERATIONS["POST", "/orders"] is Role.OPERATOR
