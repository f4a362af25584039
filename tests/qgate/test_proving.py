"""Long proofs: one at a time at a gate, in short turns of its event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qgate.governance.principal import AccessError
from qgate.governance.proving import TURN_S, Proving, Turns
from tests.qgate.gates import control, gate_settings, make_directory, running


async def test_others_go_on_whenever_a_turn_is_over() -> None:
    now, went_on = 0.0, 0

    async def others() -> None:
        nonlocal went_on
        while True:
            went_on += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    turns = Turns(clock=lambda: now)
    for _ in range(100):
        now += TURN_S / 9.9  # a step
        await turns.pause()
    task.cancel()
    assert went_on == 10


def test_a_proof_that_fails_leaves_its_turn() -> None:
    proving = Proving()
    with pytest.raises(ZeroDivisionError), proving.turn("a log"):
        raise ZeroDivisionError
    with proving.turn("the audit"), pytest.raises(AccessError) as refused, proving.turn("a log"):
        pass
    assert (refused.value.status, refused.value.code) == (429, "busy")
    assert "the audit" in refused.value.message


async def test_a_gate_proves_one_thing_at_a_time(
    tmp_path: Path, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        begun, go_on, verify = asyncio.Event(), asyncio.Event(), gate.parts.trail.verify

        async def held() -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return await verify()

        monkeypatch.setattr(gate.parts.trail, "verify", held)
        first = asyncio.create_task(client.post("/audit/verify"))
        await begun.wait()
        for path in ("/audit/verify", "/logs/verify"):
            refused = await client.post(path, json={})
            assert (refused.status_code, refused.json()["code"]) == (429, "busy")
            assert int(refused.headers["Retry-After"]) > 0
        go_on.set()
        assert (await first).json()["ok"]
        assert (await client.post("/logs/verify", json={})).json()["ok"]
        assert (await client.post("/audit/verify")).json()["ok"]
