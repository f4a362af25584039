"""One connection of a client to a gate, until it carries the session: proxy, handshake, RESUME."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tunnel_proto.batch import split_frames
from tunnel_proto.cipher import RecordLayer
from tunnel_proto.constants import FrameType
from tunnel_proto.errors import RemoteProtocolError, ResumeRefused, TunnelError
from tunnel_proto.frame import Resume, decode_number, decode_reason

if TYPE_CHECKING:
    from tunnel_proto.connector import TunnelClient
    from tunnel_proto.handshake import InitiatorHandshake

_PROXY_REPLY_MAX = 8192


class Dial(asyncio.Protocol):
    """Says and hears what comes before the session; from then on the transport feeds the session's pump."""

    def __init__(self, client: TunnelClient, proxy_for: str) -> None:
        self._client = client
        self._proxy_for = proxy_for  # "host:port" to CONNECT to, or empty
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._handshake: InitiatorHandshake | None = None
        self._link: RecordLayer | None = None
        self._offer: Resume | None = None
        self._spoke = False
        self._carries = False  # a session: the transport is no longer ours
        self.addresses: tuple[str, ...] = ()  # of the very process that answered
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the proxy, or speak to the gate."""
        self._transport = cast("asyncio.Transport", transport)
        if self._proxy_for:
            head = f"CONNECT {self._proxy_for} HTTP/1.1\r\nHost: {self._proxy_for}\r\n\r\n"
            self._transport.write(head.encode("ascii"))
        else:
            self._greet()

    def data_received(self, data: bytes) -> None:
        """Proxy's answer, message 2, RESUMED."""
        try:
            if self._handshake is None and self._link is None:
                self._proxy_answered(data)
            elif self._link is None:
                self._shake(data)
            else:
                self._link.feed(data)
                self._resume_answered(self._link)
        except TunnelError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        if self._handshake is not None and not self._spoke:
            self._fail(
                TunnelError(
                    "the gate closed the connection without an answer",
                    hint="is this node enrolled there and not revoked, and is the bundle the gate's own?",
                )
            )
        else:
            self._fail(TunnelError(str(error) if error else "the connection was closed"))

    def abort(self) -> None:
        """Give up before there is a session on it."""
        if not self._carries and self._transport is not None:
            self._transport.abort()

    def _greet(self) -> None:
        assert self._transport is not None
        self._handshake = self._client.handshake()
        self._transport.write(self._handshake.message_1())

    def _proxy_answered(self, data: bytes) -> None:
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > _PROXY_REPLY_MAX:
                raise RemoteProtocolError("the proxy's answer is too long")
            return
        status = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or status[1] != b"200":
            said = b" ".join(status[1:]).decode("ascii", "replace")
            raise RemoteProtocolError(f"the proxy refused: {said}")
        if rest:
            raise RemoteProtocolError("the proxy sent data of its own")
        self._greet()

    def _shake(self, data: bytes) -> None:
        assert self._handshake is not None
        assert self._transport is not None
        established = self._handshake.receive(data)
        if established is None:
            return
        self._spoke = True
        self.addresses = established.welcome.addresses
        link = self._link = RecordLayer(established.send_key, established.receive_key)
        if established.leftover:
            link.feed(established.leftover)
        self._offer = self._client.opening()
        if self._offer is None:
            self._ready(link, None)
        else:
            self._transport.write(link.seal(b"\0" + self._offer.encode()))

    def _resume_answered(self, link: RecordLayer) -> None:
        record = link.next_record()
        if record is None:
            return
        position = 1
        kind, _, _, payload = split_frames(record, position)[0]
        if kind == FrameType.REFUSED:
            raise ResumeRefused(decode_reason(payload)[1])
        if kind != FrameType.RESUMED or record[0]:
            raise RemoteProtocolError("RESUME was answered with something else")
        self._ready(link, decode_number(payload))

    def _ready(self, link: RecordLayer, peer_received: int | None) -> None:
        assert self._transport is not None
        self._client.linked(self._transport, link, self._offer, peer_received, self)
        self._carries = True
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, error: TunnelError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever dialled may have given up before the connection was made
        if self._transport is not None:
            self._transport.abort()
