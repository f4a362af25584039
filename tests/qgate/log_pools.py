"""Pools that replicate to each other inside one test: real stores, links that are two queues."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg

from qgate.federation.log.entry import Entry
from qgate.federation.log.replication import Replication
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import Peer
from qgate.store import Store
from qgate.store.database import Connection
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.outbox import publish
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.identity import Identity
from tunnel_proto.link import StreamError

ADDRESS = GateAddress("gate-1", "gate.example", 11437, bytes(range(32)))
TABLE = """
CREATE TABLE IF NOT EXISTS heard (origin bytea, stream text, record bytea, payload jsonb, seq bigint,
                                  PRIMARY KEY (origin, stream, record))
"""


class PipeStream:
    """One end of a stream between two pools of a test."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.receiver: Any = None
        self.other: PipeStream = self
        self.over = False
        self.bytes = 0
        self.garble: Callable[[bytes], bytes] = bytes

    def write(self, data: bytes, *, boundary: bool = False) -> None:
        if not self.over:
            self.bytes += len(data)
            self._later("data_received", self.garble(bytes(data)), boundary)

    def write_eof(self) -> None:
        self._later("eof_received")

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        del sqlstate
        if not self.over:
            self.over = True
            self._later("stream_closed", StreamError(code, message))

    def consumed(self, n: int) -> None:
        assert n >= 0

    def set_compression(self, mode: str) -> None:
        assert mode == "long"

    def _later(self, callback: str, *arguments: object) -> None:
        def call() -> None:
            if callback == "stream_closed":
                self.other.over = True
            if self.other.receiver is not None:
                getattr(self.other.receiver, callback)(*arguments)

        asyncio.get_running_loop().call_soon(call)


class PipeLinks:
    """What `PeerLinks` is to the log, without tunnels."""

    def __init__(self, pool: TestPool) -> None:
        self.pool = pool
        self.accept: Callable[..., None] = lambda *_: None
        self.listeners: list[Callable[[bytes], None]] = []
        self.cut: set[bytes] = set()
        self.streams: list[PipeStream] = []
        self.garble: Callable[[bytes], bytes] = bytes

    def up(self, pool_key: bytes) -> bool:
        return pool_key in self.pool.neighbours and pool_key not in self.cut

    def open(self, pool_key: bytes, kind: str, meta: dict[str, Any], receiver: Any) -> Any:
        del meta
        if not self.up(pool_key):
            raise LocalProtocolError("no link is up")
        there = self.pool.neighbours[pool_key]
        near, far = PipeStream(kind), PipeStream(kind)
        near.other, far.other = far, near
        near.receiver = receiver
        far.garble = there.links.garble
        self.streams.append(near)
        there.links.accept(there.peers_by_key[self.pool.key], None, far)
        return near

    def serve(self, kind: str, flow: str, accept: Callable[..., None]) -> None:
        assert (kind, flow) == ("log", "log")
        self.accept = accept

    def on_change(self, callback: Callable[[bytes], None]) -> None:
        self.listeners.append(callback)

    def changed(self, pool_key: bytes) -> None:
        for callback in self.listeners:
            callback(pool_key)

    def disconnect(self, pool_key: bytes) -> None:
        self.cut.add(pool_key)
        for stream in self.streams:
            stream.reset(6, "cut")
            stream.receiver.stream_closed(StreamError(6, "cut"))
        self.streams.clear()
        self.changed(pool_key)

    def reconnect(self, pool_key: bytes) -> None:
        self.cut.discard(pool_key)
        self.changed(pool_key)


