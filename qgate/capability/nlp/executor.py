"""The gate's own engine as an executor: an attempt becomes a job of the pool, a result an answer."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qgate.capability.candidate import NlpEngine
from qgate.capability.nlp import intake, jobs
from qgate.capability.nlp.catalogue import AS_OF, QUALITY
from qgate.capability.nlp.form import as_text
from qgate.capability.nlp.pool import Given, Pool
from qgate.capability.nlp.queueing import Ticket
from qgate.capability.work import Attempt, Chunk, Failure, Sink, Usage, Work
from qgate.settings import NlpSettings

VERSION: Final = f"qgate-nlp-{jobs.ENGINE_VERSION}"
PER_SECOND: Final = 500.0
"""Short texts that one worker does in a second, before anything was measured."""
RETRY_S: Final = 1.0

_FAILURES: Final[Mapping[str, tuple[str, bool]]] = {
    # the pool's reason → code of the engine's table, whether elsewhere may do better
    "timeout": ("deadline_exceeded", True),
    "crashed": ("poison_request", False),
    "stopped": ("unavailable", True),
    "unavailable": ("unavailable", True),
}


def engine_facts(settings: NlpSettings) -> NlpEngine:
    """What the inventory is told of the engine."""
    return NlpEngine(
        quality=dict(QUALITY),
        parallel=settings.workers,
        per_second=PER_SECOND * settings.workers,
        version=f"{VERSION} ({AS_OF})",
        input_max=settings.input_max,
    )


class NlpExecutor:
    """Starts attempts in the pool."""

    def __init__(self, pool: Pool, settings: NlpSettings) -> None:
        self._pool = pool
        self._settings = settings

    def start(self, attempt: Attempt, sink: Sink) -> NlpRunning:
        """Submit at once. A request that the engine cannot take fails here, with every reason."""
        work, pool = attempt.work, self._pool
        reading = intake.read(work, input_max=self._settings.input_max)
        if reading.bars:
            sink.failed(_barred(reading.bars))
            return NlpRunning(pool)
        if pool.full:
            sink.failed(
                Failure(
                    "queue_full",
                    f"{pool.waiting} requests wait for the gate's own engine already",
                    retriable=True,
                    retry_after_s=RETRY_S,
                    blame="network",
                )
            )
            return NlpRunning(pool)
        running = NlpRunning(pool, work, sink, sum([(size + 3) // 4 for size in reading.sizes]))
        if pool.waiting:  # else its answer will be there before anybody could act on this
            sink.accepted(queue=pool.waiting, state="resident")
        running.ticket = pool.submit(intake.job_of(work.request, reading), running)
        return running


class NlpRunning:
    """One attempt in the pool. `prompt` are its texts in estimated tokens."""

    __slots__ = ("_pool", "_prompt", "_sink", "_work", "ticket")

    def __init__(
        self, pool: Pool, work: Work | None = None, sink: Sink | None = None, prompt: int = 0
    ) -> None:
        self._pool = pool
        self._work = work
        self._sink = sink
        self._prompt = prompt
        self.ticket: Ticket | None = None

    def cancel(self) -> None:
        """No answer is wanted any more."""
        self._sink = None
        if self.ticket is not None:
            self._pool.cancel(self.ticket)
            self.ticket = None

    def pause(self) -> None:
        """An answer is one piece: there is nothing to hold back."""

    def resume(self) -> None:
        """See `pause`."""

    def finished(self, outcome: str, value: Any) -> None:
        """The pool's word on the job."""
        sink, work, self._sink = self._sink, self._work, None
        self.ticket = None
        if sink is None or work is None:
            return
        if outcome != jobs.OK:
            sink.failed(_failure(outcome, value))
            return
        task = work.request.task
        if task == "embed":
            vectors = [_floats(one) for one in value]
            sink.done("stop", self._usage(0), result=vectors, model_version=VERSION)
            return
        result = value if task == "similarity" else {"results": value} if intake.is_list(work) else value[0]
        text = as_text(task, result) if intake.speaks(work) else ""
        if text:
            sink.chunk(Chunk(text=text))
        sink.done("stop", self._usage(_tokens(text)), result=result, model_version=VERSION)

    def _usage(self, completion: int) -> Usage:
        """In estimated tokens: the engine reads characters, so a quarter of the UTF-8 bytes stands in."""
        return Usage(self._prompt, completion, evaluated_tokens=self._prompt)


def _tokens(text: str) -> int:
    return (len(text if text.isascii() else text.encode("utf-8", "replace")) + 3) // 4


def _floats(raw: bytes) -> list[float]:
    return array("f", raw).tolist()


def _barred(reasons: Sequence[str]) -> Failure:
    code = "invalid_request"
    if any("nlp.input_max" in reason for reason in reasons):
        code = "payload_too_large"
    return Failure(
        code,
        f"the gate's own engine cannot take this request: {'; '.join(reasons)}",
        retriable=True,
        blame="request",
    )


def _failure(outcome: str, value: Any) -> Failure:
    if outcome == jobs.UNSUITED:
        message, hint = value
        return Failure("unsupported", f"{message}; {hint}" if hint else message, blame="request")
    if isinstance(value, Given):
        code, retriable = _FAILURES[value.code]
        return Failure(
            code,
            value.message,
            retriable=retriable,
            blame="node"
            if value.code == "unavailable"
            else "request"
            if value.code != "stopped"
            else "network",
            crashed=value.code == "crashed",
        )
    return Failure("internal_error", f"the gate's own engine failed on this text ({value})", blame="request")
