"""Anti-entropy: bucketed digests of what entries were made into, to catch what chains cannot. Pure.

Heads that agree prove that two pools have the same entries. Whether the tables that were made of them agree
too is another question (a bug in applying, a row changed by hand): each record has a digest of its payload as
its table has it now; a record falls into one of 64 buckets by its id; a bucket's digest is the exclusive or
of its records' digests, each bound to its id, so the order does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tunnel_proto.packing import pack

BUCKETS: Final = 64
DIGEST_BYTES: Final = 16
SUPERSEDED: Final = b""
"""In place of a record's digest: what this origin said of it no longer counts."""

GONE: Final = "gone"
"""A payload with this key, true, says that its record is no more."""

_RECORD: Final = b"qgate-log-record"
_BUCKET: Final = b"qgate-log-bucket"


def record_digest(payload: Mapping[str, Any]) -> bytes:
    """The digest of a record as a payload says it; keys in any order."""
    packed = pack(_ordered(payload))
    return hashlib.blake2b(packed, digest_size=DIGEST_BYTES, person=_RECORD).digest()


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(one) for one in value] if isinstance(value, list | tuple) else value


def is_gone(payload: Mapping[str, Any]) -> bool:
    """Whether the payload ends its record."""
    return payload.get(GONE) is True


def expected(entries: Iterable[tuple[bytes, Mapping[str, Any]]]) -> dict[bytes, bytes]:
    """Record id → digest, from (record, payload) in the order of the log."""
    found: dict[bytes, bytes] = {}
    for record, payload in entries:
        take(found, record, payload)
    return found


def take(found: dict[bytes, bytes], record: bytes, payload: Mapping[str, Any]) -> None:
    """Let the next entry of the log count in what `expected` has found."""
    if is_gone(payload):
        found.pop(record, None)
    else:
        found[record] = record_digest(payload)


def buckets(rows: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """The digest of each of the 64 buckets."""
    sums = [0] * BUCKETS
    for record, digest in rows.items():
        bound = hashlib.blake2b(digest, digest_size=DIGEST_BYTES, key=record, person=_BUCKET).digest()
        sums[bound_bucket(record)] ^= int.from_bytes(bound, "big")
    return tuple(one.to_bytes(DIGEST_BYTES, "big") for one in sums)


def bound_bucket(record: bytes) -> int:
    """The bucket that a record falls into."""
    return hashlib.blake2b(record, digest_size=1, person=_BUCKET).digest()[0] % BUCKETS


def without_superseded(
    said: Mapping[bytes, bytes], rows: Mapping[bytes, bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """What a log says and what its table has, less the records that another origin has taken over."""
    gone = {record for record, digest in rows.items() if digest == SUPERSEDED}
    return (
        {record: digest for record, digest in said.items() if record not in gone},
        {record: digest for record, digest in rows.items() if record not in gone},
    )


def differing(mine: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> tuple[int, ...]:
    """The buckets whose digests differ."""
    return tuple(n for n, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
