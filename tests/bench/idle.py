"""What idle app connections cost: memory on each side, and CPU while nothing happens.

    python -m tests.bench.idle [--connections 5000] [--json FILE] [--markdown FILE]

Each connection runs a query and reads a 1 MB result before it idles, so that buffers and compressors have
been in use. The upstream is the kit's stand-in, because thousands of real PostgreSQL backends would measure
PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.bench.report import Check, write
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.process import Program, cpu, rss

_AT_ONCE = 32
_RESULT = "SELECT 1 /* bytes=1000000 */"
_QUIET_S = 10.0
_SETTLE_S = 15  # what a burst freed goes back to the system within ten seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes a connection and CPU as a part of a core, for one program."""

    name: str
    before: int
    after: int
    connections: int
    cpu: float

    @property
    def bytes_each(self) -> float:
        return (self.after - self.before) / self.connections


async def _open(login: Login, count: int) -> list[asyncpg.Connection[Any]]:
    """Open connections, each with a query and a 1 MB result behind it."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one() -> asyncpg.Connection[Any]:
        async with turns:
            connection = await asyncpg.connect(login.url(), timeout=120)
            await connection.execute("SELECT 1")
            await connection.execute(_RESULT)
            return connection

    return await asyncio.gather(*(one() for _ in range(count)))


async def measure(mesh: Mesh, login: Login, count: int) -> list[Cost]:
    """Return what `count` idle connections cost the sidecar and the gate."""
    daemons = (mesh.sidecar, mesh.gate)
    warm = await _open(login, _AT_ONCE)  # imports, pools and first allocations are not a connection's cost
    for connection in warm:
        await connection.close()
    before = [rss(daemon.pid) for daemon in daemons]
    start = time.monotonic()
    held = await _open(login, count)
    print(f"{count} connections in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    await asyncio.sleep(_SETTLE_S)
    after = [rss(daemon.pid) for daemon in daemons]
    used = [cpu([daemon.pid]) for daemon in daemons]
    await asyncio.sleep(_QUIET_S)
    spent = [cpu([daemon.pid]) - then for daemon, then in zip(daemons, used, strict=True)]
    for connection in held:
        connection.terminate()
    return [
        Cost(daemon.name, old, new, count, (quiet.user_s + quiet.system_s) / _QUIET_S)
        for daemon, old, new, quiet in zip(daemons, before, after, spent, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description="idle connections")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.connections * 2 + 500  # the gate's side and the sidecar's hold two each
    if hard != resource.RLIM_INFINITY and hard < wanted:
        print(
            f"{options.connections} connections need {wanted} open files; {hard} are allowed", file=sys.stderr
        )
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    password = secrets.token_urlsafe(18)
    with tempfile.TemporaryDirectory(prefix="idle-") as folder, Mesh() as mesh:
        upstream = Program.start(
            [
                *(sys.executable, "-W", "ignore", "-m", "tests.kit.upstream"),
                *("--user", "standin", "--password", password),
            ],
            name="stand-in",
            log=Path(folder) / "upstream.log",
            cwd=Path(__file__).parents[2],
        )
        try:
            upstream.wait_ready(lambda: b"port" in upstream.log.read_bytes())
            port = int(json.loads(upstream.log.read_text().splitlines()[0])["port"])
            dsn = Login("127.0.0.1", port, "standin", password, "idle").url() + "?sslmode=disable"
            mesh.add_database("idle", dsn, pool_size=options.connections + 100)
            login = mesh.add_app("idle-app", "idle")
            mesh.wait_linked()
            costs = asyncio.run(measure(mesh, login, options.connections))
        finally:
            upstream.stop()
    rows = [["program", "RSS before", "RSS with them", "each", "idle CPU"]]
    for cost in costs:
        sizes = [
            f"{cost.before / 1e6:.1f} MB",
            f"{cost.after / 1e6:.1f} MB",
            f"{cost.bytes_each / 1024:.1f} KiB",
        ]
        rows.append([cost.name, *sizes, f"{cost.cpu:.2%}"])
    checks = []
    for cost in costs:
        each = cost.bytes_each / 1024
        checks.append(Check(f"{cost.name}: memory an idle connection", each, 16, at_least=False, unit="KiB"))
        checks.append(Check(f"{cost.name}: idle CPU", cost.cpu * 100, 0.5, at_least=False, unit="%"))
    write(
        title=f"{options.connections} idle connections, each after a query and a 1 MB result",
        rows=rows,
        checks=checks,
        notes=[],
        data={"programs": [{"name": c.name, "bytes_each": c.bytes_each, "cpu": c.cpu} for c in costs]},
        json_path=options.json,
        markdown_path=options.markdown,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
