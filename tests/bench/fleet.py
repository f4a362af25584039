"""1,000 workers across 10 pools: what it takes until every pool knows of all, and to keep it so.

    python -m tests.bench.fleet [--pools 10] [--workers 100] [--models 20] [--beats 10] [--json FILE]

Ten gates in this process, each over a database of its own, every pair joined by real tunnels at level 2. Each
gate's workers report as daemons do: the messages are encoded, decoded and taken into its inventory. CPU is
user time of all gates together, without PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import structlog

from qgate.capability.workers import WorkerView
from qgate.gate import Gate
from qgate.store import StoreUnavailableError, attested
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.capability import model, report
from tests.qgate.log_pools import until
from tests.qgate.peering import pair, pools
from tunnel_proto.messages import Decoder, Hardware, Report, encode

_PATIENCE_S = 600.0
_HARDWARE = Hardware(cpu="Some CPU", cores=16, memory=64 << 30)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds on the clock and user CPU of all gates in seconds."""

    what: str
    count: int
    seconds: float
    cpu: float

    def line(self) -> str:
        each = self.cpu / self.count * 1e6
        return f"{self.what}: {self.count} in {self.seconds:.1f} s, {self.cpu:.2f} s CPU ({each:.0f} µs each)"


def _said(pool: int, worker: int, models: int, seq: int, running: int) -> bytes:
    """A worker's report as it comes over its stream: all models at first, then two that changed."""
    states = [
        model(
            f"model-{number}",
            sha256=f"{number:064x}",
            running=running % 4,
            state="resident" if (number + worker) % 4 == 0 else "stored",
        )
        for number in range(models)
    ]
    chosen = states if seq == 0 else [states[(seq + step) % models] for step in (0, 1)]
    told = report(f"w{pool}-{worker}", *chosen, seq=seq, full=seq == 0, jobs_running=running)
    return encode(told)


def _take(gate: Gate, name: str, raw: bytes) -> None:
    (message,) = Decoder().feed(raw)
    assert isinstance(message, Report)
    gate.capabilities.inventory.workers_changed(name, message, asyncio.get_running_loop().time())


async def _measured(what: str, count: int, done: Callable[[], Any]) -> Figures:
    began, cpu = time.monotonic(), os.times().user
    await until(done, _PATIENCE_S)
    return Figures(what, count, time.monotonic() - began, os.times().user - cpu)


async def _run(directory: Path, server: EmbeddedPostgres, options: Any) -> list[Figures]:
    names = [f"pool{number}" for number in range(options.pools)]
    total = options.pools * options.workers
    found: list[Figures] = []

    def note(figures: Figures) -> None:
        found.append(figures)
        print(figures.line(), flush=True)

    began, cpu = time.monotonic(), os.times().user
    async with pools(directory, server, *names) as gates:
        for one, other in combinations(gates, 2):
            await pair(one, other, level=2)
        keys = [gate.parts.keys.pool_key for gate in gates]
        await until(
            lambda: all(
                gate.peering.links.up(key)
                for gate, own in zip(gates, keys, strict=True)
                for key in keys
                if key != own
            ),
            _PATIENCE_S,
        )
        links = options.pools * (options.pools - 1)
        note(
            Figures(
                "tunnels between pools that are up", links, time.monotonic() - began, os.times().user - cpu
            )
        )
        raw = [
            (gate, f"w{pool}-{worker}", _said(pool, worker, options.models, 0, 0))
            for pool, gate in enumerate(gates)
            for worker in range(options.workers)
        ]
        began, cpu = time.monotonic(), os.times().user
        for gate, name, said in raw:
            _take(gate, name, said)
            gate.capabilities.workers.views[name] = WorkerView(name, hardware=_HARDWARE)
        note(Figures("first reports taken", total, time.monotonic() - began, os.times().user - cpu))

        def offered() -> bool:
            return all(
                sum(one.offer.workers for one in gate.compute.offers.heard.values())
                == total - options.workers
                for gate in gates
            )

        note(await _measured("workers offered to every other pool", total, offered))

        async def attested_everywhere() -> bool:
            await asyncio.sleep(0.5)  # asking is work, too
            for gate in gates:
                try:
                    async with gate.parts.store.store.connection() as connection:
                        rows = await attested.rows_of(connection, "workers")
                except StoreUnavailableError:  # one PostgreSQL for ten pools may be late
                    return False
                if len(rows) < total - options.workers:
                    return False
            return True

        entries = total * (options.pools - 1)
        note(await _measured("workers attested, entries applied", entries, attested_everywhere))

        began, cpu = time.monotonic(), os.times().user
        for beat in range(1, options.beats + 1):
            due = time.monotonic() + 1.0
            for pool, gate in enumerate(gates):
                for worker in range(options.workers):
                    _take(gate, f"w{pool}-{worker}", _said(pool, worker, options.models, beat, beat + worker))
                await asyncio.sleep(0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        spent = Figures(
            "reports, one a worker a second",
            total * options.beats,
            time.monotonic() - began,
            os.times().user - cpu,
        )
        note(spent)
        began, cpu = time.monotonic(), os.times().user
        await asyncio.sleep(options.beats)
        note(
            Figures(
                "the same pools without reports, seconds",
                options.beats,
                time.monotonic() - began,
                os.times().user - cpu,
            )
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--beats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "pg", durable=False)
        asyncio.run(server.start())
        try:
            found = asyncio.run(_run(Path(folder), server, options))
        finally:
            asyncio.run(server.stop())
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
