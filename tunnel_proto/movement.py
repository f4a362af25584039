"""What a node and its gates say about moving: the node's standing, and the records of its journal. Pure.

Both are msgpack in its one accepted spelling. A record is sixteen random bytes (so that a gate which hears of
it twice keeps it once), a time, and what was decided: docs/failover.md has the layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tunnel_proto.constants import TIME_MAX
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.packing import pack, unpack

KIND_ROSTER: Final = "roster"
KIND_MOVED: Final = "moved"

RECORDS_MAX: Final = 64
"""Records in one stream."""

MOVED_MAX: Final = 64 * 1024
STANDING_MAX: Final = 1024
CAUSE_MAX: Final = 300
ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One move or incident of a node, for the journals of the pools that it concerns.

    ``kind`` is move or incident, ``rule`` the rule that moved it or the kind of incident. ``at`` is in unix
    seconds. ``due`` are the pools that have not taken it yet.
    """

    id: bytes
    at: float
    kind: str
    rule: str
    source: bytes
    to: bytes
    cause: str
    by: str
    due: frozenset[bytes] = frozenset()

    def to_list(self) -> list[Any]:
        """As it travels."""
        return [self.id, self.at, self.kind, self.rule, self.source, self.to, self.cause, self.by]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node answers to its gate: which roster it holds, where it is, and why it refused, if it did."""

    serial: int
    target: bytes
    mode: str
    pinned: bool
    refused: str = ""

    def encode(self) -> bytes:
        """As it travels."""
        return pack([self.serial, self.target, self.mode, self.pinned, self.refused])

    @classmethod
    def decode(cls, data: bytes) -> Standing:
        """What a node said. Raises RemoteProtocolError."""
        value = unpack(data, max_bytes=STANDING_MAX)
        match value:
            case [int(serial), bytes(target), "auto" | "manual" as mode, bool(pinned), str(refused)] if (
                len(target) in {0, 32} and serial >= 0
            ):
                return cls(serial, target, mode, pinned, refused)
        raise RemoteProtocolError("a node's standing is malformed")


def encode_records(records: Iterable[Record]) -> bytes:
    """The content of a ``moved`` stream."""
    return pack([record.to_list() for record in records])


def decode_records(data: bytes) -> list[Record]:
    """What a node tells of its moves. Raises RemoteProtocolError."""
    value = unpack(data, max_bytes=MOVED_MAX, max_items=RECORDS_MAX)
    if not isinstance(value, list):
        raise RemoteProtocolError("a list of records was expected")
    return [read_record(one) for one in value]


def read_record(value: Any) -> Record:
    """One record as it travels. Raises RemoteProtocolError."""
    match value:
        case [
            bytes(id),
            float(at),
            "move" | "incident" as kind,
            str(rule),
            bytes(source),
            bytes(to),
            str(cause),
            str(by),
        ] if (
            len(id) == ID_BYTES
            and len(source) in {0, 32}
            and len(to) in {0, 32}
            and len(rule) <= 32
            and len(cause) <= CAUSE_MAX
            and len(by) <= CAUSE_MAX
            and 0 <= at <= TIME_MAX
        ):
            return Record(id, at, kind, rule, source, to, cause, by)
    raise RemoteProtocolError("a record is malformed")
