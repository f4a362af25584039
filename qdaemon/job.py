"""One job from its admission to its end, and what a job is to the llama.cpp runtime."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from qdaemon.catalogue import Model
from qdaemon.runtimes.engine import Child
from qdaemon.runtimes.llama.job import Blame, LlamaJob, Running, Timing, TokenLogprob, Usage
from qdaemon.runtimes.llama.job import Sampling as LlamaSampling
from qdaemon.turns import Turns
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import (
    JobDone,
    JobFailed,
    JobMessage,
    JobProgress,
    JobStart,
    JobTiming,
    JobTokens,
    JobUsage,
    JobVectors,
    Sampling,
)

ANSWER_TOKENS: Final = 256.0
"""What a job without max_tokens is taken to cost beside its prompt, for fairness only."""

CHARACTERS_PER_TOKEN: Final = 4.0
VECTORS_PER_MESSAGE: Final = 4 << 20  # bytes
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


class Owner(Protocol):
    """Who keeps the jobs."""

    counts: Counts

    def forget(self, job: Job) -> None:
        """A job is over."""


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

    jobs: Owner
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
