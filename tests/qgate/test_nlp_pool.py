"""The processes of the gate's own engine: how long they live, and how they die."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from qgate.capability.nlp.jobs import OK, Job
from qgate.capability.nlp.pool import Pool
from qgate.settings import NlpSettings

ONE = NlpSettings(workers=1)
ECHO = """
import socket, struct, sys, msgpack
length = struct.Struct("!I")
wire = socket.socket(fileno=int(sys.argv[1]))
def say(message):
    body = msgpack.packb(message)
    wire.sendall(length.pack(len(body)) + body)
say([[0, "ready", "1"]])
while head := wire.recv(4, socket.MSG_WAITALL):
    batch = msgpack.unpackb(wire.recv(length.unpack(head)[0], socket.MSG_WAITALL))
    say([[number, "ok", texts] for number, _, _, texts in batch])
"""
"""A worker that needs nothing of ours: up in a moment, and each text is its own result."""


class Waiting:
    """A caller that waits."""

    def __init__(self) -> None:
        self.over: asyncio.Future[tuple[str, Any]] = asyncio.get_running_loop().create_future()

    def finished(self, outcome: str, value: Any) -> None:
        self.over.set_result((outcome, value))


def echo(fd: int) -> list[str]:
    """How that worker is started."""
    return [sys.executable, "-c", ECHO, str(fd)]


async def answer(pool: Pool, text: str) -> tuple[str, Any]:
    """One job's end."""
    caller = Waiting()
    pool.submit(Job("tokens", (text,)), caller)
    async with asyncio.timeout(60):
        return await caller.over


async def test_a_worker_that_is_up_lives_beyond_the_time_for_its_start() -> None:
    start_s = 1.5
    async with Pool(ONE, command=echo, start_s=start_s) as pool:
        await pool.ready()
        pids = pool.pids
        await asyncio.sleep(start_s + 0.2)  # the very time that is in question
        assert pool.pids == pids
        assert await answer(pool, "still there") == (OK, ["still there"])
        assert pool.restarts == 0


async def test_a_worker_that_died_is_replaced() -> None:
    async with Pool(ONE, command=echo) as pool:
        await pool.ready()
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        assert await answer(pool, "from the next one") == (OK, ["from the next one"])
        assert pool.restarts == 1
        assert pool.pids != [pid]


async def test_a_worker_that_never_comes_up_is_killed_in_time() -> None:
    def silent(fd: int) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)", str(fd)]

    async with Pool(ONE, command=silent, start_s=0.1) as pool, asyncio.timeout(60):
        while not pool.restarts:
            await asyncio.sleep(0.02)
        assert pool.workers_up == 0
