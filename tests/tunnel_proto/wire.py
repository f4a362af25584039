"""A gate and a client over real sockets, with a TCP proxy between them that can cut and stall."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.handshake import Hello
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, StreamError, TunnelClient, TunnelServer


class Collector:
    """A receiver that keeps what it hears and wakes those who wait for it."""

    def __init__(self, *, consume: bool = True, on_data: Callable[[bytes], None] | None = None) -> None:
        self.data = bytearray()
        self.boundaries: list[bool] = []
        self.eof = False
        self.closed: list[StreamError | None] = []
        self.paused = 0
        self.resumed = 0
        self.lost = 0
        self.restored = 0
        self.stream: Stream | None = None
        self.consume = consume
        self.on_data = on_data
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def data_received(self, data: bytes, boundary: bool) -> None:
        self.data += data
        self.boundaries.append(boundary)
        if self.consume and self.stream is not None:
            self.stream.consumed(len(data))
        if self.on_data is not None:
            self.on_data(data)
        self._changed.set()

    def eof_received(self) -> None:
        self.eof = True
        self._changed.set()

    def stream_closed(self, error: StreamError | None) -> None:
        self.closed.append(error)
        self._changed.set()

    def pause_writing(self) -> None:
        self.paused += 1
        self._changed.set()

    def resume_writing(self) -> None:
        self.resumed += 1
        self._changed.set()

    def link_lost(self) -> None:
        self.lost += 1
        self._changed.set()

    def link_restored(self) -> None:
        self.restored += 1
        self._changed.set()


class Echo(Collector):
    """Sends back what it hears and closes when the peer does."""

    def data_received(self, data: bytes, boundary: bool) -> None:
        super().data_received(data, boundary)
        assert self.stream is not None
        self.stream.write(data, boundary=boundary)

    def eof_received(self) -> None:
        super().eof_received()
        assert self.stream is not None
        self.stream.write_eof()


class Proxy:
    """Forwards TCP; can cut all connections, swallow what they carry, and hold new ones."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target  # where new connections lead
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.accepting = True
        self.connections = 0
        self.carried = bytearray()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self.accepting:
            writer.transport.abort()
            return
        onward_reader, onward = await asyncio.open_connection(*self.target)
        self._writers |= {writer, onward}
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._copy(reader, onward), self._copy(onward_reader, writer))
        self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                self.carried += data
                writer.write(data)
                await writer.drain()
        finally:
            writer.transport.abort()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def stall(self) -> None:
        """Existing connections go silent but stay open; later ones too, until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            self._server.close()


@dataclass
class Wire:
    """Everything a test needs."""

    server: TunnelServer
    client: TunnelClient
    proxy: Proxy
    make_client: Callable[[str | None], TunnelClient]
    known: dict[bytes, NodeCertificate]
    make_server: Callable[[Sequence[str]], TunnelServer]  # another process with the same keys
    accepted: list[Collector] = field(default_factory=list)
    sessions: list[PeerSession] = field(default_factory=list)
    closed_sessions: list[PeerSession] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)  # closed in the end

    def open(self, receiver: Collector, kind: str = "echo", compression: str = "auto") -> Stream:
        stream = self.client.open_stream(kind, {"n": 1}, receiver, compression=compression)
        receiver.stream = stream
        return stream

    def admit(self, identity: Identity, name: str) -> None:
        """Let another node in."""
        self.known[identity.handshake_public] = certificate(identity, name)

    def successor(self, proxy: str | None = None) -> TunnelClient:
        """Another process of the same node."""
        return self.make_client(proxy)


def certificate(identity: Identity, name: str = "laptop") -> NodeCertificate:
    now = int(time.time())
    return NodeCertificate(
        pool=bytes(32),
        role="client",
        name=name,
        verify_key=identity.verify_key,
        handshake_public=identity.handshake_public,
        serial=1,
        not_before=now - 60,
        not_after=now + 3600,
    )


QUICK = TunnelSettings(
    resume_window_s=5.0, ping_idle_s=0.2, dead_min_s=0.3, dead_max_s=0.6, retry_min_s=0.01, retry_max_s=0.05
)

_timestamps = itertools.count(time.time_ns())


def next_timestamp() -> int:
    return next(_timestamps)


@contextlib.asynccontextmanager
async def wire(
    settings: TunnelSettings = QUICK,
    *,
    gate_settings: TunnelSettings | None = None,
    receivers: Callable[[Stream], Collector] = lambda _: Echo(),
    on_stream_here: Callable[[Stream], None] | None = None,
    addresses: Sequence[str] = (),
    port: int = 0,
    connect: bool = True,
) -> AsyncIterator[Wire]:
    """A server, a proxy and a client that knows the server; all closed in the end.

    The server says that it is to be found at ``addresses``, and listens on ``port``.
    """
    gate, node = Identity.generate(), Identity.generate()
    known = {node.handshake_public: certificate(node)}
    built: list[Wire] = []
    sessions: list[PeerSession] = []
    closed: list[PeerSession] = []
    states: list[str] = []

    def authorise(_: Hello, remote_static: bytes) -> NodeCertificate:
        if remote_static not in known:
            raise AuthenticationFailed("unknown")
        return known[remote_static]

    def on_stream(_: PeerSession, stream: Stream) -> None:
        receiver = receivers(stream)
        receiver.stream = stream
        stream.receiver = receiver
        built[0].accepted.append(receiver)

    def make_server(addresses: Sequence[str]) -> TunnelServer:
        return TunnelServer(
            identity=gate,
            chain=b"c",
            authorise=authorise,
            settings=gate_settings or settings,
            on_session=sessions.append,
            on_stream=on_stream,
            on_session_closed=closed.append,
            node="gate",
            addresses=addresses,
        )

    server = make_server(addresses)
    await server.start("127.0.0.1", port)
    proxy = Proxy(server.listening[0])
    await proxy.start()

    def make_client(connect_proxy: str | None) -> TunnelClient:
        return TunnelClient(
            identity=node,
            chain=b"chain",
            gate=GateAddress("gate", "127.0.0.1", proxy.port, gate.handshake_public),
            settings=settings,
            role="client",
            next_timestamp=next_timestamp,
            on_state=lambda client: states.append(client.state),
            instance=os.urandom(16),
            proxy=connect_proxy,
            on_stream=on_stream_here,
        )

    client = make_client(None)
    built.append(
        Wire(
            server,
            client,
            proxy,
            make_client,
            known,
            make_server,
            sessions=sessions,
            closed_sessions=closed,
            states=states,
        )
    )
    try:
        if connect:
            client.start()
            await client.wait_up(60)
        yield built[0]
    finally:
        for writer in built[0].writers:
            writer.transport.abort()
        await client.close()
        await server.close()
        await proxy.close()
