"""The model store: files named by their SHA-256, and the names that point at them.

    blobs/<sha256>.gguf    the bytes, read-only, never changed once they have their name
    facts/<sha256>.json    what was read from them once
    index.json             names: which bytes, since when, pinned or not
    .new-*                 arriving; removed at the next start
    .part-<sha256>-<size>  arrived in part and broken off; the rest may follow within `PARTIAL_S`

A file is copied in (as a reflink where the file system can), never hard linked: a link would share its bytes
with a file that somebody else may write to. A name that is pinned never changes its bytes; any other name
moves on when new bytes are added under it, and its older versions stay reachable as NAME@SHA-PREFIX.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from qdaemon.models.facts import GgufFacts
from qdaemon.models.gguf_facts import FactsCache, check_header
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.messages import MODEL_NAME
from tunnel_proto.node_directory import replace_file

CHUNK: Final = 4 << 20
PARTIAL_S: Final = 86_400.0
"""How long the beginning of a file waits for its rest, in seconds since the last byte."""

AHEAD: Final = 8
"""Bytes of that beginning that are hashed anew for each byte that comes."""

SHA256: Final = re.compile(r"[0-9a-f]{64}")
NAME: Final = re.compile(MODEL_NAME)
PREFIX_MIN: Final = 6  # hex digits that name a version

_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file, copy on write
_INDEX_FORMAT = 1


class StoreError(MeshError):
    """The store cannot do that; ``code`` is for machines."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """One name's pointer at one file. ``pinned``: these are its bytes for good. ``stay``: kept in memory."""

    name: str
    sha256: str
    size: int
    added_at: float
    current: bool = True  # the version that the bare name means
    pinned: bool = False
    stay: bool = False
    ttl_s: float | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as a runtime is given it."""

    name: str
    path: Path
    sha256: str
    size: int
    facts: GgufFacts


@dataclass(slots=True)
class _Index:
    entries: list[Entry] = field(default_factory=list)


class ModelStore:
    """The store under ``folder``. Its methods block: call them in a thread.

    Several processes may use one folder: the index is changed under a lock and replaced as a whole.
    """

    def __init__(self, folder: Path, *, disk_reserve: int = 0) -> None:
        self.folder = folder
        self.disk_reserve = disk_reserve
        self.facts = FactsCache(folder / "facts")
        self._blobs = folder / "blobs"

    def open(self) -> None:
        """Make the folders and remove what an earlier process left half written. Raises `ConfigError`."""
        try:
            for folder in (self.folder, self._blobs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                for left in self.folder.glob(".new-*"):
                    if not _held(left):
                        left.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the model store {self.folder} cannot be used: {(error.strerror or str(error)).lower()}",
                hint=f"make it writable for this user: ls -ld {self.folder}",
            ) from None
        self._read()

    # --- looking

    def problem(self) -> str:
        """Why nothing can be added here; empty where it can."""
        if not self.folder.is_dir():
            return "there is no such folder"
        return "" if os.access(self.folder, os.W_OK | os.X_OK) else "it cannot be written to"

    def entries(self) -> list[Entry]:
        """Every name and version, oldest first."""
        return self._read().entries

    def find(self, wanted: str) -> Entry | None:
        """The entry that a name, a name@sha-prefix or a whole SHA-256 means."""
        return lookup(self._read().entries, wanted)

    def path(self, sha256: str) -> Path:
        """Where the bytes with this hash are."""
        return self._blobs / f"{sha256}.gguf"

    def verify(self, entry: Entry) -> None:
        """Read a file again and compare its hash; raises `StoreError` "model_corrupt"."""
        path = self.path(entry.sha256)
        try:
            found = hash_of(path)
        except OSError as error:
            raise StoreError(
                "model_missing",
                f"the file of {entry.name} cannot be read: {(error.strerror or str(error)).lower()}",
                hint=f"add it again: meshctl model add FILE --name {entry.name}",
            ) from None
        if found != entry.sha256:
            raise StoreError(
                "model_corrupt",
                f"the file of {entry.name} has changed on disk: its SHA-256 is not the one it was added with",
                hint=f"meshctl model remove {entry.name}, then add it again; and look at the disk",
            )

    # --- changing

    def add(self, source: Path, name: str, *, now: float) -> Entry:
        """Take a copy of a file. Raises `StoreError` and `ModelFileError`, leaving nothing behind."""
        check_header(source)
        size = source.stat().st_size
        with self.arrival(name, size) as arrival:
            arrival.copy(source)
            return arrival.finish(now=now)

    def held(self, sha256: str, size: int) -> int:
        """How many bytes of a file are here: all, the beginning that broke off, or none.

        Without a hash the longest beginning of any file of that size.
        """
        if sha256 and self.path(sha256).exists():
            return size
        found = self.folder.glob(f".part-{sha256 or '*'}-{size}")
        return max((min(one.stat().st_size, size) for one in found), default=0)

    def purge(self, now: float) -> int:
        """Remove beginnings whose rest has not followed for `PARTIAL_S`; how many. ``now``: unix seconds."""
        gone = 0
        for left in self.folder.glob(".part-*"):
            with contextlib.suppress(OSError):
                if now - left.stat().st_mtime > PARTIAL_S and not _held(left):
                    left.unlink()
                    gone += 1
        return gone

    def arrival(self, name: str, size: int, *, sha256: str = "", offset: int | None = None) -> Arrival:
        """Begin to take ``size`` bytes under ``name``; raises `StoreError` where there is no room.

        With an ``offset`` the file is the one with that hash, and what follows begins there: so many bytes of
        it are here, and `Arrival.keep` leaves what came for the next time.
        """
        if NAME.fullmatch(name) is None or "@" in name:
            raise StoreError(
                "bad_name",
                "a model's name is 1 to 200 letters, digits and . _ - : / +, a letter or digit first",
                hint="choose another: --name NAME",
            )
        free = shutil.disk_usage(self.folder).free
        if size - (offset or 0) + self.disk_reserve > free:
            raise StoreError(
                "disk_full",
                f"the file has {size >> 20} MiB and {free >> 20} MiB are free in {self.folder}, of which "
                f"{self.disk_reserve >> 20} MiB are kept free",
                hint="meshctl model remove something, or lower models.disk_reserve",
            )
        if offset is None:
            return Arrival(self, name, size)
        if SHA256.fullmatch(sha256) is None or not 0 <= offset <= size:
            raise StoreError(
                "invalid", "what goes on later is known by its SHA-256, and begins inside its size"
            )
        return Arrival(self, name, size, part=self.folder / f".part-{sha256}-{size}", offset=offset)

    def put(self, name: str, sha256: str, size: int, *, now: float) -> Entry:
        """Point ``name`` at bytes that are in place; raises `StoreError` where it is pinned to others."""
        with self._locked():
            index = self._read()
            mine = [one for one in index.entries if one.name == name]
            for one in mine:
                if one.pinned and one.sha256 != sha256:
                    raise StoreError(
                        "name_pinned",
                        f"{name} is pinned to {one.sha256[:12]} and cannot mean other bytes",
                        hint=f"add it under another name, or first: meshctl model unpin {name}",
                    )
            before = next((one for one in mine if one.sha256 == sha256), None)
            kept = before or next((one for one in mine if one.current), None)
            entry = (
                replace(kept, sha256=sha256, size=size, current=True)
                if kept is not None
                else Entry(name, sha256, size, now)
            )
            if before is None:
                entry = replace(entry, added_at=now)
            others = [
                replace(one, current=False) if one.name == name else one
                for one in index.entries
                if one is not before
            ]
            self._write(_Index([*others, entry]))
        return entry

    def change(self, entry: Entry, **values: Any) -> Entry:
        """Replace fields of an entry (pinned, stay, ttl_s, groups)."""
        with self._locked():
            index = self._read()
            changed = replace(entry, **values)
            same = (entry.name, entry.sha256)
            self._write(_Index([changed if (one.name, one.sha256) == same else one for one in index.entries]))
        return changed

    def remove(self, entry: Entry) -> None:
        """Forget an entry, and its bytes where no other entry means them. Raises `StoreError` if pinned."""
        if entry.pinned:
            raise StoreError(
                "name_pinned", f"{entry.name} is pinned", hint=f"first: meshctl model unpin {entry.name}"
            )
        with self._locked():
            same = (entry.name, entry.sha256)
            left = [one for one in self._read().entries if (one.name, one.sha256) != same]
            if entry.current:
                older = [one for one in left if one.name == entry.name]
                if older:
                    newest = max(older, key=lambda one: one.added_at)
                    left[left.index(newest)] = replace(newest, current=True)
            self._write(_Index(left))
            if all(one.sha256 != entry.sha256 for one in left):
                self.path(entry.sha256).unlink(missing_ok=True)
                self.facts.forget(entry.sha256)

    # --- the index

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> _Index:
        path = self.folder / "index.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _Index()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}", hint="restore it from a backup, or remove it and add again"
            ) from None
        try:
            if document["format"] != _INDEX_FORMAT:
                raise ConfigError(
                    f"{path} was written by another version of qdaemon", hint="use that version of qdaemon"
                )
            return _Index([Entry(**{**one, "groups": tuple(one["groups"])}) for one in document["models"]])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged: {error}", hint="restore it from a backup") from None

    def _write(self, index: _Index) -> None:
        document = {"format": _INDEX_FORMAT, "models": [asdict(one) for one in index.entries]}
        replace_file(self.folder / "index.json", json.dumps(document, indent=1) + "\n", 0o600)


class Arrival:
    """A file that is being taken in; a context manager that leaves nothing behind unless it was finished."""

    def __init__(
        self, store: ModelStore, name: str, size: int, *, part: Path | None = None, offset: int = 0
    ) -> None:
        self._store = store
        self._name = name
        self._part = part
        self.size = size
        self.received = offset
        self._hashed = 0
        self._digest = hashlib.sha256()
        if part is None:
            descriptor, path = tempfile.mkstemp(dir=store.folder, prefix=".new-")
            self._path = Path(path)
        else:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._path = part
        self._file = os.fdopen(descriptor, "w+b" if part is None else "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells other processes that it is alive
            if (here := os.fstat(descriptor).st_size) < offset:
                raise StoreError(
                    "offset",
                    f"{here} bytes of it are here, not {offset}",
                    hint="ask how many, and go on there",
                )
            os.truncate(descriptor, offset)
            self._file.seek(offset)
        except BlockingIOError:
            self._file.close()
            raise StoreError(
                "busy", "the same file is arriving already", hint="wait for it: meshctl model list"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises `StoreError` for more than announced, or where the disk is full."""
        if self.received + len(data) > self.size:
            raise StoreError("size_mismatch", f"more bytes arrived than the {self.size} that were announced")
        try:
            self._file.write(data)
            behind = self._hashed < self.received
            self.received += len(data)
            if behind:
                self._catch_up(AHEAD * len(data))
                return
        except OSError as error:
            raise _no_room(error) from None
        self._digest.update(data)
        self._hashed = self.received

    def _catch_up(self, most: int) -> None:
        """Hash so many bytes of what is in the file and was not hashed."""
        self._file.flush()
        end = min(self.received, self._hashed + most)
        while self._hashed < end:
            data = os.pread(self._file.fileno(), min(CHUNK, end - self._hashed), self._hashed)
            if not data:
                raise OSError(5, "the file has become shorter")
            self._digest.update(data)
            self._hashed += len(data)

    def copy(self, source: Path) -> None:
        """Take a whole file, sharing its blocks where the file system can."""
        try:
            with source.open("rb") as origin:
                try:
                    fcntl.ioctl(self._file.fileno(), _FICLONE, origin.fileno())
                except OSError:
                    while data := origin.read(CHUNK):
                        self.write(data)
                    return
            with self._path.open("rb") as copied:
                while data := copied.read(CHUNK):
                    self._digest.update(data)
                    self.received += len(data)
            self._hashed = self.received
        except OSError as error:
            raise _no_room(error) from None

    def finish(self, *, now: float, expected: str = "") -> Entry:
        """Check what arrived, give it its name and return the entry.

        Raises `StoreError` for another size or hash than announced, `ModelFileError` for what is no GGUF.
        """
        if self.received != self.size:
            raise StoreError(
                "size_mismatch",
                f"{self.received} bytes arrived of the {self.size} that were announced",
                hint="send it again",
            )
        try:
            self._catch_up(self.size)
        except OSError as error:
            raise _no_room(error) from None
        sha256 = self._digest.hexdigest()
        if expected and sha256 != expected.lower():
            raise StoreError(
                "hash_mismatch",
                f"what arrived has the SHA-256 {sha256[:12]}…, not {expected[:12]}…",
                hint="send it again; if it happens twice, the source is not what it says",
            )
        try:
            self._file.flush()
            check_header(self._path)
            os.fchmod(self._file.fileno(), 0o400)
            os.fsync(self._file.fileno())
            target = self._store.path(sha256)
            if target.exists():
                self._path.unlink()
            else:
                os.replace(self._path, target)
                _sync_folder(target.parent)
        except OSError as error:
            raise _no_room(error) from None
        self._file.close()
        return self._store.put(self._name, sha256, self.size, now=now)

    def keep(self) -> None:
        """Leave what arrived for the rest to follow, where the file is known by its hash; else `abandon`."""
        if self._part is None:
            self.abandon()
        elif not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()

    def abandon(self) -> None:
        """Remove what arrived; does nothing after `finish`."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.abandon()


def lookup(entries: list[Entry], wanted: str) -> Entry | None:
    """The entry that a name, a name@sha-prefix or a whole SHA-256 means."""
    name, _, prefix = wanted.partition("@")
    if prefix:
        if len(prefix) < PREFIX_MIN:
            return None
        matching = [one for one in entries if one.name == name and one.sha256.startswith(prefix.lower())]
        return matching[0] if len(matching) == 1 else None
    for one in entries:
        if one.name == wanted and one.current:
            return one
    return next((one for one in reversed(entries) if one.sha256 == wanted), None)


def name_from(file: Path) -> str:
    """A model's name from its file's: lower case, without the suffix, what no name may hold as a dash."""
    stem = file.name.removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._+-]+", "-", stem).strip("-._+") or "model"


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_room(error: OSError) -> StoreError:
    reason = (error.strerror or str(error)).lower()
    return StoreError(
        "disk_full", f"the file cannot be written: {reason}", hint="make room and send it again"
    )


def _held(path: Path) -> bool:
    """Whether a living process is still writing this file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
