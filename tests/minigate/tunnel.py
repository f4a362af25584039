"""A real gate end of the tunnel for minigate's tests, with PostgreSQL or the test itself behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from minigate.enrolment import install, load_enrolment, write_offer
from minigate.settings import GateSettings, ListenSettings, MetricsSettings, MinigateSettings
from minigate.sidecar import Sidecar
from tests.minigate.gates import Server
from tests.tunnel_proto.wire import Proxy
from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import issue_online
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress, make_bundle, read_offer
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, StreamError, TunnelServer
from tunnel_proto.marks import ReplayMarks

DAY = 24 * 3600
QUICK = TunnelSettings(resume_window_s=10, retry_min_s=0.02, retry_max_s=0.1, dead_min_s=0.3, ping_idle_s=0.5)


class Backend(asyncio.Protocol):
    """Joins one stream to a PostgreSQL connection, flow control included; swallows AuthenticationSASL."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.transport: asyncio.Transport | None = None
        self.early = cast(bytes, stream.metadata["startup"])
        self.swallow = True
        self.left = 0
        self.head = b""
        self.eof = False

    # from PostgreSQL

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.early)
        if self.eof:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.swallow and data[:1] == b"R":
            self.swallow = False
            data = data[int.from_bytes(data[1:5], "big") + 1 :]
        if data:
            self.stream.write(data, boundary=self._walk(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream.write_eof()

    def _walk(self, data: bytes) -> bool:
        at = 0
        while at < len(data):
            if self.left:
                step = min(self.left, len(data) - at)
                self.left -= step
            else:
                step = min(5 - len(self.head), len(data) - at)
                self.head += data[at : at + step]
                if len(self.head) == 5:
                    self.left = int.from_bytes(self.head[1:], "big") - 4
                    self.head = b""
            at += step
        return not self.left and not self.head


class BackendReceiver:
    """What the app sends, to PostgreSQL."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def data_received(self, data: bytes, boundary: bool) -> None:
        if self.backend.transport is None:
            self.backend.early += data
        else:
            self.backend.transport.write(data)
        self.backend.stream.consumed(len(data))

    def eof_received(self) -> None:
        self.backend.eof = True
        if self.backend.transport is not None:
            self.backend.transport.close()

    def stream_closed(self, error: StreamError | None) -> None:
        if self.backend.transport is not None:
            self.backend.transport.abort()

    def pause_writing(self) -> None:
        if self.backend.transport is not None and not self.backend.transport.is_closing():
            self.backend.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.backend.transport is not None and not self.backend.transport.is_closing():
            self.backend.transport.resume_reading()

    def link_lost(self) -> None: ...

    def link_restored(self) -> None: ...


@dataclass
class TunnelGate:
    """One gate process's end of the tunnel: streams of kind pg go to ``upstream``."""

    pool: Identity
    name: str
    marks: Path
    upstream: Server | None = None
    identity: Identity = field(default_factory=Identity.generate)
    streams: list[Stream] = field(default_factory=list)
    cancels: list[dict[str, Any]] = field(default_factory=list)
    server: TunnelServer | None = None
    proxy: Proxy | None = None
    port: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    on_stream: Callable[[Stream], None] | None = None

    async def start(self) -> None:
        replay = ReplayMarks(self.marks)
        self.authorise = Authorisation(
            self.pool.verify_key, frozenset({"client"}), lambda node: "", replay, time.time
        )
        self.server = TunnelServer(
            identity=self.identity,
            chain=b"",
            authorise=self.authorise,
            marks=replay,
            settings=QUICK,
            on_session=lambda session: None,
            on_stream=self._on_stream,
            on_session_closed=lambda session: None,
            node=self.name,
            addresses=(),
        )
        self.replay = replay
        await self.server.start("127.0.0.1", self.port)
        self.port = self.server.listening[0][1]
        if self.proxy is None:
            self.proxy = Proxy(("127.0.0.1", self.port))
            await self.proxy.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.replay.close()
            self.server = None

    async def close(self) -> None:
        await self.stop()
        for task in self.tasks:
            task.cancel()
        if self.proxy is not None:
            await self.proxy.close()

    @property
    def address(self) -> GateAddress:
        assert self.proxy is not None
        return GateAddress(self.name, "127.0.0.1", self.proxy.port, self.identity.handshake_public)

    def _on_stream(self, session: PeerSession, stream: Stream) -> None:
        self.streams.append(stream)
        if self.on_stream is not None:
            self.on_stream(stream)
        elif stream.kind == "pg-cancel":
            self.cancels.append(stream.metadata)
            self._spawn(self._cancel(stream))
        elif self.upstream is None:
            stream.reset(StreamCode.REFUSED, "nobody home")
        else:
            backend = Backend(stream)
            stream.receiver = BackendReceiver(backend)
            self._spawn(
                asyncio.get_running_loop().create_connection(
                    lambda: backend, self.upstream.host, self.upstream.port
                )
            )

    async def _cancel(self, stream: Stream) -> None:
        assert self.upstream is not None
        packet = b"\x04\xd2\x16\x2e" + stream.metadata["pid"].to_bytes(4, "big") + stream.metadata["key"]
        reader, writer = await asyncio.open_connection(self.upstream.host, self.upstream.port)
        writer.write((len(packet) + 4).to_bytes(4, "big") + packet)
        await reader.read()
        writer.close()
        stream.write_eof()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def enrol(state_dir: Path, pool: Identity, gates: list[GateAddress], *, name: str = "laptop") -> None:
    """Carry an offer to the pool and its bundle back, as two people would."""
    now = int(time.time())
    online = Identity.generate()
    certificate = issue_online(pool, online.verify_key, not_before=now - DAY, not_after=now + DAY, serial=1)
    path, _ = write_offer(state_dir, name=name, now=now)
    text = make_bundle(
        online,
        certificate,
        read_offer(path.read_text()),
        gates=gates,
        serial=2,
        not_before=now - 60,
        not_after=now + DAY,
    )
    bundle = state_dir / "from-the-gate.json"
    bundle.write_text(text)
    install(state_dir, bundle, now=now)


@dataclass
class Mesh:
    """A minigate and its gates, all in this loop."""

    sidecar: Sidecar
    gates: list[TunnelGate]
    settings: MinigateSettings
    pool: Identity

    @property
    def port(self) -> int:
        return self.sidecar.listener.port


@asynccontextmanager
async def mesh(
    state_dir: Path, *, names: tuple[str, ...] = ("hq",), upstream: Server | None = None, **changes: Any
) -> AsyncIterator[Mesh]:
    """Start gates and an enrolled minigate with quick settings; ``changes`` are to the [gate] table."""
    pool = Identity.generate()
    gates = [TunnelGate(pool, name, state_dir / f"{name}.marks", upstream) for name in names]
    for gate in gates:
        await gate.start()
    enrol(state_dir, pool, [gate.address for gate in gates])
    settings = MinigateSettings(
        state_dir=state_dir,
        drain_s=5,
        listen=ListenSettings(hosts=("127.0.0.1",), port=0),
        gate=replace(GateSettings(patience_s=10, failover_s=0.3), **changes),
        metrics=MetricsSettings(port=0),
        tunnel=QUICK,
    )
    sidecar = Sidecar(settings, load_enrolment(state_dir, now=time.time()))
    await sidecar.start()
    try:
        yield Mesh(sidecar, gates, settings, pool)
    finally:
        await sidecar.close()
        for gate in gates:
            await gate.close()
        await asyncio.sleep(0)
