"""Memory that a burst freed goes back to the system."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from tunnel_proto.memory import keep_trimmed, resident

BURST = """
import asyncio
from tunnel_proto.memory import keep_trimmed, resident

async def main():
    trimming = asyncio.create_task(keep_trimmed(0.05))
    await asyncio.sleep(0)
    before = resident()
    held = [bytes(60_000) for _ in range(3_000)]
    pins = [bytes(60_000)]
    grown = resident() - before
    held.clear()
    async with asyncio.timeout(60):
        while resident() > before + grown // 4:
            await asyncio.sleep(0.02)
    trimming.cancel()
    print(grown // 2**20, len(pins))

asyncio.run(main())
"""


def test_what_a_burst_freed_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BURST], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout.split()[0]) > 100


async def test_it_ends_with_its_daemon() -> None:
    assert resident() > 0
    task = asyncio.create_task(keep_trimmed(0.01))
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


def test_what_start_up_made_is_not_searched_again() -> None:
    program = "import gc; from tunnel_proto.memory import YOUNG, settle; settle(); "
    program += "print(gc.get_freeze_count() > 1000, gc.get_threshold()[0] == YOUNG, gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
