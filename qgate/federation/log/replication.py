"""Replication of one gate, put together: the sequencer, what it serves, what it fetches, and the restored
store.

The gate makes one, registers the rules of the streams that it understands, and runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from qgate.federation.log.continuity import (
    Advanced,
    ContinuityState,
    Event,
    PeerHas,
    PeersKnown,
    Ready,
    StoreSeen,
    TailAway,
    TailReclaimed,
    TailUnproven,
    Woke,
    step,
)
from qgate.federation.log.publisher import Publisher
from qgate.federation.log.puller import Fetched, Links, Puller
from qgate.federation.log.replicas import Replicas
from qgate.federation.log.sequencer import Sequencer, sign_all
from qgate.federation.log.streams import StreamRule
from qgate.federation.log.vector import EMPTY, Head
from qgate.federation.peer import Peer
from qgate.store import Store, StoreUnavailableError
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.log import Row
from qgate.store.outbox import CHANNEL
from tunnel_proto.certificate import OnlineKey, read_online
from tunnel_proto.errors import MeshError
from tunnel_proto.log_messages import KIND_LOG

LOOK_S: Final = 5.0
"""How often the outbox is looked at although nobody told of it."""

UPKEEP_S: Final = 3600.0
RETRY_S: Final = 1.0
DISBELIEF_S: Final = 600.0
"""How long a pool that could not show what it said to have of our log is not believed again."""

RECLAIM_S: Final = 60.0
"""How long a pool may take to give our tail back, or the next part of it, before it counts as away."""

CHANCES: Final = 3
"""How often in a row a pool may go away over that before it counts as silent, where another one can be asked;
for `DISBELIEF_S`.
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LogFigures:
    """How one replica goes, for metrics. ``behind`` in entries, ``silent_s`` since its pool answered last;
    None where nothing is known yet.
    """

    head: int = 0
    behind: int | None = None
    silent_s: float | None = None
    entries: int = 0
    bytes: int = 0
    refusals: int = 0
    current: bool = False


class Peers(Protocol):
    """What is known of peers: the gate's directory."""

    def peer(self, pool_key: bytes) -> Peer | None:
        """The pool of that key, whatever its state."""

    def peers(self) -> tuple[Peer, ...]:
        """All of them, in the order of failover."""


class ServingLinks(Links, Protocol):
    """The tunnels between pools, as the gate holds them."""

    def serve(self, kind: str, flow: str, accept: Callable[..., None]) -> None:
        """Take streams of a kind."""

    def on_change(self, callback: Callable[[bytes], None]) -> None:
        """Hear of links and peers that changed."""


