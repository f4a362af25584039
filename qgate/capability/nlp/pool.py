"""Keeps the worker processes: starts them, hands out jobs, and starts anew what died or was too slow.

Everything runs on the event loop's thread. What was submitted within one tick of the loop goes to a worker
as one message. A worker that crashes gives its jobs back: the one it worked on runs once more, alone, and is
refused when it crashes a second one. One that is over its time limit is killed, and only that job fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import structlog

from qgate.capability.nlp import jobs
from qgate.capability.nlp.jobs import Job
from qgate.capability.nlp.queueing import Queue, Ticket
from qgate.settings import NlpSettings

START_S: Final = 60.0  # how long a worker may take until it says that it is ready
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 30.0
STOP_S: Final = 5.0

Log = structlog.stdlib.BoundLogger


class Caller(Protocol):
    """Who waits for a job."""

    def finished(self, outcome: str, value: Any) -> None:
        """`jobs.OK`, `jobs.UNSUITED` or `jobs.FAILED` with its value; once, on the loop's thread."""


@dataclass(frozen=True, slots=True)
class Given:
    """Why the pool gave a job up; the value of a "failed" outcome that is the pool's own."""

    code: str  # timeout, crashed, stopped, unavailable
    message: str


class Pool:
    """Use it as an async context; `submit` at any time between."""

    def __init__(
        self,
        settings: NlpSettings,
        *,
        log: Log | None = None,
        command: Callable[[int], list[str]] | None = None,
        start_s: float = START_S,
    ) -> None:
        self._settings = settings
        self._log: Log = log if log is not None else structlog.get_logger("qgate.nlp")
        self._command = command or self._own_command
        self._start_s = start_s
        self._queue = Queue(settings.queue_max)
        self._channels: dict[int, _Channel] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._closing = False
        self._pumping = False
        self._watch: asyncio.TimerHandle | None = None
        self._served = 0.0
        self.restarts = 0
        """Workers that were started again."""
        self.problem = ""
        """Why no worker is up, where one tried."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._keepers = [
            self._loop.create_task(self._keep(number), name=f"nlp-worker-{number}")
            for number in range(self._settings.workers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def ready(self) -> None:
        """Wait until a worker is up."""
        await self._ready.wait()

    @property
    def workers_up(self) -> int:
        """Workers that take jobs now."""
        return len(self._queue.places)

    @property
    def waiting(self) -> int:
        """Jobs that no worker has yet."""
        return len(self._queue)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [channel.pid for channel in self._channels.values()]

    @property
    def full(self) -> bool:
        """Whether `submit` would go over the bound of the queue."""
        return self._queue.full

    def submit(self, job: Job, caller: Caller) -> Ticket:
        """Take a job; the caller hears of its end. The caller has asked `full` before."""
        ticket = self._queue.add(job, caller)
        if self._closing:
            self._loop.call_soon(self._give_up, self._queue.drain(), Given("stopped", "the gate is stopping"))
        elif not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The caller wants no answer any more."""
        self._queue.cancel(ticket)

    async def close(self) -> None:
        """End the workers and fail what still waits; nothing is left running."""
        if self._closing:
            return
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._give_up(self._queue.drain(), Given("stopped", "the gate is stopping"))

    # --- jobs

    def _pump(self) -> None:
        self._pumping = False
        for worker, tickets in self._queue.assign(self._loop.time()):
            self._channels[worker].send(
                [[one.number, one.job.task, dict(one.job.options), list(one.job.texts)] for one in tickets]
            )
        self._watch_clock()

    def _received(self, worker: int, replies: list[Any]) -> None:
        now = self._loop.time()
        for number, outcome, value in replies:
            if number == 0:
                if outcome == jobs.READY:
                    self._queue.up(worker)
                    self.problem = ""
                    self._ready.set()
                else:
                    self.problem = str(value)[:300]
                continue
            ticket = self._queue.answered(worker, number, now)
            if ticket is None:
                self._log.warning("nlp.worker_out_of_step", worker=worker)
                self._channels[worker].kill()
                return
            if not ticket.cancelled:
                ticket.caller.finished(outcome, value)
        if len(self._queue):
            self._pump()

    def _give_up(self, tickets: list[Ticket], reason: Given) -> None:
        for ticket in tickets:
            ticket.caller.finished(jobs.FAILED, reason)

    def _watch_clock(self) -> None:
        if self._watch is not None or self._closing:
            return
        due = self._queue.next_due(self._settings.time_limit_s)
        if due is not None:
            self._watch = self._loop.call_at(due + 0.01, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._watch = None
        for worker in self._queue.overdue(self._loop.time(), self._settings.time_limit_s):
            self._log.warning("nlp.time_limit", worker=worker, limit_s=self._settings.time_limit_s)
            limit = self._settings.time_limit_s
            given = Given("timeout", f"the text took the engine longer than its limit of {limit:g} s")
            self._give_up(self._queue.down(worker, blame=True), given)
            self._channels[worker].kill()
        self._watch_clock()

    # --- processes

    async def _keep(self, number: int) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            began = self._loop.time()
            status = await self._run_one(number)
            crashed = self._queue.down(number, blame=False)
            self._log.warning("nlp.worker_ended", worker=number, status=status, problem=self.problem)
            self._give_up(
                crashed, Given("crashed", "the engine's process died twice while it worked on this text")
            )
            if self.problem and not self.workers_up:
                failed = Given("unavailable", f"the gate's own engine does not start: {self.problem}")
                self._give_up(self._queue.drain(), failed)
            self._pump()
            self.restarts += 1
            backoff = (
                BACKOFF_FIRST_S if self._loop.time() - began > 10.0 else min(backoff * 2, BACKOFF_MOST_S)
            )
            if not self.problem and self._loop.time() - began > 1.0:
                backoff = 0.0
            await asyncio.sleep(backoff)

    async def _run_one(self, number: int) -> int:
        """Start a worker, serve it until it ends; returns its exit status (negative: a signal)."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,  # a traceback may quote a text
                pass_fds=(theirs.fileno(),),
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

        def heard(replies: list[Any]) -> None:
            starting.cancel()  # it is up, or says why not
            self._received(number, replies)

        channel = _Channel(process, heard)
        transport: asyncio.BaseTransport | None = None
        starting = self._loop.call_later(self._start_s, channel.kill)
        try:
            transport, _ = await self._loop.create_connection(lambda: channel, sock=ours)
            self._channels[number] = channel
            await channel.closed.wait()
            channel.kill()
            return await process.wait()
        finally:
            starting.cancel()
            self._channels.pop(number, None)
            if transport is not None:
                transport.close()
            else:
                ours.close()
            await _ended(process)

    def _own_command(self, fd: int) -> list[str]:
        return [sys.executable, "-m", "qgate.capability.nlp.worker", str(fd), str(self._settings.memory_mib)]


class _Channel(asyncio.Protocol):
    """The gate's end of a worker's socket."""

    def __init__(self, process: asyncio.subprocess.Process, received: Callable[[list[Any]], None]) -> None:
        self._process = process
        self._received = received
        self._unpacker = jobs.Unpacker()
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unpacker.feed(data):
                self._received(message)
        except ValueError:
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def send(self, message: list[Any]) -> None:
        if self._transport is not None:
            self._transport.write(jobs.pack(message))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Make sure that a process is gone and reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


def _environment() -> dict[str, str]:
    """One thread for linear algebra on small matrices; nothing of the gate's own environment goes along."""
    return {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
