"""The sending half of a session's streams: whose turn it is, what credit allows, what is compressed.

Fair order. Control frames go first. A stream that has just got something small to say waits in `fresh`, one
with more than its share in `steady`. Each record serves fresh streams up to half of its room, then at least
one steady stream: an interactive stream waits for one record at most and bulk is never starved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from tunnel_proto.compression import Compression, TurnCompressor
from tunnel_proto.constants import (
    COMPRESS_TURN_MIN,
    CONTEXT_IDLE_S,
    EXPANDED_CHUNK,
    FRAME_HEADER_BYTES,
    LONG_CONTEXT_IDLE_S,
    STREAM_WINDOW,
    TURN_ONE_SHOT,
    WRITE_HIGH,
    WRITE_LOW,
    DataFlag,
    FrameType,
)
from tunnel_proto.events import Event, StreamEnded, WritePaused, WriteResumed
from tunnel_proto.frame import HEADER, MODES, UNKNOWN_LIMITS, encode_credit
from tunnel_proto.sensitive import Sensitive
from tunnel_proto.stats import SessionStats
from tunnel_proto.stream import LOCAL_CLOSED, OVER, REMOTE_CLOSED, MuxStream, take

_DATA: Final = int(FrameType.DATA)
_BOUNDARY: Final = int(DataFlag.BOUNDARY)
_COMPRESSED: Final = int(DataFlag.COMPRESSED)
_FRESH: Final = int(DataFlag.FRESH)
_END: Final = int(DataFlag.END)
_LIMITED: Final = int(DataFlag.LIMITED)
_OFF: Final = MODES.index("off")
_LONG: Final = MODES.index("long")
_BYPASS: Final = 1024 * 1024  # data that did not shrink: so much goes by before it is tried again
_RELEVEL: Final = 1024 * 1024  # a context this old may be replaced by one of a better level


class Outbound:
    """Queues of streams with something to say, and the frames that they turn into."""

    def __init__(self, compression: Compression, stats: SessionStats, stream_window_max: int) -> None:
        self.compression = compression
        self.stats = stats
        self.peer_limits = UNKNOWN_LIMITS
        self.events: list[Event] = []
        self.on_wake: Callable[[], None] | None = None
        self.awake = False  # the driver knows that there is something to flush
        self.control: list[bytes] = []
        self.control_bytes = 0
        self.credits: list[MuxStream] = []
        self.fresh: deque[MuxStream] = deque()
        self.steady: deque[MuxStream] = deque()
        self.swollen: list[MuxStream] = []
        self.charged_out = 0  # what our streams have outstanding beyond STREAM_WINDOW each
        self.charged_in = 0  # the same of the peer's, as we have received it
        self._stream_window_max = stream_window_max
        self._starved: dict[int, MuxStream] = {}  # waiting for session credit
        self._compressing: dict[int, MuxStream] = {}

    def remove(self, stream: MuxStream) -> None:
        """Forget a stream that is over and free all it held."""
        raise NotImplementedError

    def say(self, frame: bytes) -> None:
        """Queue a frame that carries no data; it leaves with the next record."""
        self.control.append(frame)
        self.control_bytes += len(frame)
        self.wake()

    def wake(self) -> None:
        """Tell the driver, once a tick, that there is something to flush."""
        if not self.awake:
            self.awake = True
            if self.on_wake is not None:
                self.on_wake()

    @property
    def has_output(self) -> bool:
        """Is there anything to put into a numbered record?"""
        return bool(self.control or self.credits or self.fresh or self.steady)

    def backpressure(self) -> None:
        """At the end of a flush: pause the writers whose backlog stayed."""
        if self.swollen:
            for stream in self.swollen:
                if stream.pending_bytes > WRITE_HIGH and not stream.paused and stream.state != OVER:
                    stream.paused = True
                    self.events.append(WritePaused(stream))
            self.swollen.clear()

    def fill(self, parts: list[bytes | memoryview], room: int, now: float) -> int:
        """Append frames for one record, about ``room`` bytes; gives their size (0: nothing to say)."""
        used = 0
        if self.control:
            control = self.control
            count = 0
            for frame in control:
                used += len(frame)
                count += 1
                if used >= room:
                    break
            parts += control[:count]
            del control[:count]
            self.control_bytes -= used
        if self.credits:
            used += self._fill_credits(parts)
        fresh, steady = self.fresh, self.steady
        half = room >> 1
        while used < room:
            share = room - used
            if fresh and (used < half or not steady):
                stream = fresh.popleft()
                share = min(share, half)
            elif steady:
                stream = steady.popleft()
            else:
                break
            if stream.state & LOCAL_CLOSED:
                stream.queued = False
                continue
            used += self._emit(stream, parts, share, now)
            if stream.pending:
                if self._allowance(stream):
                    steady.append(stream)
                    continue
                if stream.credit:  # then it is the session that has none left
                    self._starved[stream.id] = stream
            stream.queued = False
        return used

    def _fill_credits(self, parts: list[bytes | memoryview]) -> int:
        used = 0
        for stream in self.credits:
            stream.owing = False
            owed = stream.owed
            if not owed or stream.state & REMOTE_CLOSED:
                continue
            grown = 0
            if stream.eager:
                stream.eager = False
                if not stream.held:
                    grown = min(stream.window, self._stream_window_max - stream.window)
            if stream.unreturned > STREAM_WINDOW:
                self.charged_in -= stream.unreturned - max(STREAM_WINDOW, stream.unreturned - owed)
            stream.unreturned -= owed
            stream.owed = 0
            stream.window += grown
            parts.append(encode_credit(stream.id, owed, grown))
            used += FRAME_HEADER_BYTES + 8
        self.credits.clear()
        return used

    def _emit(self, stream: MuxStream, parts: list[bytes | memoryview], room: int, now: float) -> int:
        """One DATA frame of a stream (and its CLOSE); gives the bytes used."""
        pending = stream.pending
        if len(pending) == 1:
            data = pending[0]
            size = len(data)
            outstanding = stream.outstanding + size
            if (
                size <= room
                and outstanding <= STREAM_WINDOW
                and stream.compressor is None
                and (
                    not self.compression.level
                    or stream.mode == _OFF
                    or stream.turn_bytes + size < COMPRESS_TURN_MIN
                )
                and size <= 0xFFFF
            ):
                stream.outstanding = outstanding
                stream.credit -= size
                stream.turn_bytes += size
                pending.clear()
                stream.pending_bytes = 0
                parts.append(HEADER.pack(_DATA, _BOUNDARY if stream.boundary else 0, size, stream.id))
                parts.append(data)
                self.stats.bytes_app_out += size
                if stream.paused:
                    stream.paused = False
                    self.events.append(WriteResumed(stream))
                if stream.closing:
                    self._emit_close(stream, parts)
                    return size + 16
                return size + 8
        used = self._emit_slowly(stream, parts, room, now) if pending else 0
        if stream.closing and not stream.pending:
            self._emit_close(stream, parts)
            used += FRAME_HEADER_BYTES
        return used

    def _emit_close(self, stream: MuxStream, parts: list[bytes | memoryview]) -> None:
        parts.append(HEADER.pack(FrameType.CLOSE, 0, 0, stream.id))
        stream.state |= LOCAL_CLOSED
        self.release_context(stream)
        self.discharge_out(stream)
        if stream.state == OVER:
            self.remove(stream)
            self.events.append(StreamEnded(stream, None, "", ""))

    def _emit_slowly(self, stream: MuxStream, parts: list[bytes | memoryview], room: int, now: float) -> int:
        sensitive = type(stream.pending[0]) is Sensitive
        compression = self.compression
        compressing = (
            not sensitive
            and stream.mode != _OFF
            and (stream.compressor is not None or compression.level > 0)
            and not stream.bypass
        )
        allowed = self._allowance(stream)
        limit = min(EXPANDED_CHUNK if compressing else max(room - FRAME_HEADER_BYTES, 1024), allowed)
        if not limit:
            return 0
        data = take(stream.pending, min(limit, 0xFFFF))
        size = len(data)
        stream.pending_bytes -= size
        drained = not stream.pending
        self._charge_out(stream, size)
        self.stats.bytes_app_out += size
        flags = _BOUNDARY if drained and stream.boundary else 0
        if not drained and allowed == size:
            flags |= _LIMITED
        stream.turn_bytes += size
        payload: bytes = data
        if compressing:
            context = self._context_for(stream)
            if context is not None:
                if context.fresh:
                    flags |= _FRESH
                payload = compression.compress(context, data, now)
                context.fresh = False
                flags |= _COMPRESSED
                if context.futile:
                    stream.bypass = _BYPASS
                    flags |= _END
                elif (
                    drained
                    and stream.boundary
                    and COMPRESS_TURN_MIN <= context.raw == size <= TURN_ONE_SHOT
                    and stream.mode != _LONG
                ):
                    stream.turn_bytes = 0  # the whole answer, most likely
                    flags |= _END
                if flags & _END:
                    self.release_context(stream)
        elif stream.bypass and not sensitive:
            stream.bypass = max(0, stream.bypass - size)
        parts.append(HEADER.pack(_DATA, flags, len(payload), stream.id))
        parts.append(payload)
        if stream.paused and stream.pending_bytes <= WRITE_LOW:
            stream.paused = False
            self.events.append(WriteResumed(stream))
        return len(payload) + FRAME_HEADER_BYTES

    def _allowance(self, stream: MuxStream) -> int:
        own = max(0, STREAM_WINDOW - stream.outstanding)
        return min(stream.credit, own + max(0, self.peer_limits.session_window - self.charged_out))

    def feed(self) -> None:
        """The session's charge sank: streams that waited for it get their turn."""
        if self._starved and self.charged_out < self.peer_limits.session_window:
            starved, self._starved = self._starved, {}
            for stream in starved.values():
                self.requeue(stream)

    def requeue(self, stream: MuxStream) -> None:
        if (stream.pending or stream.closing) and not stream.queued and not stream.state & LOCAL_CLOSED:
            stream.queued = True
            self.steady.append(stream)
            self.wake()

    def _charge_out(self, stream: MuxStream, size: int) -> None:
        before = stream.outstanding
        stream.outstanding = before + size
        stream.credit -= size
        if stream.outstanding > STREAM_WINDOW:
            self.charged_out += stream.outstanding - max(before, STREAM_WINDOW)

    def discharge_out(self, stream: MuxStream) -> None:
        if stream.outstanding > STREAM_WINDOW:
            self.charged_out -= stream.outstanding - STREAM_WINDOW
        stream.outstanding = 0
        self.feed()

    # --- compression contexts

    def _context_for(self, stream: MuxStream) -> TurnCompressor | None:
        context = stream.compressor
        compression = self.compression
        if context is not None:
            if context.level == compression.level or context.raw < _RELEVEL:
                return context
            self.release_context(stream)
        wanted = compression.level and stream.turn_bytes + stream.pending_bytes >= COMPRESS_TURN_MIN
        begun = compression.begin() if wanted else None
        if begun is not None:  # its first frame also ends the older context at the receiver
            stream.compressor = begun
            self._compressing[stream.id] = stream
        elif context is not None:
            self.say(HEADER.pack(_DATA, _END, 0, stream.id))
        return begun

    def end_context(self, stream: MuxStream) -> None:
        """End a stream's sending context, telling the receiver so that it frees its own."""
        if stream.compressor is not None:
            told = not stream.compressor.fresh
            self.release_context(stream)
            if told:
                self.say(HEADER.pack(_DATA, _END, 0, stream.id))

    def release_context(self, stream: MuxStream) -> None:
        if stream.compressor is not None:
            self.compression.end(stream.compressor)
            stream.compressor = None
            del self._compressing[stream.id]

    def end_idle_contexts(self, now: float) -> None:
        """Free the contexts of streams that have paused."""
        for stream in list(self._compressing.values()):
            context = stream.compressor
            idle = LONG_CONTEXT_IDLE_S if stream.mode == _LONG else CONTEXT_IDLE_S
            if context is not None and now - context.used_at >= idle:
                self.end_context(stream)
                self.wake()

    @property
    def holds_contexts(self) -> bool:
        """Does any stream hold a sending context?"""
        return bool(self._compressing)
