"""What this pool tells its peers for the day when it is dead, and what it takes from theirs.

`Exports.reconcile` compares what peers should know (nodes, apps with a verifier for each pool, the roster)
with what was published last, and publishes what differs, in one transaction under an advisory lock: however a
change came about, and whichever gate saw it, peers hear of it once. The stream rules are the other direction.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import structlog

from qgate.capability.finops.budgets import Budget
from qgate.capability.finops.prices import QUANTUM, plain
from qgate.federation.guests import app_payload, gone_payload, read_app, read_node, record_of, sealed
from qgate.federation.log.entry import Entry
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import Peer
from qgate.federation.sealing import open_sealed
from qgate.federation.trust import may
from qgate.governance.directory import Directory
from qgate.store import Store
from qgate.store import guests as table
from qgate.store.budgets import all_budgets
from qgate.store.database import Connection
from qgate.store.gates import gates_since
from qgate.store.guest_slices import forget_slices, put_slices
from qgate.store.outbox import publish
from tunnel_proto.certificate import OnlineKey, read_online
from tunnel_proto.constants import BUNDLE_GATES_MAX
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError, RemoteProtocolError
from tunnel_proto.packing import pack
from tunnel_proto.roster import (
    ROSTER_BACKDATE_S,
    ROSTER_LIFE_S,
    ROSTER_POOLS_MAX,
    Roster,
    RosterPool,
    read_roster,
    seal_roster,
)

GATE_DAYS: Final = 30
"""Gates that were alive within so many days are in the roster."""

TURN: Final = 256
"""Records compared in one turn of the event loop."""

log = structlog.get_logger(__name__)


class Exports:
    """What a pool publishes of its own nodes, apps and roster, and how it takes others'."""

    def __init__(
        self,
        store: Store,
        *,
        directory: Directory,
        pool_key: bytes,
        online: OnlineKey,
        gates: Callable[[], tuple[GateAddress, ...]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._directory = directory
        self._pool_key = pool_key
        self._online = online
        self._gates = gates
        self._clock = clock
        self.lacking = 0
        """Apps that a peer could not take in: created before there were spares, they need a rotation."""

    def targets(self) -> tuple[Peer, ...]:
        """Pools that our nodes may fail over to, in order."""
        return tuple(peer for peer in self._directory.peers() if may(peer, "failover", "send"))

    async def reconcile(self) -> int:
        """Publish what differs; how many entries that were. StoreUnavailableError where the store is away."""
        targets = self.targets()
        pools = tuple(peer.pool_key for peer in targets)
        async with self._store.transaction() as connection:
            await table.lock_exports(connection)
            known = {stream: await table.published(connection, stream) for stream in ("nodes", "guests")}
            if not pools and not any(known.values()) and await table.kept_roster(connection) is None:
                return 0
            self.lacking = await table.assign_spares(connection, pools)
            wanted = await self._nodes(connection) if pools else {}
            count = await self._publish(connection, "nodes", wanted, known["nodes"])
            apps = await self._apps(connection, pools)
            count += await self._publish(connection, "guests", apps, known["guests"], _online_keys(targets))
            return count + await self._roster(connection, targets)

    async def _nodes(self, connection: Connection) -> dict[bytes, dict[str, Any]]:
        nodes = await table.own_nodes(connection, self._pool_key)
        return {record_of("node", node.handshake_public): node.payload() for node in nodes}

    async def _apps(self, connection: Connection, pools: tuple[bytes, ...]) -> dict[bytes, dict[str, Any]]:
        """The payload of each app; one that was published and may not come any more is said to be gone."""
        spares = await table.given_spares(connection)
        keys = await table.own_keys(connection)
        apps = await table.own_apps(connection, self._pool_key) if pools else []
        share = Decimal(str(self._directory.setting("failover.budget_share")))
        slices = slices_of(await all_budgets(connection), share)
        wanted = {
            record_of("app", app.name): app_payload(
                replace(app, slices=slices.get(app.name, ())),
                spares=spares.get(app.name, ()),
                keys=keys.get(app.name, ()),
                pools=pools,
            )
            for app in apps
        }
        for name in await table.app_names(connection):
            wanted.setdefault(record_of("app", name), gone_payload(name))
        return wanted

    async def _publish(
        self,
        connection: Connection,
        stream: str,
        wanted: Mapping[bytes, dict[str, Any]],
        known: Mapping[bytes, bytes],
        online_keys: Mapping[bytes, bytes] | None = None,
    ) -> int:
        """Publish what differs; with ``online_keys`` what is for one pool is sealed to it, and told anew when
        that pool has another key.
        """
        count = 0
        sealing = [] if online_keys is None else sorted(online_keys.items())
        for number, (record, payload) in enumerate(wanted.items()):
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)  # thousands of nodes are looked at without holding everybody up
            gone = payload.get("gone")
            told = [payload, sealing] if sealing and not gone else payload
            digest = hashlib.blake2b(pack(told), digest_size=16).digest()
            if known.get(record) == digest or (gone and record not in known):
                continue
            if online_keys is not None and not gone:
                payload = sealed(payload, online_keys)
            try:
                await publish(connection, stream=stream, record=record, payload=payload)
            except LogProblem as problem:  # peers must not go by what it was before, nor all others wait
                name = str(payload.get("app") or payload.get("name"))
                log.error("peers cannot be told, so it does not fail over", name=name, reason=problem.message)
                if record in known:
                    await publish(connection, stream=stream, record=record, payload=gone_payload(name))
            await table.note_published(connection, stream, record, digest)
            count += 1
        return count

    # --- the roster

    async def _roster(self, connection: Connection, targets: tuple[Peer, ...]) -> int:
        """Seal another roster where its content changed or half its life is over; 1 if so."""
        kept = await table.kept_roster(connection)
        if not targets and kept is None:
            return 0
        now = int(self._clock())
        pools = (await self._home(connection), *_others(targets))
        mode = str(self._directory.setting("failover.mode"))
        digest = hashlib.blake2b(repr((mode, pools)).encode(), digest_size=16).digest()
        if kept is not None and kept.digest == digest and kept.expires - now > ROSTER_LIFE_S / 2:
            return 0
        if not pools[0].gates:
            return 0  # this gate has not said yet where it is reached
        serial = max(now, kept.serial + 1 if kept is not None else 0)
        issued = now - ROSTER_BACKDATE_S
        roster = Roster(self._pool_key, pools[0].name, serial, issued, issued + ROSTER_LIFE_S, mode, pools)
        try:
            sealed = seal_roster(self._online.identity, self._online.certificate, roster)
        except ConfigError as error:
            log.error("no roster can be issued", cause=error.message)
            return 0
        await table.keep_roster(connection, table.KeptRoster(serial, digest, float(roster.expires), sealed))
        await publish(connection, stream="roster", record=record_of("roster"), payload={"roster": sealed})
        log.info("roster issued", serial=serial, mode=mode, pools=[pool.name for pool in pools])
        return 1

    async def _home(self, connection: Connection) -> RosterPool:
        since = datetime.fromtimestamp(self._clock(), UTC) - timedelta(days=GATE_DAYS)
        gates = {*self._gates(), *await gates_since(connection, since)}
        ordered = sorted(gates, key=lambda gate: (gate.name, gate.host, gate.port))
        return RosterPool(self._pool_key, self._directory.own_pool().name, tuple(ordered[:BUNDLE_GATES_MAX]))

    # --- what peers tell

    def rules(self) -> tuple[StreamRule, ...]:
        """How entries of peers are taken."""
        return (
            StreamRule("nodes", self._take_node, forget=_forget_nodes, reclaim=_reclaim_node),
            StreamRule("guests", self._take_app, forget=_forget_apps),
            StreamRule("roster", self._take_roster, forget=_forget_roster),
        )

    async def _take_node(
        self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]
    ) -> None:
        await table.put_guest_node(connection, read_node(peer.pool_key, payload), entry.record)

    async def _take_app(
        self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]
    ) -> None:
        app = read_app(
            peer.pool_key,
            payload,
            own=self._pool_key,
            unseal=lambda box: open_sealed(self._online.identity, box),
        )
        if isinstance(app, str):
            await table.drop_guest_app(connection, peer.pool_key, app)
            await put_slices(connection, peer.pool_key, f"{peer.name}/{app}", ())
        else:
            await table.put_guest_app(connection, app, entry.record)
            await put_slices(connection, peer.pool_key, f"{peer.name}/{app.name}", app.slices)

    async def _take_roster(
        self, connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]
    ) -> None:
        del entry
        sealed = payload.get("roster")
        if not isinstance(sealed, bytes):
            raise RemoteProtocolError("a roster's entry is malformed")
        roster = read_roster(sealed, pool_key=peer.pool_key, now=self._clock(), check_times=False)
        await table.put_guest_roster(connection, peer.pool_key, roster.serial, sealed)


