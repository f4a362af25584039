"""The tunnel alone, over loopback, in two processes: echo round trips, bulk, and memory of idle streams.

    python -m tests.bench.link [--streams 32] [--seconds 3] [--idle 5000]

The gate's side runs in a child process; both use uvloop. CPU is what each process spent, in microseconds for
one frame in and one out (a round trip costs one of these at each end).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time

import uvloop

from tests.tunnel_proto.wire import Collector, Echo, certificate, next_timestamp
from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.handshake import Hello
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, TunnelClient, TunnelServer, TunnelSettings

QUESTION, ANSWER = 60, 120


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Answer(Echo):
    """Answers a small question with a small answer, bulk with itself, and says what it cost on demand."""

    def data_received(self, data: bytes, boundary: bool) -> None:
        stream = self.stream
        assert stream is not None
        stream.consumed(len(data))
        if stream.kind == "cost":
            usage = resource.getrusage(resource.RUSAGE_SELF)
            cost = {"user": usage.ru_utime, "system": usage.ru_stime, "resident": resident()}
            stream.write(json.dumps(cost).encode(), boundary=True)
        elif stream.kind == "sink":
            if boundary:
                stream.write(b"!", boundary=True)
        else:
            stream.write(bytes(ANSWER), boundary=True)


def gate() -> None:
    """The child: print port and key, serve until stdin closes."""

    async def serve() -> None:
        identity = Identity.generate()

        def authorise(_: Hello, remote_static: bytes) -> NodeCertificate:
            node = Identity.generate()
            known = certificate(node)
            return NodeCertificate(
                known.pool,
                known.role,
                known.name,
                known.verify_key,
                remote_static,
                1,
                known.not_before,
                known.not_after,
            )

        def on_stream(_: PeerSession, stream: Stream) -> None:
            receiver = Answer()
            receiver.stream = stream
            stream.receiver = receiver

        server = TunnelServer(
            identity=identity,
            chain=b"c",
            authorise=authorise,
            settings=TunnelSettings(),
            on_session=lambda _: None,
            on_stream=on_stream,
            on_session_closed=lambda _: None,
            node="gate",
            addresses=[],
        )
        await server.start("127.0.0.1", 0)
        print(json.dumps([server.listening[0][1], identity.handshake_public.hex()]), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.close()

    uvloop.run(serve())


class Asker(Collector):
    """Asks again as soon as it is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.running = True

    def data_received(self, data: bytes, boundary: bool) -> None:
        stream = self.stream
        assert stream is not None
        stream.consumed(len(data))
        self.count += 1
        if self.running:
            stream.write(bytes(QUESTION), boundary=True)


async def cost(client: TunnelClient) -> dict[str, float]:
    """The gate's own account of itself."""
    receiver = Collector()
    receiver.stream = client.open_stream("cost", {}, receiver)
    receiver.stream.write(b"?")
    await receiver.until(lambda: bool(receiver.data))
    receiver.stream.reset(0)
    result: dict[str, float] = json.loads(bytes(receiver.data))
    return result


async def echo(client: TunnelClient, streams: int, seconds: float) -> None:
    askers = []
    for _ in range(streams):
        asker = Asker()
        asker.stream = client.open_stream("ask", {}, asker)
        askers.append(asker)
    before, gate_before, begun = (
        resource.getrusage(resource.RUSAGE_SELF),
        await cost(client),
        time.monotonic(),
    )
    for asker in askers:
        assert asker.stream is not None
        asker.stream.write(bytes(QUESTION), boundary=True)
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - begun
    after, gate_after = resource.getrusage(resource.RUSAGE_SELF), await cost(client)
    count = sum(asker.count for asker in askers)
    for asker in askers:
        asker.running = False
        assert asker.stream is not None
        asker.stream.reset(0)
    each = 1e6 / count
    here = [(after.ru_utime - before.ru_utime) * each, (after.ru_stime - before.ru_stime) * each]
    there = [(gate_after[kind] - gate_before[kind]) * each for kind in ("user", "system")]
    print(
        f"{streams:4} streams: {count / elapsed:9,.0f} round trips/s; µs each, user+system: "
        f"client {here[0]:.1f}+{here[1]:.1f}, gate {there[0]:.1f}+{there[1]:.1f}"
    )


async def bulk(client: TunnelClient, size: int) -> None:
    receiver = Collector()
    stream = receiver.stream = client.open_stream("sink", {}, receiver)
    begun = time.monotonic()
    piece = os.urandom(1 << 18)
    for sent in range(0, size, len(piece)):
        stream.write(piece, boundary=sent + len(piece) >= size)
        await receiver.until(lambda: stream.writable)
        await asyncio.sleep(0)
        while not stream.writable:
            await receiver.until(lambda: stream.writable)
    await receiver.until(lambda: bool(receiver.data))
    elapsed = time.monotonic() - begun
    print(f"bulk of {size >> 20} MiB: {size / elapsed / 1e6:,.0f} MB/s")


async def idle(client: TunnelClient, count: int) -> None:
    before, gate_before = resident(), await cost(client)
    askers = []
    for _ in range(count):
        asker = Asker()
        asker.running = False
        asker.stream = client.open_stream("ask", {"startup": bytes(100), "source": "127.0.0.1:1"}, asker)
        asker.stream.write(bytes(QUESTION), boundary=True)
        askers.append(asker)
    while not all(asker.count for asker in askers):
        await asyncio.sleep(0.01)
    gate_after = await cost(client)
    print(
        f"{count} idle streams: {(resident() - before) / count:,.0f} bytes each at the client, "
        f"{(gate_after['resident'] - gate_before['resident']) / count:,.0f} at the gate"
    )


async def measure(arguments: argparse.Namespace) -> None:
    """The parent: the client's side."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.link", "--gate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    port, key = json.loads(child.stdout.readline())
    client = TunnelClient(
        identity=Identity.generate(),
        chain=b"chain",
        gate=GateAddress("gate", "127.0.0.1", port, bytes.fromhex(key)),
        settings=TunnelSettings(),
        role="client",
        next_timestamp=next_timestamp,
        on_state=lambda _: None,
    )
    client.start()
    await client.wait_up(60)
    for streams in (1, 8, arguments.streams):
        await echo(client, streams, arguments.seconds)
    await bulk(client, 512 << 20)
    await idle(client, arguments.idle)
    await client.close()
    child.stdin.close()
    child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--idle", type=int, default=5000)
    options = parser.parse_args()
    if options.gate:
        gate()
    else:
        uvloop.run(measure(options))
