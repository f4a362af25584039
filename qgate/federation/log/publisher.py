"""Answers other gates' questions about logs: of our own, and of the asker's own that we hold a replica of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from qgate.federation.log.sequencer import has_entry
from qgate.federation.log.stream_ear import LogStream
from qgate.federation.log.telling import may_ask, told
from qgate.federation.log.vector import EMPTY, Head, common
from qgate.federation.peer import Peer
from qgate.store import Store, StoreUnavailableError
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.log import Row
from qgate.store.log_life import life_of
from tunnel_proto.errors import TunnelError
from tunnel_proto.link import Stream
from tunnel_proto.log_messages import (
    Certificates,
    Entries,
    Fill,
    Filled,
    Item,
    LogMessage,
    News,
    Place,
    Pull,
    Snapshot,
    Sorry,
)

ANSWER_ENTRIES: Final = 500
ANSWER_BYTES: Final = 1024 * 1024
"""Of one answer, before compression."""

log = structlog.get_logger(__name__)

Heard = Callable[[bytes, Head, bool, str], None]


class Publisher:
    """Serves streams of the kind "log". `heard` is told what a pool says that it has of our log (unless
    `believed` says that the pool has been found lying), and in which life of the store that was looked up.
    """

    def __init__(
        self,
        store: Store,
        *,
        pool_key: bytes,
        peer: Callable[[bytes], Peer | None],
        heard: Heard,
        believed: Callable[[bytes], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries_sent = 0
        self.bytes_sent = 0
        self._store = store
        self._pool = pool_key
        self._peer = peer
        self._heard = heard
        self._believed = believed
        self._clock = clock
        self._streams: dict[LogStream, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, peer: Peer, session: Any, stream: Stream) -> None:
        """Take a stream that a peer's gate opened."""
        del session
        ear = LogStream()
        ear.attach(stream)
        stream.receiver = ear
        self._streams[ear] = peer
        task = asyncio.get_running_loop().create_task(self._serve(peer, ear), name=f"log of {peer.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def news(self, head: Head, pool: bytes | None = None) -> None:
        """Our log has grown: tell whoever listens, or only that pool."""
        for ear, peer in tuple(self._streams.items()):
            if pool is None or peer.pool_key == pool:
                ear.say(News(self._pool, place(head)))

    async def close(self) -> None:
        """End every stream."""
        for ear in tuple(self._streams):
            ear.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, peer: Peer, ear: LogStream) -> None:
        try:
            while True:
                question = await ear.next()
                try:
                    await self._answer(self._peer(peer.pool_key) or peer, ear, question)
                except StoreUnavailableError as error:
                    number = getattr(question, "id", 0)
                    await ear.send(Sorry(number, "store-unavailable", error.message[:400]))
        except TunnelError as error:
            log.debug("a log stream ended", pool=peer.name, reason=error.message)
        except Exception as error:
            log.error("serving a log failed", pool=peer.name, exc_info=error)
        finally:
            self._streams.pop(ear, None)
            ear.close()

    async def _answer(self, peer: Peer, ear: LogStream, question: LogMessage) -> None:
        match question:
            case Pull():
                await self._pull(peer, ear, question)
            case Fill(number, origin, places):
                if not may_ask(peer, origin, self._pool):
                    await ear.send(Sorry(number, "not-told", "that log is not told to you"))
                    return
                async with self._store.connection() as connection:
                    rows = await table.entries_at(connection, origin, places)
                items, _ = bounded([self._item(peer, row) for row in rows])
                told_items = tuple(one for one in items if one.missing != "withheld")
                await ear.send(Filled(number, origin, told_items))
            case _:
                raise TunnelError("an answer where a question was expected")

    async def _pull(self, peer: Peer, ear: LogStream, asked: Pull) -> None:
        origin = asked.origin
        if not may_ask(peer, origin, self._pool):
            await ear.send(Sorry(asked.id, "not-told", "that log is not told to you"))
            return
        theirs = Head(asked.head.incarnation, asked.head.seq, asked.head.hash)
        async with self._store.connection() as connection:
            end = await self._end(connection, origin)
            if origin == self._pool:
                ours = await has_entry(connection, origin, theirs) or not self._believed(peer.pool_key)
                at = datetime.fromtimestamp(self._clock(), UTC)
                life = await life_of(connection)
                await table.put_copy(connection, peer.pool_key, theirs, ours=ours, how="link", at=at)
            certificates = await table.certificates(connection, origin)
            known = await table.known_at(connection, origin, [seq for seq, _ in asked.points])
            after, _ = common(asked.points, lambda seq: at_.hash if (at_ := known.get(seq)) else None)
            cut = await table.snapshot_seq(connection, origin)
            rows: list[Row] = []
            if after >= cut:
                rows = await table.entries_after(
                    connection, origin, after, count=ANSWER_ENTRIES, size=ANSWER_BYTES
                )
        if origin == self._pool:
            self._heard(peer.pool_key, theirs, ours, life)
            if not ours:
                # Our store was restored, or theirs lies. To go on would make it a fork; first we look.
                await ear.send(Sorry(asked.id, "contradicted", "this pool looks into what you have of it"))
                return
        fresh = tuple(raw for key, (_, raw) in certificates.items() if key not in asked.keys)
        if fresh:
            await ear.send(Certificates(origin, fresh[:64]))
        if after < cut:
            await self._from_snapshot(peer, ear, asked, end)
            return
        items, _ = bounded([self._item(peer, row) for row in rows])
        last = rows[len(items) - 1].entry.seq if items else after
        await self._send(ear, Entries(asked.id, origin, place(end), items, more=last < end.seq))

    async def _from_snapshot(self, peer: Peer, ear: LogStream, asked: Pull, end: Head) -> None:
        async with self._store.connection() as connection:
            raw = await table.snapshot_of(connection, asked.origin)
        if raw is None or asked.origin != self._pool:
            await ear.send(Sorry(asked.id, "truncated", "that part of the log is no longer here"))
            return
        await ear.send(Snapshot(asked.id, asked.origin, raw))
        async with self._store.connection() as connection:
            until = await table.snapshot_seq(connection, asked.origin)
            after, more = 0, True
            while more:
                rows = await table.entries_after(
                    connection, asked.origin, after, count=ANSWER_ENTRIES, size=ANSWER_BYTES
                )
                rows = [row for row in rows if row.entry.seq <= until]
                items, _ = bounded([self._item(peer, row) for row in rows])
                more = bool(items)
                after = rows[len(items) - 1].entry.seq if items else after
                await self._send(
                    ear, Entries(asked.id, asked.origin, place(end), items, more=more, kept=True)
                )

    async def _end(self, connection: Connection, origin: bytes) -> Head:
        if origin == self._pool:
            return (await table.own_head(connection)).head
        return (await table.replica(connection, origin)).head

    def _item(self, peer: Peer, row: Row) -> Item:
        return item_for(row, told(peer, row.entry.stream, origin=row.entry.pool))

    async def _send(self, ear: LogStream, answer: Entries) -> None:
        self.bytes_sent += await ear.send(answer)
        self.entries_sent += len(answer.items)


def place(head: Head) -> Place:
    """A head as it travels."""
    return Place(head.incarnation, head.seq, head.hash)


def head_of(at: Place) -> Head:
    """A head as it came."""
    return Head(at.incarnation, at.seq, at.hash) if at.seq else EMPTY


def item_for(row: Row, may_have_contents: bool) -> Item:
    """An entry as it travels: with its contents where they may be told and are still there."""
    if row.contents is None:
        return Item(row.entry.raw, missing="erased" if row.reason == "erased" else "withheld")
    if not may_have_contents:
        return Item(row.entry.raw, missing="withheld")
    return Item(row.entry.raw, row.contents.salt, row.contents.payload)


def bounded(items: list[Item]) -> tuple[tuple[Item, ...], int]:
    """As many items from the front as one message may hold (one at least), and their bytes."""
    size = count = 0
    for one in items:
        weight = len(one.entry) + len(one.payload or b"") + 64
        if count and size + weight > 2 * ANSWER_BYTES:
            break
        size += weight
        count += 1
    return tuple(items[:count]), size
