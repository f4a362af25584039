"""One measured load on one contender: pgbench transactions, or a bulk COPY."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.peers import Contender
from tests.kit.cluster import Cluster, bundled
from tests.kit.process import cpu

_PROCESSED = re.compile(r"number of transactions actually processed: (\d+)")
_TPS = re.compile(r"tps = ([\d.]+) \(without initial connection time\)")
_LATENCY = re.compile(r"latency average = ([\d.]+) ms")
_FAILED = re.compile(r"number of failed transactions: (\d+)")

# About 100 bytes a row of text that looks like a shop's orders: repeated words, running numbers, some noise.
_BULK = """
CREATE TABLE bulk AS
SELECT i AS id,
       'customer' || (i * 7919 % 90001) || '@example.org' AS email,
       (ARRAY['new','paid','packed','shipped','returned'])[1 + i % 5] AS state,
       (ARRAY['Berlin','Lisboa','Praha','Oslo','Napoli','Cork','Gent'])[1 + (i / 3) % 7] AS city,
       timestamp '2024-01-01' + i * interval '37 seconds' AS placed,
       round((random() * 900 + 5)::numeric, 2) AS total,
       md5(i::text) AS reference
FROM generate_series(1::bigint, {rows}) AS i
"""
_BULK_ROW_BYTES = 107


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run showed. Rates per second, latencies in seconds, CPU in seconds for each transaction."""

    rate: float
    latency_s: float
    user_s: float
    system_s: float


def prepare(cluster: Cluster, dbname: str, *, scale: int, bulk_mb: int) -> None:
    """Fill `dbname` with pgbench's tables at `scale`, and `bulk` with about `bulk_mb` MB of COPY text."""
    subprocess.run(
        [str(bundled() / "pgbench"), "-i", "-q", "-s", str(scale), cluster.dsn(dbname)],
        check=True,
        capture_output=True,
    )
    cluster.execute(_BULK.format(rows=bulk_mb * 1_000_000 // _BULK_ROW_BYTES), dbname=dbname)
    cluster.execute("VACUUM ANALYZE", "CHECKPOINT", dbname=dbname)


def transactions(
    contender: Contender, *, clients: int, mode: str, seconds: float, command: Sequence[str] = ()
) -> Sample:
    """Run `pgbench -S` with `clients` connections in protocol `mode` ("simple" or "prepared").

    `command` stands before the program, to run it in a network namespace. Raises when a client failed.
    """
    argv = [
        *(*command, str(bundled() / "pgbench"), "-S", "-n", "-M", mode, "-c", str(clients)),
        *("-j", str(min(2, clients)), "-T", str(max(1, round(seconds)))),
    ]
    hops = contender.hops()
    before = cpu(hops)
    done = subprocess.run(argv, env=contender.login.environment(), capture_output=True, text=True)
    used = cpu(hops) - before
    processed, tps = _PROCESSED.search(done.stdout), _TPS.search(done.stdout)
    latency, failed = _LATENCY.search(done.stdout), _FAILED.search(done.stdout)
    if done.returncode != 0 or not (processed and tps and latency) or (failed and int(failed[1])):
        raise RuntimeError(f"pgbench through {contender.name}: {done.stdout[-400:]}{done.stderr[-800:]}")
    count = max(1, int(processed[1]))
    return Sample(float(tps[1]), float(latency[1]) / 1000, used.user_s / count, used.system_s / count)


def copy_out(
    contender: Contender, *, query: str = "SELECT * FROM bulk", command: Sequence[str] = ()
) -> Sample:
    """COPY the bulk table to the client; the rate is in bytes of COPY text a second, CPU for each MB."""
    argv = [*command, str(bundled() / "psql"), "-X", "-q", "-c", f"COPY ({query}) TO STDOUT"]
    hops = contender.hops()
    before, start, size = cpu(hops), time.monotonic(), 0
    with subprocess.Popen(argv, env=contender.login.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 18):
            size += len(data)
    elapsed, used = time.monotonic() - start, cpu(hops) - before
    if process.returncode != 0 or size == 0:
        raise RuntimeError(
            f"COPY through {contender.name} ended with {process.returncode} after {size} bytes"
        )
    return Sample(size / elapsed, elapsed, used.user_s / size * 1e6, used.system_s / size * 1e6)
