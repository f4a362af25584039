"""Two gates as two processes over one PostgreSQL, one of them SIGKILLed while it holds reservations."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from qgate.capability.work import Problem
from qgate.store import Store
from qgate.store.budgets import standings
from tests.qgate.spending import CLOUD, budget, ledger, put, work

ROOT = Path(__file__).resolve().parents[2]
BOUND, COST = Decimal("0.02"), Decimal("0.01")


class Spender:
    """A process that spends, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, word: str, times: int = 1) -> None:
        """Read until it has said `word` so often."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while self.count(word) < times:
                line = await self.process.stdout.readline()
                assert line, self.lines
                self.lines.append(line.decode().strip())

    async def rest(self) -> None:
        """Read what a dead one had still said."""
        assert self.process.stdout is not None
        self.lines += (await self.process.stdout.read()).decode().split("\n")
        await self.process.wait()

    def count(self, word: str) -> int:
        return sum(line.split(" ")[0] == word for line in self.lines)

    @property
    def spent(self) -> Decimal:
        """What its providers may ask for: what was paid, and all that was set aside for the others."""
        paid = self.count("paid")
        return paid * COST + (self.count("hold") - paid) * BOUND

    @property
    def refusals(self) -> set[str]:
        return {line.split(" ")[2] for line in self.lines if line.startswith("refused ")}


@contextlib.asynccontextmanager
async def spender(dsn: str, gate: str, requests: int) -> AsyncIterator[Spender]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.qgate.spender",
        dsn,
        gate,
        str(requests),
        str(BOUND),
        str(COST),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Spender(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def committed(store: Store) -> Decimal:
    async with store.connection() as connection:
        return (await standings(connection, silent_s=60))["app:web/month"].committed


@pytest.mark.timeout(120)
async def test_two_gates_two_hundred_requests_one_limit(store: Store, store_dsn: str) -> None:
    await put(store, budget("app:web/month", "1"))
    async with spender(store_dsn, "a", 100) as first, spender(store_dsn, "b", 100) as second:
        for one in (first, second):
            await one.until("over")
        assert first.spent + second.spent <= 1
        assert first.spent + second.spent >= Decimal("0.7")
        assert await committed(store) <= 1
        assert first.refusals | second.refusals <= {"budget_exceeded"}
        for one in (first, second):
            assert one.process.stdin is not None
            one.process.stdin.close()
            await one.until("closed")
        assert await committed(store) == first.spent + second.spent


@pytest.mark.timeout(120)
async def test_a_killed_gates_reservations_are_never_spent_again(store: Store, store_dsn: str) -> None:
    limit = budget("app:web/month", "2.5")
    await put(store, limit)
    async with spender(store_dsn, "a", 100) as first:
        await first.until("hold", 5)
        async with spender(store_dsn, "b", 100) as second:
            await second.until("hold", 1)
            first.process.kill()
            await first.rest()
            await second.until("over")
            assert first.count("closed") == 0
            assert first.spent + second.spent <= Decimal("2.5")
            at_death = await committed(store)
            assert first.spent + second.spent <= at_death <= Decimal("2.5")
            # Nobody gets what the dead one held: not its sibling, and not its own next run.
            for gate in ("a", "c"):
                heir = ledger(store, await put(store, limit), gate=gate)
                with pytest.raises(Problem):
                    await heir.reserve(work(), CLOUD, Decimal("2.5") - at_death + Decimal("0.000001"))
