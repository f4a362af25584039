"""Serves files to peers chunk by chunk: out of a whole file at this gate, or out of a worker's store.

Whoever names a root has it from the log of a pool that published it and is trusted for that; a root cannot be
guessed. Nothing is served to a pool to which the flow "models" may not go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from qgate.capability.model_reading import read_chunk, read_hashes
from qgate.federation.blob_files import BlobFiles
from qgate.federation.blobs import Manifest, manifest_of, read_manifest
from qgate.federation.chunk_stream import ChunkStream
from qgate.federation.links import Carrier
from qgate.federation.log.problems import LogProblem
from qgate.federation.peer import Peer
from qgate.federation.trust import may
from qgate.store import Store, StoreUnavailableError
from qgate.store import blobs as table
from tunnel_proto.blob_messages import CHUNK, AskChunk, AskManifest, BlobMessage, ChunkIs, ManifestIs, NotHere
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError, TunnelError
from tunnel_proto.link import PeerSession, Stream

MANIFESTS_MAX: Final = 16
"""Manifests that are kept in memory."""

STREAMS_MAX: Final = 8
"""Streams of one peer, of all its gates, that are served at a time: each holds a chunk in memory."""

log = structlog.get_logger(__name__)

Holders = Callable[[str], Sequence[PeerSession]]
"""Sessions of our workers that have the file with that SHA-256 (hex)."""


class ChunkServing:
    """The serving side of one gate."""

    def __init__(
        self, store: Store, files: BlobFiles, *, holders: Holders, peer: Callable[[bytes], Peer | None]
    ) -> None:
        self.chunks_sent = 0
        self.bytes_sent = 0
        self._store = store
        self._files = files
        self._holders = holders
        self._peer = peer
        self._manifests: dict[bytes, Manifest] = {}
        self._streams: dict[ChunkStream, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        """Take a stream that a peer's gate opened."""
        del carrier
        if sum(pool == peer.pool_key for pool in self._streams.values()) >= STREAMS_MAX:
            stream.reset(StreamCode.LIMIT, f"{STREAMS_MAX} streams of yours fetch files already")
            return
        ear = ChunkStream()
        ear.stream = stream
        stream.receiver = ear
        self._streams[ear] = peer.pool_key
        task = asyncio.get_running_loop().create_task(self._serve(peer, ear), name=f"chunks for {peer.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End every stream."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ear in tuple(self._streams):
            ear.close()

    async def _serve(self, peer: Peer, ear: ChunkStream) -> None:
        try:
            while True:
                question = await ear.next()
                await ear.send(await self._answer(self._peer(peer.pool_key) or peer, question))
        except TunnelError as error:
            log.debug("a stream of chunks ended", pool=peer.name, reason=error.message)
        except Exception:
            log.exception("serving a file failed", pool=peer.name)
        finally:
            self._streams.pop(ear, None)
            ear.close()

    async def _answer(self, peer: Peer, question: BlobMessage) -> BlobMessage:
        index = question.index if isinstance(question, AskChunk) else -1
        if not isinstance(question, AskChunk | AskManifest):
            raise TunnelError("an answer where a question was expected")
        try:
            if not may(peer, "models", "send"):
                raise LogProblem("level", "models do not go to your pool")
            manifest = await self._manifest(question.root)
            if isinstance(question, AskManifest):
                return ManifestIs(question.root, manifest.pack())
            if index >= len(manifest.hashes):
                raise LogProblem("chunk", "the file has no such chunk")
            data = await self._chunk(manifest, index)
        except (MeshError, TimeoutError) as error:
            reason = error.message if isinstance(error, MeshError) else "the worker does not answer"
            return NotHere(question.root, index, reason)
        self.chunks_sent += 1
        self.bytes_sent += len(data)
        return ChunkIs(question.root, index, data)

    async def _chunk(self, manifest: Manifest, index: int) -> bytes:
        """One chunk, right; a worker whose file has changed on disk is passed over."""
        sha256 = manifest.sha256.hex()
        start, length = manifest.span(index)
        data = await asyncio.to_thread(self._files.read, sha256, start, length)
        if data is not None and manifest.right(index, data):
            return data
        problem = "no worker that has the model is connected"
        for session in self._holders(sha256):
            try:
                data = await read_chunk(session, sha256, start, length)
            except TunnelError as error:
                problem = error.message
                continue
            if manifest.right(index, data):
                return data
            problem = "the model's file has changed at its worker"
            log.error("a model's file is not what it was", worker=session.peer.name, sha256=sha256[:12])
        raise LogProblem("not-here", problem)

    async def _manifest(self, root: bytes) -> Manifest:
        if (known := self._manifests.get(root)) is not None:
            return known
        manifest = await self._look_up(root)
        if len(self._manifests) >= MANIFESTS_MAX:
            del self._manifests[next(iter(self._manifests))]
        self._manifests[root] = manifest
        return manifest

    async def _look_up(self, root: bytes) -> Manifest:
        if (kept := await asyncio.to_thread(self._files.manifest, root)) is not None:
            return kept
        sha256 = await self._named(root)
        if isinstance(sha256, Manifest):
            return sha256
        manifest = await self.make(sha256.hex())
        if manifest.root != root:
            raise LogProblem("not-here", "the model is here with other contents")
        return manifest

    async def _named(self, root: bytes) -> bytes | Manifest:
        """The file that a root stands for, or its manifest."""
        try:
            async with self._store.connection() as connection:
                own = await table.manifest_of_root(connection, root)
                theirs = [one for one in await table.peer_blobs(connection) if one.root == root]
        except StoreUnavailableError:
            raise LogProblem("store-unavailable", "the pool's store is away") from None
        if own is not None and own[1]:
            return read_manifest(own[1], root)
        if own is None and not theirs:
            raise LogProblem("unknown", "no such file was published here")
        return own[0] if own is not None else theirs[0].sha256

    async def make(self, sha256: str) -> Manifest:
        """The manifest of a file that one of our workers has. LogProblem ``not-here``."""
        problem = "no worker that has the model is connected"
        for session in self._holders(sha256):
            try:
                size, hashes = await read_hashes(session, sha256, CHUNK)
                return manifest_of(bytes.fromhex(sha256), size, hashes)
            except TunnelError as error:
                problem = error.message
        raise LogProblem("not-here", problem, hint="meshctl model list")
