"""Large files (GGUF models) between pools: manifests, verified chunks, and who is to hold a copy. Pure.

A *manifest* names a file by its SHA-256 and gives the hash of each chunk; its own hash, the root, is what a
pool publishes on the stream "redundancy" together with the wanted number of copies. Whoever fetches the file
checks the manifest against the root and each chunk against the manifest, so any pool that has a chunk may
serve it and none needs to be believed. What is verified is kept across restarts; a source that sent a wrong
chunk is asked no more.

    root = BLAKE2b-256(size u64 | chunk size u32 | sha256 | chunk hashes)      personalised "qgate-blob-root"

    event                | fetching                                        | next
    ---------------------+-------------------------------------------------+----------------------------------
    a source comes       | ask it for missing chunks, `WINDOW` at a time   |
    a chunk is right     | write it; ask for the next                      | all there: check the whole
    a chunk is wrong     | ban the source, ask another for it              |
    a source goes        | its chunks are missing again                    | no source: wait for one
    bytes come           | what its source was asked for is not late       |
    a chunk is late      | the source counts as gone for `REST_S`          |
    the whole is right   |                                                 | done
    the whole is wrong   | (the manifest lied) everything is missing again | failed
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qgate.federation.log.problems import LogProblem
from tunnel_proto.blob_messages import CHUNK, CHUNK_MAX, CHUNK_MIN, CHUNKS_MAX, chunk_hash
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.packing import pack, unpack

SIZE_MAX: Final = 2 * 1024**4
WINDOW: Final = 4
"""Chunks asked of one source at a time: hides a round trip and keeps little in memory."""

LATE_S: Final = 60.0
REST_S: Final = 120.0
LOST_AFTER_S: Final = 900.0
"""How long a pool with a copy may be away before another one is made: a restart must not move models."""

_ROOT: Final = b"qgate-blob-root"
_PLACE: Final = b"qgate-blob-place"
_HASH: Final = 32

State = Literal["fetching", "checking", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file: its SHA-256, its size and its chunks' hashes. All chunks but the last have ``chunk`` bytes."""

    sha256: bytes
    size: int
    chunk: int
    hashes: tuple[bytes, ...] = field(repr=False)

    @property
    def root(self) -> bytes:
        """What stands for the manifest in a log."""
        head = self.size.to_bytes(8, "big") + self.chunk.to_bytes(4, "big") + self.sha256
        return hashlib.blake2b(head + b"".join(self.hashes), digest_size=_HASH, person=_ROOT).digest()

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a chunk."""
        start = index * self.chunk
        return start, min(self.chunk, self.size - start)

    def right(self, index: int, data: bytes) -> bool:
        """Whether this is that chunk."""
        return len(data) == self.span(index)[1] and hmac.compare_digest(chunk_hash(data), self.hashes[index])

    def pack(self) -> bytes:
        """As it travels."""
        return pack([1, self.sha256, self.size, self.chunk, b"".join(self.hashes)])


def read_manifest(raw: bytes, root: bytes) -> Manifest:
    """A manifest that stands for ``root``. LogProblem ``manifest``."""
    try:
        version, sha256, size, chunk, joined = unpack(raw, max_bytes=CHUNKS_MAX * _HASH + 128)
        sound = (
            version == 1
            and isinstance(sha256, bytes)
            and isinstance(joined, bytes)
            and len(sha256) == _HASH
            and type(size) is int
            and type(chunk) is int
            and 0 < size <= SIZE_MAX
            and CHUNK_MIN <= chunk <= CHUNK_MAX
            and -(-size // chunk) <= CHUNKS_MAX
            and len(joined) == _HASH * -(-size // chunk)
        )
    except (RemoteProtocolError, ValueError, TypeError):
        sound = False
    if not sound:
        raise LogProblem("manifest", "a model's manifest is malformed")
    hashes = tuple(joined[at : at + _HASH] for at in range(0, len(joined), _HASH))
    manifest = Manifest(sha256, size, chunk, hashes)
    if not hmac.compare_digest(manifest.root, root):
        raise LogProblem("manifest", "a model's manifest is not the one that was published")
    return manifest


# --- fetching


@dataclass(frozen=True, slots=True)
class SourceCame:
    """A pool that has the file can be asked."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class SourceWent:
    """It cannot be asked any more."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class ChunkCame:
    """A chunk of the file from a pool; ``right`` is what `Manifest.right` says of it."""

    pool: bytes
    index: int
    right: bool


@dataclass(frozen=True, slots=True)
class BytesCame:
    """Part of a chunk came from a pool: over a slow link a chunk may take minutes, and is not late."""

    pool: bytes


@dataclass(frozen=True, slots=True)
class WholeChecked:
    """The SHA-256 of all that was written is, or is not, the file's."""

    right: bool


@dataclass(frozen=True, slots=True)
class Woke:
    """Time passed."""


