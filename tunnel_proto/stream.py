"""One stream: its state and what its owner may do with it. `Mux` moves its bytes.

Stream states are two bits, one for each direction that is closed:

    event          | both open    | local closed | remote closed
    ---------------+--------------+--------------+---------------
    CLOSE sent     | local closed | (error)      | over
    CLOSE received | remote closed| over         | (error)
    RESET, either  | over         | over         | over
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tunnel_proto.constants import FRESH_MAX, STREAM_WINDOW, WRITE_HIGH, FrameType
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.frame import MODES, encode, encode_reason
from tunnel_proto.sensitive import Sensitive

if TYPE_CHECKING:
    from tunnel_proto.compression import Expander, TurnCompressor
    from tunnel_proto.mux import Mux

LOCAL_CLOSED: Final = 1
REMOTE_CLOSED: Final = 2
OVER: Final = 3

RETURN_AT: Final = STREAM_WINDOW // 2  # credit of a drained stream that is worth a frame


class MuxStream:
    """One stream's state; idle it holds no buffers, queues or compression contexts."""

    __slots__ = (
        "_mux",
        "boundary",
        "bypass",
        "closing",
        "compressor",
        "credit",
        "eager",
        "expander",
        "held",
        "id",
        "kind",
        "metadata",
        "mode",
        "outstanding",
        "owed",
        "owing",
        "paused",
        "pending",
        "pending_bytes",
        "queued",
        "state",
        "turn_bytes",
        "unreturned",
        "window",
    )

    def __init__(self, mux: Mux, stream_id: int, kind: str, metadata: dict[str, Any], mode: int) -> None:
        self._mux = mux
        self.id = stream_id
        self.kind = kind
        self.metadata = metadata
        self.mode = mode
        self.state = 0
        # Sending
        self.pending: list[bytes | memoryview] = []
        self.pending_bytes = 0
        self.boundary = False  # the last pending byte is a message's last
        self.closing = False  # CLOSE follows what is pending
        self.queued = False  # in one of the round robin's queues
        self.paused = False
        self.credit = STREAM_WINDOW
        self.outstanding = 0
        self.turn_bytes = 0
        self.bypass = 0
        self.compressor: TurnCompressor | None = None
        # Receiving
        self.window = STREAM_WINDOW
        self.held = 0  # delivered, not consumed
        self.owed = 0  # consumed, not credited
        self.unreturned = 0  # delivered, not credited: held + owed
        self.owing = False  # in the queue of CREDIT frames
        self.eager = False  # the sender said that credit limits it
        self.expander: Expander | None = None

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        """Queue ``data``. LocalProtocolError after `write_eof`; dropped once the stream is over."""
        if self.closing or self.state & LOCAL_CLOSED:
            if self.state == OVER:
                return
            raise LocalProtocolError(f"stream {self.id} was closed for writing")
        if sensitive:
            data = Sensitive(data)
        elif type(data) is not bytes:
            data = bytes(data)
        size = len(data)
        if not size:
            return
        self.pending.append(data)
        self.pending_bytes = pending_bytes = self.pending_bytes + size
        self.boundary = boundary
        mux = self._mux
        if not self.queued:
            self.queued = True
            if pending_bytes <= FRESH_MAX:
                mux.fresh.append(self)
            else:
                mux.steady.append(self)
        if pending_bytes > WRITE_HIGH and not self.paused:
            mux.swollen.append(self)
        if not mux.awake:
            mux.wake()

    def write_eof(self) -> None:
        """Half-close after what is queued."""
        if self.closing or self.state & LOCAL_CLOSED:
            return
        self.closing = True
        mux = self._mux
        if not self.queued:
            self.queued = True
            mux.fresh.append(self)
        if not mux.awake:
            mux.wake()

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        """End both directions now; queued data is dropped. No callback follows."""
        if self.state != OVER:
            self._mux.say(encode_reason(FrameType.RESET, self.id, code, message, sqlstate))
            self._mux.remove(self)

    def consumed(self, n: int) -> None:
        """``n`` received bytes were written onward: their credit returns to the sender."""
        if n > self.held or n < 0:
            raise LocalProtocolError(f"{n} bytes consumed of {self.held}")
        if self.state & REMOTE_CLOSED:
            self.held -= n
            return
        held = self.held = self.held - n
        owed = self.owed = self.owed + n
        if not self.owing and ((not held and owed >= RETURN_AT) or owed >= self.window >> 2):
            self.owing = True
            mux = self._mux
            mux.credits.append(self)
            if not mux.awake:
                mux.wake()

    def set_compression(self, mode: str) -> None:
        """``off``, ``auto`` or ``long`` (history kept over turn-arounds), for both directions."""
        if mode not in MODES:
            raise LocalProtocolError(f"no compression mode {mode!r}; there are {', '.join(MODES)}")
        if self.state != OVER:
            self.mode = MODES.index(mode)
            self._mux.end_context(self)
            self._mux.say(encode(FrameType.MODE, self.id, bytes([self.mode])))

    @property
    def writable(self) -> bool:
        """False between WritePaused and WriteResumed and once nothing may be written."""
        return not (self.paused or self.closing or self.state & LOCAL_CLOSED)


def take(pending: list[bytes | memoryview], limit: int) -> bytes:
    """Remove up to ``limit`` bytes from the head of ``pending``; sensitive data comes alone."""
    head = pending[0]
    size = len(head)
    if size > limit:
        pending[0] = Sensitive(head[limit:]) if type(head) is Sensitive else memoryview(head)[limit:]
        return bytes(head[:limit])
    if len(pending) == 1 or type(head) is Sensitive:
        return bytes(pending.pop(0))
    count = 0
    total = 0
    for chunk in pending:
        if type(chunk) is Sensitive or (total and total + len(chunk) > limit):
            break
        total += len(chunk)
        count += 1
    data = b"".join(pending[:count])
    del pending[:count]
    return data
