"""What two gates say to each other about their pools' logs. Specified in docs/replication.md.

On a stream of the kind "log" each message is a frame: a u32 (big-endian) length, then a msgpack map whose key
"t" names the type. The same frames, sealed, make an archive. What arrives is checked field by field against
bounds; a frame that breaks one, or that is longer than `FRAME_MAX`, ends the stream before anything of it is
kept.

    opener (it fetches)                    the other gate (it has the log)
    -------------------------------------  ------------------------------------------------------------
    Pull: an origin, where I stand         Certificates, then Entries, or Snapshot and Entries, or Sorry
    Fill: payloads that were withheld      Filled, or Sorry
                                           News, unasked: the log has grown
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tunnel_proto.shapes import flag, has, listed, maybe, one_of, pair, raw, record, text, whole
from tunnel_proto.vocabulary import Bounds, MessageDecoder, Vocabulary

KIND_LOG: Final = "log"

FRAME_MAX: Final = 4 * 1024 * 1024
"""Bytes of one message: several of the largest entries that there may be."""

ITEMS_MAX: Final = 1000  # entries of one message
POINTS_MAX: Final = 64
PLACES_MAX: Final = 1000
CERTIFICATES_MAX: Final = 64
ENTRY_MAX: Final = 4096
PAYLOAD_MAX: Final = 512 * 1024

_KEY = raw(32)
_HASH = raw(32)
_INCARNATION = raw(16)
_ID = whole(0, (1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class Item:
    """An entry with its contents. Without them ``missing`` says why: "erased" or "withheld"."""

    entry: bytes = has(raw(ENTRY_MAX))
    salt: bytes | None = has(maybe(raw(32)), None)
    payload: bytes | None = has(maybe(raw(PAYLOAD_MAX)), None)
    missing: str = has(one_of("", "erased", "withheld"), "")


@dataclass(frozen=True, slots=True)
class Place:
    """A head: the last entry of a log as somebody has it."""

    incarnation: bytes = has(_INCARNATION)
    seq: int = has(whole())
    hash: bytes = has(_HASH)


@dataclass(frozen=True, slots=True)
class Pull:
    """Send what follows of an origin's log. ``points`` are entries (seq, hash) that the asker has, the newest
    first; ``head`` is the newest with its incarnation.
    """

    id: int = has(_ID)
    origin: bytes = has(_KEY)
    head: Place = has(record(Place))
    points: tuple[tuple[int, bytes], ...] = has(listed(pair(whole(), _HASH), POINTS_MAX), ())
    keys: tuple[bytes, ...] = has(listed(_KEY, CERTIFICATES_MAX), ())  # whose certificates the asker has


@dataclass(frozen=True, slots=True)
class Certificates:
    """Online certificates of an origin, before the entries that they are for."""

    origin: bytes = has(_KEY)
    certificates: tuple[bytes, ...] = has(listed(raw(2048), CERTIFICATES_MAX))


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries in order. ``more``: the log goes on, ask again; ``head`` is its end at the sender.

    With ``kept`` they are a snapshot's kept entries, and ``more`` says that further messages of the same
    number follow unasked.
    """

    id: int = has(_ID)
    origin: bytes = has(_KEY)
    head: Place = has(record(Place))
    items: tuple[Item, ...] = has(listed(record(Item), ITEMS_MAX), ())
    more: bool = has(flag, False)
    kept: bool = has(flag, False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The log's beginning is truncated: its snapshot, followed by `Entries` with ``kept``."""

    id: int = has(_ID)
    origin: bytes = has(_KEY)
    snapshot: bytes = has(raw(1024))


@dataclass(frozen=True, slots=True)
class Fill:
    """Send the contents of entries that the asker holds without."""

    id: int = has(_ID)
    origin: bytes = has(_KEY)
    places: tuple[int, ...] = has(listed(whole(1), PLACES_MAX))


@dataclass(frozen=True, slots=True)
class Filled:
    """What may be told of what was asked; entries still withheld are left out."""

    id: int = has(_ID)
    origin: bytes = has(_KEY)
    items: tuple[Item, ...] = has(listed(record(Item), ITEMS_MAX), ())


@dataclass(frozen=True, slots=True)
class News:
    """A log has grown."""

    origin: bytes = has(_KEY)
    head: Place = has(record(Place))


@dataclass(frozen=True, slots=True)
class Sorry:
    """What was asked is not given."""

    id: int = has(_ID)
    code: str = has(text(64, r"[a-z][a-z0-9-]*"))
    message: str = has(text(500), "")


LogMessage = Pull | Certificates | Entries | Snapshot | Fill | Filled | News | Sorry

TYPES: Final[Mapping[str, type]] = {
    "pull": Pull,
    "certificates": Certificates,
    "entries": Entries,
    "snapshot": Snapshot,
    "fill": Fill,
    "filled": Filled,
    "news": News,
    "sorry": Sorry,
}

_VOCABULARY: Final = Vocabulary[LogMessage](
    TYPES,
    frame_max=FRAME_MAX,
    bounds=Bounds(text=4096, raw=PAYLOAD_MAX, items=ITEMS_MAX, keys=64),
    what="a log message",
)
encode = _VOCABULARY.encode
decode = _VOCABULARY.decode


class Decoder(MessageDecoder[LogMessage]):
    """Cuts bytes into messages; holds at most one incomplete frame, and none that is too long."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_VOCABULARY)
