"""The disk under the audit log runs full, for real: a small tmpfs under the gate's own PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from qgate.gate import Gate
from qgate.governance.audit import AuditEvent
from qgate.settings import StoreSettings
from tests.qgate.gates import control, gate_settings, make_directory, running, until

SIZE_MIB = 192
"""Room for a fresh cluster (about 60 MiB with its WAL) and for what the test writes."""

QUEUE_MAX = 1000

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0755", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left; returns the file that holds them."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass
    assert shutil.disk_usage(disk).free < 4096
    return ballast


@contextlib.asynccontextmanager
async def gate_on(disk: Path) -> AsyncIterator[tuple[Gate, httpx.AsyncClient]]:
    """A gate whose whole state, its PostgreSQL included, is on `disk`."""
    settings = dataclasses.replace(gate_settings(disk / "gate", "postgresql://-"), store=StoreSettings())
    make_directory(disk / "gate", settings)
    async with running(settings) as gate, control(gate) as client:
        reply = await client.put("/settings/audit.queue_max", json={"value": QUEUE_MAX})
        assert reply.status_code == 200, reply.text
        yield gate, client


async def record_until_stuck(gate: Gate) -> None:
    """Write entries, wide ones, until the store has taken none for a while."""
    audit = gate.parts.audit
    wide = {"text": os.urandom(4096).hex()}
    before = -1
    async with asyncio.timeout(90):
        while audit.written != before or audit.queued < QUEUE_MAX // 2:
            before = audit.written
            for _ in range(QUEUE_MAX // 2 - audit.queued):
                audit.record(AuditEvent("query", app="web", database="shop", detail=wide))
            with contextlib.suppress(Exception):
                await audit.flush()


@pytest.mark.parametrize("policy", ["refuse", "drop"])
async def test_a_full_disk_does_what_the_setting_says_and_is_got_over(small_disk: Path, policy: str) -> None:
    async with gate_on(small_disk) as (gate, client):
        audit = gate.parts.audit
        reply = await client.put("/settings/audit.when_full", json={"value": policy})
        assert reply.status_code == 200, reply.text
        ballast = fill(small_disk)
        await record_until_stuck(gate)
        # Up to the bound, entries wait in memory and new sessions may begin.
        assert (accepting(gate), audit.dropped) == (True, 0)

        for number in range(QUEUE_MAX * 2):
            audit.record(AuditEvent("query", app="web", database="shop", rows=number))
        assert accepting(gate) is (policy == "drop")
        assert ("audit" in gate.problems()) is (policy == "refuse")
        if policy == "refuse":
            assert (await client.get("http://localhost/readyz")).status_code == 503
        lost = audit.dropped
        assert lost > 0

        ballast.unlink()
        # Nobody is called: the entries are written, the door is open, and the loss is in the chain.
        await until(lambda: not audit.queued and not gate.problems(), timeout_s=90)
        assert accepting(gate)
        verdict = (await client.post("/audit/verify")).json()
        assert verdict["ok"], verdict
        entries = (await client.get("/audit", params={"kind": "audit.dropped", "after": 0})).json()["items"]
        assert sum(entry["count"] for entry in entries) == lost


def accepting(gate: Gate) -> bool:
    """Whether a new session may begin now, as the front asks."""
    return gate.parts.audit.accepting
