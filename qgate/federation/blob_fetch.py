"""Fetches one file of a peer: asks every pool that has it for chunks, keeps what is right, checks the whole.

The pure machine is `blobs.step`; here are its streams, its file and its clock. Ended at any moment (a crash,
a shutdown, the peer's trust lowered) it goes on later where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from qgate.federation.blob_files import BlobFiles
from qgate.federation.blobs import (
    BytesCame,
    ChunkCame,
    Event,
    Fetch,
    Manifest,
    Ready,
    SourceCame,
    SourceWent,
    WholeChecked,
    Woke,
    read_manifest,
    step,
)
from qgate.federation.chunk_stream import ChunkStream
from qgate.federation.log.pace import Pace
from qgate.federation.log.problems import LogProblem
from qgate.store.blobs import PeerBlob
from tunnel_proto.blob_messages import AskChunk, AskManifest, ChunkIs, ManifestIs, NotHere
from tunnel_proto.errors import TunnelError

LOOK_S: Final = 2.0
"""How often it is asked who has the file now."""

MANIFEST_S: Final = 60.0
MANIFEST: Final = -1
AGAIN_FIRST_S: Final = 1.0
AGAIN_MOST_S: Final = 60.0
"""How long a source whose stream ended is left alone: at first, and at most."""

log = structlog.get_logger(__name__)

Open = Callable[[bytes, Callable[[], None]], ChunkStream]
"""Opens a stream to a pool; the second argument is called when bytes come. LocalProtocolError."""


@dataclass(slots=True)
class Progress:
    """How far it is, for people: chunks that are here, of how many."""

    state: str = "waiting"  # waiting, fetching, checking, whole, failed
    have: int = 0
    chunks: int = 0
    problem: str = ""
    bytes: int = 0
    wrong: int = 0


@dataclass(eq=False, slots=True)
class _Source:
    """A pool that is asked, and what it has not answered yet: chunks by number, the manifest as `MANIFEST`.
    What nobody asked for is not kept, or a source could fill the memory of whoever fetches.
    """

    stream: ChunkStream
    task: asyncio.Task[None]
    asked: Counter[int] = field(default_factory=Counter)

    def answered(self, what: int) -> None:
        """It answers that. TunnelError where it was not asked."""
        if not self.asked[what]:
            raise TunnelError("it answers what was not asked")
        self.asked[what] -= 1


@dataclass(eq=False, slots=True)
class _Retry:
    at: float = 0.0
    wait: float = AGAIN_FIRST_S


class BlobFetch:
    """One file on its way. ``sources()`` are the pools that have it and can be asked now."""

    def __init__(
        self,
        blob: PeerBlob,
        files: BlobFiles,
        *,
        open_stream: Open,
        sources: Callable[[], frozenset[bytes]],
        named: Callable[[bytes], str],
        rate: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.blob = blob
        self.progress = Progress()
        self._files = files
        self._open = open_stream
        self._sources = sources
        self._named = named
        self._rate = rate
        self._monotonic = monotonic
        self._live: dict[bytes, _Source] = {}
        self._retries: dict[bytes, _Retry] = {}
        self._events: asyncio.Queue[tuple[Event, bytes]] = asyncio.Queue()
        self._manifests: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self._heard: dict[bytes, float] = {}
        self._pace = Pace(0.0)
        self._banned: set[bytes] = set()
        self._manifest: Manifest | None = None

    @property
    def missing(self) -> int:
        """Bytes that will still be written."""
        chunks = self.progress.chunks
        return self.blob.size * (chunks - self.progress.have) // chunks if chunks else self.blob.size

    async def run(self) -> None:
        """Until the whole file is in its place. LogProblem ``disk-full`` or ``manifest`` where it cannot."""
        try:
            self._manifest = manifest = await self._find_manifest()
            have = await asyncio.to_thread(self._files.begin, manifest)
            fetch = Fetch(len(manifest.hashes), have, banned=frozenset(self._banned))
            self.progress.state, self.progress.chunks = "fetching", fetch.chunks
            await self._fetch(manifest, fetch)
            await asyncio.to_thread(self._files.finish, manifest)
            self.progress.state = "whole"
        except LogProblem as problem:
            self.progress.state, self.progress.problem = "failed", problem.message
            raise
        finally:
            for pool in list(self._live):
                self._leave(pool)

    async def _fetch(self, manifest: Manifest, fetch: Fetch) -> None:
        event: Event = Woke()
        data = b""
        while True:
            fetch, ready = await self._step(manifest, fetch, event, data)
            if fetch.state == "done":
                return
            fetch, ready = await self._follow_sources(manifest, fetch, ready)
            if fetch.state == "done":
                return
            now = self._monotonic()
            until = now + LOOK_S if ready.wake_at is None else min(ready.wake_at, now + LOOK_S)
            try:
                async with asyncio.timeout(max(0.0, until - now)):
                    event, data = await self._events.get()
            except TimeoutError:
                event, data = Woke(), b""

    async def _step(self, manifest: Manifest, fetch: Fetch, event: Event, data: bytes) -> tuple[Fetch, Ready]:
        """Take one event and do what the machine says: persist first, then ask."""
        fetch, ready = step(fetch, event, self._monotonic())
        if isinstance(event, ChunkCame) and not event.right:
            self.progress.wrong += 1
            self.progress.problem = f"{self._named(event.pool)} sent a wrong chunk and is not asked any more"
            log.warning(
                "a chunk is wrong", pool=self._named(event.pool), model=self.blob.name, chunk=event.index
            )
            self._banned.add(event.pool)
            self._leave(event.pool)
        if ready.write is not None:
            await asyncio.to_thread(self._files.write, manifest, ready.write, data)
        self.progress.have = len(fetch.have)
        for pool, index in ready.ask:
            await self._ask(pool, AskChunk(manifest.root, index))
        if ready.check:
            self.progress.state = "checking"
            right = await asyncio.to_thread(self._files.check, manifest)
            fetch, ready = step(fetch, WholeChecked(right), self._monotonic())
            if not right:
                await asyncio.to_thread(self._files.discard, manifest.root)
                raise LogProblem(
                    "manifest",
                    f"every chunk of {self.blob.name} is as {self._named(self.blob.origin)} signed it, and "
                    "the whole does not have the SHA-256 that it signed",
                    hint="its admin replicates the model again",
                )
        return fetch, ready

    # --- sources

    async def _follow_sources(self, manifest: Manifest, fetch: Fetch, ready: Ready) -> tuple[Fetch, Ready]:
        """Open streams to pools that came, leave those that went."""
        wanted = self._sources() - self._banned
        for pool in self._live.keys() - wanted:
            self._leave(pool)
            fetch, ready = await self._step(manifest, fetch, SourceWent(pool), b"")
        for pool in sorted(wanted - self._live.keys()):
            if self._join(pool):
                fetch, ready = await self._step(manifest, fetch, SourceCame(pool), b"")
        if not self._live and fetch.state == "fetching":
            self.progress.problem = self.progress.problem or "no pool that has it can be asked now"
        return fetch, ready

    def _join(self, pool: bytes) -> bool:
        retry = self._retries.setdefault(pool, _Retry())
        if self._monotonic() < retry.at:
            return False
        try:
            stream = self._open(pool, lambda: self._stirred(pool))
        except TunnelError as error:
            self._put_off(pool, error.message)
            return False
        task = asyncio.get_running_loop().create_task(self._listen(pool, stream))
        self._live[pool] = _Source(stream, task)
        return True

    def _leave(self, pool: bytes) -> None:
        source = self._live.pop(pool, None)
        if source is not None:
            source.task.cancel()
            source.stream.close()

    def _put_off(self, pool: bytes, reason: str) -> None:
        retry = self._retries.setdefault(pool, _Retry())
        retry.at = self._monotonic() + retry.wait
        retry.wait = min(2 * retry.wait, AGAIN_MOST_S)
        self.progress.problem = f"{self._named(pool)}: {reason}"

    def _stirred(self, pool: bytes) -> None:
        now = self._monotonic()
        if now >= self._heard.get(pool, 0.0) + 1.0:
            self._heard[pool] = now
            self._events.put_nowait((BytesCame(pool), b""))

    async def _listen(self, pool: bytes, stream: ChunkStream) -> None:
        try:
            while True:
                match await stream.next():
                    case ChunkIs(root, index, data) if root == self.blob.root:
                        self._live[pool].answered(index)
                        self._took(pool, index, data)
                    case ManifestIs(root, manifest) if root == self.blob.root:
                        self._live[pool].answered(MANIFEST)
                        self._manifests.put_nowait((pool, manifest))
                    case NotHere(_, _, reason):
                        raise TunnelError(reason or "it does not have the file")
                    case _:
                        raise TunnelError("it answers what was not asked")
        except TunnelError as error:
            self._live.pop(pool, None)
            stream.close()
            self._put_off(pool, error.message)
            self._events.put_nowait((SourceWent(pool), b""))
            self._manifests.put_nowait((pool, b""))

    def _took(self, pool: bytes, index: int, data: bytes) -> None:
        now = self._monotonic()
        if self._rate() != self._pace.rate:
            self._pace = self._pace.at_rate(self._rate(), now)
        self._pace = self._pace.spent(len(data), now)
        self.progress.bytes += len(data)
        manifest = self._manifest
        right = manifest is not None and index < len(manifest.hashes) and manifest.right(index, data)
        if right:
            self._retries[pool] = _Retry()
            if not self._banned:
                self.progress.problem = ""
        self._events.put_nowait((ChunkCame(pool, index, right), data if right else b""))

    async def _ask(self, pool: bytes, question: AskChunk | AskManifest) -> None:
        source = self._live.get(pool)
        if source is None:
            return
        if wait := self._pace.wait(self._monotonic()):
            await asyncio.sleep(wait)
        source.asked[question.index if isinstance(question, AskChunk) else MANIFEST] += 1
        try:
            await source.stream.send(question)
        except TunnelError:
            return  # its listener says so

    # --- the manifest

    async def _find_manifest(self) -> Manifest:
        """The one that was kept, or the first sound one that a source gives."""
        root = self.blob.root
        if (kept := await asyncio.to_thread(self._files.manifest, root)) is not None:
            return kept
        while True:
            for pool in sorted(self._sources() - self._banned):
                if pool not in self._live and not self._join(pool):
                    continue
                await self._ask(pool, AskManifest(root))
                try:
                    async with asyncio.timeout(MANIFEST_S):
                        said, raw = await self._manifests.get()
                    if not raw:
                        continue
                    manifest = read_manifest(raw, root)
                    if (manifest.sha256, manifest.size) != (self.blob.sha256, self.blob.size):
                        raise LogProblem("manifest", "the manifest is of another file")
                except TimeoutError:
                    self._leave(pool)
                    self._put_off(pool, "it does not say what the file is made of")
                except LogProblem as problem:
                    log.warning("a manifest is wrong", pool=self._named(said), reason=problem.message)
                    self.progress.problem = f"{self._named(said)}: {problem.message}"
                    self._banned.add(said)
                    self._leave(said)
                else:
                    for one in list(self._live):  # what was said before the machine began counts anew
                        self._leave(one)
                    return manifest
            await asyncio.sleep(LOOK_S)
