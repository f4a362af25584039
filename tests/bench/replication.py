"""What replication takes: 10,000 catalogue entries between two pools, and the catch-up after an hour apart.

    python -m tests.bench.replication [--entries 10000] [--hour 3600] [--json FILE]

Two gates in this process, each over a database of its own, paired at level 3, joined by a real tunnel. CPU is
user time of both gates together, without PostgreSQL. An hour apart is one change a second to one of 600
models.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from qgate.gate import Gate
from qgate.store.database import Connection
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.outbox import publish
from tests.kit.proxy import Proxy, Shape
from tests.qgate.log_pools import until
from tests.qgate.peering import know, pair, peer_of, pools

_MODELS = 600
_PATIENCE_S = 600.0
_LINE = Shape(delay_s=0.020, bytes_per_s=2_500_000)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds on the clock, user CPU of both gates in seconds, bytes as they were said and as they were
    sent.
    """

    what: str
    entries: int
    seconds: float
    cpu: float
    said: int
    sent: int

    def line(self) -> str:
        rate = self.entries / self.seconds
        each = self.cpu / self.entries * 1e6
        return (
            f"{self.what}: {self.entries} entries in {self.seconds:.1f} s ({rate:.0f}/s), "
            f"{self.cpu:.1f} s CPU"
            f" ({each:.0f} µs each), {self.said / 1e6:.2f} MB said, {self.sent / 1e6:.2f} MB sent"
            f" ({self.said / max(1, self.sent):.1f} : 1)"
        )


async def _write(connection: Connection, count: int, models: int) -> None:
    """Write to the catalogue as its master, all at once."""
    for n in range(count):
        model = n % models
        document = {"quant": "Q4_K_M", "context": 8192, "size": 4_000_000_000 + n, "copies": 2}
        await publish(
            connection,
            stream="catalogue",
            record=model.to_bytes(16, "big"),
            payload={"name": f"model-{model}", "document": document, "by": "uid=0", "at": n},
            epoch=1,
        )


def _sent(gate: Gate, key: bytes) -> int:
    """Bytes that came over every tunnel with a pool."""
    return sum(one.stats.bytes_wire_in for one in gate.peering.links.carriers(key))


async def _measured(what: str, entries: int, hq: Gate, branch: Gate, target: int) -> Figures:
    key = hq.parts.keys.pool_key
    said, sent = hq.replication.publisher.bytes_sent, _sent(branch, key)
    began, cpu = time.monotonic(), os.times().user
    await until(lambda: branch.replication.head(key).seq >= target, _PATIENCE_S)
    return Figures(
        what,
        entries,
        time.monotonic() - began,
        os.times().user - cpu,
        hq.replication.publisher.bytes_sent - said,
        _sent(branch, key) - sent,
    )


async def _run(directory: Path, server: EmbeddedPostgres, entries: int, hour: int) -> list[Figures]:
    found = []
    async with pools(directory, server, "hq", "branch") as (hq, branch):
        key = hq.parts.keys.pool_key

        async def signed() -> int:
            """Wait until our outbox is empty; returns the head."""
            async with hq.parts.store.store.connection() as connection:
                while await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
                    await asyncio.sleep(0.05)
                return int(await connection.fetchval("SELECT seq FROM log_head"))

        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="bench")
        before = await signed()
        await until(lambda: branch.replication.head(key).seq == before, _PATIENCE_S)
        async with hq.parts.store.store.transaction() as connection:
            await _write(connection, entries, entries)
        found.append(await _measured("signed, sent and applied", entries, hq, branch, before + entries))

        await know(branch, peer_of(hq, level=3, state="unpaired"))
        await know(hq, peer_of(branch, level=3, state="unpaired"))
        before = await signed()
        async with hq.parts.store.store.transaction() as connection:
            await _write(connection, hour, _MODELS)
        target = await signed()
        async with Proxy(("127.0.0.1", hq.port), shape=_LINE) as line:
            far = dataclasses.replace(hq.gate_addresses()[0], port=line.port)
            await know(hq, peer_of(branch, level=3))
            await know(branch, peer_of(hq, level=3, gates=(far,)))
            found.append(await _measured("caught up after an hour", hour, hq, branch, target))
        checked = await branch.logs.verify("hq")
        assert checked["ok"], checked
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--hour", type=int, default=3_600)
    parser.add_argument("--json", type=Path)
    options: Any = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "pg", durable=False)
        asyncio.run(server.start())
        try:
            found = asyncio.run(_run(Path(folder), server, options.entries, options.hour))
        finally:
            asyncio.run(server.stop())
    for one in found:
        print(one.line())
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
