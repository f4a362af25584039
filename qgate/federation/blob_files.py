"""Files of other pools' models at this gate, on their way to a worker: what is verified stays after a crash.

    ROOT.manifest   the manifest, checked against the root that was published
    ROOT.part       the file as far as it came, each chunk at its place
    ROOT.have       u32 numbers of the chunks that are on the disk, appended after each was synced
    ROOT.kept       the manifest of a file that came whole, for pools that fetch it from here
    SHA256.gguf     a whole file, checked, until a worker has it

A chunk is noted only after its bytes are durable, so a crash costs at most the chunks that were under way.
All methods block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qgate.federation.blobs import Manifest, read_manifest
from qgate.federation.log.problems import LogProblem
from tunnel_proto.blob_messages import CHUNK

RESERVE: Final = 1024 * 1024 * 1024
"""Bytes that stay free on the gate's disk, whatever it was asked to take."""

_NUMBER: Final = struct.Struct(">I")


class BlobFiles:
    """The folder. Raises LogProblem ``disk-full`` where something cannot be written."""

    def __init__(self, folder: Path, *, reserve: int = RESERVE) -> None:
        self.folder = folder
        self._reserve = reserve

    def open(self) -> None:
        """Make the folder."""
        with _disk(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def room(self) -> int:
        """Bytes that may still be taken."""
        try:
            return max(0, shutil.disk_usage(self.folder).free - self._reserve)
        except OSError:
            return 0

    def whole(self) -> dict[str, Path]:
        """Whole files by SHA-256 in hex."""
        return {path.stem: path for path in self.folder.glob("*.gguf")}

    def manifest(self, root: bytes) -> Manifest | None:
        """The manifest of a file that is on its way, or came whole."""
        for path in (self._manifest(root), self._kept(root)):
            with contextlib.suppress(OSError, LogProblem):
                return read_manifest(path.read_bytes(), root)
        return None

    def begin(self, manifest: Manifest) -> frozenset[int]:
        """Make a place for a file; the chunks of it that are there already."""
        root = manifest.root
        with _disk(self.folder):
            if not self._manifest(root).exists():
                _replace(self._manifest(root), manifest.pack())
            have = self._have(root, len(manifest.hashes))
            missing = manifest.size - sum(manifest.span(index)[1] for index in have)
            if missing > self.room():
                raise LogProblem(
                    "disk-full",
                    f"{missing >> 20} MiB of the model are missing and {self.room() >> 20} MiB may be taken",
                    hint=f"make room in {self.folder}, or lower federation.model_room_mb",
                )
            with self._part(root).open("ab"):
                pass
        return have

    def write(self, manifest: Manifest, index: int, data: bytes) -> None:
        """Keep a chunk that was verified."""
        start, length = manifest.span(index)
        assert len(data) == length
        with _disk(self.folder):
            with self._part(manifest.root).open("r+b") as file:
                file.seek(start)
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            with self._journal(manifest.root).open("ab") as journal:
                journal.write(_NUMBER.pack(index))
                journal.flush()
                os.fdatasync(journal.fileno())

    def check(self, manifest: Manifest) -> bool:
        """Whether all that was written is the file."""
        with self._part(manifest.root).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == manifest.sha256

    def finish(self, manifest: Manifest) -> Path:
        """Give a file that is whole its name."""
        target = self.folder / f"{manifest.sha256.hex()}.gguf"
        with _disk(self.folder):
            self._part(manifest.root).replace(target)
            self._manifest(manifest.root).replace(self._kept(manifest.root))
        self.discard(manifest.root)
        return target

    def discard(self, root: bytes) -> None:
        """Forget what came of a file."""
        for path in (self._manifest(root), self._part(root), self._journal(root)):
            path.unlink(missing_ok=True)

    def prune(self, wanted: frozenset[bytes]) -> int:
        """Remove what came of files whose roots are not among ``wanted``; how many files that were."""
        gone = 0
        for path in self.folder.iterdir():
            if path.suffix in {".manifest", ".part", ".have", ".kept", ".new"} and not any(
                path.stem == root.hex() for root in wanted
            ):
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def drop(self, sha256: str) -> None:
        """A worker has it: the gate keeps nothing."""
        (self.folder / f"{sha256}.gguf").unlink(missing_ok=True)

    def read(self, sha256: str, offset: int, length: int) -> bytes | None:
        """Bytes of a whole file, None where it is not here."""
        try:
            with (self.folder / f"{sha256}.gguf").open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError:
            return None
        return data if len(data) == length else None

    def _have(self, root: bytes, chunks: int) -> frozenset[int]:
        try:
            raw = self._journal(root).read_bytes()
            size = self._part(root).stat().st_size
        except OSError:
            return frozenset()
        raw = raw[: len(raw) - len(raw) % _NUMBER.size]  # the last number may have been cut off
        found = frozenset(index for (index,) in _NUMBER.iter_unpack(raw))
        return frozenset(index for index in found if index < chunks) if size else frozenset()

    def _manifest(self, root: bytes) -> Path:
        return self.folder / f"{root.hex()}.manifest"

    def _kept(self, root: bytes) -> Path:
        return self.folder / f"{root.hex()}.kept"

    def _part(self, root: bytes) -> Path:
        return self.folder / f"{root.hex()}.part"

    def _journal(self, root: bytes) -> Path:
        return self.folder / f"{root.hex()}.have"


def pieces(path: Path, size: int = CHUNK) -> Iterator[bytes]:
    """A file piece by piece."""
    with path.open("rb") as file:
        while data := file.read(size):
            yield data


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LogProblem(
            "disk-full", f"models of other pools cannot be kept in {folder}: {reason}", hint=f"df {folder}"
        ) from None


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
