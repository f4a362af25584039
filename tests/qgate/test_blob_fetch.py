"""Files that come from peers: right chunks only, resumed, never more than the disk holds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qgate.federation.blob_fetch import BlobFetch
from qgate.federation.blob_files import BlobFiles, pieces
from qgate.federation.blobs import Manifest, manifest_of
from qgate.federation.chunk_stream import ChunkStream
from qgate.federation.log.problems import LogProblem
from qgate.store.blobs import PeerBlob
from tests.qgate.log_pools import PipeStream
from tunnel_proto.blob_messages import (
    CHUNK_MIN,
    AskChunk,
    AskManifest,
    BlobMessage,
    ChunkIs,
    Decoder,
    ManifestIs,
    NotHere,
    chunk_hash,
    encode,
)
from tunnel_proto.errors import RemoteProtocolError, TunnelError

HONEST, LIAR = b"h" * 32, b"l" * 32


def made(size: int, *, seed: int = 1) -> tuple[Manifest, bytes]:
    data = random.Random(seed).randbytes(size)
    hashes = [chunk_hash(data[at : at + CHUNK_MIN]) for at in range(0, size, CHUNK_MIN)]
    return manifest_of(hashlib.sha256(data).digest(), size, hashes, chunk=CHUNK_MIN), data


def blob_of(manifest: Manifest) -> PeerBlob:
    return PeerBlob(HONEST, manifest.sha256, "model", manifest.size, manifest.root, 1)


@dataclass
class Pool:
    """A pool that serves a file as ``spoil`` says; after ``most`` chunks it is silent."""

    manifest: Manifest
    data: bytes
    spoil: Callable[[int, bytes], bytes] = lambda _index, data: data
    most: int = 1 << 30
    served: list[int] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def open(self, stirred: Callable[[], None]) -> ChunkStream:
        near, far = PipeStream("chunks"), PipeStream("chunks")
        near.other, far.other = far, near
        ear, there = ChunkStream(stirred), ChunkStream()
        near.receiver, far.receiver = ear, there
        ear.stream, there.stream = near, far  # type: ignore[assignment]
        task = asyncio.get_running_loop().create_task(self._serve(there))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return ear

    async def _serve(self, there: ChunkStream) -> None:
        with contextlib.suppress(TunnelError):
            while True:
                match await there.next():
                    case AskManifest(root):
                        await there.send(ManifestIs(root, self.manifest.pack()))
                    case AskChunk(root, index) if len(self.served) < self.most:
                        start, length = self.manifest.span(index)
                        self.served.append(index)
                        await there.send(
                            ChunkIs(root, index, self.spoil(index, self.data[start : start + length]))
                        )


@contextlib.asynccontextmanager
async def serving(**pools: Pool) -> AsyncIterator[dict[bytes, Pool]]:
    named = {"honest": HONEST, "liar": LIAR}
    try:
        yield {named[name]: pool for name, pool in pools.items()}
    finally:
        for task in [task for pool in pools.values() for task in pool.tasks]:
            task.cancel()


def fetch(manifest: Manifest, files: BlobFiles, pools: dict[bytes, Pool]) -> BlobFetch:
    return BlobFetch(
        blob_of(manifest),
        files,
        open_stream=lambda pool, stirred: pools[pool].open(stirred),
        sources=lambda: frozenset(pools),
        named=lambda pool: "honest" if pool == HONEST else "liar",
        rate=lambda: 0.0,
    )


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    found = BlobFiles(tmp_path / "models", reserve=0)
    found.open()
    return found


async def test_a_file_comes_whole(files: BlobFiles) -> None:
    manifest, data = made(10 * CHUNK_MIN + 17)
    async with serving(honest=Pool(manifest, data)) as pools:
        one = fetch(manifest, files, pools)
        await one.run()
    (path,) = files.whole().values()
    assert path.read_bytes() == data
    assert (one.progress.state, one.progress.have, one.progress.chunks) == ("whole", 11, 11)
    assert files.manifest(manifest.root) == manifest, "it can be served from here"
    assert files.read(manifest.sha256.hex(), CHUNK_MIN, 5) == data[CHUNK_MIN : CHUNK_MIN + 5]
    files.drop(manifest.sha256.hex())
    assert files.whole() == {}


async def test_a_liar_is_found_out_and_an_honest_pool_asked_instead(files: BlobFiles) -> None:
    manifest, data = made(20 * CHUNK_MIN)

    def wrong(index: int, data: bytes) -> bytes:
        return bytes(len(data)) if index % 2 else data

    async with serving(honest=Pool(manifest, data), liar=Pool(manifest, data, wrong)) as pools:
        one = fetch(manifest, files, pools)
        await one.run()
        assert one.progress.wrong >= 1
        assert "liar sent a wrong chunk" in one.progress.problem
        assert len(pools[LIAR].served) <= 8, "it was asked no more"
    (path,) = files.whole().values()
    assert path.read_bytes() == data


@dataclass
class Flood(Pool):
    """Answers what it is asked, and goes on with what nobody asked for."""

    extra: Callable[[Manifest, bytes], BlobMessage] = lambda made, _data: ManifestIs(made.root, made.pack())

    async def _serve(self, there: ChunkStream) -> None:
        with contextlib.suppress(TunnelError):
            while True:
                match await there.next():
                    case AskManifest(root):
                        await there.send(ManifestIs(root, self.manifest.pack()))
                    case AskChunk(root, index):
                        start, length = self.manifest.span(index)
                        await there.send(ChunkIs(root, index, self.data[start : start + length]))
                        for _ in range(20):
                            await there.send(self.extra(self.manifest, self.data))


def _same_chunk(made: Manifest, data: bytes) -> BlobMessage:
    return ChunkIs(made.root, 0, data[:CHUNK_MIN])


@pytest.mark.parametrize("extra", [Flood.extra, _same_chunk])
async def test_what_was_not_asked_for_is_not_kept(
    files: BlobFiles, extra: Callable[[Manifest, bytes], BlobMessage]
) -> None:
    manifest, data = made(12 * CHUNK_MIN)
    async with serving(honest=Pool(manifest, data), liar=Flood(manifest, data, extra=extra)) as pools:
        one = fetch(manifest, files, pools)
        await one.run()
        assert one._manifests.qsize() <= 4
        assert one.progress.bytes <= 2 * manifest.size
    assert len(files.whole()) == 1


async def test_a_liar_about_the_manifest_is_passed_over(files: BlobFiles) -> None:
    manifest, data = made(3 * CHUNK_MIN)
    other, _ = made(3 * CHUNK_MIN, seed=2)
    async with serving(liar=Pool(other, data), honest=Pool(manifest, data)) as pools:
        await fetch(manifest, files, pools).run()
        assert pools[LIAR].served == []
    assert len(files.whole()) == 1


async def test_an_origin_that_signed_another_files_hash_gets_nowhere(files: BlobFiles) -> None:
    sound, data = made(3 * CHUNK_MIN)
    manifest = manifest_of(bytes(32), sound.size, sound.hashes, chunk=CHUNK_MIN)
    async with serving(honest=Pool(manifest, data)) as pools:
        one = fetch(manifest, files, pools)
        with pytest.raises(LogProblem, match="does not have the SHA-256") as refused:
            await one.run()
    assert (refused.value.code, one.progress.state) == ("manifest", "failed")
    assert list(files.folder.iterdir()) == [], "nothing of it stays"


async def test_a_transfer_that_was_cut_off_goes_on_where_it_was(files: BlobFiles) -> None:
    manifest, data = made(40 * CHUNK_MIN)
    async with serving(honest=Pool(manifest, data, most=25)) as pools:
        first = fetch(manifest, files, pools)
        task = asyncio.create_task(first.run())
        async with asyncio.timeout(60):
            while first.progress.have < 25:
                await asyncio.sleep(0.01)
        task.cancel()  # as a crash does: nothing is said
        await asyncio.gather(task, return_exceptions=True)
    with (files.folder / f"{manifest.root.hex()}.have").open("ab") as journal:
        journal.write(b"\0\0")  # a note that was cut off
    async with serving(honest=Pool(manifest, data)) as pools:
        await fetch(manifest, files, pools).run()
        assert len(pools[HONEST].served) == 15
    (path,) = files.whole().values()
    assert path.read_bytes() == data


async def test_a_full_disk_ends_it_and_keeps_what_came(tmp_path: Path) -> None:
    manifest, data = made(4 * CHUNK_MIN)
    files = BlobFiles(tmp_path / "models", reserve=1 << 60)
    files.open()
    assert files.room() == 0
    async with serving(honest=Pool(manifest, data)) as pools:
        one = fetch(manifest, files, pools)
        with pytest.raises(LogProblem, match="may be taken") as refused:
            await one.run()
        assert refused.value.code == "disk-full"
        assert pools[HONEST].served == []


async def test_a_disk_that_fills_up_on_the_way_says_so(
    files: BlobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, data = made(6 * CHUNK_MIN)
    write = BlobFiles.write
    kept: list[int] = []

    def full(self: BlobFiles, manifest: Manifest, index: int, data: bytes) -> None:
        if len(kept) == 3:
            raise LogProblem("disk-full", "models cannot be kept: no space left on device")
        kept.append(index)
        write(self, manifest, index, data)

    async with serving(honest=Pool(manifest, data)) as pools:
        with monkeypatch.context() as patch:
            patch.setattr(BlobFiles, "write", full)
            with pytest.raises(LogProblem, match="no space left"):
                await fetch(manifest, files, pools).run()
    async with serving(honest=Pool(manifest, data)) as pools:
        await fetch(manifest, files, pools).run()
        assert len(pools[HONEST].served) == 3, "the first three had stayed"


async def test_what_nobody_wants_any_more_is_cleared_away(files: BlobFiles) -> None:
    manifest, data = made(2 * CHUNK_MIN)
    async with serving(honest=Pool(manifest, data)) as pools:
        await fetch(manifest, files, pools).run()
    files.begin(other := made(CHUNK_MIN, seed=3)[0])
    assert files.prune(frozenset({manifest.root, other.root})) == 0
    assert files.prune(frozenset({manifest.root})) == 2, "manifest and part of the other"
    assert files.prune(frozenset()) == 1
    assert len(files.whole()) == 1, "whole files are for workers"


def test_messages_are_taken_apart_however_they_come() -> None:
    root = bytes(32)
    said: list[BlobMessage] = [
        AskManifest(root),
        AskChunk(root, 7),
        ChunkIs(root, 7, b"x" * 1000),
        NotHere(root, -1, "no"),
    ]
    wire = b"".join(encode(one) for one in said)
    frames = Decoder()
    found = [message for at in range(0, len(wire), 13) for message in frames.feed(wire[at : at + 13])]
    assert found == said


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc0",
        b"\0\0\0\x03\x91\xa1x",
        encode(AskChunk(bytes(32), 1)).replace(b"chunk?", b"chunk!"),
    ],
)
def test_what_is_no_message_ends_the_stream(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Decoder().feed(body)


def test_a_file_is_read_piece_by_piece(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abcdefg")
    found: Iterator[bytes] = pieces(file, 3)
    assert list(found) == [b"abc", b"def", b"g"]
