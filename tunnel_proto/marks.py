"""The newest timestamp of every handshake key, so that message 1 of a handshake works once.

The responder's marks are a text file that only grows: one line for each accepted handshake, written
before the handshake is answered, so that a process killed at any moment has forgotten nothing it acted
on. Two things may be missing from it, and what a replay then gains is one answer its sender cannot read:
after a power cut the marks of the last second (MARKS_SYNC_S), and what a full disk did not take, which is
kept in memory and written once there is room. Refusing instead would let a full disk lock all nodes out.
The initiator's own mark is one number, so that a clock stepping back cannot lock it out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tunnel_proto.constants import MARKS_COMPACT_FACTOR, MARKS_COMPACT_MIN, TIMESTAMP_MAX
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import KEY_BYTES

# key in hex, timestamp in nanoseconds, checksum of both
_LINE: Final = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,19}) ([0-9a-f]{8})\n")
_CHECK_BYTES: Final = 4  # tells a torn line from a whole one; it authenticates nothing


class ReplayMarks:
    """The newest accepted timestamp (nanoseconds) of each X25519 key, kept in the file ``path``.

    The file belongs to one process at a time. Raises ConfigError when it cannot be used. A torn end,
    as a killed process leaves it, is cut off; damage with sound lines behind it is refused.

    ``problem`` says why marks are in memory only, and is empty while the file has them all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[bytes, int] = {}
        self._unwritten: dict[bytes, int] = {}
        self._lines = 0
        self._size = 0
        self.problem = ""
        self._descriptor = _open_locked(path)
        try:
            self._read()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._compact_at = self._threshold()

    def accept(self, key: bytes, timestamp: int) -> None:
        """Record a handshake's timestamp, or raise AuthenticationFailed when it is not newer than the mark.

        To be called last, when everything else about the handshake is proved. The mark is in the file when
        this returns, unless `problem` says otherwise.
        """
        if len(key) != KEY_BYTES or not 0 < timestamp <= TIMESTAMP_MAX:
            raise AuthenticationFailed("a timestamp out of range")
        if timestamp <= self._marks.get(key, 0):
            raise AuthenticationFailed("a replayed handshake, or the node's clock went back")
        self._marks[key] = timestamp
        self._unwritten[key] = timestamp
        self._write()
        if self._lines >= self._compact_at:
            self._compact()

    def snapshot(self) -> dict[bytes, int]:
        """A copy of every mark, for the store to hold."""
        return dict(self._marks)

    def load(self, marks: Mapping[bytes, int]) -> None:
        """Take over marks kept elsewhere where they are newer."""
        newer = {key: mark for key, mark in marks.items() if mark > self._marks.get(key, 0)}
        self._marks.update(newer)
        self._unwritten.update(newer)
        self._write()

    def sync_later(self) -> Callable[[], None]:
        """Write what is left and give what waits for the disk; that may be called in another thread.

        Afterwards the marks survive a power cut. Either part may raise OSError; the second must be called. It
        holds a descriptor of its own, since the file may be replaced or closed meanwhile.
        """
        self._write()
        descriptor = os.dup(self._descriptor)

        def wait() -> None:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return wait

    def close(self) -> None:
        """Give the file to the next process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self) -> None:
        if not self._unwritten:
            return
        lines = b"".join(_line(key, mark) for key, mark in self._unwritten.items())
        written = 0
        try:
            if self.problem:
                os.ftruncate(self._descriptor, self._size)  # half a line would spoil the next
            while written < len(lines):
                written += os.write(self._descriptor, lines[written:])
        except OSError as error:
            self.problem = f"cannot write {self._path}: {error.strerror}"
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            return
        self.problem = ""
        self._size += len(lines)
        self._lines += len(self._unwritten)
        self._unwritten.clear()

    def _read(self) -> None:
        content = _read_all(self._descriptor)
        while match := _LINE.match(content, self._size):
            key, timestamp = bytes.fromhex(match[1].decode()), int(match[2])
            if match[0] != _line(key, timestamp):
                break
            self._marks[key] = max(timestamp, self._marks.get(key, 0))
            self._size = match.end()
            self._lines += 1
        for match in _LINE.finditer(content, self._size):
            if match[0] == _line(bytes.fromhex(match[1].decode()), int(match[2])):
                raise ConfigError(
                    f"{self._path} is damaged after {self._lines} lines",
                    hint="restore it from a backup; removing it lets old handshakes be replayed once",
                )
        if self._size < len(content):
            os.ftruncate(self._descriptor, self._size)

    def _threshold(self) -> int:
        return max(MARKS_COMPACT_MIN, MARKS_COMPACT_FACTOR * len(self._marks))

    def _compact(self) -> None:
        """Write one line a key to a new file and put it in the old one's place, which loses nothing."""
        new_path = self._path.with_name(self._path.name + ".new")
        content = b"".join(_line(key, mark) for key, mark in self._marks.items())
        descriptor = -1
        try:
            new_path.unlink(missing_ok=True)
            descriptor = _open(new_path, os.O_CREAT | os.O_EXCL)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.fsync(descriptor)
            new_path.replace(self._path)
        except OSError:
            # The long file is as good as a short one; try again when it has grown as much once more.
            if descriptor >= 0:
                os.close(descriptor)
            self._compact_at = self._lines + self._threshold()
            return
        os.close(self._descriptor)
        self._descriptor, self._size, self._lines = descriptor, len(content), len(self._marks)
        self._compact_at = self._threshold()
        self._unwritten.clear()
        self.problem = ""
        _sync_directory(self._path.parent)


class TimestampMark:
    """Timestamps for a node's own handshakes: the clock's nanoseconds, but always growing.

    The last one is kept in the file ``path``, before it is used. When that fails (a full disk), they
    still grow within this process and ``problem`` says why it failed; else ``problem`` is empty.
    """

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        self.problem = ""
        try:
            text = path.read_text("ascii").strip()
        except FileNotFoundError:
            text = "0"
        except (OSError, ValueError):
            raise ConfigError(f"cannot read {path}", hint=f"check its owner, or remove {path}") from None
        # A file that holds no number is as good as none: at worst the clock alone decides once.
        self._last = min(int(text), TIMESTAMP_MAX - 1) if re.fullmatch(r"[0-9]{1,19}", text) else 0

    def next(self) -> int:
        """A timestamp newer than every one before."""
        self._last = min(max(self._clock(), self._last + 1), TIMESTAMP_MAX)
        new_path = self._path.with_name(self._path.name + ".new")
        try:
            with new_path.open("w", encoding="ascii") as file:
                file.write(f"{self._last}\n")
                file.flush()
                os.fsync(file.fileno())
            new_path.replace(self._path)
            self.problem = ""
        except OSError as error:
            self.problem = f"cannot write {self._path}: {error.strerror}"
        return self._last


def _line(key: bytes, timestamp: int) -> bytes:
    record = b"%s %d" % (key.hex().encode("ascii"), timestamp)
    check = hashlib.blake2s(record, digest_size=_CHECK_BYTES).hexdigest().encode("ascii")
    return b"%s %s\n" % (record, check)


def _open(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _open_locked(path: Path) -> int:
    while True:
        try:
            descriptor = _open(path, os.O_CREAT)
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have put a compacted file in its place between the open and the lock.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"{path} is in use by another process", hint="stop the other gate first"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
