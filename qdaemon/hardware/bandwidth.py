"""How fast this machine's memory can be read: what bounds the speed of decoding on a CPU.

Decoding reads each weight once a token and writes next to nothing, so what counts is a pure read, unlike
STREAM's copy (McCalpin 1995), whose bytes are twice the array (three times with write-allocate). The reader
is libc's memchr for a byte that is not there: vectorised, and run outside Python's lock by ctypes, so that
threads read side by side.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from dataclasses import dataclass

PASSES = 3
"""Readings of each kind; the best counts, as in STREAM: noise only ever slows one down."""

ROUNDS = 2
"""Times that each pass reads its buffer."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes/s read by one thread, and by ``threads`` together."""

    one: float
    all: float
    threads: int


def measure(threads: int, mebibytes: int) -> Bandwidth:
    """Read ``mebibytes`` in each thread; blocks for about a second on a usual machine. Raises `MemoryError`.

    The buffers should be several times the last-level cache: 128 MiB a thread is, on what is sold today.
    """
    size = mebibytes << 20
    buffers = [_Buffer(size) for _ in range(max(1, threads))]
    try:
        one = max(_pass(buffers[:1]) for _ in range(PASSES))
        together = one if len(buffers) == 1 else max(_pass(buffers) for _ in range(PASSES))
    finally:
        for buffer in buffers:
            buffer.close()
    return Bandwidth(one, max(one, together), len(buffers))


def _pass(buffers: list[_Buffer]) -> float:
    """Bytes/s of one pass over all buffers at once, each in its thread."""
    gate = threading.Barrier(len(buffers) + 1)
    threads = [threading.Thread(target=buffer.read, args=(gate,), daemon=True) for buffer in buffers]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return sum(buffer.size for buffer in buffers) * ROUNDS / seconds


class _Buffer:
    def __init__(self, size: int) -> None:
        self.size = size
        try:
            self._map = mmap.mmap(-1, size)
        except OSError as error:
            raise MemoryError(str(error)) from None
        self._view = (ctypes.c_char * size).from_buffer(self._map)
        self._address = ctypes.addressof(self._view)
        ctypes.memset(self._address, 1, size)  # real pages: untouched ones are one shared page of zeros
        self._find = ctypes.CDLL(None).memchr
        self._find.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self._find.restype = ctypes.c_void_p

    def read(self, gate: threading.Barrier) -> None:
        gate.wait()
        for _ in range(ROUNDS):
            self._find(self._address, 7, self.size)

    def close(self) -> None:
        del self._view
        self._map.close()