def slices_of(budgets: Iterable[Budget], share: Decimal) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """By app, the part of its budgets that it may spend at each pool that it fails over to. Pure."""
    found: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for one in budgets:
        if one.scope == "app" and one.hard is not None:
            amount = plain((one.hard * share).quantize(QUANTUM))
            found[one.subject] = (*found.get(one.subject, ()), (one.period, amount, one.currency))
    return found


def _online_keys(targets: tuple[Peer, ...]) -> dict[bytes, bytes]:
    """By pool, the newest online key that is known of it."""
    return {
        peer.pool_key: read_online(peer.online_certificate).verify_key
        for peer in targets
        if peer.online_certificate
    }


def _others(targets: tuple[Peer, ...]) -> tuple[RosterPool, ...]:
    reachable = [peer for peer in targets if peer.gates][: ROSTER_POOLS_MAX - 1]
    return tuple(RosterPool(peer.pool_key, peer.name, peer.gates[:BUNDLE_GATES_MAX]) for peer in reachable)


async def _forget_nodes(connection: Connection, peer: Peer) -> None:
    await table.forget_guest_nodes(connection, peer.pool_key)


async def _forget_apps(connection: Connection, peer: Peer) -> None:
    await table.forget_guest_apps(connection, peer.pool_key)
    await forget_slices(connection, peer.pool_key)


async def _forget_roster(connection: Connection, peer: Peer) -> None:
    await table.forget_guest_roster(connection, peer.pool_key)


async def _reclaim_node(connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
    """Our store was restored: who was revoked since is revoked again."""
    node = read_node(entry.pool, payload)
    if node.revoked:
        await table.revoke_reclaimed(connection, node.handshake_public)
