"""Per-stream zstd: whether to compress, how hard, and with whose memory.

A context belongs to one stream and one direction and to one *turn*: it begins when the sender has put enough
bytes into the turn to earn it and ends when the other side speaks. So one app's guesses never share history
with another's secrets, and thousands of idle streams hold no context at all.

On the wire a context is one zstd frame in the magicless format whose header is two bytes: descriptor 0 (no
checksum, dictionary or content size) and the window descriptor. Each DATA payload ends on a flushed block, so
the receiver can walk the block headers (RFC 8878, 3.1.1.2) and bound the expansion before it decompresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard

from tunnel_proto.constants import (
    BLOCKS_PER_FRAME_MAX,
    EXPANDED_FRAME_MAX,
    WINDOW_LOG_MAX,
    WINDOW_LOG_MIN,
    ZSTD_BLOCK_MAX,
    StreamCode,
)
from tunnel_proto.errors import TunnelError

# Bytes of varied table rows per second and core; a machine's own speed scales them as it is measured.
LEVEL_SPEEDS = ((1, 380e6), (3, 250e6), (6, 85e6), (9, 45e6), (12, 18e6), (15, 9e6), (19, 3e6))
ASSUMED_RATIO = 3.0  # application bytes for one byte on the wire, before it is known
CPU_HEADROOM = 1.5  # a compressor must be so much faster than the link drains it

_RLE_BLOCK = 1
_RESERVED_BLOCK = 3


class CompressedDataError(TunnelError):
    """A stream's compressed data is wrong or expands too far; ``code`` goes into its RESET."""

    def __init__(self, message: str, code: StreamCode) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class LevelPolicy:
    """Chooses the zstd level for a link: the highest whose compressor outruns the link with headroom."""

    level_max: int
    enabled: bool = True
    machine: float = 1.0  # this machine's compressor speed relative to LEVEL_SPEEDS, smoothed

    def level(self, goodput: float) -> int:
        """Level for ``goodput`` in bytes/s on the wire; 0 means that compressing would not pay."""
        needed = goodput * ASSUMED_RATIO * CPU_HEADROOM / self.machine
        best = 0
        if self.enabled:
            for level, speed in LEVEL_SPEEDS:
                if speed < needed:
                    break
                if level <= self.level_max:
                    best = level
        return best

    def measured(self, level: int, size: int, seconds: float) -> None:
        """Learn this machine's speed from one large enough call."""
        expected = dict(LEVEL_SPEEDS)[level]
        ratio = min(4.0, max(0.1, size / max(seconds, 1e-6) / expected))
        self.machine += (ratio - self.machine) * 0.05


@dataclass(slots=True)
class ContextPool:
    """Compressors of one process: at most ``capacity`` bytes of zstd state, a few kept warm for reuse.

    Reuse leaks nothing: a compressor starts a new zstd frame, which never refers to an older one's history.
    """

    capacity: int = 128 * 1024 * 1024
    spare_max: int = 8
    used: int = 0
    _spare: dict[tuple[int, int], list[zstandard.ZstdCompressor]] = field(default_factory=dict)
    _spare_count: int = 0

    def take(self, level: int, window_log: int) -> zstandard.ZstdCompressor | None:
        """A compressor, or None while the pool is exhausted."""
        key = (level, window_log)
        spare = self._spare.get(key)
        if spare:
            self._spare_count -= 1
            return spare.pop()
        cost = context_cost(level, window_log)
        if self.used + cost > self.capacity:
            self.clear()
            if self.used + cost > self.capacity:
                return None
        self.used += cost
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level,
            window_log=window_log,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
        )
        return zstandard.ZstdCompressor(compression_params=parameters)

    def give_back(self, compressor: zstandard.ZstdCompressor, level: int, window_log: int) -> None:
        """Return a compressor whose turn has ended."""
        if self._spare_count < self.spare_max:
            self._spare_count += 1
            self._spare.setdefault((level, window_log), []).append(compressor)
        else:
            self.used -= context_cost(level, window_log)

    def clear(self) -> None:
        """Free the spare compressors."""
        for (level, window_log), spare in self._spare.items():
            self.used -= context_cost(level, window_log) * len(spare)
        self._spare.clear()
        self._spare_count = 0


def context_cost(level: int, window_log: int) -> int:
    """Bytes that a compressor's state takes, as zstd 1.5 reports them, rounded up; window included."""
    tables = {1: 820, 3: 1500, 6: 3400, 9: 11300, 12: 42800}
    kib = next((size for known, size in tables.items() if level <= known), 90000)
    return kib * 1024 + (1 << window_log)


class TurnCompressor:
    """One stream's compression context, for the length of one turn."""

    __slots__ = ("_compressor", "_object", "_pool", "fresh", "level", "raw", "used_at", "window_log", "wire")

    def __init__(
        self, pool: ContextPool, compressor: zstandard.ZstdCompressor, level: int, window_log: int
    ) -> None:
        self._pool = pool
        self._compressor = compressor
        self._object = compressor.compressobj()
        self.level = level
        self.window_log = window_log
        self.fresh = True  # nothing sent yet: the first frame says that a context begins
        self.raw = 0
        self.wire = 0
        self.used_at = 0.0

    def compress(self, data: bytes) -> bytes:
        """Blocks that hold exactly ``data``, flushed."""
        compressed = self._object.compress(data) + self._object.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        self.raw += len(data)
        self.wire += len(compressed)
        return compressed

    @property
    def futile(self) -> bool:
        """After enough data: does it not shrink?"""
        return self.raw >= 48 * 1024 and self.wire > 0.95 * self.raw

    def release(self) -> None:
        """Give the state back; the object may not be used again."""
        self._pool.give_back(self._compressor, self.level, self.window_log)
        del self._object, self._compressor


