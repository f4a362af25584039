"""What is said where large files (GGUF models) pass between pools, and between a gate and its daemons.

    kind          | opener → other         | metadata, messages
    --------------+------------------------+---------------------------------------------------------------
    chunks        | gate → a peer's gate   | AskManifest, AskChunk; answered by ManifestIs, ChunkIs, NotHere
    blob-read     | gate → its own daemon  | {sha256, offset, length}: those bytes, then the end; or
                  |                        | {sha256, hashes: chunk size}: u64 size and a hash for each chunk

On "chunks" each message is a u32 (big-endian) length and a msgpack array. Nothing longer than `FRAME_MAX` is
kept, and what comes is worth nothing until it was checked against the manifest. Specified in
docs/replication.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.framing import Frames, framed
from tunnel_proto.packing import pack, unpack

KIND_CHUNKS: Final = "chunks"
KIND_BLOB_READ: Final = "blob-read"

CHUNK: Final = 4 * 1024 * 1024
CHUNK_MIN: Final = 64 * 1024
CHUNK_MAX: Final = 16 * 1024 * 1024
CHUNKS_MAX: Final = 500_000
"""Hashes of one manifest: 16 MB of them stand for 2 TB."""

HASH_BYTES: Final = 32
FRAME_MAX: Final = CHUNK_MAX + 4096
TEXT_MAX: Final = 400

_PERSON: Final = b"qgate-blob-chunk"


def chunk_hash(data: bytes) -> bytes:
    """The hash of one chunk: BLAKE2b-256."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES, person=_PERSON).digest()


@dataclass(frozen=True, slots=True)
class AskManifest:
    """Which chunks make up the file that ``root`` stands for?"""

    root: bytes


@dataclass(frozen=True, slots=True)
class AskChunk:
    """One chunk of it."""

    root: bytes
    index: int


@dataclass(frozen=True, slots=True)
class ManifestIs:
    """The manifest, as `qgate.federation.blobs.Manifest` packs it."""

    root: bytes
    manifest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChunkIs:
    """One chunk's bytes."""

    root: bytes
    index: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotHere:
    """The file, or that chunk of it (``index`` -1: its manifest), cannot be had here; why, for people."""

    root: bytes
    index: int
    reason: str


BlobMessage = AskManifest | AskChunk | ManifestIs | ChunkIs | NotHere

_WORDS: Final = {
    AskManifest: "manifest?",
    AskChunk: "chunk?",
    ManifestIs: "manifest",
    ChunkIs: "chunk",
    NotHere: "not-here",
}


def encode(message: BlobMessage) -> bytes:
    """One frame. LocalProtocolError where it is too long."""
    word = _WORDS[type(message)]
    match message:
        case AskManifest(root):
            body = pack([word, root])
        case AskChunk(root, index):
            body = pack([word, root, index])
        case ManifestIs(root, manifest):
            body = pack([word, root, manifest])
        case ChunkIs(root, index, data):
            body = pack([word, root, index, data])
        case NotHere(root, index, reason):
            body = pack([word, root, index, reason[:TEXT_MAX]])
    if len(body) > FRAME_MAX:
        raise LocalProtocolError("a message about a file is too long")
    return framed(body)


class Decoder:
    """Parts what comes into messages. RemoteProtocolError for what is none."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames = Frames(FRAME_MAX, "a message about a file")

    def feed(self, data: bytes) -> list[BlobMessage]:
        """The messages that ``data`` completes."""
        return [_read(body) for body in self._frames.feed(data)]


def _read(body: bytes) -> BlobMessage:
    try:
        word, root, *rest = unpack(body, max_bytes=FRAME_MAX)
    except (ValueError, TypeError):
        raise RemoteProtocolError("a message about a file is malformed") from None
    if not isinstance(root, bytes) or len(root) != HASH_BYTES:
        raise RemoteProtocolError("a message about a file names none")
    match word, rest:
        case "manifest?", []:
            return AskManifest(root)
        case "chunk?", [int(index)] if 0 <= index < CHUNKS_MAX:
            return AskChunk(root, index)
        case "manifest", [bytes(manifest)]:
            return ManifestIs(root, manifest)
        case "chunk", [int(index), bytes(data)] if 0 <= index < CHUNKS_MAX and len(data) <= CHUNK_MAX:
            return ChunkIs(root, index, data)
        case "not-here", [int(index), str(reason)] if -1 <= index < CHUNKS_MAX and len(reason) <= TEXT_MAX:
            return NotHere(root, index, reason)
        case _:
            raise RemoteProtocolError("a message about a file is malformed")
