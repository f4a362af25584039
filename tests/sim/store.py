"""A pool's store as the log sees it: what survives a crash, and what a backup brings back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qgate.federation.catalogue import Document
from qgate.federation.log.entry import Contents, Entry
from qgate.federation.log.replica import Disposition, Known, ReplicaState
from qgate.federation.log.vector import EMPTY, Head

if TYPE_CHECKING:
    from tests.sim import jobs

Record = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to be signed."""

    stream: str
    record: bytes
    value: Mapping[str, object]
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One entry that is kept; ``disposition`` is what it did here."""

    entry: Entry
    contents: Contents | None
    disposition: Disposition | str = "own"
    reason: str = ""


@dataclass(slots=True)
class Replica:
    """Another pool's log and what was made of it. ``rows[n]`` has the number n + 1."""

    state: ReplicaState
    rows: list[Row] = field(default_factory=list)
    applied: dict[Record, bytes] = field(default_factory=dict)

    def copy(self) -> Replica:
        """A backup."""
        return Replica(self.state, list(self.rows), dict(self.applied))

    def known(self, seq: int) -> Known | None:
        """What is held under a number."""
        if not 0 < seq <= len(self.rows):
            return None
        entry = self.rows[seq - 1].entry
        return Known(entry.incarnation, entry.hash)


@dataclass(slots=True)
class Store:
    """One PostgreSQL. ``server`` stands for its system identifier and timeline, ``settled`` is the one that
    the last batch was signed on; ``lost`` says when entries came back without their contents, ``restored_at``
    when it was found to be an older one; ``connection`` counts the times that gates had to connect anew,
    ``life`` those that the store became an older one.
    """

    server: int
    settled: int
    rows: list[Row] = field(default_factory=list)
    head: Head = EMPTY
    hlc: int = 0
    outbox: list[Waiting] = field(default_factory=list)
    documents: dict[bytes, Document] = field(default_factory=dict)
    replicas: dict[bytes, Replica] = field(default_factory=dict)
    ballots: dict[int, bytes] = field(default_factory=dict)
    claims: dict[bytes, Head] = field(default_factory=dict)
    lost: dict[bytes, float] = field(default_factory=dict)
    restored_at: float | None = None
    receipts: dict[str, jobs.Record] = field(default_factory=dict)
    results: dict[tuple[bytes, str], jobs.Kept] = field(default_factory=dict)
    announced: dict[str, float] = field(default_factory=dict)
    connection: int = 0
    life: int = 0
    up: bool = True
    full: bool = False

    def copy(self) -> Store:
        """A backup."""
        return replace(
            self,
            rows=list(self.rows),
            outbox=list(self.outbox),
            documents=dict(self.documents),
            ballots=dict(self.ballots),
            replicas={origin: replica.copy() for origin, replica in self.replicas.items()},
            claims=dict(self.claims),
            lost=dict(self.lost),
            receipts=dict(self.receipts),
            results=dict(self.results),
            announced=dict(self.announced),
            up=True,
            full=False,
        )

    def hash_at(self, seq: int) -> bytes | None:
        """The hash of our own entry with that number."""
        return self.rows[seq - 1].entry.hash if 0 < seq <= len(self.rows) else None

    def has(self, head: Head) -> bool:
        """Whether our log has that very entry, or went on from an earlier one of that incarnation."""
        if head == EMPTY or self.hash_at(head.seq) == head.hash:
            return True
        closed = {row.entry.incarnation for row in self.rows} - {self.head.incarnation}
        return head.incarnation in closed

    def cut_back(self, seq: int) -> list[Row]:
        """Take what lies beyond ``seq`` out of our log."""
        gone = self.rows[seq:]
        del self.rows[seq:]
        last = self.rows[-1].entry if self.rows else None
        self.head = Head(last.incarnation, last.seq, last.hash) if last else EMPTY
        return gone
