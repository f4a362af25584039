"""A gate's ledger in a process of its own, for tests that kill it: `DSN GATE REQUESTS BOUND COST`.

It says what it does, a line each: "hold N" before anything is spent, "paid N" when request N has cost what it
cost. Every third request is never settled, as if its provider had not answered yet. It ends at end of input.
"""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal

from qgate.capability.work import Problem
from qgate.governance.directory import Snapshot
from qgate.store import Store
from qgate.store.budgets import all_budgets
from tests.qgate.spending import CLOUD, ledger, tokens, work


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(dsn: str, gate: str, requests: int, bound: Decimal, cost: Decimal) -> None:
    store = await Store.open(dsn)
    async with store.connection() as connection:
        snapshot = Snapshot(budgets={one.id: one for one in await all_budgets(connection)})
    mine = ledger(store, snapshot, gate=gate)
    keeping = asyncio.ensure_future(mine.run())

    async def spend(number: int) -> None:
        try:
            held = await mine.reserve(work(), CLOUD, bound)
        except Problem as problem:
            say(f"refused {number} {problem.code}")
            return
        say(f"hold {number}")
        await asyncio.sleep(0)
        if number % 3:
            say(f"paid {number}")
            mine.settle(held, tokens(cost))

    await asyncio.gather(*(spend(number) for number in range(requests)))
    say("over")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await mine.close()
    await store.close()
    say("closed")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Decimal(sys.argv[4]), Decimal(sys.argv[5])))
