"""Jobs from the gates: admitted or refused at once, queued fairly, run where their model is.

The daemon's word is final: a gate plans with what it was told a second ago, this queue knows now. A job
waits in its model's queue until a sequence of that model is free; whose turn it is among apps decides
`turns`. What a job carries is held in memory only, and no line of a log ever names more than its number.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from qdaemon.catalogue import Catalogue, Model
from qdaemon.residency import RETRY_S, Residency
from qdaemon.runtimes.engine import Child
from qdaemon.runtimes.llama.job import Blame, LlamaJob, Running, Timing, TokenLogprob, Usage
from qdaemon.runtimes.llama.job import Sampling as LlamaSampling
from qdaemon.settings import JobSettings
from qdaemon.turns import Turns
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import (
    JobAccepted,
    JobDone,
    JobFailed,
    JobMessage,
    JobProgress,
    JobRefused,
    JobStart,
    JobTiming,
    JobTokens,
    JobUsage,
    JobVectors,
    Sampling,
)

log = structlog.get_logger()

ANSWER_TOKENS: Final = 256.0
"""What a job without max_tokens is taken to cost beside its prompt, for fairness only."""

CHARACTERS_PER_TOKEN: Final = 4.0
VECTORS_PER_MESSAGE: Final = 4 << 20  # bytes
FULL_RETRY_S: Final = 1.0
_MESSAGE_MAX: Final = 2000


class Channel(Protocol):
    """The way back to whoever sent a job."""

    def send(self, message: JobMessage) -> None:
        """Tell it something."""

    def end(self) -> None:
        """Nothing more will be told."""


@dataclass(slots=True)
class Counts:
    """Totals since the start."""

    done: Counter[str] = field(default_factory=Counter)  # by finish reason
    failed: Counter[str] = field(default_factory=Counter)  # by code
    refused: Counter[str] = field(default_factory=Counter)  # by code
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False, slots=True)
class Jobs:
    """All jobs of one daemon. ``changed`` is called when what gates are told has changed."""

    catalogue: Catalogue
    residency: Residency
    settings: JobSettings
    changed: Callable[[], None]
    counts: Counts = field(default_factory=Counts)
    draining: bool = False
    live: set[Job] = field(default_factory=set)
    _alone: Turns[Job] = field(default_factory=Turns)
    _alone_running: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> int:
        return sum(job.state == "running" for job in self.live)

    @property
    def queued(self) -> int:
        return sum(job.state != "running" for job in self.live)

    @property
    def slots(self) -> int:
        """Jobs that could run at once with what is in memory now."""
        return sum(model.slots for model in self.catalogue.models.values() if model.child or model.place)

    def admit(self, start: JobStart, app: str, share: int, channel: Channel) -> Job | None:
        """Take a job, or refuse it; either is told to ``channel``. None where it was refused."""
        try:
            model = self._check(start, app)
        except RefusedError as refusal:
            self.counts.refused[refusal.code] += 1
            channel.send(
                JobRefused(start.job, refusal.code, refusal.message, refusal.retry_after_s, hint=refusal.hint)
            )
            channel.end()
            return None
        job = Job(self, start, app, share, channel, model)
        self.live.add(job)
        alone = start.isolation == "dedicated" and model.engine == "llama"
        queue: Turns[Any] = self._alone if alone else model.queue
        channel.send(JobAccepted(start.job, len(queue), model.state))
        queue.push(app, job, cost=cost_of(start), share=share)
        job.wait(queue, self.settings.wait_s)
        if alone:
            self._pump_alone()
        else:
            self.pump(model)
            if job.state == "waiting" and model.engine == "llama" and model.child is None:
                self.residency.want(model)
                job.told_progress(model.state, model.progress, self.residency.eta(model))
        self.changed()
        return job

    def pump(self, model: Model) -> None:
        """Begin what may begin now."""
        while len(model.queue) and not model.held and model.running < model.slots:
            if model.place is None and (model.child is None or not model.child.alive):
                break
            job = model.queue.pop()
            assert isinstance(job, Job)
            model.running += 1
            job.begin(model.child)
        if len(model.queue) and model.engine == "llama" and model.child is None:
            self.residency.want(model)

    def _pump_alone(self) -> None:
        while len(self._alone) and self._alone_running < self.settings.dedicated:
            job = self._alone.pop()
            assert job is not None
            self._alone_running += 1
            task = asyncio.get_running_loop().create_task(self._run_alone(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_alone(self, job: Job) -> None:
        """Give one job a process of its own, from its load to its end."""
        child: Child | None = None
        job.told_progress("loading", 0.0, job.model.load_s or None)
        loading = asyncio.get_running_loop().create_task(self.residency.alone(job.model))
        try:
            over = asyncio.get_running_loop().create_task(job.over.wait())
            await asyncio.wait({loading, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if not loading.done():
                return
            child = loading.result()
            if job.state != "over":
                job.model.running += 1
                job.begin(child)
                await job.over.wait()
        except MeshError as error:
            job.told_failed(str(getattr(error, "code", "load_failed")), error.message, retriable=True)
        finally:
            if not loading.done():
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            if child is not None:
                await self.residency.leave(child)
            self._alone_running -= 1
            self._pump_alone()

    def forget(self, job: Job) -> None:
        """A job is over: let the next one begin."""
        self.live.discard(job)
        if not self.live:
            self._empty.set()
        model = job.model
        if job.began:
            model.running -= 1
            model.last_used = asyncio.get_running_loop().time()
        self.pump(model)
        if not len(model.queue):
            self.residency.unwant(model)
        self.residency.idle()
        self.changed()

    def hand_back(self) -> None:
        """Take no more jobs, and give those that wait back to their gates; what runs goes on."""
        self.draining = True
        for job in list(self.live):
            if job.state == "waiting":
                job.fail("draining", "this worker is being drained", retriable=True, blame="node")
        self.changed()

    def undrain(self) -> None:
        """Take jobs again."""
        self.draining = False
        self.changed()

    async def drain(self, timeout_s: float) -> None:
        """Take no more, hand back what waits, and let what runs finish for ``timeout_s``."""
        self.hand_back()
        self._empty.clear()
        if self.live:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                log.warning("jobs handed back unfinished", jobs=len(self.live))
        for job in list(self.live):
            job.fail("draining", "this worker is being drained", retriable=True, blame="node")

    async def close(self) -> None:
        """End everything."""
        for job in list(self.live):
            job.fail("draining", "this worker stops", retriable=True, blame="node")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- admission

    def _check(self, start: JobStart, app: str) -> Model:
        """The job's model; raises `RefusedError`."""
        if self.draining:
            raise RefusedError("draining", "this worker is being drained")
        model = self.catalogue.find(start.model)
        if model is None:
            raise RefusedError(
                "model_not_found",
                f"this worker has no model {start.model[:80]}",
                hint="meshctl model list",
            )
        kinds = model.described.kinds if model.described else model.facts.kinds if model.facts else ()
        if start.kind not in kinds:
            raise RefusedError(
                "unsupported",
                f"{model.names[0]} does not do {start.kind}: it does {', '.join(kinds) or 'nothing'}",
            )
        if start.isolation == "dedicated":
            if model.engine == "llama" and not self.settings.dedicated:
                raise RefusedError("isolation_unavailable", "this worker starts no dedicated processes")
            if model.engine != "llama" and model.isolation != "dedicated":
                raise RefusedError(
                    "isolation_unavailable",
                    f"{model.runtime} does not keep requests in processes of their own",
                )
        if model.state == "failed" and asyncio.get_running_loop().time() - model.failed_at < RETRY_S:
            raise RefusedError(model.problem_code or "load_failed", model.problem, retry_after_s=RETRY_S)
        waiting = sum(job.state != "running" for job in self.live)
        busy = model.running >= model.slots or not (model.child or model.place)
        if busy and waiting >= self.settings.queue:
            raise RefusedError("queue_full", f"{waiting} jobs wait here already", retry_after_s=FULL_RETRY_S)
        mine = model.queue.waiting(app) + self._alone.waiting(app)
        if busy and mine >= self.settings.queue_app:
            raise RefusedError(
                "queue_full", f"{mine} jobs of this app wait here already", retry_after_s=FULL_RETRY_S
            )
        return model