Event = SourceCame | SourceWent | ChunkCame | BytesCame | WholeChecked | Woke


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file on its way. ``have`` survives a restart; the rest begins anew. Times are monotonic seconds.

    ``asked`` maps a chunk to (pool, when); ``resting`` a pool to when it may be asked again.
    """

    chunks: int
    have: frozenset[int] = frozenset()
    sources: frozenset[bytes] = frozenset()
    banned: frozenset[bytes] = frozenset()
    asked: Mapping[int, tuple[bytes, float]] = field(default_factory=dict)
    resting: Mapping[bytes, float] = field(default_factory=dict)
    state: State = "fetching"


@dataclass(frozen=True, slots=True)
class Ready:
    """What to do: ``write`` the chunk that came, ``ask`` pools for chunks, ``check`` the whole file."""

    write: int | None = None
    ask: tuple[tuple[bytes, int], ...] = ()
    check: bool = False
    wake_at: float | None = None


def step(fetch: Fetch, event: Event, now: float) -> tuple[Fetch, Ready]:
    """Take one event; returns the next state and what to do. Nothing is written that was not asked for."""
    write: int | None = None
    match event:
        case SourceCame(pool) if pool not in fetch.banned:
            fetch = replace(fetch, sources=fetch.sources | {pool})
        case SourceWent(pool):
            fetch = _without(replace(fetch, sources=fetch.sources - {pool}), pool)
        case ChunkCame(pool, index, right) if fetch.asked.get(index, (b"", 0.0))[0] == pool:
            fetch = replace(fetch, asked={at: by for at, by in fetch.asked.items() if at != index})
            if right:
                write = index
                fetch = replace(fetch, have=fetch.have | {index})
            else:
                fetch = replace(fetch, sources=fetch.sources - {pool}, banned=fetch.banned | {pool})
                fetch = _without(fetch, pool)
        case BytesCame(pool):
            asked = {at: (by, now if by == pool else since) for at, (by, since) in fetch.asked.items()}
            fetch = replace(fetch, asked=asked)
        case WholeChecked(right) if fetch.state == "checking":
            done: State = "done" if right else "failed"
            fetch = replace(fetch, state=done, have=fetch.have if right else frozenset())
        case _:
            pass
    late = {pool for pool, at in fetch.asked.values() if now - at >= LATE_S}
    for pool in late:
        fetch = _without(replace(fetch, resting={**fetch.resting, pool: now + REST_S}), pool)
    if fetch.state == "fetching" and len(fetch.have) == fetch.chunks:
        fetch = replace(fetch, state="checking", asked={})
        return fetch, Ready(write, check=True)
    if fetch.state != "fetching":
        return fetch, Ready(write)
    fetch, ask = _ask(fetch, now)
    due = [at + LATE_S for _, at in fetch.asked.values()]
    due += [at for pool, at in fetch.resting.items() if pool in fetch.sources and at > now]
    return fetch, Ready(write, ask, wake_at=min(due, default=None))


def _without(fetch: Fetch, pool: bytes) -> Fetch:
    return replace(fetch, asked={at: by for at, by in fetch.asked.items() if by[0] != pool})


def _ask(fetch: Fetch, now: float) -> tuple[Fetch, tuple[tuple[bytes, int], ...]]:
    """Ask the least busy sources for the first missing chunks."""
    asked = dict(fetch.asked)
    busy = {
        pool: sum(by == pool for by, _ in asked.values())
        for pool in sorted(fetch.sources)
        if fetch.resting.get(pool, 0.0) <= now
    }
    ask: list[tuple[bytes, int]] = []
    index = 0
    while index < fetch.chunks and any(count < WINDOW for count in busy.values()):
        if index not in fetch.have and index not in asked:
            pool = min(busy, key=lambda one: (busy[one], one))
            asked[index] = (pool, now)
            busy[pool] += 1
            ask.append((pool, index))
        index += 1
    return replace(fetch, asked=asked), tuple(ask)


# --- how many copies, and where


@dataclass(frozen=True, slots=True)
class Holder:
    """A pool that has, or could have, a copy. ``away_s``: for how long nothing was heard of it (0: it is
    there).
    """

    pool: bytes
    has: bool
    room: int
    away_s: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether its copy is one to count on."""
        return self.has and self.away_s < LOST_AFTER_S


def placement(sha256: bytes, size: int, wanted: int, holders: Sequence[Holder]) -> tuple[bytes, ...]:
    """The pools that should fetch a copy now. Every pool computes the same from the same facts: those that
    score highest for this file (rendezvous hashing), among those that are there and have room.
    """
    missing = wanted - sum(one.counts for one in holders)
    able = [one for one in holders if not one.has and one.away_s == 0.0 and one.room >= size]
    able.sort(key=lambda one: _score(sha256, one.pool), reverse=True)
    return tuple(one.pool for one in able[: max(0, missing)])


def _score(sha256: bytes, pool: bytes) -> bytes:
    return hashlib.blake2b(pool, key=sha256, digest_size=16, person=_PLACE).digest()


def manifest_of(sha256: bytes, size: int, hashes: Iterable[bytes], *, chunk: int = CHUNK) -> Manifest:
    """The manifest of a file whose chunks' hashes were taken one after the other."""
    manifest = Manifest(sha256, size, chunk, tuple(hashes))
    if len(manifest.hashes) != -(-size // chunk) or not 0 < size <= SIZE_MAX:
        raise LogProblem("manifest", "the chunks do not add up to the file")
    return manifest