class Replication:
    """The log of this pool and its replicas, at this gate.

    `setting` looks a setting up by name, `clock` gives unix seconds, `note` is this gate's file of the newest
    head.
    """

    def __init__(
        self,
        store: Store,
        *,
        online: OnlineKey,
        pool_key: bytes,
        gate: str,
        peers: Peers,
        links: ServingLinks,
        setting: Callable[[str], Any],
        note: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.online = online
        self.pool_key = pool_key
        self.replicas = Replicas(store, clock=clock)
        self.sequencer = Sequencer(store, online=online, pool_key=pool_key, gate=gate, note=note, clock=clock)
        self.publisher = Publisher(
            store,
            pool_key=pool_key,
            peer=peers.peer,
            heard=self._peer_has,
            believed=self._believed,
            clock=clock,
        )
        self.pullers: dict[bytes, Puller] = {}
        self.continuity = ContinuityState()
        self.ready = Ready()
        self.signed = 0
        self.peers = peers
        self._gate = gate
        self._links = links
        self._setting = setting
        self._clock = clock
        self._heads: dict[bytes, Head] = {}
        self._disbelieved: dict[bytes, float] = {}
        self._ignored: dict[bytes, float] = {}
        self._away: Counter[bytes] = Counter()
        self._life = ""
        self._replaced = False
        self._fetching = True
        self._seen: dict[bytes, Peer] = {}
        self._stir = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        links.serve(KIND_LOG, "log", self.publisher.accept)
        links.on_change(self._link_changed)

    def register(self, rule: StreamRule) -> None:
        """Understand a stream from now on: at composition, before `run`. StreamRefused for none of ours."""
        self.replicas.rules[rule.stream.name] = rule

    def heads(self) -> Mapping[bytes, tuple[bytes, int]]:
        """(incarnation, seq) of every log in the store as this gate last saw it, by pool; ours among them."""
        return {pool: (head.incarnation, head.seq) for pool, head in self._heads.items()}

    def head(self, pool_key: bytes) -> Head:
        """The head of one log."""
        return self._heads.get(pool_key, EMPTY)

    def figures(self) -> dict[str, LogFigures]:
        """By paired pool: how the replica of its log goes at this gate."""
        now = self._clock()
        found = {}
        for key, puller in self.pullers.items():
            peer, progress = self.peers.peer(key), puller.progress
            if peer is not None:
                found[peer.name] = LogFigures(
                    head=self.head(key).seq,
                    behind=progress.behind,
                    silent_s=None if progress.heard_at is None else max(0.0, now - progress.heard_at),
                    entries=progress.entries,
                    bytes=progress.bytes,
                    refusals=progress.refusals,
                    current=progress.state == "current",
                )
        return found

    def linked(self, pool_key: bytes) -> bool:
        """Whether a link to that pool is up."""
        return self._links.up(pool_key)

    # --- life

    async def run(self) -> None:
        """Until cancelled: sign, serve, fetch."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in (
                    ("listen", self._listen),
                    ("sequence", self._sequence),
                    ("fetch", self._keep_pullers),
                    ("upkeep", self._upkeep),
                ):
                    tasks.create_task(self._keep(name, work), name=f"log: {name}")
        finally:
            await self.close()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A defect here must not end the gate, which serves without replication."""
        while True:
            try:
                await work()
            except Exception as error:
                log.error("replication failed", part=name, exc_info=error)
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """End every stream and give up what other gates may fetch now."""
        for task in (*self._tasks.values(), *self._work):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._work, return_exceptions=True)
        self._tasks.clear()
        await self.publisher.close()
        with contextlib.suppress(MeshError):
            async with self.store.connection() as connection:
                await table.give_up_leases(connection, self._gate)

    def look(self) -> None:
        """The outbox or the peers may have changed."""
        self._stir.set()
        self._changed.set()

    # --- hearing

    async def _listen(self) -> None:
        while True:
            lost = asyncio.Event()
            try:
                listener = await self.store.listen(CHANNEL, self._heard, lost=lost.set)
                try:
                    await self._look_at_store()
                    self._stir.set()
                    while not lost.is_set():
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(10.0):
                                await lost.wait()
                        await listener.check()
                finally:
                    await listener.close()
            except StoreUnavailableError:
                pass  # the directory's watch says so
            await asyncio.sleep(RETRY_S)

    def _heard(self, what: str) -> None:
        if what == "outbox":
            self._stir.set()
        else:
            self._changed.set()
            self._spawn(self._refresh(own=what.startswith("head")))

    async def _refresh(self, *, own: bool = True) -> None:
        """Read the heads; with ``own`` tell the peers of ours."""
        with contextlib.suppress(StoreUnavailableError):
            async with self.store.connection() as connection:
                mine = await table.own_head(connection)
                others = await table.replicas(connection)
            self._heads = {self.pool_key: mine.head} | {key: one.head for key, one in others.items()}
            if own:
                self.sequencer.note(mine.head)
                self.publisher.news(mine.head)

    def _link_changed(self, pool_key: bytes) -> None:
        if (puller := self.pullers.get(pool_key)) is not None:
            puller.look()
        # It may be told more now than before: have it ask for what was withheld.
        self.publisher.news(self.head(self.pool_key), pool_key)
        self._changed.set()

    # --- the restored store

    async def _look_at_store(self) -> None:
        """A store was connected: is it the one that we published from?"""
        async with self.store.connection() as connection:
            online = read_online(self.online.certificate)
            await table.put_certificates(connection, self.pool_key, [(online, self.online.certificate)])
        facts = await self.sequencer.look()
        same = facts.own.head.seq == 0 or facts.own.server == facts.server
        self._life, self._replaced = facts.life, False
        self._feed(PeersKnown(self._reachable()))
        self._feed(StoreSeen(facts.own.head, same, facts.noted, facts.noted_ours))
        async with self.store.connection() as connection:
            claims = {pool: row for pool, row in (await table.copies(connection)).items() if not row["ours"]}
            await table.clear_claims(connection, self.pool_key, claims.keys() - self._paired())
        for pool, row in claims.items():
            if pool in self._paired():
                self._feed(PeerHas(pool, Head(row["incarnation"], row["seq"], row["hash"]), ours=False))
        if not self.ready.publish:
            say = log.warning if self.continuity.suspicious or self.continuity.lost else log.debug
            say("publishing waits", reason=self.ready.reason)
            for puller in self.pullers.values():
                puller.look()
        await self._refresh(own=False)
        self.publisher.news(facts.own.head)  # who hears it asks, and so says what it has of us

    def _believed(self, pool: bytes) -> bool:
        now = time.monotonic()
        return max(self._disbelieved.get(pool, 0.0), self._ignored.get(pool, 0.0)) <= now

    def _peer_has(self, pool: bytes, head: Head, ours: bool, life: str) -> None:
        """What a peer has, compared with that life of the store: about another one it is no answer."""
        if life != self._life:
            self._replaced = bool(self._life)
            self._stir.set()
            return
        if self._ignored.get(pool, 0.0) > time.monotonic():
            return
        self._feed(PeersKnown(self._reachable()))
        self._feed(PeerHas(pool, head, ours))

    def _feed(self, event: Event) -> None:
        before = self.ready
        self.continuity, self.ready = step(self.continuity, event, time.monotonic())
        if self.ready != before:
            self._stir.set()

    def _paired(self) -> frozenset[bytes]:
        return frozenset(one.pool_key for one in self.peers.peers() if one.state == "paired")

    def _reachable(self) -> frozenset[bytes]:
        """Paired pools that can be asked: an air-gapped one has no address."""
        return frozenset(one.pool_key for one in self.peers.peers() if one.state == "paired" and one.gates)

    async def _follow_continuity(self) -> None:
        """Do what the machine asks for, until it asks for nothing."""
        while True:
            ready = self.ready
            if ready.reclaim is not None:
                await self._reclaim_from(ready.reclaim)
            elif ready.open is not None:
                head = await self.sequencer.open(ready.open, ready.reason or "the store was restored")
                if head is None:
                    await self._look_at_store()
                    continue
                log.warning("a new incarnation of our log is open", cut=ready.open.seq, reason=ready.reason)
                self._feed(Advanced(head))
            else:
                return

    async def _reclaim_from(self, pool: bytes) -> None:
        """Fetch our tail from a pool that says to have it."""
        puller = self.pullers.get(pool)
        outcome: Fetched | None = None if puller is not None else "away"
        while puller is not None and outcome is None:
            before = puller.progress.reclaimed
            try:
                async with asyncio.timeout(RECLAIM_S):
                    outcome = await puller.fetch_own()
            except TimeoutError:
                outcome = "away" if puller.progress.reclaimed == before else None
        if isinstance(outcome, Head):
            self._away.pop(pool, None)
            self._feed(TailReclaimed(pool, outcome))
            return
        until = time.monotonic() + DISBELIEF_S
        if outcome == "unproven":
            self._disbelieved[pool] = until
            async with self.store.connection() as connection:
                await table.clear_claims(connection, self.pool_key, [pool])
            self._feed(TailUnproven(pool))
            return
        self._away[pool] += 1
        if self._away[pool] >= CHANCES and self._reachable() - {pool}:
            del self._away[pool]
            self._ignored[pool] = until
        self._feed(TailAway(pool))

    # --- signing

    async def _sequence(self) -> None:
        while True:
            self._stir.clear()
            try:
                if self._replaced:
                    await self._look_at_store()
                await self._follow_continuity()
                if self.ready.publish and await self._settled():
                    self.signed += await sign_all(self.sequencer)
                    await self.sequencer.give_up_lost()
            except StoreUnavailableError:
                pass  # the directory's watch has said so already
            except MeshError as error:
                log.warning("the log cannot be written", reason=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stir.wait()
            self._feed(Woke())

    async def _settled(self) -> bool:
        """A store that lost nothing is the log's from now on. It may have been replaced since the look at it,
        before the connection that listens found out: then it is looked at first.
        """
        if await self.sequencer.settle(self._life):
            return True
        await self._look_at_store()
        return False

    # --- fetching

    async def _keep_pullers(self) -> None:
        while True:
            self._changed.clear()
            paired = self._paired()
            self._feed(PeersKnown(self._reachable()))
            for key in paired - self._tasks.keys():
                puller = self.pullers[key] = self._puller(key)
                self._tasks[key] = asyncio.get_running_loop().create_task(puller.run(), name="log: pull")
            for key in self._tasks.keys() - paired:
                self._tasks.pop(key).cancel()
                del self.pullers[key]
                await self._forget_claim(key)
            fetching = bool(self._setting("automation.replication"))
            for key in paired:
                if fetching and not self._fetching:
                    self.pullers[key].look()
                if (peer := self.peers.peer(key)) != self._seen.get(key) and peer is not None:
                    self._seen[key] = peer
                    self._link_changed(key)
            self._fetching = fetching
            await self._release(paired)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    async def _forget_claim(self, pool: bytes) -> None:
        """What somebody who is no peer any more said to have of our log stops nobody from signing."""
        with contextlib.suppress(StoreUnavailableError):
            async with self.store.connection() as connection:
                await table.clear_claims(connection, self.pool_key, [pool])

    async def _release(self, paired: frozenset[bytes]) -> None:
        """Trust, rules or masters may have changed: what is held may go on."""
        with contextlib.suppress(StoreUnavailableError):
            async with self.store.connection() as connection:
                waiting = await table.origins_waiting(connection)
            for key in waiting & paired:
                peer = self.peers.peer(key)
                if peer is not None and (taken := await self.replicas.release(peer)).wake_at is not None:
                    self.pullers[key].progress.held_until = taken.wake_at

    def _puller(self, key: bytes) -> Puller:
        return Puller(
            key,
            own_key=self.pool_key,
            gate=self._gate,
            store=self.store,
            links=self._links,
            peer=self.peers.peer,
            replicas=self.replicas,
            sequencer=self.sequencer,
            reclaim=self._reclaim,
            rate=lambda: float(self._setting("replication.backfill_kb_s")) * 1000,
            fetches=lambda: bool(self._setting("automation.replication")),
            clock=self._clock,
        )

    async def _reclaim(self, connection: Connection, row: Row) -> None:
        rule = self.replicas.rules.get(row.entry.stream)
        if rule is not None and rule.reclaim is not None and row.contents is not None:
            await rule.reclaim(connection, row.entry, row.contents.value())

    # --- upkeep

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_S)
            try:
                await self.truncate()
                await self.compare()
            except StoreUnavailableError:
                pass
            except MeshError as error:
                log.warning("upkeep of the logs failed", reason=error.message)

    async def truncate(self) -> int:
        """Replace the log's beginning by a snapshot once it is long enough; returns how many entries went."""
        keep: int = self._setting("replication.keep_entries")
        if not keep or self.head(self.pool_key).seq <= 2 * keep:
            return 0
        gone = await self.sequencer.truncate(keep=keep)
        log.info("the log's beginning was truncated", entries=gone)
        return gone

    async def compare(self) -> int:
        """Anti-entropy: where a table does not say what the log says, make it anew. Returns of how many
        pools.
        """
        mended = 0
        for key in self._paired():
            peer = self.peers.peer(key)
            if peer is None:
                continue
            async with self.store.transaction(snapshot=True) as connection:
                streams = await self.replicas.differing(connection, peer)
            if streams:
                log.warning(
                    "tables differ from a peer's log and are made anew", pool=peer.name, streams=streams
                )
                await self.replicas.rebuild(peer)
                mended += 1
        return mended

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
