"""One session with every gate of the bundle, and in each the stream that carries reports and orders.

A worker serves all gates of its pool at once, so unlike a sidecar it dials them all. A session that was
resumed keeps its streams; after one that was lost, the control stream is opened again and begins with a full
report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from qdaemon.inventory import Inventory, Told
from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import Stream, StreamError, TunnelClient
from tunnel_proto.messages import KIND_DAEMON, Answer, Ask, Decoder, Fault, LoadProgress, Report, encode

log = structlog.get_logger()

REVIVE_S: Final = 5.0
"""Wait before a gate whose client closed for good is dialled afresh."""

NEWS_S: Final = 0.02
"""Changes within so much time are told together."""

ASK_MAX: Final = 1 << 20
"""Bytes of one order."""

Connect = Callable[[GateAddress, bytes, Callable[[TunnelClient], None]], TunnelClient]


@dataclass(eq=False, slots=True)
class GateLink:
    """One gate of the bundle."""

    gate: GateAddress
    chain: bytes
    client: TunnelClient | None = None
    state: str = "idle"
    control: Control | None = None
    revive: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class Uplink:
    """All gates of one daemon. ``on_ask`` takes an order and what to answer it with."""

    connect: Connect
    inventory: Inventory
    on_ask: Callable[[Ask, Callable[[Answer], None]], None]
    loop: asyncio.AbstractEventLoop
    links: list[GateLink] = field(default_factory=list)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _news: asyncio.TimerHandle | None = None
    _closed: bool = False

    def configure(self, gates: Iterable[GateAddress], chain: bytes) -> None:
        """Hold sessions with these gates; others, and those with an older chain, are left."""
        known = {(link.gate, link.chain): link for link in self.links}
        self.links = []
        for gate in gates:
            link = known.pop((gate, chain), None) or GateLink(gate, chain)
            self.links.append(link)
            if link.client is None:
                self._start(link)
        for link in known.values():
            self._leave(link)

    def up(self) -> list[GateLink]:
        """Gates that hold a session now."""
        return [link for link in self.links if link.client is not None and link.client.state == "up"]

    def clients(self) -> Iterator[TunnelClient]:
        """Every gate's client."""
        for link in self.links:
            if link.client is not None:
                yield link.client

    def changed(self) -> None:
        """Something that gates should know has changed: tell them in a moment."""
        if self._news is None and not self._closed:
            self._news = self.loop.call_later(NEWS_S, self.tell)

    def beat(self) -> None:
        """Send every gate a report, changed or not."""
        for link in self.links:
            if link.control is not None:
                link.control.report()

    def progress(self, message: LoadProgress) -> None:
        """Tell every gate how far a load is."""
        for link in self.links:
            if link.control is not None:
                link.control.send(message)

    async def close(self, drain: float) -> None:
        """End all sessions, each after up to ``drain`` s in which its streams may end."""
        self._closed = True
        if self._news is not None:
            self._news.cancel()
        for link in self.links:
            if link.revive is not None:
                link.revive.cancel()
            if link.control is not None:
                link.control.end()
        await asyncio.gather(*(client.close(drain) for client in self.clients()))
        await asyncio.gather(*self._closing, return_exceptions=True)

    def tell(self) -> None:
        """Tell what is new now: before an answer that a gate may act on at once."""
        if self._news is not None:
            self._news.cancel()
            self._news = None
        for link in self.links:
            if link.control is not None and self.inventory.news(link.control.told):
                link.control.report()

    # --- parts

    def _start(self, link: GateLink) -> None:
        link.revive = None
        link.client = self.connect(link.gate, link.chain, self._state_changed)
        link.client.start()

    def _leave(self, link: GateLink) -> None:
        if link.revive is not None:
            link.revive.cancel()
        client, link.client = link.client, None
        if client is not None:
            task = self.loop.create_task(client.close(0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _state_changed(self, client: TunnelClient) -> None:
        link = next((one for one in self.links if one.client is client), None)
        if link is None or self._closed:
            return
        if client.state != link.state:
            link.state = client.state
            log.info("gate", gate=link.gate.name, state=client.state, cause=client.last_error or None)
        if client.state == "up" and link.control is None:
            self._open(link, client)
        elif client.state == "closed":
            link.client = None
            link.revive = self.loop.call_later(REVIVE_S, self._start, link)

    def _open(self, link: GateLink, client: TunnelClient) -> None:
        control = Control(self, link)
        try:
            stream = client.open_stream(
                KIND_DAEMON, {"worker": self.inventory.worker, "version": self.inventory.version}, control
            )
        except LocalProtocolError as error:
            log.warning("control stream not opened", gate=link.gate.name, cause=error.message)
            return
        control.stream = stream
        link.control = control
        control.report()


class Control:
    """The control stream at one gate; reports wait while the link is full, the newest state goes then."""

    __slots__ = ("_decoder", "_link", "_paused", "_uplink", "stream", "told")

    def __init__(self, uplink: Uplink, link: GateLink) -> None:
        self._uplink = uplink
        self._link = link
        self._decoder = Decoder(ASK_MAX)
        self._paused = False
        self.stream: Stream | None = None
        self.told = Told()

    def report(self) -> None:
        """Send what the gate does not know yet."""
        if not self._paused:
            self.send(self._uplink.inventory.report(self.told))

    def send(self, message: Report | LoadProgress | Answer) -> None:
        """Send one message; an answer that is too long for one becomes a fault."""
        if self.stream is None:
            return
        try:
            data = encode(message)
        except LocalProtocolError as error:
            log.error("message not sent", kind=type(message).__name__, cause=error.message)
            if not isinstance(message, Answer):
                return
            data = encode(Answer(message.id, False, problem=too_long(error)))
        self.stream.write(data, boundary=True)

    def end(self) -> None:
        """No more reports."""
        stream, self.stream = self.stream, None
        self._link.control = None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, "the daemon stops")

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Orders."""
        if self.stream is None:
            return
        self.stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, Ask):
                    raise RemoteProtocolError("a gate says only ask on this stream")
                self._uplink.on_ask(message, self.send)
        except RemoteProtocolError as error:
            log.error("gate breaks the protocol", gate=self._link.gate.name, cause=error.message)
            stream, self.stream = self.stream, None
            stream.reset(StreamCode.PROTOCOL, error.message)
            self._gone()

    def eof_received(self) -> None:
        """The gate wants no more of it: it is draining."""
        self.end()

    def stream_closed(self, error: StreamError | None) -> None:
        """The session is gone, or the gate refused the stream."""
        if error is not None and error.code in {StreamCode.REFUSED, StreamCode.PROTOCOL}:
            log.warning("gate refused the control stream", gate=self._link.gate.name, cause=error.message)
        self.stream = None
        self._gone()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.report()

    def link_lost(self) -> None:
        """What is written meanwhile is sent once the tunnel is back; reports only need the newest state."""
        self._paused = True

    def link_restored(self) -> None:
        self._paused = False
        self.report()

    def _gone(self) -> None:
        """Open it again where the session itself lives on, after a moment."""
        link, uplink = self._link, self._uplink
        if link.control is not self:
            return
        link.control = None
        if not uplink._closed:
            uplink.loop.call_later(REVIVE_S, _open_again, uplink, link)


def _open_again(uplink: Uplink, link: GateLink) -> None:
    if link.control is None and link.client is not None and link.client.state == "up" and not uplink._closed:
        uplink._open(link, link.client)


def too_long(error: LocalProtocolError) -> Fault:
    return Fault("too_long", error.message)
