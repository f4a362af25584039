"""`make sim SEEDS=2000`: many long histories, and what was checked while what was wrong.

python -m tests.sim [--seeds 2000] [--first 0] [--hours 2] [--jobs 2] [--planted] [--elections]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from tests.sim.planted import bugs
from tests.sim.watch import Broken
from tests.sim.world import ELECTIONS, Plan, simulate

Counts = Counter[tuple[str, str]]


def one(seed: int, plan: Plan) -> tuple[int, str, Counts]:
    """Run one history; the text is empty where every promise was kept."""
    try:
        return seed, "", simulate(seed, plan).watch.counts
    except Broken as broken:
        return seed, str(broken), Counter()


def caught(name: str, seeds: int) -> tuple[str, int | None, str]:
    """The first seed that catches a planted bug, and how."""
    bug = bugs()[name]
    with bug.planted():
        for seed in range(seeds):
            _, problem, _ = one(seed, bug.plan)
            if problem:
                return name, seed, problem
    return name, None, ""


def table(counts: Counts) -> str:
    """Checks of each promise (columns) during each trouble (rows)."""
    promises = sorted({promise for _, promise in counts})
    widths = {promise: max(len(promise), 6) + 2 for promise in promises}
    lines = ["trouble".ljust(16) + "".join(f"{promise:>{widths[promise]}}" for promise in promises)]
    lines += [
        trouble.ljust(16) + "".join(f"{short(counts[trouble, one]):>{widths[one]}}" for one in promises)
        for trouble in sorted({trouble for trouble, _ in counts})
    ]
    return "\n".join(lines)


def short(count: int) -> str:
    """A number in at most six characters."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            scale = 10**3 if letter == "k" else size
            return f"{count / scale:.{1 if count < 100 * scale else 0}f}{letter}"
    return str(count)


def main(argv: list[str] | None = None) -> int:
    """Run, print, and say by the exit code whether every promise was kept."""
    parser = argparse.ArgumentParser(prog="make sim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--planted", action="store_true", help="look for the planted bugs instead")
    parser.add_argument("--elections", action="store_true", help="five pools, whose masters die all the time")
    given = parser.parse_args(argv)
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(given.jobs) as workers:
        if given.planted:
            for name, seed, problem in workers.map(partial(caught, seeds=given.seeds), bugs()):
                failed += seed is None
                print(
                    f"{name}: " + (f"seed {seed}: {problem}" if seed is not None else "NOT CAUGHT"),
                    flush=True,
                )
            return 1 if failed else 0
        seconds = given.hours * 3600
        plan = Plan(seconds=seconds, trouble_every_s=20.0, write_every_s=30.0)
        if given.elections:
            plan = replace(ELECTIONS, seconds=seconds)
        counts: Counts = Counter()
        seeds = range(given.first, given.first + given.seeds)
        for seed, problem, found in workers.map(partial(one, plan=plan), seeds, chunksize=4):
            counts += found
            if problem:
                failed += 1
                print(f"seed {seed}: {problem}", flush=True)
    print(table(counts))
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{given.seeds} histories of {given.hours:g} hours in {took}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
