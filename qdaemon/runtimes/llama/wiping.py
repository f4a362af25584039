"""Overwriting one sequence's KV bytes while its neighbours go on.

`llama_memory_seq_rm` only forgets positions, and `llama_memory_clear` wipes every sequence. But where a
sequence's state is restored from a blob that ends too early, llama.cpp zeroes the cells that it had set aside
for it (so that attention cannot read half of a restore), and leaves the others alone. A blob that names n
cells and then ends therefore overwrites n cells at the speed of memset, in tens of bytes of input.

That is behaviour of this version, so it is proved at each load: plant a sequence, find its bytes in this
process's memory, wipe, look again. Where the proof fails, and for models whose memory is no plain KV cache
(sliding windows, recurrent states), bytes are overwritten when the whole context is idle.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, Final, Literal

import llama_cpp

from qdaemon.runtimes.llama.library import Context

Level = Literal["wiped", "cleared-when-idle"]

_PROBE_TOKENS: Final = 8
_PLANTED: Final = 128
"""Bytes of the planted sequence that are looked for: of the first layer's first row, which has as many."""
_VARIED: Final = 8
"""Different values among them, at least: zeros could be found anywhere."""
_SEARCHED: Final = 16 << 30
"""Bytes of memory that are searched for the planted ones at most; a second or two."""
_CELL: Final = struct.Struct("<iIi")
"""A cell in a state: position, number of sequences, sequence."""


class Wiper:
    """Overwrites what a sequence leaves in ``context``."""

    def __init__(self, context: Context, *, plain: bool) -> None:
        self._context = context
        self._header = b""
        self._planted = (ctypes.c_uint8 * _PLANTED)()
        """Bytes of the planted sequence: the one copy beside the cache, which the proof leaves out."""
        self._probe_size = 0
        self.level: Level = "cleared-when-idle"
        """What is true of a sequence's bytes once it has ended."""
        self._dirty: set[int] = set()
        if plain and self._learn() and self._proved():
            self.level = "wiped"
        ctypes.memset(self._planted, 0, _PLANTED)
        context.clear()

    def wipe(self, sequence: int, cells: int) -> None:
        """Forget ``sequence``, whose first ``cells`` cells were used, and overwrite them.

        Where `level` is not "wiped" only forgotten; `idle` overwrites.
        """
        if self.level == "wiped" and cells > 0:
            self._overwrite(sequence, min(cells, self._context.size))
        self._context.remove(sequence)
        if self.level != "wiped" and cells > 0:
            self._dirty.add(sequence)

    def idle(self) -> None:
        """No sequence is in use: overwrite what is still there."""
        if self._dirty:
            self._context.clear()
            self._dirty.clear()

    def _overwrite(self, sequence: int, cells: int) -> None:
        blob = bytearray(self._header)
        for stream in range(self._context.slots):
            if stream != sequence:
                blob += bytes(4)
                continue
            blob += cells.to_bytes(4, "little")
            blob += b"".join(_CELL.pack(position, 1, sequence) for position in range(cells))
            break
        buffer = (ctypes.c_uint8 * len(blob)).from_buffer(blob)
        llama_cpp.llama_state_seq_set_data(self._context.pointer, buffer, len(blob), sequence)

    def _learn(self) -> bool:
        """Plant sequence 0 and learn what a state begins with; False where it is not laid out as expected."""
        context = self._context
        tokens = [(index, index, 0, False) for index in range(_PROBE_TOKENS)]
        if context.decode(tokens) != 0:
            return False
        size = llama_cpp.llama_state_seq_get_size(context.pointer, 0)
        buffer = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(context.pointer, buffer, size, 0) != size:
            return False
        try:
            return self._laid_out(buffer)
        finally:
            ctypes.memset(buffer, 0, size)  # freed memory is searched too

    def _laid_out(self, state: ctypes.Array[ctypes.c_uint8]) -> bool:
        """Take from a state what it begins with and some bytes of its first row."""
        self._probe_size = len(state) - 1024  # less what is no row; only a lower bound is needed
        # magic, sequence, number of streams; then this stream's cells
        self._header = bytes(state[:12])
        expected = (0, self._context.slots, _PROBE_TOKENS)
        if struct.unpack_from("<iII", state, 4) != expected:
            return False
        at = 16
        for position in range(_PROBE_TOKENS):
            if _CELL.unpack_from(state, at) != (position, 1, 0):
                return False
            at += _CELL.size
        # transposed?, layers, then the first layer's type and row size, and its rows
        at += 4 + 4 + 4
        row = int.from_bytes(bytes(state[at : at + 8]), "little")
        at += 8
        if row < _PLANTED or at + row > len(state):
            return False
        ctypes.memmove(self._planted, ctypes.addressof(state) + at, _PLANTED)
        return len(set(self._planted)) > _VARIED

    def _proved(self) -> bool:
        """Find the planted bytes, wipe, and see that they are zero."""
        cache = self._probe_size // _PROBE_TOKENS * self._context.size * self._context.slots
        found = [one for one in _addresses(self._planted, cache) if one != ctypes.addressof(self._planted)]
        if not found:
            return False
        self._overwrite(0, _PROBE_TOKENS)
        gone = bytes(_PLANTED)
        left = [ctypes.string_at(address, _PLANTED) for address in found]
        return self._context.positions(0) == 0 and all(one == gone for one in left)


def _addresses(planted: ctypes.Array[ctypes.c_uint8], at_least: int) -> Iterator[int]:
    """Where ``planted`` lies in this process's anonymous mappings of ``at_least`` so many bytes.

    Mappings that hold the whole cache only: they do not go away while they are being read.
    """
    memmem: Any = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t
    )(("memmem", ctypes.CDLL(None)))
    budget = _SEARCHED
    with open("/proc/self/maps", encoding="ascii") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        span, flags, _, _, inode, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if not flags.startswith("rw") or inode != "0" or "[v" in line or end - start < at_least:
            continue
        end = min(end, start + budget)
        budget -= end - start
        while found := memmem(start, end - start, ctypes.addressof(planted), len(planted)):
            yield found
            start = found + 1
