"""Signed snapshots: what is left of a log's beginning when it is truncated. Pure.

A snapshot says that everything up to its head comes down to the *kept* entries: the newest one of each
record. They are the original entries, each with its own signature, so a snapshot vouches for what was left
out and for nothing else. Entries up to the head that are not kept may then be deleted.

    snapshot = [body, signature]
    body     = [format, pool, incarnation, seq, hash, hlc, count, digest, signer]
    digest   = BLAKE2b-256 over the kept entries' (seq u64 | hash), in order, personalised "qgate-log-snap"
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from qgate.federation.log.entry import HASH_BYTES, INCARNATION_BYTES, Entry, check_signature
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.vector import Head
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

SNAPSHOT_MAX: Final = 1024
_FORMAT: Final = 1
_DOMAIN: Final = "log snapshot"
_PERSON: Final = b"qgate-log-snap"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as it was received."""

    raw: bytes = field(repr=False)
    pool: bytes
    head: Head
    hlc: int
    count: int
    digest: bytes
    signer: bytes


def digest_of(kept: Iterable[Entry]) -> bytes:
    """What a snapshot says of its kept entries, which are in order."""
    hashed = hashlib.blake2b(digest_size=HASH_BYTES, person=_PERSON)
    for entry in kept:
        hashed.update(entry.seq.to_bytes(8, "big") + entry.hash)
    return hashed.digest()


def kept_of(entries: Iterable[Entry]) -> list[Entry]:
    """The newest entry of each (stream, record), in order of their numbers."""
    newest = {(entry.stream, entry.record): entry for entry in entries}
    return sorted(newest.values(), key=lambda entry: entry.seq)


def make_snapshot(online: Identity, *, pool: bytes, head: Head, hlc: int, kept: Sequence[Entry]) -> Snapshot:
    """Sign a snapshot at ``head``; ``kept`` is what `kept_of` chose of the entries up to it."""
    digest = digest_of(kept)
    body = pack(
        [_FORMAT, pool, head.incarnation, head.seq, head.hash, hlc, len(kept), digest, online.verify_key]
    )
    raw = pack([body, online.sign(_DOMAIN, body)])
    return Snapshot(raw, pool, head, hlc, len(kept), digest, online.verify_key)


def read_snapshot(raw: bytes) -> Snapshot:
    """Take a snapshot apart and check its signature; whose key that is, the caller checks. LogProblem."""
    try:
        body, signature = unpack(raw, max_bytes=SNAPSHOT_MAX)
        version, pool, incarnation, seq, digest_head, hlc, count, digest, signer = unpack(
            body, max_bytes=SNAPSHOT_MAX
        )
    except (RemoteProtocolError, ValueError, TypeError):
        raise LogProblem("snapshot", "a log snapshot is malformed") from None
    sound = (
        version == _FORMAT
        and _has(pool, KEY_BYTES)
        and _has(signer, KEY_BYTES)
        and _has(incarnation, INCARNATION_BYTES)
        and _has(digest_head, HASH_BYTES)
        and _has(digest, HASH_BYTES)
        and all(type(number) is int and number >= 0 for number in (seq, hlc, count))
        and isinstance(signature, bytes)
    )
    if not sound:
        raise LogProblem("snapshot", "a log snapshot is malformed or of a newer format")
    try:
        verify(signer, _DOMAIN, body, signature)
    except AuthenticationFailed as error:
        raise LogProblem("signature", f"a log snapshot: {error.message}") from None
    return Snapshot(raw, pool, Head(incarnation, seq, digest_head), hlc, count, digest, signer)


def check_kept(snapshot: Snapshot, kept: Sequence[Entry], *, proved: bool = False) -> None:
    """Raise LogProblem unless ``kept`` are the very entries that the snapshot stands for; ``proved``: their
    signatures were checked one by one before.
    """
    last = 0
    for entry in kept:
        if entry.pool != snapshot.pool or not last < entry.seq <= snapshot.head.seq:
            raise LogProblem("snapshot", f"entry {entry.seq} does not belong to the snapshot")
        if not proved:
            check_signature(entry)
        last = entry.seq
    if len(kept) != snapshot.count or not hmac.compare_digest(digest_of(kept), snapshot.digest):
        raise LogProblem("snapshot", "the entries are not those that the snapshot was signed over")


def _has(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length
