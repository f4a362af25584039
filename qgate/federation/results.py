"""Results of jobs for other pools: kept where they ran, recorded once where they were asked for. Pure.

A job is an attempt of a request at another pool, named ``REQUEST.ATTEMPT``. It is executed at least once: a
request that was moved may have been worked on at two pools. It is recorded exactly once: its record is the
receipt of the *request* in the store of the pool whose app had asked, and the store takes one a request.

    asking pool (home)                            executing pool
    ------------------                            --------------
    seals a docket, sends it with the job   ──▶   keeps the docket while the job runs
                                                  the job ends: result kept (durable), then said
    its own receipt is written           ◀──      tells the result until it is acknowledged
    acknowledges                         ──▶      forgets it

Normally home has long written its receipt when it is told, and only acknowledges. Where the gate that had
asked died in between, nobody there knows of the request but the docket: what home needs to record it, sealed
for home alone, so that no store of ours is asked before a job is sent, and a store that was set back loses
nothing. A result for which no docket of ours opens is none of ours.

    word    | what is known at home                                       | then
    --------+-------------------------------------------------------------+--------------------------------------
    known   | the request has its receipt                                 | acknowledge
    wait    | the gate that asked lives: it may still move the request,   | say nothing; it is told again
            | or has its receipt in memory                                |
    record  | the process that asked is gone                              | write a receipt, then acknowledge

That a process is gone is certain where another one runs under its name (the store lends a name once), and is
assumed once its gate has not announced itself for `GATE_GONE_S`. Should it live after all, the store still
takes one receipt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from tunnel_proto.receipt import spell

Word = Literal["known", "wait", "record"]

GATE_GONE_S: Final = 150.0
"""Silence after which a gate has given its name up (it announces itself every minute)."""

RECORD_PAUSE_S: Final = 0.6
"""How long a fresh result waits before it is told: home writes its own receipt meanwhile."""

AGAIN_S: Final = (2.0, 60.0)
"""How long after an answer that did not come a result is told again: at first, and at most."""

TELLING_MAX: Final = 200
"""Results that may be told on one stream and not acknowledged."""

ID_BYTES: Final = 12

WORD_MAX: Final = 256
"""Characters of a model's or worker's name that a peer's receipt may put into one of ours."""

KEPT_DAYS: Final = 30
"""How long a result waits for a pool that never comes back."""


@dataclass(frozen=True, slots=True)
class Docket:
    """What home has to know of a job to record it: whose it was, and which process sent it when (unix s)."""

    app: str
    task: str
    gate: str
    run: str
    at: float
    team: str | None = None

    def dump(self) -> bytes:
        """Bytes to be sealed."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def load(cls, data: bytes) -> Docket:
        """Back from `dump`. ValueError."""
        try:
            return cls(**json.loads(data))
        except TypeError:
            raise ValueError("a docket of another version") from None


def docket_purpose(executor: bytes, job: str) -> str:
    """What a docket is sealed for: one job at one pool, so that it opens for no other."""
    return f"docket of {job} at {executor.hex()}"


def receipt_id(pool_key: bytes, job: str) -> str:
    """The id of the executing pool's receipt for another pool's job, as both can compute it."""
    return "req_" + hashlib.blake2b(pool_key + job.encode(), digest_size=ID_BYTES).hexdigest()


def request_of(job: str) -> str:
    """The request that a job is an attempt of."""
    return job.rpartition(".")[0] or job


@dataclass(frozen=True, slots=True)
class Home:
    """What the gate that is told knows of itself, and for how many seconds each sibling has been silent."""

    gate: str
    run: str
    silent_s: Mapping[str, float]


def judge(docket: Docket, home: Home, *, recorded: bool, underway: bool) -> Word:
    """What to do with a result.

    ``recorded``: the store has the request's receipt; ``underway``: this very process has the request, or its
    receipt in memory.
    """
    if recorded:
        return "known"
    if docket.gate == home.gate:
        return "wait" if docket.run == home.run and underway else "record"
    silent = home.silent_s.get(docket.gate, math.inf)
    return "record" if silent > GATE_GONE_S else "wait"


@dataclass(slots=True)
class Telling:
    """When which result is told on one stream, in monotonic seconds.

    ``told`` by job: how often, and when last (not yet: when it was first seen).
    """

    told: dict[str, tuple[int, float]] = field(default_factory=dict)

    def due(self, kept: Iterable[str], now: float) -> list[str]:
        """The jobs to tell now, of those whose results are kept, oldest first."""
        before, self.told = self.told, {}
        chosen: list[str] = []
        unanswered = 0
        for job in kept:  # what is not kept any more was acknowledged, here or at a sibling
            count, last = self.told[job] = before.get(job, (0, now))
            if now < last + _pause(count):
                unanswered += count > 0
            elif unanswered + len(chosen) < TELLING_MAX:
                chosen.append(job)
        for job in chosen:
            self.told[job] = (self.told[job][0] + 1, now)
        return chosen

    def acknowledged(self, job: str) -> None:
        """It need not be told again."""
        self.told.pop(job, None)


def _pause(count: int) -> float:
    first, most = AGAIN_S
    return min(most, first * 2.0 ** min(count - 1, 10)) if count else RECORD_PAUSE_S


def recovered_fields(
    request: str, docket: Docket, theirs: Mapping[str, Any], *, pool: str, gate: str, now: float
) -> dict[str, Any]:
    """A receipt of ours for a request whose gate died, from the receipt of the pool that worked on it.

    ``pool`` is what that pool is called here, ``gate`` the one that records it at ``now`` (unix s).
    """
    hops = theirs.get("nodes") or [{}]
    last = hops[-1] if isinstance(hops, list) and isinstance(hops[-1], Mapping) else {}
    said: dict[str, str | int | None] = {name: _word(theirs.get(name)) for name in _WORDS}
    said |= {name: _count(theirs.get(name)) for name in _COUNTS}
    hop: dict[str, Any] = {"node": pool, "kind": "pool", "model": said["model"]}
    hop |= {
        "version": said["model_version"],
        "tokens_in": said["tokens_in"],
        "tokens_out": said["tokens_out"],
    }
    if worker := _word(last.get("node")):
        hop["worker"] = worker
    return {
        "id": request,
        "app": docket.app,
        "team": docket.team,
        "task": docket.task,
        "nodes": [hop],
        "gate": docket.gate,
        "began_at": spell(docket.at),
        "ended_at": spell(now),
        **said,
        "price": "0",
        "currency": "",
        "recovered": {"from": _word(theirs.get("id")), "by": gate},
    }


_WORDS: Final = ("model", "model_version", "outcome", "finish_reason")
_COUNTS: Final = ("duration_ms", "first_token_ms", "tokens_in", "tokens_out", "tokens_cached")


def _word(value: object) -> str | None:
    """What a peer says in a place for a word."""
    return value[:WORD_MAX] if isinstance(value, str) else None


def _count(value: object) -> int | None:
    """What a peer says in a place for a number."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None
