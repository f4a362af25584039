"""Who is alive: a peer is held for dead only after two signs, and never while we doubt ourselves. Pure.

    alive ──silence──▶ suspect ──a probe failed, and silence went on──▶ dead
      ▲                   │                                              │
      └──── heard ────────┴──────────────────── heard ───────────────────┘

Silence alone means little: the stream may be stuck, the peer may have lowered our level. So on suspicion a
probe is asked for: a fresh tunnel, handshake and all, to each of the peer's gates. One that succeeds shows
life, and the peer stays a suspect that is not heard.

Before anybody else a pool that hears from none of several peers suspects itself: its own network is the
likelier cause, and nobody is declared dead then; a peer that is watched anew and was not heard yet tells
nothing of our network. With one peer only there is nobody to compare with; it is declared dead after a longer
silence, and `Standing.doubt` says that it might be us.

Times are monotonic seconds of our own clock; the peers' clocks play no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

ALIVE: Final = "alive"
SUSPECT: Final = "suspect"
DEAD: Final = "dead"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long silence may last, in seconds."""

    suspect_s: float = 3.0
    dead_s: float = 6.0
    alone_factor: float = 2.0
    """With a single peer, whose silence may be our own fault, this times as long."""
    probe_every_s: float = 2.0
    answered_every_s: float = 10.0
    """The same where the last probe was answered."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One peer: when it was heard of last, since when it is suspected, and how probes went since then."""

    heard_at: float
    state: str = ALIVE
    since: float = 0.0
    failed_at: float | None = None
    answered_at: float | None = None
    probe_at: float | None = None  # when the last one was asked for
    ever: bool = False  # it was heard since it is watched; before, ``heard_at`` is when that began


@dataclass(frozen=True, slots=True)
class Standing:
    """The verdict on a peer. ``since`` is when this state began; ``doubt``: it may be us."""

    state: str
    since: float
    heard_at: float
    doubt: bool


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What one gate thinks of all its peers. Each call gives a new one; nothing is changed in place."""

    patience: Patience = Patience()
    peers: Mapping[bytes, Watched] = field(default_factory=dict)

    def follow(self, keys: frozenset[bytes], now: float) -> Suspicion:
        """Watch exactly these peers; new ones begin as heard just now."""
        kept = {key: one for key, one in self.peers.items() if key in keys}
        fresh = {key: Watched(now, since=now) for key in keys - kept.keys()}
        return replace(self, peers={**kept, **fresh})

    def heard(self, key: bytes, now: float) -> Suspicion:
        """A sound heartbeat of a watched peer came."""
        one = self.peers.get(key)
        if one is None or now < one.heard_at:
            return self
        since = one.since if one.state == ALIVE else now
        return self._with(key, Watched(now, ALIVE, since, ever=True))

    def probed(self, key: bytes, now: float, *, answered: bool) -> Suspicion:
        """A probe that was asked for has ended."""
        one = self.peers.get(key)
        if one is None or one.state == ALIVE:
            return self
        if answered:
            # It lives, though it is not heard: no longer dead, and the count of signs begins anew.
            since = now if one.state == DEAD else one.since
            return self._with(key, replace(one, state=SUSPECT, since=since, answered_at=now, failed_at=None))
        return self._with(key, replace(one, failed_at=now, answered_at=None))

    def look(self, now: float) -> tuple[Suspicion, frozenset[bytes]]:
        """Let time pass; returns what is thought now, and the peers to probe."""
        peers = {
            key: replace(one, state=SUSPECT, since=now)
            if one.state == ALIVE and now - one.heard_at >= self.patience.suspect_s
            else one
            for key, one in self.peers.items()
        }
        doubt = _doubts(peers)
        probes = set()
        for key, one in peers.items():
            if one.state == SUSPECT and self._is_dead(one, now, doubt=doubt, alone=len(peers) == 1):
                peers[key] = one = replace(one, state=DEAD, since=now)
            every = self.patience.probe_every_s if one.answered_at is None else self.patience.answered_every_s
            due = one.probe_at is None or now - one.probe_at >= every
            if one.state != ALIVE and due:
                probes.add(key)
                peers[key] = replace(one, probe_at=now)
        return replace(self, peers=peers), frozenset(probes)

    @property
    def doubt(self) -> bool:
        """Whether it is likelier that our own network is at fault: none of several peers is heard."""
        return _doubts(self.peers)

    def standing(self, key: bytes) -> Standing | None:
        """What is thought of a peer, None where it is not watched."""
        one = self.peers.get(key)
        if one is None:
            return None
        alone = len(self.peers) == 1
        mute = one.state != ALIVE and one.answered_at is None
        return Standing(one.state, one.since, one.heard_at, mute and (self.doubt or alone))

    def wake_at(self, now: float) -> float:
        """When `look` should be called next, on the clock of ``now``."""
        times = [now + self.patience.probe_every_s]
        for one in self.peers.values():
            if one.state == ALIVE:
                times.append(one.heard_at + self.patience.suspect_s)
            elif one.state == SUSPECT:
                times.append(one.heard_at + self.patience.dead_s)
        return max(now, min(time for time in times if time > now))

    def _is_dead(self, one: Watched, now: float, *, doubt: bool, alone: bool) -> bool:
        silence = self.patience.dead_s * (self.patience.alone_factor if alone else 1.0)
        return not doubt and one.failed_at is not None and now - one.heard_at >= silence

    def _with(self, key: bytes, one: Watched) -> Suspicion:
        return Suspicion(self.patience, {**self.peers, key: one})  # at each heartbeat: not by `replace`


def _doubts(peers: Mapping[bytes, Watched]) -> bool:
    signs = ((one.state == ALIVE and one.ever) or one.answered_at is not None for one in peers.values())
    return len(peers) > 1 and not any(signs)
