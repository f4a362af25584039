"""One pool: a store, its gates, and the log that they write and fetch, driven as the programs drive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from qgate.federation.log import continuity, hlc
from qgate.federation.log.continuity import (
    Advanced,
    ContinuityState,
    PeerHas,
    PeersKnown,
    Ready,
    StoreSeen,
    TailReclaimed,
    TailUnproven,
    Woke,
)
from qgate.federation.log.entry import Contents, Entry, check_contents, check_signature, make_entry
from qgate.federation.log.incarnation import incarnation_payload, supersedes
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.replica import (
    Accepted,
    Duplicate,
    Forked,
    Missing,
    Received,
    ReplicaState,
    Terms,
    judge,
    receive,
    release,
)
from qgate.federation.log.streams import INCARNATION, OWN_STREAMS, STREAMS, published_stream
from qgate.federation.log.vector import EMPTY, Head, common, points
from tests.sim.authority import AUTHORITY, EPOCH, Authority
from tests.sim.elections import Elections
from tests.sim.jobs import Desk, Jobs
from tests.sim.liveness import Liveness
from tests.sim.store import Replica, Row, Store, Waiting
from tunnel_proto.certificate import OnlineCertificate, issue_online, read_online
from tunnel_proto.identity import Identity

if TYPE_CHECKING:
    from tests.sim.world import World

BATCH = 50
LOST_PATIENCE_S = 200.0
Place = tuple[Entry, Contents | None, Missing]
"""An entry as it travels: with its contents, or with the word why they are missing."""


@dataclass(eq=False, slots=True)
class Gate:
    """One gate. ``noted`` is its own file of the newest head, ``offset`` how wrong its calendar is.

    ``run`` counts its processes; what a process knows is forgotten when it ends.
    """

    name: str
    run: int = 1
    alive: bool = True
    paused: bool = False
    offset: float = 0.0
    noted: Head | None = None
    continuity: ContinuityState = field(default_factory=ContinuityState)
    ready: Ready = field(default_factory=Ready)
    connection: int = -1
    desk: Desk = field(default_factory=Desk)
    liveness: Liveness = field(init=False)

    def begin(self) -> None:
        """A new process, with what is on its disk."""
        self.alive, self.connection = True, -1
        self.run += 1
        self.continuity, self.ready = ContinuityState(), Ready()
        self.desk = Desk()
        self.liveness.begin()

    @property
    def working(self) -> bool:
        """Whether it does anything at all."""
        return self.alive and not self.paused


class Pool:
    """One pool with two gates. ``trust`` is this pool's level of trust in each peer."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        entropy = world.heap.random.randbytes
        identity, self.online = (Identity(entropy(32), entropy(32)) for _ in range(2))
        self.key = identity.verify_key
        self.certified = issue_online(
            identity,
            self.online.verify_key,
            not_before=int(EPOCH) - 10**6,
            not_after=int(EPOCH) + 10**6,
            serial=1,
        )
        self.certificate: OnlineCertificate = read_online(self.certified)
        self.gates = [Gate(f"{name}-1"), Gate(f"{name}-2")]
        self.store = Store(server=1, settled=0)
        self.authority = Authority(self)
        self.elections = Elections(self)
        self.trust: dict[bytes, int] = {}
        self.fastest = 0.0  # how far ahead a calendar here ever was
        self.backups: list[tuple[Store, dict[str, Head | None]]] = []
        self.jobs = Jobs(self)
        for gate in self.gates:
            gate.liveness = Liveness(self, gate)
            world.heap.every(1.0, lambda gate=gate: self.turn(gate))  # type: ignore[misc]
            world.heap.every(2.0, lambda gate=gate: self.pull(gate))  # type: ignore[misc]
        world.heap.every(world.write_every_s, self.write)
        world.heap.every(60.0, self.back_up)

    @property
    def serving(self) -> bool:
        """Whether a node finds a gate here that takes work."""
        return self.store.up and any(gate.working for gate in self.gates)

    @property
    def awake(self) -> bool:
        """Whether anybody answers a handshake."""
        return any(gate.working for gate in self.gates)

    def entrance(self, whose: Gate) -> Gate | None:
        """The gate here that a tunnel of another pool's gate leads to: the first that is there."""
        del whose
        return next((gate for gate in self.gates if gate.working), None)

    # --- local life

    def write(self) -> None:
        """Something changes here that peers should know."""
        if not self.serving or self.store.full or not self.world.writing:
            return
        chance = self.world.heap.random
        stream = chance.choice(self.world.streams)
        published_stream(stream)
        self.say(stream, bytes([chance.randrange(24)]), {"value": chance.randbytes(12)})
        self.authority.write()
        if chance.random() < 0.1:
            local = chance.choice(("settings", "audit", "incidents", "employees", "api-keys"))
            try:
                published_stream(local)
            except LogProblem:
                return
            self.say(local, b"local", {"value": self.world.canary})

    def say(self, stream: str, record: bytes, value: Mapping[str, object], epoch: int = 0) -> None:
        """Leave something to be signed."""
        self.store.outbox.append(Waiting(stream, record, value, epoch))

    def back_up(self) -> None:
        """What a backup, or a standby that lags, would have."""
        if self.store.up:
            self.backups = [
                *self.backups[-4:],
                (self.store.copy(), {one.name: one.noted for one in self.gates}),
            ]

    def unix(self, gate: Gate) -> float:
        """What a gate's calendar says."""
        return EPOCH + self.world.heap.now + gate.offset

    # --- signing

    def turn(self, gate: Gate) -> None:
        """What a gate does every second: compare the store, then sign what waits."""
        if not gate.working:
            return
        self.jobs.turn(gate)
        if not self.store.up:
            return
        now = self.world.heap.now
        if gate.connection != self.store.connection:
            gate.connection = self.store.connection
            store = self.store
            same = store.head.seq == 0 or store.settled == store.server
            self._feed(gate, PeersKnown(frozenset(self.trust)))
            noted = gate.noted
            self._feed(gate, StoreSeen(store.head, same, noted, noted is None or store.has(noted)))
            for pool, head in self.store.claims.items():
                self._feed(gate, PeerHas(pool, head, ours=False))
        self._feed(gate, Woke())
        if gate.ready.open is not None:
            self._open(gate, gate.ready.open)
        elif gate.ready.reclaim is not None:
            self._ask_back(gate, gate.ready.reclaim)
        elif gate.ready.publish:
            self._sign(gate, now)

    def _feed(self, gate: Gate, event: continuity.Event) -> None:
        gate.continuity, gate.ready = continuity.step(gate.continuity, event, self.world.heap.now)

    def _sign(self, gate: Gate, now: float) -> None:
        store = self.store
        if store.full or store.claims:
            return
        if store.head.seq and store.settled != store.server:
            if gate.continuity.phase == "publishing" and not gate.continuity.suspicious:
                store.settled, store.restored_at = store.server, now
            return
        self._give_up()
        if not store.outbox:
            return
        if store.head.seq == 0:
            self._incarnate(gate, EMPTY, "the log begins")
        batch, store.outbox = store.outbox[:BATCH], store.outbox[BATCH:]
        for one in batch:
            self._append(gate, store.head, one)
        gate.noted = store.head
        self._feed(gate, Advanced(store.head))

    def _open(self, gate: Gate, cut: Head) -> None:
        if self.store.full:
            return
        if self.store.head != cut:
            gate.connection = -1  # a sibling was faster: look again
            return
        self._incarnate(gate, cut, gate.ready.reason)
        self.store.restored_at = self.world.heap.now
        self.store.claims.clear()
        gate.noted = self.store.head
        self._feed(gate, Advanced(self.store.head))

    def _incarnate(self, gate: Gate, cut: Head, reason: str) -> None:
        entropy = self.world.heap.random.randbytes
        after = Head(entropy(16), cut.seq, cut.hash)
        self._append(gate, after, Waiting(INCARNATION, entropy(16), incarnation_payload(cut, reason)))

    def _append(self, gate: Gate, after: Head, what: Waiting) -> None:
        store = self.store
        store.hlc = hlc.tick(store.hlc, self.unix(gate))
        contents = Contents.of(what.value, self.world.heap.random.randbytes(32))
        entry = make_entry(
            self.online,
            pool=self.key,
            incarnation=after.incarnation,
            seq=after.seq + 1,
            previous=after.hash,
            hlc=store.hlc,
            stream=what.stream,
            record=what.record,
            contents=contents,
            epoch=what.epoch,
        )
        store.rows.append(Row(entry, contents))
        store.head = Head(entry.incarnation, entry.seq, entry.hash)
        store.settled = store.server
        self.world.watch.signed(self, entry, contents)

    def _ask_back(self, gate: Gate, pool: bytes) -> None:
        """Fetch what a peer has of our own log beyond what is shared."""
        peer = self.world.by_key[pool]
        mine = points(self.store.head, self.store.hash_at)

        def answer() -> None:
            if not peer.serving or self.key not in peer.store.replicas:
                return
            held = peer.store.replicas[self.key]
            base, _ = common(mine, lambda seq: at.hash if (at := held.known(seq)) else None)
            found = [_place(row, 4) for row in held.rows[base : base + BATCH]]
            self.world.network.send(peer.name, self.name, lambda: self._came_back(gate, pool, base, found))

        self.world.network.send(self.name, peer.name, answer)

    def _came_back(self, gate: Gate, pool: bytes, base: int, found: list[Place]) -> None:
        store = self.store
        if not gate.working or not store.up or store.full or gate.ready.reclaim != pool:
            return
        for entry, _, _ in found:
            check_signature(entry)
        fresh = [one for one in found if store.hash_at(one[0].seq) != one[0].hash]
        if fresh and fresh[0][0].seq <= store.head.seq:
            there = store.rows[fresh[0][0].seq - 1].entry
            if not supersedes(fresh[0][0], there):
                fresh = []
        if fresh and fresh[0][0].seq <= store.head.seq:
            gone = store.cut_back(fresh[0][0].seq - 1)
            store.outbox += [
                Waiting(row.entry.stream, row.entry.record, row.contents.value(), row.entry.epoch)
                for row in gone
                if row.entry.stream not in OWN_STREAMS and row.contents is not None
            ]
        for entry, contents, _ in fresh:
            if entry.seq == store.head.seq + 1 and entry.previous == store.head.hash:
                store.rows.append(Row(entry, contents))
                if contents is None:
                    store.lost[entry.hash] = self.world.heap.now
                store.head = Head(entry.incarnation, entry.seq, entry.hash)
                store.hlc = max(store.hlc, entry.hlc)
                if contents is not None and entry.stream == AUTHORITY:
                    self.authority.hear(contents)
        store.claims.pop(pool, None)
        if fresh:
            store.restored_at = self.world.heap.now
            self._feed(gate, TailReclaimed(pool, store.head))
        else:
            self._feed(gate, TailUnproven(pool))

    # --- fetching

    def pull(self, gate: Gate) -> None:
        """Ask every peer for what follows our replica of its log."""
        if not gate.working or not self.store.up:
            return
        for key in self.trust:
            peer = self.world.by_key[key]
            replica = self.store.replicas.setdefault(key, Replica(ReplicaState(key)))
            have = points(replica.state.head, lambda seq, held=replica: _hash(held, seq))  # type: ignore[misc]
            wanted = tuple(row.entry.seq for row in replica.rows if row.reason in {"withheld", "level"})[
                :BATCH
            ]
            lost = tuple(row.entry.seq for row in self.store.rows if row.contents is None)[:BATCH]
            self.world.network.send(self.name, peer.name, partial(peer.tell, self, gate, have, wanted, lost))

    def tell(
        self,
        asker: Pool,
        gate: Gate,
        have: tuple[tuple[int, bytes], ...],
        wanted: tuple[int, ...],
        lost: tuple[int, ...],
    ) -> None:
        """Answer a peer: entries of our log, contents that it lacks, and what we have of its log."""
        if not self.serving or asker.key not in self.trust:
            return
        base, _ = common(have, self.store.hash_at)
        level = self.trust[asker.key]

        entries = [_place(row, level) for row in self.store.rows[base : base + BATCH]]
        filled = [_place(row, level) for seq in wanted for row in self.store.rows[seq - 1 : seq]]
        theirs = self.store.replicas.get(asker.key)
        head = theirs.state.head if theirs is not None else EMPTY
        if theirs is not None:
            rows = [row for seq in lost for row in theirs.rows[seq - 1 : seq] if row.contents is not None]
            if rows:
                self.world.network.send(self.name, asker.name, lambda: asker.refill(rows))
        entries, filled = self.world.garbled(self, entries), self.world.garbled(self, filled)
        self.world.network.send(self.name, asker.name, lambda: asker.hear(gate, self, entries, filled, head))

    def hear(self, gate: Gate, peer: Pool, entries: list[Place], filled: list[Place], head: Head) -> None:
        """Take what a peer told, in one transaction."""
        if not gate.working or not self.store.up or self.store.full or peer.key not in self.trust:
            return
        if head.seq and not self.store.has(head):
            self.store.claims[peer.key] = head
        self._feed(gate, PeerHas(peer.key, head, self.store.has(head)))
        if not self.store.has(head):
            for one in self.gates:
                if one.working and one is not gate:
                    self._feed(one, PeerHas(peer.key, head, ours=False))
        replica = self.store.replicas[peer.key]
        self._fill(replica, filled)
        rebuilt = False
        terms, now = self.terms(peer), self.unix(gate)
        for entry, contents, missing in entries:
            event = Received(
                entry,
                contents,
                missing,
                replica.known(entry.seq),
                replica.known(entry.seq - 1),
            )
            replica.state, outcome = receive(replica.state, event, terms, now)
            if isinstance(outcome, Duplicate):
                continue
            if isinstance(outcome, Forked):
                self.world.watch.quarantined(self, peer, outcome)
            if not isinstance(outcome, Accepted):
                break
            if outcome.stranded_after is not None:
                del replica.rows[outcome.stranded_after :]
                rebuilt = True
            replica.rows.append(Row(entry, outcome.contents, outcome.disposition, outcome.reason))
            if not rebuilt and self._apply(peer, replica, outcome, gate):
                terms = self.terms(peer)
        if rebuilt:
            self._apply_anew(peer, replica, gate)
            self.authority.relay()
        self._release(peer, replica, gate)

    def terms(self, peer: Pool) -> Terms:
        """What a peer's entries are judged by."""
        return Terms(
            STREAMS,
            self.trust[peer.key],
            {peer.certificate.verify_key: peer.certificate},
            {"catalogue": self.authority.standing.mastership},
        )

    def _give_up(self) -> None:
        """Contents that nobody gave back in time are erased, so that nobody waits for them."""
        store, now = self.store, self.world.heap.now
        if not any(at <= now - LOST_PATIENCE_S for at in store.lost.values()):
            return
        for place, row in enumerate(store.rows):
            if row.contents is None and store.lost.get(row.entry.hash, now) <= now - LOST_PATIENCE_S:
                store.rows[place] = replace(row, reason="erased")
        store.lost = {one: at for one, at in store.lost.items() if at > now - LOST_PATIENCE_S}

    def refill(self, rows: list[Row]) -> None:
        """Take contents of our own entries that had come back without."""
        if not self.serving or self.store.full:
            return
        for row in rows:
            if self.store.hash_at(row.entry.seq) == row.entry.hash and row.contents is not None:
                self.store.rows[row.entry.seq - 1] = Row(row.entry, row.contents)
                if row.entry.stream == AUTHORITY:
                    self.authority.hear(row.contents)

    def _fill(self, replica: Replica, filled: list[Place]) -> None:
        for entry, contents, missing in filled:
            known = replica.known(entry.seq)
            if known is None or known.hash != entry.hash:
                continue
            row = replica.rows[entry.seq - 1]
            if contents is None:
                if missing == "erased":
                    replica.rows[entry.seq - 1] = replace(row, disposition="erased", reason="erased")
                continue
            try:
                check_contents(row.entry, contents)
            except LogProblem:
                continue
            replica.rows[entry.seq - 1] = replace(row, contents=contents)

    def _apply(self, peer: Pool, replica: Replica, accepted: Accepted, gate: Gate) -> bool:
        """Do what an entry says; whether it changed who may write."""
        entry = accepted.entry
        if accepted.disposition != "apply" or accepted.contents is None:
            return False
        replica.applied[entry.stream, entry.record] = accepted.contents.payload
        self.world.watch.applied(self, peer, entry, accepted.contents, gate)
        return entry.stream == AUTHORITY and self.authority.hear(accepted.contents)

    def _apply_anew(self, peer: Pool, replica: Replica, gate: Gate) -> None:
        replica.applied.clear()
        blocked: frozenset[str] = frozenset()
        terms, now = self.terms(peer), self.unix(gate)
        for index, row in enumerate(replica.rows):
            missing: Missing = "erased" if row.reason == "erased" else "withheld"
            missing = "" if row.contents is not None else missing
            accepted, blocked = judge(row.entry, row.contents, missing, blocked, terms, now)
            replica.rows[index] = Row(row.entry, row.contents, accepted.disposition, accepted.reason)
            self._apply(peer, replica, accepted, gate)
        replica.state = replace(replica.state, blocked=blocked)

    def _release(self, peer: Pool, replica: Replica, gate: Gate) -> None:
        waiting = [(row.entry, row.contents) for row in replica.rows if row.disposition == "held"]
        if not waiting:
            return
        replica.state, judged = release(replica.state, waiting, self.terms(peer), self.unix(gate))
        for accepted, (_, contents) in zip(judged, waiting, strict=True):
            row = replica.rows[accepted.entry.seq - 1]
            replica.rows[accepted.entry.seq - 1] = replace(
                row, contents=contents, disposition=accepted.disposition, reason=accepted.reason
            )
            self._apply(peer, replica, accepted, gate)


def _place(row: Row, level: int) -> Place:
    """A row as it is told to somebody trusted that much."""
    if row.contents is None:
        return row.entry, None, "erased" if row.reason == "erased" else "withheld"
    if STREAMS[row.entry.stream].level > level:
        return row.entry, None, "withheld"
    return row.entry, row.contents, ""


def _hash(replica: Replica, seq: int) -> bytes | None:
    known = replica.known(seq)
    return known.hash if known is not None else None
