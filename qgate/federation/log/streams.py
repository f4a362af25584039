"""The streams that exist. What is not named here never leaves a pool: `publish` refuses it.

A stream has the level that a peer needs in order to read it, who may write it, and the newest version of its
payloads that this program understands. Audit, incidents, notifications, configuration, settings, toggles,
flags, employees and API tokens have no stream, on purpose.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from qgate.federation.log.problems import StreamRefused

if TYPE_CHECKING:
    from qgate.federation.log.entry import Entry
    from qgate.federation.peer import Peer
    from qgate.store.database import Connection

Authority = Literal["origin", "master"]

INCARNATION: Final = "incarnation"
"""The log's own stream: the first entry of an incarnation names its parent and where that was cut."""

ERASURE: Final = "erasure"
"""The log's own stream: which payloads were erased."""

OWN_STREAMS: Final = frozenset({INCARNATION, ERASURE})


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream. ``level`` is the trust that a peer needs, ``version`` the newest payload understood.

    ``authority`` "origin": every pool writes its own records; "master": only the current epoch's master does.
    """

    name: str
    level: int
    authority: Authority = "origin"
    version: int = 1


STREAMS: Final[Mapping[str, Stream]] = {
    one.name: one
    for one in (
        Stream(INCARNATION, 0),
        Stream(ERASURE, 0),
        Stream("revocations", 0),  # of a pool's own keys and nodes: everybody must hear of them
        Stream("pairings", 2),
        Stream("roster", 2),
        Stream("nodes", 2),
        Stream("guests", 2, version=2),  # app verifiers of those that may fail over, sealed to each pool
        Stream("workers", 2),
        Stream("routing", 2),  # adaptive weights
        Stream("redundancy", 2),  # who holds what
        Stream("authority", 3),  # group documents and promotions of the catalogue
        Stream("catalogue", 3, "master"),
    )
}

Apply = Callable[["Connection", "Peer", "Entry", dict[str, Any]], Awaitable[None]]
Forget = Callable[["Connection", "Peer"], Awaitable[None]]
Reclaim = Callable[["Connection", "Entry", dict[str, Any]], Awaitable[None]]
Erased = Callable[["Connection", "Peer", "Entry"], Awaitable[None]]
Rejected = Callable[["Connection", "Entry", dict[str, Any], str], Awaitable[None]]
Rows = Callable[["Connection", "Peer"], Awaitable[Mapping[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class StreamRule:
    """What a stream's entries do here. All of it runs in the transaction that accepts the entry.

    ``apply`` takes a peer's entry with its payload. ``forget`` removes everything that ``apply`` ever made
    of that peer's entries: it is called before they are applied anew (a repair, a restored origin, an
    unpairing). ``reclaim`` takes an entry of our own that came back from a peer after our store was restored.
    ``erased`` removes what was made of an entry whose payload is erased, where nothing newer took its place.
    ``rejected`` hears of an entry that does not count, and why. ``rows`` gives, for anti-entropy, the
    `digest.record_digest` of each record's payload, as its table has it now, by the record's id.
    """

    name: str
    apply: Apply
    level: int | None = None
    authority: Authority | None = None
    forget: Forget | None = None
    reclaim: Reclaim | None = None
    erased: Erased | None = None
    rejected: Rejected | None = None
    rows: Rows | None = None

    @property
    def stream(self) -> Stream:
        """The stream's declaration. StreamRefused where there is none, or where rule and stream differ."""
        declared = declared_stream(self.name)
        for value, wanted in ((self.level, declared.level), (self.authority, declared.authority)):
            if value is not None and value != wanted:
                raise StreamRefused("stream-differs", f"the stream {self.name} is declared with {wanted!r}")
        return declared


def declared_stream(name: str) -> Stream:
    """The stream of that name. StreamRefused ``no-stream``, with the nearest name, where there is none."""
    found = STREAMS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, STREAMS, n=1)
        raise StreamRefused(
            "no-stream",
            f"there is no stream {name!r}: what belongs to one pool alone never leaves it",
            hint=f"did you mean {near[0]!r}?" if near else "docs/replication.md lists the streams",
        )
    return found


def published_stream(name: str) -> Stream:
    """The stream to publish on. StreamRefused where it does not exist or is written by the log itself."""
    found = declared_stream(name)
    if name in OWN_STREAMS:
        raise StreamRefused("own-stream", f"the stream {name} is written by the log alone")
    return found
