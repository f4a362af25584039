"""Rosters, orders and their echoes: what this gate tells the nodes that are connected to it, and hears back.

Every node hears its own pool's newest roster when its session begins and whenever another is issued; a guest
hears the one that its home replicated to here. Orders that are still good are told in the same way. A node
answers each with where it stands, and tells of its moves by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from qgate.federation.incidents import Journal
from qgate.governance.directory import Directory
from qgate.store import Store, StoreUnavailableError
from qgate.store import movement as table
from qgate.store.movement import KeptOrder
from tunnel_proto.certificate import OnlineKey
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import PeerSession, Stream
from tunnel_proto.movement import (
    KIND_ROSTER,
    MOVED_MAX,
    STANDING_MAX,
    Record,
    Standing,
    decode_records,
)
from tunnel_proto.roster import ORDER_GOOD_S, ORDER_LIFE_S, Order, seal_order

NODE_ROLES: Final = frozenset({"client", "daemon"})
"""Roles that go by a roster."""

FIT_S: Final = 1.0
"""How often it is looked whether this pool takes returning nodes."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Heard:
    """What one session was told, and what it answered."""

    roster: bytes = b""
    orders: set[int] = field(default_factory=set)
    problem: str = ""
    standing: Standing | None = None


class Rosters:
    """The moving side of every node session at this gate.

    ``sessions()`` are those of now, ``unfit()`` says why nodes should not return to this pool yet, if so.
    """

    def __init__(
        self,
        store: Store,
        *,
        directory: Directory,
        journal: Journal,
        pool_key: bytes,
        online: OnlineKey,
        sessions: Callable[[], Iterable[PeerSession]],
        unfit: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._directory = directory
        self._journal = journal
        self._pool_key = pool_key
        self._online = online
        self._sessions = sessions
        self._unfit = unfit
        self._clock = clock
        self._heard: dict[str, Heard] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what the gate tells

    def session_opened(self, session: PeerSession) -> None:
        """A node is there: tell it what it does not know, once its session has begun."""
        if session.peer.role in NODE_ROLES:
            self._heard[session.id] = Heard()
            asyncio.get_running_loop().call_soon(self._tell, session)

    def session_closed(self, session: PeerSession) -> None:
        """It is gone."""
        self._heard.pop(session.id, None)

    def look(self) -> None:
        """Rosters or orders may have changed: tell every node what it does not know."""
        for session in list(self._sessions()):
            if session.id in self._heard:
                self._tell(session)

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """A node tells of its moves."""
        stream.receiver = _Moves(self, session, stream)

    async def run(self) -> None:
        """Keep nodes told whether this pool takes them back, until cancelled."""
        before = self._unfit()
        while True:
            await asyncio.sleep(FIT_S)
            if (now := self._unfit()) != before:
                before = now
                self.look()

    # --- orders

    async def order(
        self,
        verb: str,
        *,
        home: bytes,
        target: bytes,
        nodes: Iterable[str],
        by: str,
        pause_s: float = 0.0,
    ) -> dict[str, Any]:
        """Sign an order, keep it for every gate of the pool, and tell it: `{number, expires_at}`.

        With ``pause_s`` nothing is ordered, and `{}` returned, where some gate of the pool gave an order with
        that verb within so many seconds. ConfigError for one that no node would take.
        """
        now = int(self._clock())
        names = frozenset(nodes)
        async with self._store.transaction() as connection:
            number = await table.next_order(connection, now)
            since = datetime.fromtimestamp(now - pause_s, UTC)
            if pause_s and await table.ordered_since(connection, verb, since):
                return {}
            order = Order(
                issuer=self._pool_key,
                home=home,
                number=number,
                issued=now + ORDER_GOOD_S - ORDER_LIFE_S,
                expires=now + ORDER_GOOD_S,
                verb=verb,
                target=target,
                nodes=tuple(sorted(names)),
                by=by,
            )
            sealed = seal_order(self._online.identity, self._online.certificate, order)
            await table.keep_order(
                connection,
                KeptOrder(number, home, names, float(order.expires), sealed),
                verb=verb,
                target=target,
                by=by,
                issued=datetime.fromtimestamp(now, UTC),
            )
        return {"number": number, "expires_at": order.expires}

    def nodes(self) -> list[dict[str, Any]]:
        """A row for each node that is connected here: where it stands, as it last said."""
        rows = []
        for session in self._sessions():
            heard = self._heard.get(session.id)
            if heard is None or not session.connected:
                continue
            standing = heard.standing
            rows.append(
                {
                    "node": session.peer.name,
                    "role": session.peer.role,
                    "home": session.peer.pool,
                    "target": standing.target if standing is not None else None,
                    "mode": standing.mode if standing is not None else None,
                    "pinned": standing.pinned if standing is not None else False,
                    "serial": standing.serial if standing is not None else 0,
                    "refused": standing.refused if standing is not None else "",
                    "orders": sorted(heard.orders),
                    "streams": sum(one.kind != KIND_ROSTER for one in session.streams.values()),
                    "address": session.address,
                }
            )
        return rows

    # --- telling

    def _tell(self, session: PeerSession) -> None:
        heard = self._heard.get(session.id)
        if heard is None or session.session.over:
            return
        snapshot = self._directory.snapshot
        own = session.peer.pool == self._pool_key
        roster = snapshot.roster if own else self._directory.guest_roster(session.peer.pool) or b""
        if roster and roster != heard.roster:
            heard.roster = roster
            self._send(session, heard, {"what": "roster"}, roster)
        problem = self._unfit()
        if roster and problem != heard.problem:
            heard.problem = problem
            self._send(session, heard, {"what": "fit", "problem": problem}, b"")
        now = self._clock()
        for order in snapshot.orders:
            meant = order.home == session.peer.pool and (not order.nodes or session.peer.name in order.nodes)
            if meant and order.number not in heard.orders and order.expires > now:
                heard.orders.add(order.number)
                self._send(session, heard, {"what": "order"}, order.sealed)

    def _send(self, session: PeerSession, heard: Heard, metadata: dict[str, Any], data: bytes) -> None:
        receiver = _Echo(session, heard)
        try:
            stream = session.open_stream(KIND_ROSTER, metadata, receiver, compression="off")
        except LocalProtocolError:
            return
        receiver.stream = stream
        if data:
            stream.write(data, boundary=True)
        stream.write_eof()

    # --- hearing

    def moved(self, session: PeerSession, stream: Stream, data: bytes) -> None:
        """A node's records are in: keep them, then let it know."""
        try:
            records = decode_records(data)
        except RemoteProtocolError as error:
            stream.reset(StreamCode.PROTOCOL, error.message)
            return
        if (heard := self._heard.get(session.id)) is not None and heard.standing is not None:
            for record in records:
                if record.kind == "move":
                    standing = heard.standing
                    heard.standing = Standing(standing.serial, record.to, standing.mode, standing.pinned)
        task = asyncio.get_running_loop().create_task(self._keep(session, stream, records))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, session: PeerSession, stream: Stream, records: list[Record]) -> None:
        try:
            await self._journal.take(
                records, node=session.peer.name, role=session.peer.role, home=session.peer.pool
            )
        except StoreUnavailableError as error:
            stream.reset(StreamCode.INTERNAL, error.message)  # it tells them again
            return
        stream.write_eof()


