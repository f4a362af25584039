"""The streams of one session: credit, fair order, and the frames they turn into.

Credit. A stream may have `window` decompressed bytes outstanding: sent, and not yet reported as written
onward by CREDIT. It starts at STREAM_WINDOW and the receiver grows it for readers that keep up. What a stream
has outstanding beyond STREAM_WINDOW is charged to the session, whose charge may not exceed `session_window`.
So the first STREAM_WINDOW bytes of a stream are its own: however many readers stall with grown windows, no
other stream stops. Both ends compute the charge from the same frames; the receiver's is never the larger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tunnel_proto.compression import CompressedDataError, Compression, Expander, check_blocks
from tunnel_proto.constants import (
    DRAIN_KINDS,
    FRAME_HEADER_BYTES,
    OPTIONAL_FRAME,
    STREAM_ID_MAX,
    STREAM_WINDOW,
    DataFlag,
    FrameType,
    StreamCode,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.events import DataReceived, EofReceived, PeerDraining, StreamEnded, StreamOpened
from tunnel_proto.frame import (
    MODES,
    Limits,
    decode_credit,
    decode_open,
    decode_reason,
    encode_open,
    encode_reason,
)
from tunnel_proto.outbound import Outbound
from tunnel_proto.stats import SessionStats
from tunnel_proto.stream import LOCAL_CLOSED, OVER, REMOTE_CLOSED, MuxStream

_DATA: Final = int(FrameType.DATA)
_BOUNDARY: Final = int(DataFlag.BOUNDARY)
_COMPRESSED: Final = int(DataFlag.COMPRESSED)
_FRESH: Final = int(DataFlag.FRESH)
_END: Final = int(DataFlag.END)
_LIMITED: Final = int(DataFlag.LIMITED)
_KNOWN_DATA_FLAGS: Final = _BOUNDARY | _COMPRESSED | _FRESH | _END | _LIMITED
_LONG: Final = MODES.index("long")

StreamFactory = Callable[["Mux", int, str, dict[str, Any], int], MuxStream]


class Mux(Outbound):
    """All streams of one session. ``stream_window_max`` is how far an eager reader's window may grow."""

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        compression: Compression,
        stats: SessionStats,
        stream_window_max: int,
        factory: StreamFactory = MuxStream,
    ) -> None:
        super().__init__(compression, stats, max(stream_window_max, STREAM_WINDOW))
        self.streams: dict[int, MuxStream] = {}
        self.limits = limits
        self.refusing = False  # GOAWAY was sent: the peer's new streams are refused
        self.peer_refusing = False
        self._factory = factory
        self._next_id = 1 if client else 2
        self._peer_parity = 0 if client else 1
        self._peer_last = 0
        self._peer_count = 0
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
        self.stats.streams_open += 1
        self.say(frame)
        return stream

    def goaway(self, code: int, message: str) -> None:
        """Refuse the peer's new streams from now on and tell it."""
        self.refusing = True
        self.say(encode_reason(FrameType.GOAWAY, 0, code, message))

    # --- receiving

    def _drop_expander(self, stream: MuxStream) -> None:
        if stream.expander is not None:
            self._expanding -= 1
            self._expanding_memory -= stream.expander.window
            stream.expander = None

    def receive(self, body: bytes, position: int) -> None:
        """Apply one numbered record's frames; RemoteProtocolError ends the session."""
        chunks: list[tuple[MuxStream, bytes, bool]] = []
        streams = self.streams
        total = 0
        end = len(body)
        while position < end:
            start = position + FRAME_HEADER_BYTES
            if start > end:
                raise RemoteProtocolError("a frame header is cut short")
            kind = body[position]
            flags = body[position + 1]
            stop = start + (body[position + 2] << 8 | body[position + 3])
            if stop > end:
                raise RemoteProtocolError("a frame is longer than its record")
            high = body[position + 4] << 8 | body[position + 5]
            stream_id = high << 16 | body[position + 6] << 8 | body[position + 7]
            payload = body[start:stop]
            position = stop
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
        self.charged_in += unreturned - max(STREAM_WINDOW, unreturned - size)
        if self.charged_in > self.limits.session_window:
            raise RemoteProtocolError("more data than the session had credit for")
        return True

    def _fail(self, stream: MuxStream, code: int, message: str) -> None:
        """Reset a stream for what its peer did, and tell its owner."""
        self.say(encode_reason(FrameType.RESET, stream.id, code, message))
        self.remove(stream)
        self.events.append(StreamEnded(stream, code, message, ""))

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
            self.feed()
        if not stream.queued and stream.pending:
            self.requeue(stream)

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
        elif not kind & OPTIONAL_FRAME:
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
            self.say(encode_reason(FrameType.RESET, stream_id, code, why))
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
            self.charged_in -= stream.unreturned - STREAM_WINDOW
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
        self.release_context(stream)
        self._drop_expander(stream)
        self._discharge_in(stream)
        self.discharge_out(stream)