class RefusedError(MeshError):
    """A job is not taken; ``code`` is for machines."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(eq=False, slots=True)
class Job:
    """One job from its admission to its end; the sink of whatever runs it.

    States: waiting → running → over, or waiting → over.
    """

    jobs: Jobs
    start: JobStart = field(repr=False)
    app: str
    share: int
    channel: Channel
    model: Model
    state: str = "waiting"
    began: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _queue: Turns[Any] | None = None
    _timer: asyncio.TimerHandle | None = None
    _running: Running | None = None
    _paused: bool = False
    _admitted_at: float = 0.0
    _began_at: float = 0.0
    _ids: list[int] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _logprobs: list[Any] = field(default_factory=list)
    _vectors: int = 0
    _flush: bool = False

    # --- before it runs

    def wait(self, queue: Turns[Any], longest_s: float) -> None:
        """It is in this queue; it will not wait longer than its deadline, or ``longest_s``."""
        loop = asyncio.get_running_loop()
        self._queue, self._admitted_at = queue, loop.time()
        seconds = min(longest_s, self.start.deadline_s) if self.start.deadline_s is not None else longest_s
        self._timer = loop.call_later(seconds, self._too_late)

    def told_progress(self, state: str, share: float, eta_s: float | None) -> None:
        """The model is on its way into memory."""
        if self.state == "waiting":
            self.channel.send(JobProgress(self.start.job, state, min(1.0, share), eta_s))

    def told_failed(self, code: str, message: str, *, retriable: bool) -> None:
        """The model will not come."""
        self.fail(code, message, retriable=retriable, blame="node")

    def begin(self, child: Child | None) -> None:
        """Run now: in this child, or where the model is served."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self.state, self.began, self._queue = "running", True, None
        self._began_at = loop.time()
        left = None
        if self.start.deadline_s is not None:
            left = max(0.0, self.start.deadline_s - (self._began_at - self._admitted_at))
        try:
            if child is not None:
                self._running = child.submit(llama_job(self.start, self.app, left), self)
            else:
                assert self.model.place is not None
                self._running = self.model.place.submit(self.start, self)
        except MeshError as error:
            code = str(getattr(error, "code", "failed"))
            blame = getattr(error, "blame", "node")
            self.fail(code, error.message, retriable=bool(getattr(error, "retriable", False)), blame=blame)
        else:
            if self._paused and self.state == "running":
                self._running.pause()

    def _too_late(self) -> None:
        if self.start.deadline_s is not None:
            self.fail(
                "deadline_exceeded", "its time was over before it could run", retriable=False, blame="node"
            )
        else:
            self.fail("queue_timeout", "it waited too long for its model", retriable=True, blame="node")

    # --- what the other side does

    def cancel(self) -> None:
        """Whoever asked is gone."""
        if self.state == "over":
            return
        self.jobs.counts.cancelled += 1
        self._stop()
        self._finish()

    def pause(self) -> None:
        """The way back is full."""
        self._paused = True
        if self._running is not None:
            self._running.pause()

    def resume(self) -> None:
        """The way back has room again."""
        self._paused = False
        if self._running is not None:
            self._running.resume()

    # --- Sink

    def accepted(self, queue: int) -> None:
        """The runtime has it; the gate heard of that at admission."""

    def tokens(self, ids: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None) -> None:
        """Keep them for this loop tick, so that a burst is one message."""
        if self.state != "running":
            return
        self._ids += ids
        if text:
            self._text.append(text)
        if logprobs:
            self._logprobs += [_logprob(one) for one in logprobs]
        if not self._flush:
            self._flush = True
            asyncio.get_running_loop().call_soon(self._send_tokens)

    def delta(self, delta: Mapping[str, Any]) -> None:
        """Pass it on as it is."""
        if self.state == "running":
            self._send_tokens()
            self.channel.send(JobTokens(self.start.job, delta=delta))

    def vectors(self, vectors: Sequence[bytes]) -> None:
        """Send them in messages of a bounded size."""
        if self.state != "running":
            return
        part: list[bytes] = []
        size = 0
        for vector in vectors:
            if part and size + len(vector) > VECTORS_PER_MESSAGE:
                self._send_vectors(part)
                part, size = [], 0
            part.append(vector)
            size += len(vector)
        if part:
            self._send_vectors(part)

    def done(self, finish_reason: str, usage: Usage, timing: Timing) -> None:
        """Its clean end."""
        if self.state != "running":
            return
        self._send_tokens()
        decode = (usage.completion_tokens - 1) / timing.decode_s if timing.decode_s > 0.01 else 0.0
        prefill = usage.evaluated_tokens / timing.prefill_s if timing.prefill_s > 0.01 else 0.0
        self.model.learn(
            decode=decode if usage.completion_tokens > 8 else 0.0,
            prefill=prefill if usage.evaluated_tokens > 16 else 0.0,
        )
        counts = self.jobs.counts
        counts.done[finish_reason] += 1
        counts.prompt_tokens += usage.prompt_tokens
        counts.completion_tokens += usage.completion_tokens
        self.channel.send(
            JobDone(
                self.start.job,
                finish_reason,
                JobUsage(
                    usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.evaluated_tokens
                ),
                JobTiming(
                    queue_s=max(0.0, self._began_at - self._admitted_at) + timing.queue_s,
                    prefill_s=timing.prefill_s,
                    decode_s=timing.decode_s,
                ),
                version=self.model.sha256 or self.model.name,
            )
        )
        self._finish()

    def failed(self, code: str, message: str, *, retriable: bool, blame: Blame) -> None:
        """Its end otherwise."""
        self._running = None
        self.fail(code, message, retriable=retriable, blame=blame)

    def fail(self, code: str, message: str, *, retriable: bool, blame: str) -> None:
        """End it with a failure."""
        if self.state == "over":
            return
        self._send_tokens()
        self._stop()
        self.jobs.counts.failed[code] += 1
        self.channel.send(
            JobFailed(self.start.job, code, message[:_MESSAGE_MAX], retriable=retriable, blame=blame)
        )
        self._finish()

    # --- parts

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._queue is not None:
            self._queue.remove(self.app, self)
            self._queue = None
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def _finish(self) -> None:
        self.state = "over"
        self.channel.end()
        self.over.set()
        self.jobs.forget(self)

    def _send_tokens(self) -> None:
        self._flush = False
        if self.state != "running" or not (self._ids or self._text):
            return
        message = JobTokens(
            self.start.job,
            tuple(self._ids),
            "".join(self._text),
            tuple(self._logprobs) if self._logprobs else None,
        )
        self._ids, self._text, self._logprobs = [], [], []
        self.channel.send(message)

    def _send_vectors(self, part: list[bytes]) -> None:
        self.channel.send(JobVectors(self.start.job, tuple(part), first=self._vectors))
        self._vectors += len(part)


