"""How fast this machine's memory can be read: what bounds the speed of decoding on a CPU.

Decoding reads each weight once a token and writes next to nothing, so what counts is a pure read, unlike
STREAM's copy (McCalpin 1995), whose bytes are twice the array (three times with write-allocate). The reader
is libc's memchr for a byte that is not there: vectorised, and run outside Python's lock by ctypes, so that
threads read side by side.

A machine that does other things is measured too low, never too high. So the best of several runs counts, each
a few milliseconds long (less than a scheduler's slice), with pauses between them in which a neighbour's burst
may pass; a single thread's run is timed by that thread's own clock, which stands still while another one has
its core. What others used of the processors meanwhile is told with the result.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

RUNS: Final = 16
"""At most; `settled` ends it sooner."""
REST_S: Final = 0.1
"""Between two runs."""
ALIKE: Final = 3
"""So many runs that come near the best one: it was no accident, and will not get better."""
NEAR: Final = 0.03


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes/s read by one thread, and by ``threads`` together."""

    one: float
    all: float
    threads: int


def measure(threads: int, mebibytes: int, *, rest: Callable[[float], None] = time.sleep) -> Bandwidth:
    """Read ``mebibytes`` in each thread, up to `RUNS` times; blocks for a second or two.

    The buffers should be several times the last-level cache: 128 MiB a thread is, on what is sold today.
    Raises `MemoryError`.
    """
    size = mebibytes << 20
    buffers = [_Buffer(size) for _ in range(max(1, threads))]
    one: list[float] = []
    together: list[float] = []
    try:
        for number in range(RUNS):
            if number:
                rest(REST_S)
            one.append(alone(buffers[0]))
            together.append(side_by_side(buffers) if len(buffers) > 1 else one[-1])
            if settled(one) and settled(together):
                break
    finally:
        for buffer in buffers:
            buffer.close()
    return Bandwidth(max(one), max(*one, *together), len(buffers))


def settled(rates: Sequence[float]) -> bool:
    """Whether the best of ``rates`` has been come near often enough to believe it."""
    best = max(rates)
    return sum(rate >= best * (1 - NEAR) for rate in rates) >= ALIKE


def alone(buffer: _Buffer) -> float:
    """Bytes/s of one thread, in its own CPU time: waiting for memory counts there, waiting for a core not."""
    began = time.thread_time()
    buffer.read()
    return buffer.size / (time.thread_time() - began)


def side_by_side(buffers: Sequence[_Buffer]) -> float:
    """Bytes/s of all threads at once, by the clock: only what overlaps is a bandwidth."""
    gate = threading.Barrier(len(buffers) + 1)

    def read(buffer: _Buffer) -> None:
        gate.wait()
        buffer.read()

    threads = [threading.Thread(target=read, args=(buffer,), daemon=True) for buffer in buffers]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(buffer.size for buffer in buffers) / (time.perf_counter() - began)


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

    def read(self) -> None:
        self._find(self._address, 7, self.size)

    def close(self) -> None:
        del self._view
        self._map.close()
