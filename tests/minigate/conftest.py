"""A minigate's door over real sockets, with stand-ins for the tunnel behind it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from minigate.connections import Connections
from minigate.listener import Listener
from minigate.settings import ListenSettings
from minigate.starting import Door, StartingApp
from minigate.tls import Certificate
from minigate.uplink import Uplink
from tests.kit.cluster import Cluster
from tests.minigate.gates import BridgedGate, Pool, RecordedGate, RecordedStream, Server, address
from tests.qgate.certificates import self_signed


@dataclass
class Wire:
    """A listening door; `gate` is the newest client of the only gate."""

    door: Door
    listener: Listener
    uplink: Uplink
    pool: Pool

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def gate(self) -> RecordedGate:
        return self.pool.made[-1]

    @property
    def connections(self) -> Connections:
        return self.door.connections

    async def stream(self, number: int = 0) -> RecordedStream:
        """The stream opened as the ``number``-th, once it is there."""
        await until(lambda: len(self.gate.opened) > number)
        return self.gate.opened[number]


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Return once ``condition()`` holds, letting the loop turn in between."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def open_wire(
    *,
    listen: ListenSettings | None = None,
    pool: Pool | None = None,
    certificate: Certificate | None = None,
    up: bool = True,
    startup_timeout_s: float = 60,
    patience_s: float = 0,
    max_connections: int = 1000,
) -> AsyncIterator[Wire]:
    """Listen on a free port, with one gate that is up unless told otherwise."""
    loop = asyncio.get_running_loop()
    pool = pool or Pool()
    connections = Connections(
        loop, max_connections=max_connections, startup_timeout_s=startup_timeout_s, patience_s=patience_s
    )

    def gates_up() -> None:
        door.gates_up()

    uplink = Uplink(pool.connect, gates_up, loop)
    door = Door(connections, uplink, certificate)
    listener = Listener()
    await listener.start(listen or ListenSettings(hosts=("127.0.0.1",), port=0), lambda: StartingApp(door))
    try:
        uplink.configure([address("hq")], b"chain")
        if up:
            pool.made[-1].become("up")
        yield Wire(door, listener, uplink, pool)
    finally:
        listener.close()
        for deadlines in (connections.waiting, connections.lingering, connections.starting):
            for one in deadlines:
                one.expired()
        for app in list(connections.live):
            app.transport.abort()
        await until(lambda: not connections.live)
        await uplink.close(0)
        connections.close()


@dataclass(frozen=True)
class KeyPair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def load(self) -> Certificate:
        return Certificate.load(self.certificate, self.key)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What the program itself runs on; its transports differ from asyncio's own in details that matter."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    pair = KeyPair(folder / "cert.pem", folder / "key.pem")
    pair.certificate.write_bytes(self_signed(key, "localhost").public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pair


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
async def bridged(postgres: Cluster) -> AsyncIterator[Wire]:
    """A wire whose streams end at a real PostgreSQL."""
    make = functools.partial(BridgedGate, server=Server("127.0.0.1", postgres.port))
    async with open_wire(pool=Pool(make), up=False) as wire:
        await until(lambda: wire.uplink.available() is not None)
        yield wire
