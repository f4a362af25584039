"""An origin for tests: a pool with keys that writes a log in memory, also one that misbehaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qgate.federation.log import hlc
from qgate.federation.log.entry import Contents, Entry, make_entry
from qgate.federation.log.incarnation import incarnation_payload
from qgate.federation.log.replica import (
    Known,
    Missing,
    Outcome,
    Received,
    ReplicaState,
    Terms,
    receive,
)
from qgate.federation.log.streams import INCARNATION, STREAMS
from qgate.federation.log.vector import EMPTY, Head
from tunnel_proto.certificate import OnlineCertificate, issue_online, read_online
from tunnel_proto.identity import Identity

NOW = 1_800_000_000.0


@dataclass
class Origin:
    """A pool's log. `entries[n]` is number n + 1."""

    pool: Identity = field(default_factory=Identity.generate)
    online: Identity = field(default_factory=Identity.generate)
    entries: list[tuple[Entry, Contents]] = field(default_factory=list)
    incarnation: bytes = field(default_factory=lambda: os.urandom(16))
    last: int = 0
    serial: int = 1

    def __post_init__(self) -> None:
        self.certificate_bytes = self.certify(self.online, self.serial)
        if not self.entries:
            self.write(INCARNATION, incarnation_payload(EMPTY, "first"))

    def certify(self, online: Identity, serial: int, *, start: float = NOW - 86_400) -> bytes:
        return issue_online(
            self.pool,
            online.verify_key,
            not_before=int(start),
            not_after=int(start) + 400 * 86_400,
            serial=serial,
        )

    @property
    def key(self) -> bytes:
        return self.pool.verify_key

    @property
    def head(self) -> Head:
        if not self.entries:
            return EMPTY
        last = self.entries[-1][0]
        return Head(last.incarnation, last.seq, last.hash)

    @property
    def certificates(self) -> dict[bytes, OnlineCertificate]:
        return {self.online.verify_key: read_online(self.certificate_bytes)}

    def make(
        self, stream: str, payload: Mapping[str, Any], *, now: float = NOW, **changes: Any
    ) -> tuple[Entry, Contents]:
        """The next entry, not yet of the log; `changes` are arguments of `make_entry`."""
        contents = Contents.of(payload, os.urandom(32))
        self.last = hlc.tick(self.last, now)
        fields: dict[str, Any] = {
            "pool": self.key,
            "incarnation": self.incarnation,
            "seq": self.head.seq + 1,
            "previous": self.head.hash,
            "hlc": self.last,
            "stream": stream,
            "record": os.urandom(16),
            "contents": contents,
        } | changes
        return make_entry(self.online, **fields), contents

    def write(self, stream: str, payload: Mapping[str, Any], **changes: Any) -> Entry:
        """Add an entry to the log."""
        made = self.make(stream, payload, **changes)
        self.entries.append(made)
        return made[0]

    def reborn(self, cut: int) -> Origin:
        """The same pool, restored to its first `cut` entries and gone on as another incarnation."""
        restored = Origin(self.pool, self.online, list(self.entries[:cut]), os.urandom(16), self.last)
        restored.write(INCARNATION, incarnation_payload(restored.head, "restored"))
        return restored

    def clone(self) -> Origin:
        """The same pool, started twice from one backup: what it writes forks."""
        return Origin(self.pool, self.online, list(self.entries), self.incarnation, self.last)

    def terms(self, level: int = 3, **changes: Any) -> Terms:
        streams = dict(STREAMS)
        return replace(Terms(streams, level, self.certificates), **changes)


class Replica:
    """A replica in memory around the pure machine: what a driver does with its store."""

    def __init__(self, origin: Origin, level: int = 3, **changes: Any) -> None:
        self.state = ReplicaState(origin.key)
        self.terms = origin.terms(level, **changes)
        self.log: list[Entry] = []
        self.stranded: list[Entry] = []
        self.applied: list[Entry] = []
        self.held: dict[int, tuple[Entry, Contents | None, str]] = {}
        self.contents: dict[int, Contents | None] = {}

    def known(self, seq: int) -> Known | None:
        return (
            Known(self.log[seq - 1].incarnation, self.log[seq - 1].hash) if 0 < seq <= len(self.log) else None
        )

    def take(
        self, entry: Entry, contents: Contents | None, *, now: float = NOW, missing: Missing = ""
    ) -> Outcome:
        from qgate.federation.log.replica import Accepted

        event = Received(entry, contents, missing, self.known(entry.seq), self.known(entry.seq - 1))
        self.state, outcome = receive(self.state, event, self.terms, now)
        if isinstance(outcome, Accepted):
            if outcome.stranded_after is not None:
                self.stranded += self.log[outcome.stranded_after :]
                del self.log[outcome.stranded_after :]
            self.log.append(entry)
            self.contents[entry.seq] = outcome.contents
            if outcome.disposition == "apply":
                self.applied.append(entry)
            elif outcome.disposition == "held":
                self.held[entry.seq] = (entry, outcome.contents, outcome.reason)
        return outcome
