"""Moving at one gate, put together: exports to peers, rosters to nodes, the journal of what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from qgate.federation.exports import Exports
from qgate.federation.incidents import Journal, short
from qgate.federation.peer import Peer
from qgate.federation.rebalance import PAUSE_S, BalanceState, PoolLoad, Reassign, Sight, step
from qgate.federation.rosters import Rosters
from qgate.federation.suspicion import ALIVE, DEAD, Standing
from qgate.governance.directory import Directory
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.store import Store, StoreUnavailableError
from tunnel_proto.certificate import OnlineKey
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import MeshError
from tunnel_proto.link import PeerSession, Stream
from tunnel_proto.roster import read_roster

RECONCILE_S: Final = 300.0
"""How often what peers should know is compared although nothing was heard: rosters must be renewed."""

RETRY_S: Final = 1.0
MERGE_S: Final = 0.1
"""Changes that follow one another closely are compared together."""

BALANCE_S: Final = 5.0
"""How often loads are compared, where workers may be lent."""

_CONCERNS: Final = ("app:", "key:", "node:", "peer:", "budget:", "setting:failover.", "pool")
"""Changes of the directory after which peers may have to be told something."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """An order that may be given: whom it reaches now, and who of them is elsewhere."""

    verb: str
    home: bytes
    target: bytes
    nodes: tuple[str, ...]
    names: tuple[str, str]
    reached: tuple[str, ...]
    moving: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """For people."""
        return {
            "verb": self.verb,
            "of": self.names[0],
            "to": self.names[1],
            "reached": list(self.reached),
            "moving": list(self.moving),
        }


class Movement:
    """The moving parts of one gate.

    ``loads()`` are this pool's and those of peers that are alive, ``workers()`` our workers that serve here,
    each with whether it does nothing.
    """

    def __init__(
        self,
        store: Store,
        *,
        directory: Directory,
        pool_key: bytes,
        online: OnlineKey,
        gate: str,
        gates: Callable[[], tuple[GateAddress, ...]],
        sessions: Callable[[], Iterable[PeerSession]],
        unfit: Callable[[], str],
        loads: Callable[[], tuple[PoolLoad, Mapping[bytes, PoolLoad]]],
        workers: Callable[[], Mapping[str, bool]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loads = loads
        self._workers = workers
        self._monotonic = monotonic
        self._balance = BalanceState()
        self.balanced: tuple[float, str] = (0.0, "")
        self._serial = (b"", 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self.pool_key = pool_key
        self.directory = directory
        self.journal = Journal(store, gate=gate, name=self.name, setting=directory.setting, clock=clock)
        self.exports = Exports(
            store, directory=directory, pool_key=pool_key, online=online, gates=gates, clock=clock
        )
        self.rosters = Rosters(
            store,
            directory=directory,
            journal=self.journal,
            pool_key=pool_key,
            online=online,
            sessions=sessions,
            unfit=unfit,
            clock=clock,
        )
        self._stir = asyncio.Event()
        self._stir.set()

    def name(self, pool: bytes) -> str:
        """What a pool is called here."""
        if pool == self.pool_key:
            return self.directory.own_pool().name
        peer = self.directory.peer(pool)
        return peer.name if peer is not None else short(pool)

    # --- what the gate tells

    def directory_changed(self, names: frozenset[str]) -> None:
        """Something may have to be told to peers, or to nodes."""
        if any(name.startswith(_CONCERNS) for name in names):
            self._stir.set()
        if names & {"rosters", "orders"}:
            self.rosters.look()

    def session_opened(self, session: PeerSession) -> None:
        """A node began a session."""
        self.rosters.session_opened(session)

    def session_closed(self, session: PeerSession) -> None:
        """A session is over."""
        self.rosters.session_closed(session)

    def peer_verdict(self, peer: Peer, standing: Standing) -> None:
        """What this gate thinks of a peer has changed: a dead one is an incident until it is alive again."""
        if standing.state in {ALIVE, DEAD}:
            task = asyncio.get_running_loop().create_task(self._note_verdict(peer, standing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _note_verdict(self, peer: Peer, standing: Standing) -> None:
        try:
            if standing.state == ALIVE:
                await self.journal.settle("peer_dead", peer.name, "it is alive again")
                return
            silent = round(standing.since - standing.heard_at, 1)
            saw = f"no heartbeat for {silent} s, and a probe failed"
            if standing.doubt:
                saw += "; nobody else answers either, so it may be this gate"
            await self.journal.raise_incident("peer_dead", peer.name, {"saw": saw})
        except StoreUnavailableError as error:
            log.warning("a verdict is not in the journal", pool=peer.name, cause=error.message)

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """Take a node's stream of the kind "moved"."""
        self.rosters.accept(session, stream)

    async def run(self) -> None:
        """Keep peers and nodes told, and incidents answered, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile())
            tasks.create_task(self.rosters.run())
            tasks.create_task(self.journal.run())
            tasks.create_task(self._rebalance())

    async def _rebalance(self) -> None:
        """Lend idle workers, and call them back, where the setting says so."""
        while True:
            await asyncio.sleep(BALANCE_S)
            if not self.directory.setting("failover.rebalance"):
                continue
            self._balance, order = step(self._balance, self._sight(), self._monotonic())
            self.balanced = (self.journal.now(), self._said(order))
            if order is None:
                continue
            log.info(
                "rebalancing", worker=order.worker, to=self.name(order.pool or self.pool_key), why=order.why
            )
            try:
                await self.rosters.order(
                    "reassign",
                    home=self.pool_key,
                    target=order.pool or self.pool_key,
                    nodes=(order.worker,),
                    by=f"rebalancing: {order.why}",
                    pause_s=PAUSE_S,
                )
            except StoreUnavailableError:
                continue
            except MeshError as error:  # no reason to take the gate down
                log.error("a worker cannot be lent", worker=order.worker, reason=error.message)

    def balance_preview(self) -> str:
        """What the balancer would order now, empty for nothing; nothing is ordered and nothing remembered."""
        return self._said(step(self._balance, self._sight(), self._monotonic())[1])

    def _said(self, order: Reassign | None) -> str:
        if order is None:
            return ""
        return f"{order.worker} to {self.name(order.pool or self.pool_key)}: {order.why}"

    def _sight(self) -> Sight:
        own, peers = self._loads()
        targets = {peer.pool_key for peer in self.exports.targets()}
        lent: dict[bytes, list[str]] = {}
        for row in self.rosters.nodes():
            if row["role"] == "daemon" and row["home"] == self.pool_key and row["target"] in targets:
                lent.setdefault(row["target"], []).append(row["node"])
        workers = self._workers()
        return Sight(
            own=own,
            peers={pool: load for pool, load in peers.items() if pool in targets},
            idle=[name for name, idle in workers.items() if idle],
            here=len(workers),
            lent=lent,
        )

    @property
    def serial(self) -> int:
        """The serial number of this pool's roster, 0 without one; peers are told it."""
        sealed = self.directory.snapshot.roster
        if sealed and sealed != self._serial[0]:
            found = read_roster(sealed, pool_key=self.pool_key, now=0.0, check_times=False)
            self._serial = (sealed, found.serial)
        return self._serial[1] if sealed else 0

    async def _reconcile(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECONCILE_S):
                    await self._stir.wait()
            self._stir.clear()
            try:
                count = await self.exports.reconcile()
            except StoreUnavailableError:
                self._stir.set()
                await asyncio.sleep(RETRY_S)
                continue
            except MeshError as error:  # no reason to take the gate down
                log.error("peers cannot be told", reason=error.message)
                continue
            await asyncio.sleep(MERGE_S)
            if count:
                log.info("peers are told", entries=count, apps_without_verifier=self.exports.lacking)

    # --- for people

    def plan_mode(self, mode: str) -> dict[str, Any]:
        """What a change of the mode means. ConflictError where there is nowhere to go."""
        targets = self.exports.targets()
        if mode == "auto" and not targets:
            raise ConflictError(
                "no pool is paired to which nodes may fail over",
                hint="meshctl pool pair, then meshctl pool trust POOL --level 2 on both sides",
            )
        return {
            "mode": mode,
            "was": self.directory.setting("failover.mode"),
            "targets": [peer.name for peer in targets],
            "nodes": [row["node"] for row in self.rosters.nodes() if row["home"] == self.pool_key],
        }

    def plan_order(
        self, verb: str, *, pool: str | None, of: str | None, nodes: Iterable[str] = ()
    ) -> OrderPlan:
        """Check an order and say whom it will reach. UnknownNameError, ConflictError."""
        home = self.pool_key if of is None else self._pool_named(of)
        if verb == "back":
            target = home
        else:
            if pool is None:
                raise InvalidRequestError("an order says where to", hint="meshctl failover to POOL")
            target = self._pool_named(pool)
        names = frozenset(nodes)
        own = home == self.pool_key
        if not own and (verb == "reassign" or target not in {home, self.pool_key}):
            raise ConflictError(
                f"nodes of {self.name(home)} obey this pool only where it calls them here or sends them home",
                hint=f"order it at {self.name(home)}",
            )
        if own and target not in {self.pool_key, *(peer.pool_key for peer in self.exports.targets())}:
            raise ConflictError(
                f"nodes may not fail over to {self.name(target)}",
                hint=f"meshctl pool trust {self.name(target)} --level 2 on both sides",
            )
        here = [row for row in self.rosters.nodes() if row["home"] == home]
        reached = [row for row in here if not names or row["node"] in names]
        if missing := names - {row["node"] for row in reached}:
            known = {one.name for one in self.directory.snapshot.nodes.values() if not one.revoked}
            if own and (unknown := missing - known):
                raise UnknownNameError(
                    f"there is no sidecar or worker {', '.join(sorted(unknown))}",
                    hint="meshctl sidecar list, meshctl worker list",
                )
            raise ConflictError(
                f"not connected to this gate: {', '.join(sorted(missing))}", hint="meshctl failover status"
            )
        return OrderPlan(
            verb=verb,
            home=home,
            target=target,
            nodes=tuple(sorted(names)),
            names=(self.name(home), self.name(target)),
            reached=tuple(str(row["node"]) for row in reached),
            moving=tuple(str(row["node"]) for row in reached if row["target"] != target),
        )

    def _pool_named(self, name: str) -> bytes:
        if name == self.directory.own_pool().name:
            return self.pool_key
        peer = self.directory.peer_named(name)
        if peer is None:
            raise UnknownNameError(f"there is no pool {name}", hint="meshctl pool list")
        return peer.pool_key

    async def elsewhere(self, role: str) -> dict[str, str]:
        """Nodes of ours that told last of going to another pool, and which that is. StoreUnavailableError."""
        went = await self.journal.last_targets(self.pool_key, role)
        return {node: self.name(pool) for node, pool in went.items() if pool not in {b"", self.pool_key}}

    def status(self) -> dict[str, Any]:
        """Mode, the order of pools, and the nodes that are connected here with where they stand."""
        targets = self.exports.targets()
        nodes = [
            {
                **row,
                "home": self.name(row["home"]),
                "target": None if row["target"] is None else self.name(row["target"]),
            }
            for row in self.rosters.nodes()
        ]
        return {
            "pool": self.name(self.pool_key),
            "mode": self.directory.setting("failover.mode"),
            "targets": [
                {"pool": peer.name, "level": peer.level, "gates": len(peer.gates)} for peer in targets
            ],
            "guests_from": sorted(
                {self.name(node.pool) for node in self.directory.snapshot.guest_list.nodes.values()}
            ),
            "guest_apps": sorted(self.directory.snapshot.guests),
            "apps_without_verifier": self.exports.lacking,
            "nodes": nodes,
        }