@dataclass
class TestPool:
    """A pool with its store and its replication."""

    __test__ = False

    name: str
    store: Store
    note: Path | None = None
    identity: Identity = field(default_factory=Identity.generate)
    online: Identity = field(default_factory=Identity.generate)

    def __post_init__(self) -> None:
        now = int(time.time())
        certificate = issue_online(
            self.identity, self.online.verify_key, not_before=now - 86_400, not_after=now + 86_400, serial=1
        )
        self.key = self.identity.verify_key
        self.signing = OnlineKey(self.online, certificate)
        self.neighbours: dict[bytes, TestPool] = {}
        self.peers_by_key: dict[bytes, Peer] = {}
        self.links = PipeLinks(self)
        self.settings: dict[str, Any] = {
            "automation.replication": True,
            "replication.backfill_kb_s": 0,
            "replication.keep_entries": 0,
        }
        self.broken: set[bytes] = set()
        self.returned: list[Entry] = []
        self.task: asyncio.Task[None] | None = None
        self.make()

    def make(self) -> None:
        """A new process over the same store."""
        self.links = PipeLinks(self)
        self.replication = Replication(
            self.store,
            online=self.signing,
            pool_key=self.key,
            gate="gate-1",
            peers=self,
            links=self.links,
            setting=self.settings.__getitem__,
            note=self.note,
        )
        for stream in ("nodes", "workers", "revocations", "guests"):
            self.replication.register(
                StreamRule(stream, self._apply, forget=self._forget(stream), reclaim=self._reclaim)
            )

    # --- what the gate's directory is asked

    def peer(self, pool_key: bytes) -> Peer | None:
        return self.peers_by_key.get(pool_key)

    def peers(self) -> tuple[Peer, ...]:
        return tuple(self.peers_by_key.values())

    def meet(self, other: TestPool, level: int = 2) -> None:
        """Pair, from this side."""
        self.neighbours[other.key] = other
        self.peers_by_key[other.key] = Peer(other.key, other.name, level=level, gates=(ADDRESS,))

    def trust(self, other: TestPool, level: int) -> None:
        """Set the level from this side."""
        self.peers_by_key[other.key] = replace(self.peers_by_key[other.key], level=level)
        self.replication.look()

    # --- rules of the streams

    async def _apply(self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
        if entry.record in self.broken:
            raise RuntimeError("a bug in applying")
        await connection.execute(
            "INSERT INTO heard VALUES ($1, $2, $3, $4, $5) ON CONFLICT (origin, stream, record)"
            " DO UPDATE SET payload = excluded.payload, seq = excluded.seq",
            peer.pool_key,
            entry.stream,
            entry.record,
            payload,
            entry.seq,
        )

    def _forget(self, stream: str) -> Callable[[Connection, Peer], Any]:
        async def forget(connection: Connection, peer: Peer) -> None:
            await connection.execute(
                "DELETE FROM heard WHERE origin = $1 AND stream = $2", peer.pool_key, stream
            )

        return forget

    async def _reclaim(self, connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
        del connection, payload
        self.returned.append(entry)

    # --- what tests do

    async def say(self, stream: str, *payloads: dict[str, Any], record: bytes = b"") -> None:
        """Publish, each payload in a transaction of its own."""
        for payload in payloads:
            async with self.store.transaction() as connection:
                name = record or str(payload).encode()[:64]
                await publish(connection, stream=stream, record=name, payload=payload)

    async def heard(self, other: TestPool, stream: str = "nodes") -> list[dict[str, Any]]:
        """What was applied here of another pool's log, in the order of that log."""
        async with self.store.connection() as connection:
            rows = await connection.fetch(
                "SELECT payload FROM heard WHERE origin = $1 AND stream = $2 ORDER BY seq", other.key, stream
            )
        return [row["payload"] for row in rows]

    async def has(self, other: TestPool, count: int, stream: str = "nodes", timeout_s: float = 60) -> None:
        """Wait until so many records of another pool's are applied here."""
        async with asyncio.timeout(timeout_s):
            while len(await self.heard(other, stream)) != count:
                await asyncio.sleep(0.02)

    async def start(self) -> None:
        async with self.store.connection() as connection:
            await connection.execute(TABLE)
        self.task = asyncio.create_task(self.replication.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None


def pair(a: TestPool, b: TestPool, level: int = 2) -> None:
    """Pair two pools."""
    a.meet(b, level)
    b.meet(a, level)


@contextlib.asynccontextmanager
async def running(*pools: TestPool) -> AsyncIterator[None]:
    """Run the replication of all of them."""
    for pool in pools:
        await pool.start()
    try:
        yield
    finally:
        for pool in pools:
            await pool.stop()


async def until(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    """Wait until ``condition()`` holds; it may be a coroutine function."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.02)


NewPool = Callable[[str], Awaitable[TestPool]]


@contextlib.asynccontextmanager
async def new_pools(server: EmbeddedPostgres, folder: Path) -> AsyncIterator[NewPool]:
    """Makes pools, each with a database of its own."""
    made: list[tuple[str, Store]] = []
    administrator = await asyncpg.connect(server.dsn())

    async def new(name: str) -> TestPool:
        database = f"log_{name}_{secrets.token_hex(4)}"
        await administrator.execute(f"CREATE DATABASE {database}")
        store = await Store.open(server.dsn(database))
        made.append((database, store))
        return TestPool(name, store, note=folder / f"{name}.head")

    yield new
    for database, store in made:
        await store.close()
        await administrator.execute(f"DROP DATABASE {database} WITH (FORCE)")
    await administrator.close()
