"""A child process as the daemon sees it: a loaded model that takes jobs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from qdaemon.runtimes.llama.frames import Decoder, Frame, encode
from qdaemon.runtimes.llama.intake import Intake
from qdaemon.runtimes.llama.job import JobProblem, JobSink, LlamaJob, Timing, TokenLogprob, Usage
from qdaemon.runtimes.llama.request import Request, encoded
from qdaemon.runtimes.llama.settings import LlamaSettings
from qdaemon.runtimes.llama.spawning import Spawned
from tunnel_proto.errors import RemoteProtocolError

_STOP_S: Final = 5.0
"""How long a child may take to end after it was told to."""


@dataclass(eq=False, slots=True)
class _Job:
    """A job in this child, and what `submit` returns for it."""

    child: LlamaChild
    job: LlamaJob
    sink: JobSink
    since: float
    request: Request | None = None
    sent: bool = False
    over: bool = False
    deadline: asyncio.TimerHandle | None = None
    preparing: asyncio.Task[None] | None = field(default=None)

    def cancel(self) -> None:
        if not self.over:
            self.child.drop(self)

    def pause(self) -> None:
        if self.sent and not self.over:
            self.child.tell({"t": "pause", "job": self.job.job})

    def resume(self) -> None:
        if self.sent and not self.over:
            self.child.tell({"t": "resume", "job": self.job.job})


class LlamaChild(asyncio.Protocol):
    """A loaded model. Made by `LlamaRuntime.load`.

    ``sha256`` names the model's bytes and ``build`` what evaluates them: equal builds continue each other's
    answers exactly. ``isolation`` says what is left of a request after it: "wiped" (its KV bytes are
    overwritten), "cleared-when-idle", or "dedicated" (the process ends with it).
    """

    def __init__(
        self,
        process: Spawned,
        settings: LlamaSettings,
        *,
        sha256: str,
        dedicated: bool,
        on_gone: Callable[[LlamaChild], None],
        on_crash: Callable[[list[str]], set[str]],
    ) -> None:
        self.sha256 = sha256
        self.build = ""
        self.features = ""
        self.isolation = "dedicated" if dedicated else ""
        self.unlocked = ""
        self.memory_used = 0
        self.context = 0
        self.context_train = 0
        self.slots = 0
        self.alive = True
        self.draining = False
        self._process = process
        self._settings = settings
        self._dedicated = dedicated
        self._on_gone = on_gone
        self._on_crash = on_crash
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._intake: Intake | None = None
        self._loading: asyncio.Queue[Frame] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._heard = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._stopping = False

    # --- what the daemon asks -------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def running(self) -> int:
        """Jobs that have a sequence."""
        return sum(1 for job in self._jobs.values() if job.sent)

    @property
    def queued(self) -> int:
        """Jobs that wait for one."""
        return len(self._jobs) - self.running

    def submit(self, job: LlamaJob, sink: JobSink) -> _Job:
        """Run ``job`` and tell ``sink``. Returns at once; problems come through ``sink.failed`` too.

        JobProblem where it cannot even wait: "busy" (the queue is full), "draining", "gone", or "duplicate".
        """
        if not self.alive or self._intake is None:
            raise JobProblem("gone", "this model is not loaded any more", retriable=True, blame="node")
        if self.draining or (self._dedicated and self._jobs):
            raise JobProblem("draining", "this model takes no new work", retriable=True, blame="node")
        if job.job in self._jobs:
            raise JobProblem("duplicate", "a job of this id runs already")
        if len(self._jobs) >= self.slots + self._settings.queue:
            raise JobProblem("busy", "too many requests wait for this model", retriable=True, blame="node")
        loop = asyncio.get_running_loop()
        one = _Job(self, job, sink, loop.time())
        self._jobs[job.job] = one
        self._idle.clear()
        if job.deadline_s is not None:
            one.deadline = loop.call_later(max(job.deadline_s, 0), self._too_late, one)
        if self._dedicated:
            self.draining = True
        one.preparing = loop.create_task(self._prepare(one, self._intake))
        return one

    async def unload(self, drain_s: float | None = None, *, force: bool = False) -> bool:
        """Take no new work, wait up to ``drain_s`` seconds (None: for ever) for what runs, and end the child.

        True where it has ended. False where work still runs after that time: the child goes on and takes new
        work again, for a running request is never ended by an unload; unless ``force`` says that the daemon
        itself is going.
        """
        was = self.draining
        self.draining = True
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            if not force:
                self.draining = was
                return False
        except asyncio.CancelledError:
            self.draining = was
            raise
        await self.stop()
        return True

    async def stop(self) -> None:
        """End the child now; jobs that still run fail as ones that another node may take."""
        self._stopping = True
        self.tell({"t": "stop"})
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._transport is not None:
            self._transport.abort()
        self._lost()
        await self.dispose()

    async def dispose(self) -> None:
        """The child is gone: take its processes' ends, and end the template's one."""
        self._process.kill()
        await self._process.wait()
        if self._intake is not None:
            await self._intake.close()

    async def wait_gone(self) -> None:
        """Return when the child has ended, for whatever reason."""
        await self._gone.wait()
        await self._process.wait()

    # --- loading --------------------------------------------------------------------------------------------

    async def next_load_frame(self) -> Frame:
        """The next thing that a loading child says; an empty frame where it ended."""
        return await self._loading.get()

    def ready(self, frame: Frame, intake: Intake, *, slots: int) -> None:
        """The model is loaded."""
        self.build = (
            f"{frame['build']}, chunk {self._settings.prefill_chunk}, replay {self._settings.replay_batch}"
        )
        self.features = frame["features"]
        self.isolation = self.isolation or frame["isolation"]
        self.unlocked = frame["unlocked"]
        self.memory_used = frame["memory"]
        self.context, self.context_train, self.slots = frame["context"], frame["context_train"], slots
        self._intake = intake

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        try:
            for frame in self._decoder.feed(data):
                self._hear(frame)
        except (RemoteProtocolError, KeyError, TypeError, ValueError, IndexError):
            # A child that talks nonsense has been corrupted; it goes, and its jobs with it.
            self._kill()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost()

    def tell(self, frame: Frame) -> None:
        """Send ``frame`` to the child."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(frame))

    # --- inside ---------------------------------------------------------------------------------------------

    async def _prepare(self, one: _Job, intake: Intake) -> None:
        try:
            request = await intake.prepare(one.job, context=self.context)
        except JobProblem as problem:
            self._fail(one, problem)
            return
        if one.over:
            return
        one.request = request
        self._queue.append(one)
        one.sink.accepted(max(self.running + len(self._queue) - self.slots, 0))
        self._fill()

    def _fill(self) -> None:
        while self._queue and self.running < self.slots:
            one = self._queue.popleft()
            if one.over or one.request is None:
                continue
            one.sent = True
            self._heard = asyncio.get_running_loop().time()
            try:
                self.tell(encoded(one.request))
            except RemoteProtocolError:
                self._fail(one, JobProblem("invalid_request", "the request is too large"))
                continue
            one.request = None
        self._mind()

    def _hear(self, frame: Frame) -> None:
        match frame["t"]:
            case "tokens":
                for news in frame["news"]:
                    if (one := self._jobs.get(news[0])) is not None:
                        self._pass_on(one, news)
            case "done":
                one = self._jobs.get(frame["job"])
                if one is None:
                    return
                if frame["news"]:
                    self._pass_on(one, frame["news"])
                if "vectors" in frame:
                    one.sink.vectors(frame["vectors"])
                timing = Timing(*frame["timing"])
                self._end(one)
                one.sink.done(frame["reason"], Usage(*frame["usage"]), timing)
                self._after()
            case "failed":
                one = self._jobs.get(frame["job"])
                if one is not None:
                    problem = JobProblem(
                        frame["code"], frame["message"], retriable=frame["retriable"], blame=frame["blame"]
                    )
                    self._fail(one, problem)
            case "progress" | "ready" | "load_failed":
                self._loading.put_nowait(frame)

    def _pass_on(self, one: _Job, news: list[Any]) -> None:
        _, ids, text, logprobs = news
        told = None
        if logprobs is not None:
            told = [
                TokenLogprob(token, piece, value, tuple((a, b, c) for a, b, c in top))
                for token, piece, value, top in logprobs
            ]
        one.sink.tokens(ids, text, told)

    def drop(self, one: _Job) -> None:
        """End ``one`` without another word to its sink."""
        if one.sent:
            self.tell({"t": "cancel", "job": one.job.job})
        self._end(one)
        self._after()

    def _too_late(self, one: _Job) -> None:
        if not one.over:
            if one.sent:
                self.tell({"t": "cancel", "job": one.job.job})
            self._fail(one, JobProblem("deadline_exceeded", "the request's deadline has passed"))

    def _fail(self, one: _Job, problem: JobProblem) -> None:
        if one.over:
            return
        self._end(one)
        message = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
        one.sink.failed(problem.code, message, retriable=problem.retriable, blame=problem.blame)
        self._after()

    def _end(self, one: _Job) -> None:
        one.over = True
        one.request = None
        if one.deadline is not None:
            one.deadline.cancel()
        if one.preparing is not None and not one.preparing.done() and one.preparing is not _current():
            one.preparing.cancel()
        if self._jobs.get(one.job.job) is one:
            del self._jobs[one.job.job]

    def _after(self) -> None:
        if not self._jobs:
            self._idle.set()
        if self.alive:
            self._fill()
            if self._dedicated and not self._jobs:
                self.tell({"t": "stop"})
                self._stopping = True

    def _mind(self) -> None:
        """Kill a child that has work and says nothing for too long."""
        if self._watch is None and self.running and self.alive:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(self._settings.stall_s, self._look)

    def _look(self) -> None:
        self._watch = None
        if self.running and asyncio.get_running_loop().time() - self._heard >= self._settings.stall_s:
            self._kill()
        self._mind()

    def _kill(self) -> None:
        self._process.kill()
        if self._transport is not None:
            self._transport.abort()

    def _lost(self) -> None:
        """The child is gone: what ran in it fails."""
        if not self.alive:
            return
        self.alive = False
        if self._watch is not None:
            self._watch.cancel()
        self._loading.put_nowait({})
        jobs = list(self._jobs.values())
        ran = [one.job.job for one in jobs if one.sent]
        poisoned = self._on_crash(ran) if not self._stopping else set()
        for one in jobs:
            if one.job.job in poisoned:
                problem = JobProblem(
                    "poisoned",
                    "the model's process has ended twice while this request ran; it is not tried again",
                )
            else:
                problem = JobProblem(
                    "draining" if self._stopping else "child_crashed",
                    "the model was unloaded" if self._stopping else "the model's process ended",
                    retriable=True,
                    blame="node",
                )
            self._fail(one, problem)
        self._gone.set()
        self._on_gone(self)


def _current() -> asyncio.Task[Any] | None:
    return asyncio.current_task()
