"""The one attempt of a request that is under way, and the crashes that the request was present at. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qgate.capability.candidate import Candidate
from qgate.capability.facts import Completed, Observe
from qgate.capability.work import NOTHING_USED, Failure, Hop, Usage

CRASHES_STILL: Final = 2  # at the same point of the answer
CRASHES_MOST: Final = 3

SLOWEST_PREFILL: Final = 20.0
"""Prompt tokens/s that any node reaches; with a margin it says how long silence before an answer may last."""
PREFILL_MARGIN: Final = 4.0

PROMPT_MARGIN: Final = 4
"""A tokenizer makes at most so many tokens of what we guess to be one: one a byte, for any language."""
TEMPLATE_TOKENS: Final = 4096  # what a chat template may add of its own, tools described at length included

QUEUED_PATIENCE: Final = 6.0
"""Times `stall_s`: a request that waits its turn hears nothing, and its worker bounds that itself (300 s)."""


@dataclass(slots=True)
class LiveAttempt:
    """Times are monotonic seconds; `from_ids` is how many ids it was given to replay."""

    number: int
    candidate: Candidate
    launched_at: float
    heard_at: float
    from_ids: int
    accepted: bool = False
    idle: bool = True  # it neither queued nor loaded: its times are the node's own
    queued: bool = False
    first_at: float | None = None
    last_at: float = 0.0
    tokens: int = 0
    load_until: float | None = None
    queue_until: float | None = None
    progress: tuple[str, float, float | None] = ("", 0.0, None)
    worker: str = ""

    def observed(self, fact: Completed, now: float) -> Observe:
        """What its clean end shows of the candidate."""
        first = self.first_at - self.launched_at if self.first_at is not None and self.idle else None
        counted = max(self.tokens, fact.usage.completion_tokens - self.from_ids)
        took = self.last_at - self.first_at if self.first_at is not None else 0.0
        return Observe(
            self.candidate,
            first_token_s=first,
            prompt_tokens=fact.usage.prompt_tokens if not self.from_ids else 0,
            decode=(counted - 1, took) if took > 0 and counted > 1 else None,
            service_s=now - self.launched_at if self.idle else None,
        )

    def counted(self, usage: Usage, *, ids: int, prompt: int, answer: int) -> Usage:
        """What a worker says it used, as far as it can be: it is no price, but rates and receipts heed it.

        `ids` are those of the whole answer so far (0: it has none), `prompt` is the guess of its length, and
        `answer` the most tokens that were asked for. A provider's bill is not ours to doubt.
        """
        if self.candidate.kind not in {"worker", "pool"}:
            return usage
        completion = ids or min(usage.completion_tokens, answer)
        asked = min(usage.prompt_tokens, PROMPT_MARGIN * prompt + TEMPLATE_TOKENS)
        return Usage(
            asked,
            completion,
            min(usage.cached_tokens, asked),
            min(usage.evaluated_tokens, asked + completion),
        )

    def used(self, failure: Failure | None, ids: int, prompt: int) -> Usage | None:
        """What it used without a clean end, `ids` being those of the whole answer so far.

        Counted at a worker; unknown (None) at a provider, unless it refused with a status at once.
        """
        if failure is not None and failure.usage is not None:
            return failure.usage
        if self.candidate.kind == "provider":
            refused = failure is not None and failure.status is not None and self.first_at is None
            return NOTHING_USED if refused else None
        new = ids - self.from_ids
        return Usage(prompt, new, 0, new) if new else NOTHING_USED

    def silent_at(self, stall_s: float, prompt: int) -> float:
        """When it will have been silent for too long: a long prompt is worked on in silence."""
        if self.first_at is not None:
            return self.heard_at + stall_s
        if self.queued:
            stall_s *= QUEUED_PATIENCE
        working_s = PREFILL_MARGIN * prompt / max(self.candidate.prefill, SLOWEST_PREFILL)
        return self.heard_at + stall_s + working_s

    def due(self, stall_s: float, prompt: int, now: float) -> float:
        """The next time after `now` at which something may have to be looked at."""
        at = self.heard_at + stall_s  # `silent_at` is never before it, and mostly comes to be it
        if at <= now:
            at = self.silent_at(stall_s, prompt)
        if self.load_until is not None and self.load_until < at:
            at = self.load_until
        if self.queue_until is not None and self.queue_until < at:
            at = self.queue_until
        return at

    def hop(self, usage: Usage | None, reason: str) -> Hop:
        """Its line in the receipt."""
        one = self.candidate
        worker = self.worker if one.kind == "pool" else ""
        return Hop(one.node, one.kind, one.model, one.version, usage, one.price, reason, worker)


@dataclass(slots=True)
class Crashes:
    """The deaths of processes that worked on one request."""

    count: int = 0
    _still: int = 0
    _at: int = -1

    def poisonous(self, ids: int) -> bool:
        """One more, with so many ids of the answer there; True where the request must be the cause."""
        self._still = self._still + 1 if ids == self._at else 1
        self._at = ids
        self.count += 1
        return self._still >= CRASHES_STILL or self.count >= CRASHES_MOST