class _Echo(Ignore):
    """What a node answers to a roster, an order or a word about this pool's health."""

    __slots__ = ("_data", "_heard", "_session", "stream")

    def __init__(self, session: PeerSession, heard: Heard) -> None:
        self._session = session
        self._heard = heard
        self._data = b""
        self.stream: Stream | None = None

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._data += data
        if self.stream is not None:
            self.stream.consumed(len(data))
            if len(self._data) > STANDING_MAX:
                self.stream.reset(StreamCode.LIMIT, f"more than {STANDING_MAX} bytes")

    def eof_received(self) -> None:
        try:
            standing = Standing.decode(self._data)
        except RemoteProtocolError as error:
            log.warning("a node's answer is malformed", node=self._session.peer.name, cause=error.message)
            return
        self._heard.standing = standing
        if standing.refused:
            log.warning("a node refused", node=self._session.peer.name, cause=standing.refused)


class _Moves(Ignore):
    """A node's ``moved`` stream."""

    __slots__ = ("_data", "_rosters", "_session", "_stream")

    def __init__(self, rosters: Rosters, session: PeerSession, stream: Stream) -> None:
        self._rosters = rosters
        self._session = session
        self._stream = stream
        self._data = b""

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._data += data
        self._stream.consumed(len(data))
        if len(self._data) > MOVED_MAX:
            self._stream.reset(StreamCode.LIMIT, f"more than {MOVED_MAX} bytes")

    def eof_received(self) -> None:
        self._rosters.moved(self._session, self._stream, self._data)
