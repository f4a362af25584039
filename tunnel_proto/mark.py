"""The timestamps of this node's handshakes: each later than all before, also across restarts and clock steps.

A gate refuses a handshake whose timestamp is not newer than the last one it accepted from the same key, and
it refuses in silence. So the last one used is kept in a file, and a clock that was set back does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tunnel_proto.errors import ConfigError

_DIGITS = 20  # 2**63 ns has 19


class Mark:
    """Hands out timestamps in nanoseconds and writes each to ``path`` before it is used.

    Written by one pwrite(2) of constant length, which survives a killed process; `close` waits for the disk.
    After a power cut the file may be behind, which only matters if the clock was set back as well.
    """

    __slots__ = ("_clock", "_descriptor", "_last", "damaged")

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        """Open or create ``path`` (mode 0600); raises `ConfigError` when it cannot be written.

        ``clock`` returns nanoseconds since the epoch. ``damaged`` tells that the file held no timestamp.
        """
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            text = os.pread(self._descriptor, _DIGITS + 1, 0)
        except OSError as error:
            raise ConfigError(
                f"cannot keep handshake timestamps in {path}: {(error.strerror or str(error)).lower()}",
                hint=f"make it writable for this user: ls -l {path}",
            ) from None
        digits = text.strip()
        self._clock = clock
        self.damaged = bool(text) and not digits.isdigit()
        self._last = int(digits) if digits.isdigit() else 0

    def next(self) -> int:
        """The timestamp for one handshake, kept already."""
        self._last = max(self._last + 1, self._clock())
        os.pwrite(self._descriptor, b"%*d\n" % (_DIGITS, self._last), 0)
        return self._last

    def close(self) -> None:
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
