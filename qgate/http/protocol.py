"""HTTP/1.1 on a tunnel stream: uvicorn's protocol, with limits and errors of ours.

`HttpToolsProtocol` is not part of uvicorn's public interface; what is relied on here is held by
tests/qgate/test_http_protocol.py, and the dependency's range is pinned.

    what is on its way      how long it may take
    nothing                 `Patience.idle_s`, then a plain close
    a head                  `Patience.head_s` from its first byte, then 408
    a body                  `Patience.body_s`, and a second more for each `BODY_RATE` bytes of it; then 408
    an answer               as long as it takes

The clock starts anew where the tunnel's link was away: an app is not to blame for that.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qgate.http.stream_transport import StreamTransport

HEAD_MAX: Final = 32 * 1024
"""Bytes of a request's head, its first line included; most servers take 8 to 64 KiB."""


BODY_RATE: Final = 512
"""Bytes a second at which a body earns more time; the slowest modem did more."""


_BUSY: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the parts of a request may take, in seconds."""

    idle_s: float = 75.0  # SDKs keep their connections for less, so they let go first
    head_s: float = 30.0
    body_s: float = 30.0


class HttpProtocol(HttpToolsProtocol):
    """One connection. The app's errors are JSON in OpenAI's shape even where no request could be read."""

    patience = Patience()

    _in_head = True
    _head_bytes = 0
    _feeding = 0
    _timed: Literal["", "head", "body"] = ""  # what the timer is for
    _timer: asyncio.TimerHandle | None = None
    _rests: asyncio.TimerHandle | None = None
    _rests_from = 0.0
    _since = 0.0
    _arrived = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request as long as for any other."""
        super().connection_made(transport)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._time("")
        if self._rests is not None:
            self._rests.cancel()
            self._rests = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that does not end is refused at `HEAD_MAX`."""
        if self.transport.is_closing():
            return
        self._feeding = len(data)
        self._rests_from = _BUSY
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX:
                self._refuse(431, "head_too_large", f"the request's head is longer than {HEAD_MAX} bytes")
        timed: Literal["", "head", "body"] = (
            "body" if not self._in_head else "head" if self._head_bytes > 0 else ""
        )
        if timed != self._timed:
            self._time(timed)
        self._arrived += len(data)

    def on_headers_complete(self) -> None:
        """The head is read."""
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is read; the next head may follow."""
        self._in_head = True
        self._head_bytes = -self._feeding  # what is being read belonged to this message
        super().on_message_complete()

    def _time(self, what: Literal["", "head", "body"]) -> None:
        """From now on only ``what`` is waited for."""
        self._timed = what
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if what and not self.transport.is_closing():
            self._since, self._arrived = self.loop.time(), 0
            self._timer = self.loop.call_later(self._allowed, self._overdue)

    @property
    def _allowed(self) -> float:
        """Seconds that what is on its way may take in all."""
        if self._timed == "head":
            return self.patience.head_s
        return self.patience.body_s + self._arrived / BODY_RATE

    def _overdue(self) -> None:
        self._timer = None
        transport = self.transport
        if transport.is_closing():
            return
        now = self.loop.time()
        if isinstance(transport, StreamTransport):
            self._since = max(self._since, now if transport.held else transport.freed_at)
        if self._timed == "head" and self.cycle is not None and not self.cycle.response_complete:
            self._since = now  # the answer before it is still under way
        left = self._since + self._allowed - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._overdue)
            return
        self._refuse(408, "request_timeout", f"the request's {self._timed} did not come in time")

    def on_response_complete(self) -> None:
        """An answer is out: tell the sidecar where it ended, unless another one follows at once."""
        if self.pipeline:
            super().on_response_complete()
            return
        transport = self.transport
        if isinstance(transport, StreamTransport):
            transport.mark_boundary()
        # As uvicorn does it, but for a timer that would be made for each answer and almost never be due.
        self.server_state.total_requests += 1
        if not transport.is_closing():
            self.flow.resume_reading()
            self._rest()

    def _rest(self) -> None:
        """From now on nothing is on its way; one timer looks whether that lasts too long."""
        self._rests_from = self.loop.time()
        if self._rests is None:
            self._rests = self.loop.call_later(self.timeout_keep_alive, self._rested)

    def _rested(self) -> None:
        self._rests = None
        left = self._rests_from + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.timeout_keep_alive_handler()
        elif self._rests_from != _BUSY:
            self._rests = self.loop.call_later(left, self._rested)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP request."""
        self._refuse(400, "invalid_http", msg)

    def _refuse(self, status: int, code: str, message: str) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            own = not self._in_head and not self.pipeline  # what cannot be read is this answer's own request
            if cycle.response_started or not own:
                self.transport.close()  # an answer is under way: nothing may be written into it
                return
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error"}
        body = json.dumps({"error": {**error, "param": None, "code": code}}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