def window_log_for(level: int, budget: int, window_log_max: int) -> int:
    """The zstd window to use: long where the level is high, within ``budget`` bytes; 0 when none fits."""
    wanted = WINDOW_LOG_MIN if level <= 1 else 20 if level <= 6 else WINDOW_LOG_MAX
    wanted = min(wanted, window_log_max)
    while wanted >= WINDOW_LOG_MIN and 1 << wanted > budget:
        wanted -= 1
    return wanted if wanted >= WINDOW_LOG_MIN else 0


def check_blocks(payload: bytes, *, fresh: bool, window_log_max: int) -> int:
    """Walk a payload's zstd block headers before anything is decompressed.

    Returns the window's size in bytes when ``fresh``, else 0. CompressedDataError for a header this
    protocol does not use, a window over the announced one, or blocks that could expand past the limit.
    """
    position = 0
    window = 0
    if fresh:
        if len(payload) < 2 or payload[0] != 0:
            raise CompressedDataError("not the zstd frame header this protocol uses", StreamCode.PROTOCOL)
        exponent, mantissa = payload[1] >> 3, payload[1] & 7
        window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
        if window > 1 << window_log_max:
            raise CompressedDataError(f"a zstd window of {window} bytes", StreamCode.BOMB)
        position = 2
    blocks = 0
    certain = 0  # expanded size of the blocks that state it
    end = len(payload)
    while position < end:
        if position + 3 > end:
            raise CompressedDataError("a zstd block header is cut short", StreamCode.PROTOCOL)
        header = payload[position] | payload[position + 1] << 8 | payload[position + 2] << 16
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if last or kind == _RESERVED_BLOCK or size > ZSTD_BLOCK_MAX:
            raise CompressedDataError("a zstd block this protocol does not use", StreamCode.PROTOCOL)
        if kind != 2:
            certain += size
        blocks += 1
        position += 3 + (1 if kind == _RLE_BLOCK else size)
        if blocks > BLOCKS_PER_FRAME_MAX or certain > EXPANDED_FRAME_MAX:
            raise CompressedDataError("compressed data would expand past the limit", StreamCode.BOMB)
    if position != end:
        raise CompressedDataError("a zstd block is cut short", StreamCode.PROTOCOL)
    return window


class Expander:
    """One stream's decompression context at the receiver."""

    __slots__ = ("_object", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        decompressor = zstandard.ZstdDecompressor(
            format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << WINDOW_LOG_MAX
        )
        self._object = decompressor.decompressobj()

    def expand(self, payload: bytes) -> bytes:
        """The data of one payload that `check_blocks` has passed; CompressedDataError."""
        try:
            data = self._object.decompress(payload)
        except zstandard.ZstdError as error:
            raise CompressedDataError("compressed data is damaged", StreamCode.PROTOCOL) from error
        if len(data) > EXPANDED_FRAME_MAX:
            raise CompressedDataError("compressed data expands past the limit", StreamCode.BOMB)
        return data


@dataclass(slots=True)
class Compression:
    """What one session's sender needs to decide: policy, pool, the peer's limits and a clock for the CPU."""

    policy: LevelPolicy
    pool: ContextPool
    cpu_clock: Callable[[], float]
    goodput: float = 0.0  # of the link, bytes/s
    level: int = 0  # for new contexts; 0 while the link is fast
    contexts_max: int = 0
    memory_max: int = 0
    window_log_max: int = WINDOW_LOG_MIN
    contexts: int = 0
    memory: int = 0

    def begin(self) -> TurnCompressor | None:
        """A context within the peer's limits and our pool, at the best level that memory allows."""
        if self.contexts >= self.contexts_max:
            return None
        for level in (self.level, 3, 1):
            if level > self.level:
                continue
            window_log = window_log_for(level, self.memory_max - self.memory, self.window_log_max)
            compressor = self.pool.take(level, window_log) if window_log else None
            if compressor is not None:
                self.contexts += 1
                self.memory += 1 << window_log
                return TurnCompressor(self.pool, compressor, level, window_log)
        return None

    def end(self, context: TurnCompressor) -> None:
        """Free a context and its share of the peer's limits."""
        self.contexts -= 1
        self.memory -= 1 << context.window_log
        context.release()

    def compress(self, context: TurnCompressor, data: bytes, now: float) -> bytes:
        """Compress one frame's data, learning the machine's speed from large ones."""
        context.used_at = now
        if len(data) < 16 * 1024 or context.fresh:
            return context.compress(data)
        begun = self.cpu_clock()
        compressed = context.compress(data)
        self.policy.measured(context.level, len(data), self.cpu_clock() - begun)
        self.level = self.policy.level(self.goodput)
        return compressed

    def link_measured(self, goodput: float) -> None:
        """The link's speed as it is known now, bytes/s."""
        self.goodput = goodput
        self.level = self.policy.level(goodput)
