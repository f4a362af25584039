"""A TCP proxy that misbehaves on command: delays, shapes, cuts, stalls, half-opens and reorders reconnects.

It stands between a minigate and a gate (or between any client and server) and needs no root. Every fault is a
method, so that a test decides what happens when; `torment` plays a seeded schedule of them. Run alone it is

    python -m tests.kit.proxy --listen 127.0.0.1:9000 --to 127.0.0.1:9001 --chaos 0.2:2 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

_READ_AHEAD = 256 * 1024  # bytes one direction may hold before its sender is no longer read
_SLICE = 8 * 1024  # a shaped direction sends in pieces this large, so that the rate is smooth
_RST = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of the line: seconds of one-way delay, and bytes per second (None: unlimited)."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None


class Tap(Protocol):
    """Sees every byte that arrives at the proxy, before anything is done to it."""

    def __call__(self, connection: int, *, to_server: bool, data: bytes) -> None: ...


class _End(asyncio.Protocol):
    """One socket of a connection; what it receives goes into `outgoing`."""

    def __init__(self, link: _Link, *, is_client: bool) -> None:
        self.link = link
        self.is_client = is_client
        self.transport: asyncio.Transport | None = None
        self.outgoing: _Direction | None = None
        self.incoming: _Direction | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if sock := transport.get_extra_info("socket"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.is_client:
            transport.pause_reading()
            self.link.client_arrived()

    def data_received(self, data: bytes) -> None:
        if self.outgoing is not None:
            self.outgoing.push(data)

    def eof_received(self) -> bool:
        if self.outgoing is not None:
            self.outgoing.push(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.end_lost(self, exc)

    def pause_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked = True

    def resume_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked = False
            self.incoming.pump()


class _Direction:
    """Bytes on their way from one end to the other: a queue with due times; b"" is the end of the stream."""

    def __init__(self, link: _Link, source: _End, sink: _End, *, to_server: bool) -> None:
        self.link = link
        self.source = source
        self.sink = sink
        self.to_server = to_server
        self.blocked = False
        self.queued = 0
        self._queue: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        source.outgoing = self
        sink.incoming = self

    @property
    def shape(self) -> Shape:
        proxy = self.link.proxy
        return proxy.to_server if self.to_server else proxy.to_client

    def push(self, data: bytes) -> None:
        link = self.link
        if data:
            link.proxy.bytes_seen += len(data)
            if link.proxy.tap is not None:
                link.proxy.tap(link.number, to_server=self.to_server, data=data)
        if link.swallowing:
            return
        self._queue.append((link.proxy.loop.time() + self.shape.delay_s, data))
        self.queued += len(data)
        if self.queued > _READ_AHEAD and self.source.transport is not None:
            self.source.transport.pause_reading()
        self.pump()

    def pump(self) -> None:
        """Send on whatever is due, as far as the shape, a stall and the receiver allow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop, transport = self.link.proxy.loop, self.sink.transport
        while self._queue and not self.blocked and not self.link.held and transport is not None:
            now = loop.time()
            due, data = self._queue[0]
            due = max(due, self._free_at)
            if due > now:
                self._timer = loop.call_at(due, self.pump)
                break
            self._queue.popleft()
            if not data:
                if not transport.is_closing():
                    with contextlib.suppress(OSError):  # the other side may have gone meanwhile
                        transport.write_eof()
                continue
            rate = self.shape.bytes_per_s
            if rate is not None:
                if len(data) > _SLICE:
                    self._queue.appendleft((due, data[_SLICE:]))
                    data = data[:_SLICE]
                self._free_at = max(now, self._free_at) + len(data) / rate
            self.queued -= len(data)
            transport.write(data)
        source = self.source.transport
        if self.queued <= _READ_AHEAD // 2 and source is not None and not source.is_closing():
            source.resume_reading()

    def drop(self) -> None:
        """Forget what is queued: those bytes never arrive."""
        self._queue.clear()
        self.queued = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Link:
    """A client's connection, the proxy's own to the server, and the two directions between them."""

    def __init__(self, proxy: Proxy, number: int) -> None:
        self.proxy = proxy
        self.number = number
        self.swallowing = False
        self.held = False
        self.opening: asyncio.Task[None] | None = None
        self.client = _End(self, is_client=True)
        self.server = _End(self, is_client=False)
        self.up = _Direction(self, self.client, self.server, to_server=True)
        self.down = _Direction(self, self.server, self.client, to_server=False)

    def client_arrived(self) -> None:
        self.held = self.proxy.stalled
        self.proxy.arrived(self)

    async def open(self) -> None:
        host, port = self.proxy.target
        try:
            await self.proxy.loop.create_connection(lambda: self.server, host, port)
        except OSError:
            self.abort()
            return
        if self.client.transport is not None:
            self.client.transport.resume_reading()
        self.up.pump()

    def end_lost(self, end: _End, exc: Exception | None) -> None:
        end.transport = None
        other = self.server if end is self.client else self.client
        if self.swallowing:
            if other.transport is None:
                self.proxy.forget(self)
            return
        if other.transport is None:
            self.proxy.forget(self)
        elif exc is not None:
            self.abort()
        elif end.outgoing is not None:
            end.outgoing.pump()
            other.transport.close()

    def pump(self) -> None:
        self.up.pump()
        self.down.pump()

    def abort(self) -> None:
        """Reset both sides; what was on its way is lost."""
        self.up.drop()
        self.down.drop()
        for end in (self.client, self.server):
            if end.transport is not None:
                if sock := end.transport.get_extra_info("socket"):
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                end.transport.abort()
        self.proxy.forget(self)