def cost_of(start: JobStart) -> float:
    """What a job will take, in tokens, as far as it says."""
    characters = 0
    if isinstance(start.prompt, str):
        characters += len(start.prompt)
    elif start.prompt is not None:
        characters += int(len(start.prompt) * CHARACTERS_PER_TOKEN)
    for text in start.inputs or ():
        characters += len(text)
    for message in start.messages or ():
        content = message.get("content")
        characters += len(content) if isinstance(content, str) else 64
    answer = 0.0
    if start.kind != "embedding":
        asked = start.sampling.max_tokens
        answer = ANSWER_TOKENS if asked is None else min(ANSWER_TOKENS * 16, float(asked))
    return characters / CHARACTERS_PER_TOKEN + answer


def llama_job(start: JobStart, app: str, deadline_s: float | None) -> LlamaJob:
    """A job as the llama.cpp runtime takes it. Raises `RefusedError` for a prompt of token ids."""
    if start.prompt is not None and not isinstance(start.prompt, str):
        raise RefusedError("unsupported", "a prompt of token ids cannot be run here", hint="send it as text")
    return LlamaJob(
        job=start.job,
        app=app,
        kind=start.kind,  # type: ignore[arg-type]  # one of KINDS, checked on arrival
        messages=start.messages or (),
        prompt=start.prompt or "",
        inputs=start.inputs or (),
        tools=start.tools or (),
        tool_choice=start.tool_choice,
        sampling=_sampling(start.sampling),
        response_format=start.response_format,
        emitted=start.emitted,
        isolation=start.isolation,
        reuse=start.reuse,
        deadline_s=deadline_s,
    )


def _sampling(asked: Sampling) -> LlamaSampling:
    given: dict[str, Any] = {
        name: value
        for name in (
            "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
            "presence_penalty", "frequency_penalty", "repeat_penalty", "logprobs",
        )
        if (value := getattr(asked, name)) is not None
    }  # fmt: skip
    return LlamaSampling(stop=asked.stop, logit_bias=dict(asked.logit_bias), **given)


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    """A token's probability in OpenAI's shape, with its id."""
    return {
        "id": one.id,
        **_piece(one.piece, one.logprob),
        "top_logprobs": [{"id": number, **_piece(piece, value)} for number, piece, value in one.top],
    }


def _piece(piece: bytes, logprob: float) -> dict[str, Any]:
    # A probability of nought has no JSON number; OpenAI writes it so.
    return {
        "token": piece.decode("utf-8", "replace"),
        "bytes": list(piece),
        "logprob": max(-9999.0, logprob),
    }
