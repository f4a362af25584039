"""Jobs of other pools: streams of the kind "jobs", taken to the same desk as the requests of our own apps.

    stream    | event                          | next, what is said
    ----------+--------------------------------+-------------------------------------------------------------
    reading   | a whole JobStart               | refused: JobRefused (twice the same job, too many at once,
              |                                | what is wrong with the request); else running: JobAccepted
    running   | a piece of the answer          | JobTokens; while the other gate does not read, nothing
              | the answer's end               | over: JobVectors where there are, JobDone
              | a Problem, nothing was said    | over: JobRefused
              | a Problem                      | over: JobFailed
    any       | reset, the session's end       | over: cancelled wherever it runs

A peer's requests run as a principal of its own, "pool:NAME": on workers of this pool only (never at a
provider, never at a third pool), with receipts and audit entries of this pool. The receipt's id follows from
the other pool's key and its job, so that both sides can compare what they noted. A job that came already is
not run again within `WINDOW_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable
from sys import byteorder
from typing import Any, Final, Protocol

import structlog

from qgate.capability.pools import POOL_APP
from qgate.capability.work import Begun, Chunk, Finished, Kind, Moved, Problem, Usage, Work
from qgate.federation.links import Carrier
from qgate.federation.peer import Peer
from qgate.federation.results import receipt_id
from qgate.governance.directory import App, Directory
from qgate.governance.policy import CapabilityPolicy
from qgate.http import bodies
from qgate.http.desk import Desk
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import LocalProtocolError, MeshError, RemoteProtocolError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import (
    DOCKET_MAX,
    Decoder,
    JobAccepted,
    JobDone,
    JobFailed,
    JobRefused,
    JobStart,
    JobTokens,
    JobUsage,
    JobVectors,
    Message,
    encode,
)

WINDOW_S: Final = 600.0
REMEMBERED: Final = 65_536
"""How long, and of how many jobs, it is known that they came."""

BUSY_RETRY_S: Final = 1.0
READING_MAX: Final = 32
"""Streams of one peer on which no whole job has come yet: each may hold a message of 16 MiB."""

VECTORS_BYTES: Final = 4 * 1024 * 1024  # in one message
MESSAGE_MAX: Final = 2000

log = structlog.get_logger(__name__)


class Keeping(Protocol):
    """Keeps the results of jobs that came with a docket."""

    def expect(self, receipt: str, pool_key: bytes, job: str, docket: bytes) -> None:
        """A job begins whose receipt will have that id."""

    async def settled(self, receipt: str) -> None:
        """Wait until its result is kept, or nothing more can be done for it now."""

    def over(self, receipt: str) -> None:
        """It has ended, with a receipt or without."""


class OffloadedJobs:
    """All jobs of other pools at this gate. ``clock`` is the event loop's time."""

    def __init__(
        self, desk: Desk, directory: Directory, clock: Callable[[], float], keeping: Keeping
    ) -> None:
        self.keeping = keeping
        self._desk = desk
        self._directory = directory
        self._clock = clock
        self._running: Counter[bytes] = Counter()
        self._reading: Counter[bytes] = Counter()
        self._seen: OrderedDict[tuple[bytes, str], float] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        """Take a stream."""
        del carrier
        if self._closing:
            stream.reset(StreamCode.GATE_SHUTDOWN, "the gate shuts down")
            return
        if self._reading[peer.pool_key] >= READING_MAX:
            stream.reset(StreamCode.LIMIT, f"{READING_MAX} of your jobs are not whole yet")
            return
        self._reading[peer.pool_key] += 1
        stream.receiver = _Job(self, peer, stream)

    def running(self, pool_key: bytes) -> int:
        """How many jobs of a pool are under way."""
        return self._running[pool_key]

    async def drain(self, timeout: float) -> None:
        """Take nothing new; wait up to ``timeout`` s for what runs, then cancel it."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout)

    async def close(self) -> None:
        """Cancel what runs."""
        self._closing = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- for jobs

    def was_read(self, pool_key: bytes) -> None:
        """A stream has brought its job, or ended without one."""
        self._reading[pool_key] -= 1

    def begin(self, job: _Job, start: JobStart) -> asyncio.Task[None]:
        """Run it."""
        task = asyncio.get_running_loop().create_task(self._run(job, start), name="offloaded job")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, job: _Job, start: JobStart) -> None:
        key = job.peer.pool_key
        self._running[key] += 1
        try:
            self._admit(job.peer, start)
            work = self._work(job.peer, start)
            if job.docket:
                self.keeping.expect(work.id, key, start.job, job.docket)
            try:
                await job.answer(self._desk, work)
            finally:
                self.keeping.over(work.id)
        except Problem as problem:
            job.fail(problem)
        except asyncio.CancelledError:
            job.end(StreamCode.CANCELLED, "cancelled")
            raise
        except Exception as error:
            log.exception("a job of another pool failed", pool=job.peer.name, error=type(error).__name__)
            job.fail(Problem("a defect of the gate; its log has more", code="internal_error"))
        finally:
            self._running[key] -= 1

    def _admit(self, peer: Peer, start: JobStart) -> None:
        now, most = self._clock(), self._directory.setting("federation.jobs")
        if self._running[peer.pool_key] > most:
            raise Problem(
                f"{most} requests of the pool are under way here already",
                code="queue_full",
                retry_after_s=BUSY_RETRY_S,
                hint="the administrator there allows more with the setting federation.jobs",
            )
        if start.emitted:
            raise Problem("an answer that began elsewhere cannot go on here", code="unsupported")
        while self._seen and (
            len(self._seen) >= REMEMBERED or next(iter(self._seen.values())) < now - WINDOW_S
        ):
            self._seen.popitem(last=False)
        if (peer.pool_key, start.job) in self._seen:
            raise Problem("this attempt came already", code="invalid_request", param="job")
        self._seen[peer.pool_key, start.job] = now

    def _work(self, peer: Peer, start: JobStart) -> Work:
        """The job as work of its pool's principal. Raises `Problem`."""
        body = dict(start.body) if start.body is not None else {}
        body.pop("qgate", None)
        body["model"] = start.model
        bodies.check_common(body)
        kind: Kind = "chat"
        if start.kind == "chat":
            bodies.check_chat(body)
        elif start.kind == "completion":
            kind, body["prompt"] = "completion", bodies.check_completion(body)
        else:
            kind, body["input"] = "embedding", bodies.check_embedding(body)
        body["stream"] = kind != "embedding"  # whoever asked there may want it whole; that is for its gate
        app = App(POOL_APP + peer.name, (), frozenset(), policy=self._policy(start))
        work = self._desk.intake.from_body(app, body, kind, source=POOL_APP + peer.name)
        return dataclasses.replace(
            work,
            id=receipt_id(peer.pool_key, start.job),
            deadline=None if start.deadline_s is None else self._clock() + start.deadline_s,
        )

    def _policy(self, start: JobStart) -> CapabilityPolicy:
        """On our own workers and nowhere else: neither at providers nor at a third pool."""
        return CapabilityPolicy(
            providers=frozenset(),
            pools=frozenset({self._directory.own_pool().name}),
            isolation=start.isolation,
        )