class Proxy:
    """Listens on 127.0.0.1 and forwards each connection to `target`, as well or as badly as it is told.

    `counts` says how often each fault was played and how many connections came. `target` may be changed
    at any time and holds for connections that come later.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        shape: Shape | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.target = target
        self.listen = listen
        self.tap = tap
        self.to_server = self.to_client = shape or Shape()
        self.counts: Counter[str] = Counter()
        self.bytes_seen = 0
        self.stalled = False
        self.refusing = False
        self._links: dict[int, _Link] = {}
        self._waiting: list[_Link] = []
        self._holding_connects = False
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen; `port` is known afterwards."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(self._connection, *self.listen)
        self.listen = self._server.sockets[0].getsockname()[:2]

    @property
    def port(self) -> int:
        return self.listen[1]

    @property
    def connections(self) -> int:
        """How many connections are open now, half-open ones included."""
        return len(self._links)

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
        opening = [link.opening for link in self._links.values() if link.opening is not None]
        for link in list(self._links.values()):
            link.swallowing = False
            link.abort()
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    # -- faults ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every open connection; bytes on their way are lost."""
        self.counts["cut"] += 1
        for link in list(self._links.values()):
            if not link.swallowing:
                link.abort()

    def stall(self) -> None:
        """Forward nothing, in either direction and on new connections too, until `resume`."""
        self.counts["stall"] += 1
        self.stalled = True
        for link in self._links.values():
            link.held = True

    def resume(self) -> None:
        """End a stall; everything held goes on in order."""
        self.stalled = False
        for link in list(self._links.values()):
            link.held = False
            link.pump()

    def half_open(self) -> None:
        """Let every open connection die unnoticed: no byte passes and no end is told; new ones work."""
        self.counts["half_open"] += 1
        for link in self._links.values():
            link.swallowing = True
            link.up.drop()
            link.down.drop()

    def hold_old(self) -> None:
        """Stall the connections open now, and only those; `release_old` lets their bytes arrive late."""
        self.counts["hold_old"] += 1
        for link in self._links.values():
            link.held = True

    def release_old(self) -> None:
        """Deliver what `hold_old` kept back, after newer connections have long been at work."""
        self.resume()

    def hold_connects(self) -> None:
        """Accept new connections without opening their other half until `release_connects`."""
        self.counts["hold_connects"] += 1
        self._holding_connects = True

    def release_connects(self, order: Callable[[list[int]], list[int]] | None = None) -> None:
        """Open the other halves kept back, newest first unless `order` (of indices) says otherwise."""
        self._holding_connects = False
        waiting, self._waiting = self._waiting, []
        indices = list(range(len(waiting)))
        for index in order(indices) if order else reversed(indices):
            self._open(waiting[index])

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections at once (True), or take them again (False)."""
        self.refusing = refusing
        self.counts["refuse"] += refusing

    def shape(self, shape: Shape) -> None:
        """Give both directions a delay and a rate from now on."""
        self.to_server = self.to_client = shape

    # -- schedule --------------------------------------------------------------------------------------------

    async def torment(
        self, duration_s: float, *, seed: int, every_s: tuple[float, float] = (0.2, 2.0), hold_s: float = 0.6
    ) -> None:
        """Play a fault drawn from `seed` every 0.2 to 2 s, for `duration_s`; then leave the line healthy.

        A stall, a held old connection and held reconnects last at most `hold_s` seconds each.
        """
        dice = random.Random(seed)
        end = self.loop.time() + duration_s
        faults = ("cut",) * 4 + ("half_open",) * 2 + ("stall", "hold_old", "hold_connects")
        while (left := end - self.loop.time()) > 0:
            await asyncio.sleep(min(left, dice.uniform(*every_s)))
            fault = dice.choice(faults)
            pause = dice.uniform(0.1, hold_s)
            if fault == "cut":
                self.cut()
            elif fault == "half_open":
                self.half_open()
            elif fault == "stall":
                self.stall()
                await asyncio.sleep(pause)
                self.resume()
            elif fault == "hold_old":
                self.hold_old()
                await asyncio.sleep(pause)
                self.release_old()
            else:
                self.hold_connects()
                self.cut()
                await asyncio.sleep(pause)
                self.release_connects()
        self.resume()
        self.release_connects()

    # -- connections -----------------------------------------------------------------------------------------

    def _connection(self) -> asyncio.Protocol:
        self.counts["connections"] += 1
        return _Link(self, self.counts["connections"]).client

    def arrived(self, link: _Link) -> None:
        """A client is there: open its other half now, or later, or never."""
        self._links[link.number] = link
        if self.refusing:
            link.abort()
        elif self._holding_connects:
            self._waiting.append(link)
        else:
            self._open(link)

    def _open(self, link: _Link) -> None:
        if link.client.transport is not None and not link.client.transport.is_closing():
            link.opening = self.loop.create_task(link.open())

    def forget(self, link: _Link) -> None:
        """Both ends of a connection are gone."""
        self._links.pop(link.number, None)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


async def _serve(options: argparse.Namespace) -> None:
    shape = Shape(options.delay_ms / 1000, options.mbit * 125_000 if options.mbit else None)
    async with Proxy(options.to, listen=options.listen, shape=shape) as proxy:
        print(json.dumps({"port": proxy.port, "seed": options.seed}), flush=True)
        if options.chaos:
            low, _, high = options.chaos.partition(":")
            await proxy.torment(options.seconds, seed=options.seed, every_s=(float(low), float(high)))
        else:
            await asyncio.sleep(options.seconds)
        print(json.dumps(dict(proxy.counts) | {"bytes": proxy.bytes_seen}), flush=True)


def main() -> int:
    """Run a proxy until its time is over or it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.proxy", description="a TCP proxy that misbehaves"
    )
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--to", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one-way delay in milliseconds")
    parser.add_argument(
        "--mbit", type=float, default=0.0, help="rate of each direction in Mbit/s; 0 is unlimited"
    )
    parser.add_argument("--chaos", default="", metavar="LOW:HIGH", help="a fault every LOW to HIGH seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
