"""What a dispatch is told (facts) and what it wants done (commands)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qgate.capability.candidate import Candidate
from qgate.capability.demand import Demand
from qgate.capability.scheduler import Plan
from qgate.capability.work import NOTHING_USED, Begun, Chunk, Failure, Hop, Moved, Problem, Usage

# --- facts. `attempt` is an attempt's number: what an attempt says after its end is not heard.


@dataclass(frozen=True, slots=True)
class Planned:
    """The scheduler's answer to `Place`."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Reserved:
    """The money that `Reserve` asked for is set aside."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The money is not to be had."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Accepted:
    """A node took the attempt; `queue` requests are before it."""

    attempt: int
    queue: int = 0
    state: str = ""
    worker: str = ""  # another pool's


@dataclass(frozen=True, slots=True)
class Progressed:
    """The model that the attempt waits for is being loaded."""

    attempt: int
    state: str
    share: float
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A piece of the answer."""

    attempt: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Completed:
    """The attempt's clean end."""

    attempt: int
    finish_reason: str
    usage: Usage
    result: Any = None
    raw: bytes | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Broke:
    """The attempt ended without an answer."""

    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class NodeDrains:
    """A node wants to be rid of its requests, in its own time."""

    node: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; look at what was to happen by now."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Whoever asked is gone."""


Fact = (
    Planned | Reserved | Denied | Accepted | Progressed | Received | Completed | Broke | NodeDrains | Tick
) | Cancelled


# --- commands


@dataclass(frozen=True, slots=True)
class Place:
    """Plan for this demand and tell `Planned`."""

    demand: Demand


@dataclass(frozen=True, slots=True)
class Reserve:
    """Set money aside for this candidate and tell `Reserved` or `Denied`."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Launch:
    """Start an attempt. `alone`: it was there when a process died, so nothing else that was may start beside
    it until it has shown that it does no harm.
    """

    attempt: int
    candidate: Candidate
    emitted: tuple[int, ...] = ()
    emitted_text: str = ""
    max_tokens: int = 0
    deadline: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Halt:
    """Cancel the attempt wherever it runs."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Close the reservation of an attempt; None: what was used is not known."""

    attempt: int
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Observe:
    """The candidate did well; what was measured of it (seconds)."""

    candidate: Candidate
    first_token_s: float | None = None
    prompt_tokens: int = 0
    decode: tuple[int, float] | None = None
    service_s: float | None = None


@dataclass(frozen=True, slots=True)
class Distrust:
    """The candidate failed; `refuted`: it does not have what it claims; `crashed`: its process died."""

    candidate: Candidate
    reason: str
    whole_node: bool = False
    retry_after_s: float | None = None
    refuted: bool = False
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """Give this to whoever asked."""

    event: Begun | Chunk | Moved


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    finish_reason: str
    usage: Usage
    hops: tuple[Hop, ...]
    result: Any = None
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """There will be no (complete) answer."""

    problem: Problem
    hops: tuple[Hop, ...] = ()
    usage: Usage = NOTHING_USED


@dataclass(frozen=True, slots=True)
class End:
    """It was cancelled; nothing more is to be said."""

    hops: tuple[Hop, ...] = ()
    usage: Usage = NOTHING_USED


@dataclass(frozen=True, slots=True)
class Wake:
    """Tell `Tick` at this time, or earlier; an earlier wish is replaced."""

    at: float


Command = (Place | Reserve | Launch | Halt | Settle | Observe | Distrust | Say | Finish | Fail | End) | Wake
