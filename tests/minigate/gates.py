"""Stand-ins for the tunnel: a gate that only records, and one that connects streams to a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import Stream, StreamReceiver, TunnelClient
from tunnel_proto.stats import SessionStats


class RecordedStream(Stream):
    """A stream whose writes are kept; the test plays the gate by calling its receiver."""

    __slots__ = ("client", "ended", "reset_with", "returned", "written")

    def __init__(
        self, client: RecordedGate, number: int, kind: str, metadata: dict[str, Any], receiver: StreamReceiver
    ) -> None:
        self.client = client
        self.id = number
        self.kind = kind
        self.metadata = metadata
        self.receiver = receiver
        self.written: list[tuple[bytes, bool]] = []  # data, sensitive
        self.returned = 0
        self.ended = False
        self.reset_with: tuple[int, str] | None = None

    @property
    def data(self) -> bytes:
        return b"".join(data for data, _ in self.written)

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        if self.ended:
            raise LocalProtocolError("write after write_eof")
        self.written.append((bytes(data), sensitive))

    def write_eof(self) -> None:
        self.ended = True
        if self.kind == "pg-cancel" and self.client.confirms_cancels:
            asyncio.get_running_loop().call_soon(self.receiver.stream_closed, None)

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        self.reset_with = (code, message)
        self.client.alive.pop(self.id, None)

    def consumed(self, n: int) -> None:
        self.returned += n

    def set_compression(self, mode: str) -> None: ...

    @property
    def writable(self) -> bool:
        return True


class RecordedGate(TunnelClient):
    """A client of a gate that is not there: the test sets its state."""

    def __init__(self, gate: GateAddress, on_state: Callable[[TunnelClient], None]) -> None:
        self.gate = gate
        self.state = "idle"
        self.last_error = ""
        self.stats = SessionStats()
        self.alive: dict[int, Stream] = {}
        self.opened: list[RecordedStream] = []
        self.confirms_cancels = True
        self.close_asked: list[float] = []
        self.full = False
        self._on_state = on_state

    @property
    def streams(self) -> Mapping[int, Stream]:
        return self.alive

    def become(self, state: str, error: str = "") -> None:
        self.state = state
        self.last_error = error
        self._on_state(self)

    def start(self) -> None:
        self.state = "connecting"

    async def wait_up(self, timeout: float) -> None: ...

    async def close(self, drain: float = 0) -> None:
        self.close_asked.append(drain)
        while drain and self.streams:
            await asyncio.sleep(0.01)
        self.become("closed")

    def open_stream(
        self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver, *, compression: str = "auto"
    ) -> Stream:
        if self.state not in {"up", "lost"} or self.full:
            raise LocalProtocolError("no streams now")
        stream = self._stream(kind, metadata, receiver)
        self.opened.append(stream)
        self.alive[stream.id] = stream
        return stream

    def _stream(self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver) -> RecordedStream:
        return RecordedStream(self, 2 * len(self.opened) + 1, kind, metadata, receiver)


@dataclass
class Pool:
    """What an uplink's ``connect`` makes, by the gate's name, the newest last."""

    make: Callable[[GateAddress, Callable[[TunnelClient], None]], RecordedGate] = RecordedGate
    made: list[RecordedGate] = field(default_factory=list)

    def connect(
        self, gate: GateAddress, chain: bytes, on_state: Callable[[TunnelClient], None]
    ) -> TunnelClient:
        client = self.make(gate, on_state)
        self.made.append(client)
        return client

    def newest(self, name: str) -> RecordedGate:
        return next(client for client in reversed(self.made) if client.gate.name == name)


def address(name: str, host: str = "10.0.0.1", port: int = 7443) -> GateAddress:
    return GateAddress(name, host, port, b"k" * 32)


# --- a gate that passes everything on to a PostgreSQL


class BridgedStream(RecordedStream):
    """A stream that ends at a PostgreSQL server: one TCP connection each, boundaries by walking headers."""

    __slots__ = ("bridge",)

    bridge: Bridge

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        self.written.append((data[:1], sensitive))
        self.bridge.write(bytes(data))

    def write_eof(self) -> None:
        self.bridge.write_eof()

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        super().reset(code, message)
        self.bridge.abort()

    def consumed(self, n: int) -> None:
        self.returned += n
        self.bridge.consumed(n)


class Bridge(asyncio.Protocol):
    """The server's side of a `BridgedStream`; it swallows AuthenticationSASL, which minigate has sent."""

    WINDOW = 256 * 1024

    def __init__(self, stream: BridgedStream, startup: bytes) -> None:
        self.stream = stream
        self.pending = startup
        self.transport: asyncio.Transport | None = None
        self.unread = 0
        self.most_unread = 0
        self.left = 0  # bytes of the current message still to come
        self.head = b""
        self.swallow = True
        self.eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.pending)

    def data_received(self, data: bytes) -> None:
        if self.swallow and data[:1] == b"R":
            length = int.from_bytes(data[1:5], "big") + 1
            self.swallow = False
            data = data[length:]
        if not data:
            return
        self.unread += len(data)
        self.most_unread = max(self.most_unread, self.unread)
        assert self.transport is not None
        if self.unread > self.WINDOW:
            self.transport.pause_reading()
        self.stream.receiver.data_received(data, self._walk(data))

    def _walk(self, data: bytes) -> bool:
        at = 0
        while at < len(data):
            if self.left:
                step = min(self.left, len(data) - at)
                self.left -= step
                at += step
                continue
            step = min(5 - len(self.head), len(data) - at)
            self.head += data[at : at + step]
            at += step
            if len(self.head) == 5:
                self.left = int.from_bytes(self.head[1:], "big") - 4
                self.head = b""
        return not self.left and not self.head

    def consumed(self, n: int) -> None:
        self.unread -= n
        if self.unread <= self.WINDOW and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.stream.receiver.eof_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream.reset_with is None:
            self.stream.receiver.stream_closed(None)
        self.stream.client.alive.pop(self.stream.id, None)

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self.pending += data
        else:
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


@dataclass(frozen=True)
class Server:
    """Where the PostgreSQL of a `BridgedGate` listens."""

    host: str
    port: int


class BridgedGate(RecordedGate):
    """A client that is up at once and whose streams end at ``server``."""

    def __init__(
        self, gate: GateAddress, on_state: Callable[[TunnelClient], None], *, server: Server
    ) -> None:
        super().__init__(gate, on_state)
        self.server = server
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self.become, "up")

    def _stream(self, kind: str, metadata: dict[str, Any], receiver: StreamReceiver) -> RecordedStream:
        if kind == "pg-cancel":
            stream = RecordedStream(self, 2 * len(self.opened) + 1, kind, metadata, receiver)
            self.spawn(self._cancel(metadata))
            return stream
        bridged = BridgedStream(self, 2 * len(self.opened) + 1, kind, metadata, receiver)
        bridged.bridge = Bridge(bridged, metadata["startup"])
        self.spawn(
            asyncio.get_running_loop().create_connection(
                lambda: bridged.bridge, self.server.host, self.server.port
            )
        )
        return bridged

    async def _cancel(self, metadata: dict[str, Any]) -> None:
        packet = b"\x04\xd2\x16\x2e" + metadata["pid"].to_bytes(4, "big") + metadata["key"]
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        writer.write((len(packet) + 4).to_bytes(4, "big") + packet)
        await reader.read()
        writer.close()

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
