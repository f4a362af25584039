"""A small client that is started where it measures (in a network namespace) and prints what it saw as JSON.

    python -m tests.bench.probe queries --count 100      latencies of `SELECT 1` on one connection
    python -m tests.bench.probe connects --count 20      connect + first query, a new connection each time

The login comes from libpq's variables. All times are in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import psycopg


def queries(count: int, pause_s: float) -> list[float]:
    """Return the latencies of `count` queries on one connection."""
    times = []
    with psycopg.connect("", autocommit=True) as connection:
        connection.execute("SELECT 1")
        for _ in range(count):
            start = time.monotonic()
            connection.execute("SELECT 1").fetchone()
            times.append(time.monotonic() - start)
            time.sleep(pause_s)
    return times


def connects(count: int) -> list[float]:
    """Return how long connecting and a first query took, `count` times.

    While nobody listens it tries again, and only the try that is let in counts: so a client can stand at the
    door of a sidecar that is just being started.
    """
    times: list[float] = []
    while len(times) < count:
        start = time.monotonic()
        try:
            connection = psycopg.connect("", autocommit=True)
        except psycopg.OperationalError as error:
            if "refused" not in str(error):
                raise
            continue
        connection.execute("SELECT 1").fetchone()
        times.append(time.monotonic() - start)
        connection.close()
    return times


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.probe")
    parser.add_argument("what", choices=["queries", "connects"])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between queries")
    options = parser.parse_args()
    print("ready", flush=True)
    seen = queries(options.count, options.pause) if options.what == "queries" else connects(options.count)
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
