"""Link torture: the line between sidecar and gate breaks all the time, and no client may notice.

    python -m tests.integration.torture --seconds 120 --seed 1 [--min-resumes 60]

A chaos proxy cuts, stalls, half-opens and reorders reconnects every 0.2 to 2 seconds. Meanwhile writers
insert unique ids and remember which were acknowledged, pgbench runs its read-write script, and copiers move
blocks in and out and compare hashes. At the end every acknowledged id must be there exactly once, every hash
must be equal, and no client may have seen an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.kit.cluster import Cluster, bundled
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.proxy import Proxy

# A dead link must be noticed faster than the faults come, or most of the run is spent waiting for it.
SETTINGS = {"tunnel": {"ping_idle_s": 0.2, "dead_min_s": 0.4, "dead_max_s": 1.0, "retry_max_s": 0.5}}
_WRITERS = 4
_COPIERS = 2
_BENCH_CLIENTS = 4
_PROGRAMS = ("qgate", "minigate")


@dataclass(slots=True)
class Outcome:
    """What happened in one run."""

    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    resending: int = 0  # resumes after which bytes were sent again, as far as seen
    resent_bytes: int = 0
    acknowledged: int = 0
    missing: int = 0
    doubled: int = 0
    copies: int = 0
    copied_bytes: int = 0
    bench_transactions: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.errors and not self.missing and not self.doubled

    def text(self) -> str:
        """Say it in a few lines."""
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        lines = [
            f"{self.seconds:.0f} s of {faults}",
            f"{self.resumes} resumes, {self.resending} of them resent bytes, {self.resent_bytes:,} in all",
            f"{self.acknowledged:,} acknowledged ids: {self.missing} missing, {self.doubled} doubled",
            f"{self.copies} COPY round trips of {self.copied_bytes:,} bytes with equal hashes",
            f"{self.bench_transactions:,} pgbench transactions",
            f"{len(self.errors)} client errors",
            *self.errors[:10],
        ]
        return "\n".join(lines)


class Torture:
    """The load and the faults of one run; `outcome` fills while it goes."""

    def __init__(self, mesh: Mesh, login: Login, proxy: Proxy, *, seconds: float, seed: int) -> None:
        self.mesh = mesh
        self.login = login
        self.proxy = proxy
        self.seconds = seconds
        self.seed = seed
        self.outcome = Outcome(seconds=seconds)
        self.acknowledged: list[int] = []
        self._next_id = 0
        self._over = asyncio.Event()

    async def run(self) -> Outcome:
        """Prepare, torture, compare."""
        connection = await asyncpg.connect(self.login.url())
        await connection.execute("CREATE TABLE written (id bigint, note text)")
        for number in range(_COPIERS):
            await connection.execute(f"CREATE TABLE moved_{number} (id int, note text)")
        await asyncio.to_thread(self._bench, "-i", "-q", "-s", "1")
        async with asyncio.TaskGroup() as group:
            for number in range(_WRITERS):
                group.create_task(self._guard(f"writer {number}", self._write(number)))
            for number in range(_COPIERS):
                group.create_task(self._guard(f"copier {number}", self._copy(number)))
            group.create_task(self._guard("pgbench", self._transactions()))
            group.create_task(self._watch(connection))
            group.create_task(self._count())
            await self.proxy.torment(self.seconds, seed=self.seed)
            self._over.set()
        outcome = self.outcome
        outcome.faults = {k: v for k, v in self.proxy.counts.items() if k != "connections"}
        outcome.acknowledged = len(self.acknowledged)
        rows = await connection.fetch("SELECT id, count(*) AS times FROM written GROUP BY id")
        times = {row["id"]: row["times"] for row in rows}
        outcome.missing = sum(number not in times for number in self.acknowledged)
        outcome.doubled = sum(count > 1 for count in times.values())
        await connection.close()
        return outcome

    async def _guard(self, name: str, work: Any) -> None:
        try:
            await work
        except Exception as error:
            self.outcome.errors.append(f"{name}: {type(error).__name__}: {error}")

    async def _watch(self, connection: asyncpg.Connection[Any]) -> None:
        """Hold one connection that mostly sits idle: it must live through everything too."""
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), 3)
            if await connection.fetchval("SELECT pg_backend_pid()") != pid:
                self.outcome.errors.append("the idle connection has become another one")

    async def _write(self, number: int) -> None:
        connection = await asyncpg.connect(self.login.url())
        while not self._over.is_set():
            self._next_id += 1
            mine = self._next_id
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO written VALUES ($1, $2)", mine, f"by {number} " + "x" * 200
                )
            self.acknowledged.append(mine)
        await connection.close()

    async def _copy(self, number: int) -> None:
        dice = random.Random(self.seed * 100 + number)
        connection = await asyncpg.connect(self.login.url())
        while not self._over.is_set():
            noise = dice.randbytes(20_000).hex()
            block = b"".join(b"%d\t%s\n" % (i, noise[i * 7 : i * 7 + 60].encode()) for i in range(5000))
            await connection.execute(f"TRUNCATE moved_{number}")
            await connection.copy_to_table(f"moved_{number}", source=io.BytesIO(block))
            out = io.BytesIO()
            await connection.copy_from_table(f"moved_{number}", output=out)
            if hashlib.sha256(out.getvalue()).digest() != hashlib.sha256(block).digest():
                self.outcome.errors.append(f"copier {number}: {len(block)} bytes came back changed")
            self.outcome.copies += 1
            self.outcome.copied_bytes += 2 * len(block)
        await connection.close()

    async def _transactions(self) -> None:
        done = await asyncio.to_thread(
            self._bench, "-n", "-c", str(_BENCH_CLIENTS), "-T", str(max(1, round(self.seconds)))
        )
        for line in done.stdout.splitlines():
            if line.startswith("number of transactions actually processed:"):
                self.outcome.bench_transactions = int(line.rsplit(":", 1)[1].split("/")[0])
        if done.returncode != 0 or "number of failed transactions: 0 " not in done.stdout:
            self.outcome.errors.append(f"pgbench: {done.stdout[-300:]} {done.stderr[-500:]}")

    def _bench(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(bundled() / "pgbench"), *words],
            env=self.login.environment(),
            capture_output=True,
            text=True,
            timeout=self.seconds + 120,
        )

    async def _count(self) -> None:
        """Add up resumes and what they sent again, from both ends' metrics, ten times a second.

        Bytes sent again belong to a resume seen no later than they; several resumes between two looks count
        once, so `resending` is a lower bound.
        """

        def look() -> tuple[int, int]:
            ends = (self.mesh.gate, self.mesh.sidecar)
            resumes = self.mesh.gate.metric("qgate_resumes_total")
            resent = [
                end.metric(f"{name}_resent_bytes_total") for end, name in zip(ends, _PROGRAMS, strict=True)
            ]
            return int(resumes), int(sum(resent))

        first_resumes, first_resent = resumes, resent = await asyncio.to_thread(look)
        waiting = False
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), 0.1)
            now_resumes, now_resent = await asyncio.to_thread(look)
            waiting = waiting or now_resumes > resumes
            if waiting and now_resent > resent:
                self.outcome.resending += 1
                waiting = False
            resumes, resent = now_resumes, now_resent
        self.outcome.resumes, self.outcome.resent_bytes = resumes - first_resumes, resent - first_resent


async def torture(*, seconds: float, seed: int) -> Outcome:
    """Set a mesh with a chaos proxy in its middle up and torture it."""
    async with Proxy(("127.0.0.1", 0)) as proxy:
        with Cluster() as cluster, contextlib.ExitStack() as stack:
            mesh = Mesh(advertise=f"127.0.0.1:{proxy.port}", settings=SETTINGS, sidecar_settings=SETTINGS)
            stack.callback(mesh.close)
            gate = await asyncio.to_thread(mesh.add_gate, advertise=mesh.first_advertise)
            proxy.target = ("127.0.0.1", gate.port)
            await asyncio.to_thread(gate.start)
            mesh.add_sidecar("app-host")
            await asyncio.to_thread(mesh.sidecar.start)
            await asyncio.to_thread(mesh.wait_linked)
            login = await asyncio.to_thread(mesh.connect_upstream, cluster, "torture")
            outcome = await Torture(mesh, login, proxy, seconds=seconds, seed=seed).run()
            if not outcome.clean:
                outcome.errors.append(await asyncio.to_thread(mesh.describe))
            return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, print the outcome, and exit with 1 where anything was lost or a client saw an error."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.torture", description="link torture")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--min-resumes", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    outcome = asyncio.run(torture(seconds=options.seconds, seed=options.seed))
    if options.json:
        names = Outcome.__slots__
        print(json.dumps({name: getattr(outcome, name) for name in names}, indent=1))
    else:
        print(outcome.text())
    print(f"{time.monotonic() - start:.0f} s in all", file=sys.stderr)
    return 0 if outcome.clean and outcome.resending >= options.min_resumes else 1


if __name__ == "__main__":
    sys.exit(main())