class _Job:
    """One stream: a `StreamReceiver`."""

    def __init__(self, jobs: OffloadedJobs, peer: Peer, stream: Stream) -> None:
        self.peer = peer
        self._jobs = jobs
        self._stream: Stream | None = stream
        self._decoder = Decoder()
        self._task: asyncio.Task[None] | None = None
        self._job = ""
        offered = stream.metadata.get("docket")
        self.docket = offered if isinstance(offered, bytes) and len(offered) <= DOCKET_MAX else b""
        self._said = False  # a piece of the answer
        self._reading = True
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def answer(self, desk: Desk, work: Work) -> None:
        """Run it and say what comes."""
        self._say(JobAccepted(self._job))
        version = ""
        async with contextlib.aclosing(desk.run(work)) as events:
            async for event in events:
                match event:
                    case Chunk():
                        self._said = True
                        self._say(_tokens(self._job, event))
                    case Begun():
                        version = event.version
                        self._say(JobAccepted(self._job, node=event.node))
                    case Finished():
                        await self._jobs.keeping.settled(work.id)  # kept, then said
                        self._finish(event, version)
                    case Moved():
                        self._say(JobAccepted(self._job, node=event.to_node))
                await self._flowing.wait()

    def fail(self, problem: Problem) -> None:
        """It ends without an answer."""
        message = problem.message[:MESSAGE_MAX]
        if self._said:
            self._say(JobFailed(self._job, problem.code, message, True, "node", problem.retry_after_s))
        else:
            self._say(JobRefused(self._job, problem.code, message, problem.retry_after_s, problem.hint))
        self._over()

    def end(self, code: int, message: str) -> None:
        """Reset the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code, message)

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """The job."""
        stream = self._stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, JobStart) or self._task is not None:
                    raise RemoteProtocolError("one job is said on this stream, and nothing else")
                self._job = message.job
                self._was_read()
                self._task = self._jobs.begin(self, message)
        except RemoteProtocolError as error:
            log.warning("a peer broke the protocol", pool=self.peer.name, stream="jobs", error=error.message)
            self.end(StreamCode.PROTOCOL, error.message)
            self._was_read()
            self._cancel()

    def eof_received(self) -> None:
        """The other gate has said all; without a job there is nothing to answer."""
        if self._task is None:
            self.end(StreamCode.PROTOCOL, "a stream without a job")
            self._was_read()

    def stream_closed(self, error: StreamError | None) -> None:
        """Nobody waits for the answer any more."""
        self._stream = None
        self._was_read()
        self._cancel()

    def pause_writing(self) -> None:
        """The other gate does not read: the engine waits with us."""
        self._flowing.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._flowing.set()

    def link_lost(self) -> None:
        """What was said is resent when it is back; if it stays away the session ends, and the job with it."""

    def link_restored(self) -> None:
        """As above."""

    # --- its own

    def _was_read(self) -> None:
        if self._reading:
            self._reading = False
            self._jobs.was_read(self.peer.pool_key)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _say(self, message: Message) -> None:
        if self._stream is not None:
            with contextlib.suppress(LocalProtocolError):
                self._stream.write(encode(message), boundary=True, sensitive=True)

    def _finish(self, event: Finished, version: str) -> None:
        first = 0
        batch: list[bytes] = []
        for vector in event.result or () if isinstance(event.result, list) else ():
            batch.append(_packed(vector))
            if len(batch) * len(batch[0]) >= VECTORS_BYTES:
                self._say(JobVectors(self._job, tuple(batch), first))
                first, batch = first + len(batch), []
        if batch:
            self._say(JobVectors(self._job, tuple(batch), first))
        self._say(JobDone(self._job, event.finish_reason, _used(event.usage), version=version))
        self._over()

    def _over(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(MeshError):
                self._stream.write_eof()


def _tokens(job: str, chunk: Chunk) -> JobTokens:
    logprobs: Any = chunk.logprobs
    return JobTokens(
        job,
        chunk.ids,
        chunk.text,
        tuple(logprobs) if isinstance(logprobs, list | tuple) else None,
        chunk.delta,
    )


def _used(usage: Usage) -> JobUsage:
    return JobUsage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.evaluated_tokens)


def _packed(vector: Any) -> bytes:
    floats = array("f", vector)
    if byteorder == "big":
        floats.byteswap()
    return floats.tobytes()
