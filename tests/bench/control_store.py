"""What the control API's long lists cost at size: the audit and what receipts add up to, of a real gate.

    .venv/bin/python -m tests.bench.control_store --entries 100000 --rounds 40

A gate of this process over the embedded PostgreSQL, filled through its own writers: a chained audit, signed
receipts. Each question goes over the control socket, one at a time, in turns; figures are milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from qgate.gate import Gate
from qgate.governance.audit import AuditEvent
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.receipts import add_receipts
from tests.qgate.gates import control, gate_settings, make_directory, running
from tunnel_proto.receipt import spell

APPS: Final = tuple(f"app-{number}" for number in range(40))
MODELS: Final = tuple(f"model-{number}" for number in range(12))
DAYS: Final = 29
BATCH: Final = 1_000
NEEDLE: Final = "Quarterly-Needle"

QUESTIONS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "audit, newest 100": ("/audit", {}),
    "audit, newest 1,000": ("/audit", {"limit": 1000}),
    "audit, 100 in the middle": ("/audit", {"before": 50_000}),
    "audit, one app": ("/audit", {"app": APPS[7]}),
    "audit, a kind that is rare": ("/audit", {"kind": "admin.locked-out"}),
    "audit, a kind that is common": ("/audit", {"kind": "query"}),
    "audit, app and kind, rare": ("/audit", {"app": APPS[7], "kind": "job.moved"}),
    "audit, a text that is common": ("/audit", {"q": "select"}),
    "audit, a text that is once": ("/audit", {"q": NEEDLE.lower()}),
    "audit, a text that is nowhere": ("/audit", {"q": "nothing has this"}),
    "audit, a text of two letters, nowhere": ("/audit", {"q": "~^"}),
    "receipts, newest 100": ("/receipts", {}),
    "receipts, one app": ("/receipts", {"app": APPS[7]}),
    "receipts, a text that is nowhere": ("/receipts", {"q": "nothing has this"}),
    "usage by app": ("/usage", {"by": "app"}),
    "usage by model": ("/usage", {"by": "model"}),
    "usage by team": ("/usage", {"by": "team"}),
    "usage by task": ("/usage", {"by": "task"}),
    "usage by day": ("/usage", {"by": "day"}),
    "usage of one app, by day": ("/usage", {"by": "day", "app": APPS[7]}),
    "overview": ("/overview", {}),
}


async def fill(gate: Gate, entries: int, seed: int) -> None:
    """So many entries of the audit and as many receipts."""
    chance = random.Random(seed)
    audit, receipts = gate.parts.audit, gate.capabilities.receipts
    now = time.time()
    for number in range(entries):
        at = now - DAYS * 86_400 * (1 - number / entries)
        audit.record(_entry(chance, number, entries, at))
        if number % BATCH == BATCH - 1:
            await audit.flush()
    await audit.flush()
    for first in range(0, entries, BATCH):
        rows = []
        for number in range(first, min(first + BATCH, entries)):
            at = now - DAYS * 86_400 * (1 - number / entries)
            rows.append(receipts.recover(_receipt(chance, number, at)))
            rows[-1] = type(rows[-1])(rows[-1].id, at, rows[-1].app, rows[-1].document)
        async with gate.parts.store.store.connection() as connection:
            await add_receipts(connection, rows)


def _entry(chance: random.Random, number: int, entries: int, at: float) -> AuditEvent:
    app = chance.choice(APPS)
    if number == entries // 3:
        return AuditEvent(
            "admin", started_at=at, detail={"what": "app.create", "name": NEEDLE, "by": "alice"}
        )
    match number % 100:
        case 0:
            detail = {
                "what": "setting.set",
                "name": f"setting-{number}",
                "by": "alice",
                "after": {"value": number},
            }
            return AuditEvent("admin", started_at=at, detail=detail)
        case 1 if number % 10_000 == 1:
            return AuditEvent(
                "admin.locked-out", outcome="locked-out", started_at=at, detail={"subject": "name:eve"}
            )
        case 2 if number % 1_000 == 2:
            return AuditEvent("job.moved", app=app, started_at=at, detail={"request": f"req_{number}"})
        case left if left < 30:
            return AuditEvent(
                "job", app=app, sidecar="laptop", started_at=at, detail={"request": f"req_{number}"}
            )
        case _:
            text = (
                f"SELECT name, price FROM articles WHERE id = $1 AND shelf_{number % 300} > $2 ORDER BY name"
            )
            return AuditEvent(
                "query", app=app, sidecar="laptop", database=f"shop-{number % 5}", fingerprint=text,
                fingerprint_id=f"{number % 300:016x}", rows=12, bytes_up=80, bytes_down=2_000,
                duration_s=0.004, max_duration_s=0.004, started_at=at,
            )  # fmt: skip


def _receipt(chance: random.Random, number: int, at: float) -> dict[str, Any]:
    model = chance.choice(MODELS)
    return {
        "id": f"req_{number:024x}", "app": chance.choice(APPS), "team": f"team-{number % 6}", "task": "chat",
        "model": model, "model_version": "ab" * 32,
        "nodes": [{"node": "gpu0", "kind": "worker", "model": model}],
        "gate": "gate-1", "began_at": spell(at), "ended_at": spell(at + 1), "duration_ms": 900,
        "first_token_ms": 80, "tokens_in": 500, "tokens_out": 200, "tokens_cached": 0,
        "outcome": "ok" if number % 50 else "failed", "finish_reason": "stop",
        "price": "0.00123", "currency": "USD",
    }  # fmt: skip


async def ask(client: httpx.AsyncClient, path: str, query: Mapping[str, Any]) -> float:
    """Milliseconds until the whole answer was there."""
    began = time.perf_counter()
    reply = await client.get(path, params=dict(query))
    spent = time.perf_counter() - began
    reply.raise_for_status()
    return spent * 1e3


async def measure(folder: Path, entries: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Milliseconds of each question. What ``folder`` holds from an earlier run is asked again."""
    server = EmbeddedPostgres(folder / "pg", secret=bytes(32))
    await server.start()
    try:
        settings = gate_settings(folder / "gate", server.dsn())
        if not (filled := settings.state_dir.exists()):
            make_directory(settings.state_dir, settings)
        async with running(settings) as gate, control(gate) as client:
            if not filled:
                await fill(gate, entries, seed)
                async with gate.parts.store.store.connection() as connection:
                    for table in ("audit_entries", "receipts"):  # as autovacuum does within a minute
                        await connection.execute(f"VACUUM ANALYZE {table}", timeout=600)
            times: dict[str, list[float]] = {name: [] for name in QUESTIONS}
            for _ in range(rounds):
                for name, (path, query) in QUESTIONS.items():
                    times[name].append(await ask(client, path, query))
            return times
    finally:
        await server.stop()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the store here, and ask it again the next time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qgate-bench-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        times = asyncio.run(measure(folder, given.entries, given.rounds, given.seed))
    print("| question | median | p95 |\n|---|---|---|")
    for name, found in times.items():
        found.sort()
        print(
            f"| {name} | {statistics.median(found):.1f} ms | {found[int(0.95 * (len(found) - 1))]:.1f} ms |"
        )


if __name__ == "__main__":
    main()
