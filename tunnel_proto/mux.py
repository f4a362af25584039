"""The streams of one session: credit, fair order, and the frames they turn into.

Credit. A stream may have `window` decompressed bytes outstanding: sent, and not yet reported as written
onward by CREDIT. It starts at STREAM_WINDOW and the receiver grows it for readers that keep up. What a stream
has outstanding beyond STREAM_WINDOW is charged to the session, whose charge may not exceed `session_window`.
So the first STREAM_WINDOW bytes of a stream are its own: however many readers stall with grown windows, no
other stream stops. Both ends compute the charge from the same frames; the receiver's is never the larger.

Fair order. Control frames go first. A stream that has just got something small to say waits in `fresh`, one
with more than its share in `steady`. Each record serves fresh streams up to half of its room, then at least
one steady stream: an interactive stream waits for one record at most and bulk is never starved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tunnel_proto.batch import split_frames
from tunnel_proto.compression import (
    CompressedDataError,
    Compression,
    Expander,
    TurnCompressor,
    check_blocks,
)
from tunnel_proto.configuration import SessionStats
from tunnel_proto.constants import (
    COMPRESS_TURN_MIN,
    CONTEXT_IDLE_S,
    DRAIN_KINDS,
    EXPANDED_CHUNK,
    FRAME_HEADER_BYTES,
    LONG_CONTEXT_IDLE_S,
    STREAM_ID_MAX,
    STREAM_WINDOW,
    TURN_ONE_SHOT,
    WRITE_HIGH,
    WRITE_LOW,
    DataFlag,
    FrameType,
    StreamCode,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.events import (
    DataReceived,
    EofReceived,
    Event,
    PeerDraining,
    StreamEnded,
    StreamOpened,
    WritePaused,
    WriteResumed,
)
from tunnel_proto.frame import (
    HEADER,
    MODES,
    UNKNOWN_LIMITS,
    Limits,
    decode_credit,
    decode_open,
    decode_reason,
    encode_credit,
    encode_open,
    encode_reason,
)
from tunnel_proto.stream import LOCAL_CLOSED, OVER, REMOTE_CLOSED, MuxStream, Sensitive, take

_DATA = int(FrameType.DATA)
_BOUNDARY = int(DataFlag.BOUNDARY)
_COMPRESSED = int(DataFlag.COMPRESSED)
_FRESH = int(DataFlag.FRESH)
_END = int(DataFlag.END)
_LIMITED = int(DataFlag.LIMITED)
_KNOWN_DATA_FLAGS = _BOUNDARY | _COMPRESSED | _FRESH | _END | _LIMITED
_OFF, _AUTO, _LONG = range(len(MODES))
_BYPASS = 1024 * 1024  # data that did not shrink: so much goes by before it is tried again
_RELEVEL = 1024 * 1024  # a context this old may be replaced by one of a better level


StreamFactory = Callable[["Mux", int, str, dict[str, Any], int], MuxStream]


class Mux:
    """All streams of one session."""

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        compression: Compression,
        stats: SessionStats,
        factory: StreamFactory = MuxStream,
    ) -> None:
        self.streams: dict[int, MuxStream] = {}
        self.limits = limits
        self.peer_limits = UNKNOWN_LIMITS
        self.compression = compression
        self.stats = stats
        self.events: list[Event] = []
        self.on_wake: Callable[[], None] | None = None
        self.awake = False  # the driver knows that there is something to flush
        self.control: list[bytes] = []
        self.credits: list[MuxStream] = []
        self.fresh: deque[MuxStream] = deque()
        self.swollen: list[MuxStream] = []
        self.charged_out = 0  # what our streams have outstanding beyond STREAM_WINDOW each
        self.refusing = False  # GOAWAY was sent: the peer's new streams are refused
        self.peer_refusing = False
        self._factory = factory
        self.steady: deque[MuxStream] = deque()
        self._starved: dict[int, MuxStream] = {}  # waiting for session credit
        self._charged_in = 0
        self._next_id = 1 if client else 2
        self._peer_parity = 0 if client else 1
        self._peer_last = 0
        self._peer_count = 0
        self._compressing: dict[int, MuxStream] = {}
        self._expanding = 0
        self._expanding_memory = 0

    # --- what the owner of streams does

    def open(self, kind: str, metadata: dict[str, Any], mode: str) -> MuxStream:
        """Open a stream; its OPEN leaves with the next record. LocalProtocolError at the peer's limits."""
        if self.peer_refusing and kind not in DRAIN_KINDS:
            raise LocalProtocolError("the peer is draining and takes no new streams")
        if len(self.streams) - self._peer_count >= self.peer_limits.max_streams:
            raise LocalProtocolError(f"the peer takes {self.peer_limits.max_streams} streams")
        stream_id = self._next_id
        if stream_id > STREAM_ID_MAX:
            raise LocalProtocolError("the session has used up its stream numbers")
        frame = encode_open(stream_id, kind, metadata, MODES.index(mode))
        self._next_id += 2
        stream = self.streams[stream_id] = self._factory(self, stream_id, kind, metadata, MODES.index(mode))
        self.control.append(frame)
        self.stats.streams_open += 1
        self.wake()
        return stream

    def goaway(self, code: int, message: str) -> None:
        """Refuse the peer's new streams from now on and tell it."""
        self.refusing = True
        self.control.append(encode_reason(FrameType.GOAWAY, 0, code, message))
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

    # --- sending

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
                self._charged_in -= stream.unreturned - max(STREAM_WINDOW, stream.unreturned - owed)
            stream.unreturned -= owed
            stream.owed = 0
            stream.window += grown
            parts.append(encode_credit(stream.id, owed, grown))
            used += FRAME_HEADER_BYTES + 8
        self.credits.clear()
        return used

    _stream_window_max = STREAM_WINDOW

    def set_stream_window_max(self, size: int) -> None:
        """The largest window that an eager reader may grow to."""
        self._stream_window_max = max(size, STREAM_WINDOW)

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
        self._release_context(stream)
        self._discharge_out(stream)
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
                    self._release_context(stream)
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

    def _feed(self) -> None:
        """The session's charge sank: streams that waited for it get their turn."""
        if self._starved and self.charged_out < self.peer_limits.session_window:
            starved, self._starved = self._starved, {}
            for stream in starved.values():
                self._requeue(stream)

    def _requeue(self, stream: MuxStream) -> None:
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

    def _discharge_out(self, stream: MuxStream) -> None:
        if stream.outstanding > STREAM_WINDOW:
            self.charged_out -= stream.outstanding - STREAM_WINDOW
        stream.outstanding = 0
        self._feed()

    # --- compression contexts

    def _context_for(self, stream: MuxStream) -> TurnCompressor | None:
        context = stream.compressor
        compression = self.compression
        if context is not None:
            if context.level == compression.level or context.raw < _RELEVEL:
                return context
            self._release_context(stream)
        wanted = compression.level and stream.turn_bytes + stream.pending_bytes >= COMPRESS_TURN_MIN
        begun = compression.begin() if wanted else None
        if begun is not None:  # its first frame also ends the older context at the receiver
            stream.compressor = begun
            self._compressing[stream.id] = stream
        elif context is not None:
            self.control.append(HEADER.pack(_DATA, _END, 0, stream.id))
        return begun

    def end_context(self, stream: MuxStream) -> None:
        """End a stream's sending context, telling the receiver so that it frees its own."""
        if stream.compressor is not None:
            told = not stream.compressor.fresh
            self._release_context(stream)
            if told:
                self.control.append(HEADER.pack(_DATA, _END, 0, stream.id))

    def _release_context(self, stream: MuxStream) -> None:
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

    def _drop_expander(self, stream: MuxStream) -> None:
        if stream.expander is not None:
            self._expanding -= 1
            self._expanding_memory -= stream.expander.window
            stream.expander = None

    # --- receiving

    def receive(self, body: bytes, position: int) -> None:
        """Apply one numbered record's frames; RemoteProtocolError ends the session."""
        chunks: list[tuple[MuxStream, bytes, bool]] = []
        streams = self.streams
        total = 0
        for kind, flags, stream_id, payload in split_frames(body, position):
            stream = streams.get(stream_id)
            if kind == _DATA:
                if stream is None:
                    self._check_known(stream_id)
                    continue
                if flags & ~_BOUNDARY:
                    slow = self._data_slowly(stream, flags, payload)
                    if slow is None:
                        continue
                    payload = slow
                size = len(payload)
                unreturned = stream.unreturned = stream.unreturned + size
                if unreturned > STREAM_WINDOW and not self._charge_in(stream, size, flags):
                    continue
                if stream.state & REMOTE_CLOSED:
                    raise RemoteProtocolError("DATA after CLOSE")
                stream.held += size
                total += size
                if stream.turn_bytes:
                    self._turn_around(stream)
                if size:
                    chunks.append((stream, payload, bool(flags & _BOUNDARY)))
            elif kind == FrameType.CREDIT:
                if stream is None:
                    self._check_known(stream_id)
                else:
                    self._credit_received(stream, payload)
            else:
                if chunks:
                    self.events.append(DataReceived(chunks))
                    chunks = []
                self._control_received(kind, stream_id, stream, payload)
        if chunks:
            self.events.append(DataReceived(chunks))
        self.stats.bytes_app_in += total

    def _turn_around(self, stream: MuxStream) -> None:
        stream.bypass = 0
        if stream.mode != _LONG:
            stream.turn_bytes = 0
            if stream.compressor is not None:
                self.end_context(stream)
                self.wake()

    def _data_slowly(self, stream: MuxStream, flags: int, payload: bytes) -> bytes | None:
        """Flags beyond BOUNDARY: expand, keep the contexts; None when the stream was reset for it."""
        if flags & ~_KNOWN_DATA_FLAGS:
            raise RemoteProtocolError("DATA with flags that are not known")
        if flags & _LIMITED:
            stream.eager = True
        try:
            if flags & _COMPRESSED:
                payload = self._expand(stream, payload, fresh=bool(flags & _FRESH))
        except CompressedDataError as error:
            self._fail(stream, error.code, error.message)
            return None
        if flags & _END:
            self._drop_expander(stream)
        return payload

    def _expand(self, stream: MuxStream, payload: bytes, *, fresh: bool) -> bytes:
        window = check_blocks(payload, fresh=fresh, window_log_max=self.limits.window_log)
        if fresh:
            self._drop_expander(stream)
            self._expanding += 1
            self._expanding_memory += window
            stream.expander = Expander(window)
            if self._expanding > self.limits.contexts or self._expanding_memory > self.limits.context_memory:
                raise CompressedDataError("more compression contexts than announced", StreamCode.LIMIT)
        if stream.expander is None:
            raise CompressedDataError("compressed data without a context", StreamCode.PROTOCOL)
        return stream.expander.expand(payload)

    def _charge_in(self, stream: MuxStream, size: int, flags: int) -> bool:
        """Account for data beyond STREAM_WINDOW; False when the stream was reset for overrunning."""
        unreturned = stream.unreturned
        if unreturned > stream.window:
            stream.unreturned = unreturned - size
            code = StreamCode.BOMB if flags & _COMPRESSED else StreamCode.PROTOCOL
            self._fail(stream, code, "more data than there was credit for")
            return False
        self._charged_in += unreturned - max(STREAM_WINDOW, unreturned - size)
        if self._charged_in > self.limits.session_window:
            raise RemoteProtocolError("more data than the session had credit for")
        return True

    def _fail(self, stream: MuxStream, code: int, message: str) -> None:
        """Reset a stream for what its peer did, and tell its owner."""
        self.control.append(encode_reason(FrameType.RESET, stream.id, code, message))
        self.remove(stream)
        self.events.append(StreamEnded(stream, code, message, ""))
        self.wake()

    def _credit_received(self, stream: MuxStream, payload: bytes) -> None:
        consumed, grown = decode_credit(payload)
        if stream.state & LOCAL_CLOSED:
            return
        if consumed > stream.outstanding:
            raise RemoteProtocolError("credit for bytes that were never sent")
        before = stream.outstanding
        stream.outstanding = before - consumed
        stream.credit += consumed + grown
        if before > STREAM_WINDOW:
            self.charged_out -= before - max(STREAM_WINDOW, stream.outstanding)
            self._feed()
        if not stream.queued and stream.pending:
            self._requeue(stream)

    def _check_known(self, stream_id: int) -> None:
        """Frames for streams that are over are late; frames for streams that never were are wrong."""
        newest = self._peer_last if stream_id & 1 == self._peer_parity else self._next_id - 1
        if not 0 < stream_id <= newest:
            raise RemoteProtocolError(f"a frame for stream {stream_id}, which was never opened")

    def _control_received(self, kind: int, stream_id: int, stream: MuxStream | None, payload: bytes) -> None:
        if kind == FrameType.OPEN:
            self._open_received(stream_id, payload)
        elif kind == FrameType.GOAWAY:
            self.peer_refusing = True
            code, message, _ = decode_reason(payload)
            self.events.append(PeerDraining(code, message))
        elif kind in {FrameType.CLOSE, FrameType.RESET, FrameType.MODE}:
            if stream is None:
                self._check_known(stream_id)
            elif kind == FrameType.CLOSE:
                self._close_received(stream)
            elif kind == FrameType.RESET:
                code, message, sqlstate = decode_reason(payload)
                self.remove(stream)
                self.events.append(StreamEnded(stream, code, message, sqlstate))
            else:
                if len(payload) != 1 or payload[0] >= len(MODES):
                    raise RemoteProtocolError("MODE is malformed")
                stream.mode = payload[0]
                self.end_context(stream)
        elif not kind & 0x80:
            raise RemoteProtocolError(f"a frame of unknown type {kind}")

    def _open_received(self, stream_id: int, payload: bytes) -> None:
        if stream_id & 1 != self._peer_parity or stream_id <= self._peer_last:
            raise RemoteProtocolError(f"OPEN with the stream number {stream_id}")
        self._peer_last = stream_id
        kind, metadata, mode = decode_open(payload)
        refusing = self.refusing and kind not in DRAIN_KINDS
        if refusing or self._peer_count >= self.limits.max_streams:
            code, why = (
                (StreamCode.GATE_SHUTDOWN, "draining")
                if refusing
                else (StreamCode.LIMIT, f"more than {self.limits.max_streams} streams")
            )
            self.control.append(encode_reason(FrameType.RESET, stream_id, code, why))
            self.wake()
            return
        stream = self.streams[stream_id] = self._factory(self, stream_id, kind, metadata, mode)
        self._peer_count += 1
        self.stats.streams_open += 1
        self.events.append(StreamOpened(stream))

    def _close_received(self, stream: MuxStream) -> None:
        if stream.state & REMOTE_CLOSED:
            raise RemoteProtocolError("CLOSE twice")
        stream.state |= REMOTE_CLOSED
        self._discharge_in(stream)
        self._drop_expander(stream)
        self.events.append(EofReceived(stream))
        if stream.state == OVER:
            self.remove(stream)
            self.events.append(StreamEnded(stream, None, "", ""))

    def _discharge_in(self, stream: MuxStream) -> None:
        if stream.unreturned > STREAM_WINDOW:
            self._charged_in -= stream.unreturned - STREAM_WINDOW
        stream.unreturned = 0
        stream.owed = 0

    def remove(self, stream: MuxStream) -> None:
        """Forget a stream that is over and free all it held."""
        if self.streams.pop(stream.id, None) is None:
            return
        self.stats.streams_open -= 1
        if stream.id & 1 == self._peer_parity:
            self._peer_count -= 1
        stream.state = OVER
        stream.pending = []
        stream.pending_bytes = 0
        self._release_context(stream)
        self._drop_expander(stream)
        self._discharge_in(stream)
        self._discharge_out(stream)
