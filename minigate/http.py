"""HTTP through the sidecar: one connection is one stream of kind ``http``, relayed byte for byte.

minigate reads no request. It knows an answer's end only by the gate's flag (a boundary), and whether the app
has said something since; that decides what a failed stream becomes:

    the gate's data ended    the app since     the app gets
    at an answer's end       said nothing      a plain close, as any idle connection
    at an answer's end, or   said something    503 with Retry-After (502 where trying again does not help), in
    nothing came yet                           the shape of OpenAI's errors, then a close
    inside an answer         -                 a connection reset: what it has must not pass for complete

Requests are never compressed: each holds a key beside text that others may have written (CRIME). An app that
closes, or half-closes, has lost interest: its stream is reset, and the gate cancels what it does for it.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from minigate.connections import Connections
from minigate.http_reply import http_error
from minigate.relay import AppSide, GateSide, moved_error, reset_connection
from tunnel_proto.constants import StreamCode
from tunnel_proto.link import Stream, StreamError

KIND: Final = "http"
"""The kind of stream that carries an HTTP connection."""

_SAID: Final[dict[int, tuple[HTTPStatus, str, str]]] = {
    StreamCode.REFUSED: (HTTPStatus.BAD_GATEWAY, "gate_refused", "the gate refused the connection"),
    StreamCode.LIMIT: (HTTPStatus.SERVICE_UNAVAILABLE, "too_many_streams", "the link to the gate is full"),
    StreamCode.GATE_SHUTDOWN: (HTTPStatus.SERVICE_UNAVAILABLE, "gate_shutdown", "the gate shuts down"),
    StreamCode.SESSION_LOST: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "link_lost",
        "the link to the gate was lost and could not be resumed",
    ),
    StreamCode.UPSTREAM_LOST: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "upstream_lost",
        "the gate lost what it was asking",
    ),
    StreamCode.REVOKED: (HTTPStatus.FORBIDDEN, "access_revoked", "access was revoked"),
}
_OTHERWISE: Final = (HTTPStatus.BAD_GATEWAY, "tunnel_failed", "the tunnel to the gate failed")


def failure_response(error: StreamError) -> bytes:
    """The response that tells why a stream ended before it answered."""
    status, code, message = _SAID.get(error.code, _OTHERWISE)
    if error.message and error.message != message:
        message = f"{message}: {error.message}"
    return http_error(status, code, message)


class HttpSide(AppSide):
    """An HTTP app's end; ``idle`` means that every request it sent was answered in full."""

    __slots__ = ()

    def __init__(self, transport: asyncio.Transport, connections: Connections) -> None:
        super().__init__(transport, connections)
        self.authenticated()

    def data_received(self, data: bytes) -> None:
        self.idle = False
        if self.stream is not None:
            self.stream.write(data, sensitive=True)

    def eof_received(self) -> bool:
        self._cancel("the app closed its connection")
        return False  # the transport closes itself

    def linger(self) -> None:
        """The gate has said all; what the app still sends (a body that was refused) goes nowhere."""
        self._cancel("")
        super().linger()

    def fail(self, error: StreamError, *, at_boundary: bool) -> None:
        counts = self.connections.counts
        if self._ended or self.transport.is_closing() or (at_boundary and self.idle):
            self.transport.close()
        elif at_boundary:
            counts.errors["http"] += 1
            self.transport.write(failure_response(error))
            self.linger()
        else:
            counts.aborted += 1
            reset_connection(self.transport)

    def end_idle(self, error: StreamError) -> bool:
        if not self.idle or self.stream is None or self._ended:
            return False
        self._cancel(error.message)
        self.transport.close()
        return True

    @property
    def settled(self) -> bool:
        return self.idle

    def _cancel(self, message: str) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, message)


class HttpGateSide(GateSide):
    """The stream's receiver; ``boundary`` is true between answers."""

    __slots__ = ()

    def left_behind(self, stream: Stream) -> None:
        """An answer that has begun may go on once the link is back; nobody waits for one that has not."""
        if self.boundary:
            self._app.stream = None
            stream.reset(StreamCode.CANCELLED, "moved to another pool")
            self._app.fail(moved_error(settled=False), at_boundary=True)

    def data_received(self, data: bytes, boundary: bool) -> None:
        app = self._app
        self.boundary = boundary
        app.transport.write(data)
        app.idle = boundary
        if self._holding:
            self._held += len(data)
        elif app.stream is not None:
            app.stream.consumed(len(data))
