"""Replicas in the store: entries of other pools are accepted and applied in one transaction.

The pure machine (`replica`) judges; this writes what it said. Where applying fails for one entry (a bug, a
row that a person changed) that entry is marked "failed" with the reason and its stream waits behind it, while
the chain and the other streams go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from qgate.federation.log import hlc
from qgate.federation.log.digest import GONE, buckets, differing, take, without_superseded
from qgate.federation.log.entry import Contents, Entry, check_contents, read_entry
from qgate.federation.log.erasure import erased_places
from qgate.federation.log.incarnation import named_cut
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.replica import (
    Accepted,
    Duplicate,
    Forked,
    Gap,
    Known,
    Mastership,
    Missing,
    Received,
    Refused,
    ReplicaState,
    Terms,
    judge,
    receive,
    release,
)
from qgate.federation.log.snapshot import Snapshot, check_kept, read_snapshot
from qgate.federation.log.streams import ERASURE, INCARNATION, Stream, StreamRule
from qgate.governance.proving import Turns
from qgate.store import Store
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.log import Row
from tunnel_proto.certificate import OnlineCertificate, read_online
from tunnel_proto.errors import AuthenticationFailed, MeshError
from tunnel_proto.log_messages import Item

if TYPE_CHECKING:
    from qgate.federation.peer import Peer

log = structlog.get_logger(__name__)

Masters = Callable[[Connection], Awaitable[Mapping[str, Mastership]]]

AUTHORITY: Final = "authority"

PIECE: Final = 100
PIECE_BYTES: Final = 1024 * 1024
"""Entries, and about how many bytes of them, that are looked at between two turns of the event loop."""
"""The stream whose entries change who may write others."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An entry as it came, parsed."""

    entry: Entry
    contents: Contents | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. ``stopped`` is why it was not taken to its end, None where it was.

    ``wake_at`` is unix time when something held is due.
    """

    state: ReplicaState
    accepted: int = 0
    applied: int = 0
    held: int = 0
    stopped: Gap | Forked | Refused | None = None
    wake_at: float | None = None


def arrived(items: Iterable[Item]) -> list[Arrived]:
    """Entries of a message. LogProblem for one that is malformed."""
    return [
        Arrived(
            read_entry(one.entry),
            None if one.payload is None or one.salt is None else Contents(one.salt, one.payload),
            one.missing or ("withheld" if one.payload is None else ""),
        )
        for one in items
    ]


class Replicas:
    """Every other pool's log in this store. `clock` gives unix seconds."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self.rules: dict[str, StreamRule] = {}
        self.masters: Masters = _no_masters
        self._store = store
        self._clock = clock

    def streams(self) -> dict[str, Stream]:
        """The streams that have a rule here."""
        return {name: rule.stream for name, rule in self.rules.items()}

    async def terms(self, connection: Connection, peer: Peer) -> Terms:
        """What entries of a peer are judged by, now."""
        certificates = await table.certificates(connection, peer.pool_key)
        return Terms(
            self.streams(),
            peer.level if peer.state == "paired" else -1,
            {key: online for key, (online, _) in certificates.items()},
            await self.masters(connection),
        )

    # --- taking

    async def take(self, peer: Peer, entries: Sequence[Arrived], certificates: Sequence[bytes] = ()) -> Taken:
        """Accept and apply entries of a peer's log, in one transaction."""
        checked = own_certificates(peer.pool_key, certificates)
        for careful in (False, True):
            try:
                async with self._store.transaction() as connection:
                    await table.put_certificates(connection, peer.pool_key, checked)
                    return await self._take(connection, peer, entries, careful=careful)
            except ApplyFailed as failed:
                log.warning(
                    "an entry cannot be applied", pool=peer.name, seq=failed.entry.seq,
                    stream=failed.entry.stream, reason=failed.message,
                )  # fmt: skip
        raise AssertionError("a careful turn raises nothing")

    async def _take(
        self, connection: Connection, peer: Peer, entries: Sequence[Arrived], *, careful: bool
    ) -> Taken:
        state = await table.replica(connection, peer.pool_key, lock=True)
        before = state
        terms = await self.terms(connection, peer)
        now = self._clock()
        known = await self._known(connection, state, entries)
        rows: list[Row] = []
        stopped: Gap | Forked | Refused | None = None
        rebuilt = False
        applied = 0
        for one in entries:
            seq = one.entry.seq
            event = Received(
                one.entry,
                one.contents,
                "erased" if one.missing == "erased" else ("withheld" if one.contents is None else ""),
                known.get(seq),
                known.get(seq - 1),
            )
            state, outcome = receive(state, event, terms, now)
            if isinstance(outcome, Duplicate):
                continue
            if not isinstance(outcome, Accepted):
                stopped = outcome
                if isinstance(outcome, Forked):
                    await table.put_aside(connection, one.entry, one.contents, f"fork at {outcome.seq}")
                break
            if outcome.stranded_after is not None:
                await table.append(connection, rows)
                rows = []
                await self._strand(connection, peer, outcome)
                known = {place: at for place, at in known.items() if place <= outcome.stranded_after}
                rebuilt = True
            known[seq] = Known(one.entry.incarnation, one.entry.hash)
            row = Row(one.entry, outcome.contents, outcome.disposition, outcome.reason, outcome.wake_at)
            if outcome.disposition in {"apply", "own"} and not rebuilt:
                row = await self._do(connection, peer, row, careful=careful)
                applied += row.state == "apply"
                if row.state == "failed":
                    state = replace(state, blocked=state.blocked | {one.entry.stream})
                elif one.entry.stream == AUTHORITY:
                    terms = await self.terms(connection, peer)
            elif outcome.disposition == "rejected":
                await self._rejected(connection, row)
            rows.append(row)
        await table.append(connection, rows)
        if state != before:
            await table.put_replica(connection, state)
            await table.tell(connection, "replica")
        if rebuilt:
            applied += await self._apply_anew(connection, peer)
        waking = [row.wake_at for row in rows if row.wake_at is not None]
        return Taken(
            state,
            accepted=len(rows),
            applied=applied,
            held=sum(row.state in {"held", "failed"} for row in rows),
            stopped=stopped,
            wake_at=min(waking, default=None),
        )

    async def _known(
        self, connection: Connection, state: ReplicaState, entries: Sequence[Arrived]
    ) -> dict[int, Known]:
        places = {
            place
            for one in entries
            if one.entry.seq <= state.head.seq
            for place in (one.entry.seq, one.entry.seq - 1)
        }
        return await table.known_at(connection, state.origin, places) if places else {}

    async def _strand(self, connection: Connection, peer: Peer, outcome: Accepted) -> None:
        after = outcome.stranded_after
        assert after is not None
        count = await table.strand(connection, peer.pool_key, after, "cut off by a new incarnation")
        log.warning("a pool was restored and goes on", pool=peer.name, cut=after, stranded=count)

    # --- doing

    async def _do(self, connection: Connection, peer: Peer, row: Row, *, careful: bool) -> Row:
        """Apply one entry; with ``careful`` a failure is written into the row, else it is raised."""
        if not careful:
            try:
                await self._apply(connection, peer, row)
            except Exception as error:
                if connection.is_closed() or not _is_ours(error):
                    raise
                raise ApplyFailed(row.entry, error) from error
            return row
        try:
            async with connection.transaction():
                await self._apply(connection, peer, row)
        except Exception as error:
            if connection.is_closed() or not _is_ours(error):
                raise
            return replace(row, state="failed", reason=_why(error))
        return row

    async def _apply(self, connection: Connection, peer: Peer, row: Row) -> None:
        entry = row.entry
        assert row.contents is not None
        payload = row.contents.value()
        if entry.stream == ERASURE:
            places = erased_places(payload, before=entry.seq)
            await self._erased(connection, peer, await table.entries_at(connection, entry.pool, places))
            await table.erase(connection, entry.pool, places)
        elif entry.stream == INCARNATION:
            named_cut(entry, payload)
        else:
            await self.rules[entry.stream].apply(connection, peer, entry, payload)

    async def _erased(self, connection: Connection, peer: Peer, rows: Iterable[Row]) -> None:
        """Remove what was made of entries that are about to be erased and are their records' newest."""
        for row in rows:
            rule = self.rules.get(row.entry.stream)
            if rule is not None and rule.erased is not None and row.state in {"apply", "erased"}:
                newest = await table.newest_of(connection, row.entry)
                if newest == row.entry.seq:
                    await rule.erased(connection, peer, row.entry)

    async def _rejected(self, connection: Connection, row: Row) -> None:
        rule = self.rules.get(row.entry.stream)
        if rule is not None and rule.rejected is not None and row.contents is not None:
            with contextlib.suppress(LogProblem):
                await rule.rejected(connection, row.entry, row.contents.value(), row.reason)

    async def _apply_anew(self, connection: Connection, peer: Peer) -> int:
        """Forget what was made of a peer's entries and apply those of its log again, in order."""
        for rule in self.rules.values():
            if rule.forget is not None:
                await rule.forget(connection, peer)
        terms = await self.terms(connection, peer)
        now = self._clock()
        blocked: frozenset[str] = frozenset()
        after = applied = 0
        while rows := await table.entries_after(connection, peer.pool_key, after, count=500, size=4 << 20):
            again: list[Row] = []
            for row in rows:
                after = row.entry.seq
                missing: Missing = "erased" if row.reason == "erased" else "withheld"
                missing = "" if row.contents is not None else missing
                accepted, blocked = judge(row.entry, row.contents, missing, blocked, terms, now)
                judged = replace(
                    row, state=accepted.disposition, reason=accepted.reason, wake_at=accepted.wake_at
                )
                if judged.state in {"apply", "own"}:
                    judged = await self._do(connection, peer, judged, careful=True)
                    applied += judged.state == "apply"
                    if judged.state == "failed":
                        blocked |= {row.entry.stream}
                elif judged.state == "rejected":
                    await self._rejected(connection, judged)
                elif judged.state == "erased":
                    await self._erased(connection, peer, [judged])
                again.append(replace(judged, contents=None))
            await table.set_states(connection, peer.pool_key, again)
        state = await table.replica(connection, peer.pool_key, lock=True)
        await table.put_replica(connection, replace(state, blocked=blocked))
        return applied

    async def rebuild(self, peer: Peer) -> int:
        """Make the applied tables anew from a peer's log; returns how many entries were applied."""
        async with self._store.transaction() as connection:
            await table.replica(connection, peer.pool_key, lock=True)
            return await self._apply_anew(connection, peer)

    async def release(self, peer: Peer) -> Taken:
        """Judge what is held of a peer's log again: trust, time, versions or epochs may have changed."""
        async with self._store.transaction() as connection:
            state = await table.replica(connection, peer.pool_key, lock=True)
            waiting = await table.waiting_entries(connection, peer.pool_key)
            if not waiting:
                return Taken(state)
            terms = await self.terms(connection, peer)
            now = self._clock()
            applied = 0
            rows: list[Row] = []
            blocked: frozenset[str] = frozenset()
            for row in waiting:
                single = replace(state, blocked=blocked)
                _, (one,) = release(single, [(row.entry, row.contents)], terms, now)
                if row.entry.stream in blocked and one.disposition == "apply":
                    one = replace(one, disposition="held", reason="behind")
                judged = replace(row, state=one.disposition, reason=one.reason, wake_at=one.wake_at)
                if judged.state in {"apply", "own"}:
                    judged = await self._do(connection, peer, judged, careful=True)
                    applied += judged.state == "apply"
                    if judged.state == "apply" and row.entry.stream == AUTHORITY:
                        terms = await self.terms(connection, peer)
                elif judged.state == "rejected":
                    await self._rejected(connection, judged)
                if judged.state in {"held", "failed"}:
                    blocked |= {row.entry.stream}
                rows.append(replace(judged, contents=None))
            await table.set_states(connection, peer.pool_key, rows)
            state = replace(state, blocked=blocked)
            await table.put_replica(connection, state)
            wake_at = min((row.wake_at for row in rows if row.wake_at is not None), default=None)
            held = sum(row.state in {"held", "failed"} for row in rows)
            return Taken(state, applied=applied, held=held, wake_at=wake_at)

    async def withheld(self, peer: Peer, limit: int) -> list[int]:
        """Places of a peer's log whose contents we lack and may have now."""
        async with self._store.connection() as connection:
            waiting = await table.waiting_entries(connection, peer.pool_key)
        streams = self.streams()
        level = peer.level if peer.state == "paired" else -1
        wanted = [
            row.entry.seq
            for row in waiting
            if row.contents is None
            and (declared := streams.get(row.entry.stream)) is not None
            and level >= declared.level
        ]
        return wanted[:limit]

    async def fill(self, peer: Peer, entries: Sequence[Arrived]) -> int:
        """Add contents that were withheld; `release` then applies them. Returns how many fitted."""
        async with self._store.transaction() as connection:
            held = await table.entries_at(connection, peer.pool_key, (one.entry.seq for one in entries))
            ours = {row.entry.seq: row for row in held}
            rows: list[Row] = []
            for one in entries:
                row = ours.get(one.entry.seq)
                if row is None or row.entry.hash != one.entry.hash:
                    continue
                if one.contents is None:
                    if one.missing == "erased":
                        rows.append(replace(row, state="erased", reason="erased"))
                    continue
                check_contents(row.entry, one.contents)
                rows.append(replace(row, contents=one.contents))
            await table.set_states(connection, peer.pool_key, rows)
            return len(rows)

    async def take_snapshot(
        self, peer: Peer, raw: bytes, kept: Sequence[Arrived], certificates: Sequence[bytes]
    ) -> Taken:
        """Begin a peer's log anew from its snapshot: what we had of it is set aside, its kept entries
        applied.
        """
        snapshot = read_snapshot(raw)
        checked = own_certificates(peer.pool_key, certificates)
        async with self._store.transaction() as connection:
            await table.put_certificates(connection, peer.pool_key, checked)
            state = await table.replica(connection, peer.pool_key, lock=True)
            terms = await self.terms(connection, peer)
            self._check_snapshot(peer, snapshot, kept, terms, state)
            await table.strand(connection, peer.pool_key, 0, "before a snapshot")
            rows = [Row(one.entry, one.contents, "held", "", None) for one in kept]
            for row, one in zip(rows, kept, strict=True):
                if one.contents is not None:
                    check_contents(row.entry, one.contents)
            await table.append(connection, rows)
            await table.put_snapshot(connection, snapshot)
            stamp = hlc.merge(state.hlc, snapshot.hlc, self._clock())
            state = replace(state, head=snapshot.head, hlc=stamp, blocked=frozenset())
            await table.put_replica(connection, state)
            applied = await self._apply_anew(connection, peer)
            await table.tell(connection, "replica")
            return Taken(await table.replica(connection, peer.pool_key), accepted=len(rows), applied=applied)

    def _check_snapshot(
        self, peer: Peer, snapshot: Snapshot, kept: Sequence[Arrived], terms: Terms, state: ReplicaState
    ) -> None:
        if state.quarantine:
            raise LogProblem("quarantined", f"the origin is in quarantine: {state.quarantine}")
        if snapshot.pool != peer.pool_key or snapshot.signer not in terms.certificates:
            raise LogProblem("certificate", "the snapshot is not signed by a key of its pool")
        if terms.certificates[snapshot.signer].serial < state.serial:
            raise LogProblem("old-key", "the snapshot is signed by a key that another had replaced")
        if snapshot.head.seq <= state.head.seq:
            raise LogProblem("snapshot", "the snapshot is older than what is here")
        if any(one.entry.signer not in terms.certificates for one in kept):
            raise LogProblem("certificate", "a kept entry is signed by a key that the pool never certified")
        check_kept(snapshot, [one.entry for one in kept])

    async def differing(self, connection: Connection, peer: Peer) -> list[str]:
        """Anti-entropy: the streams whose tables do not say what the peer's log says, as far as rules can
        tell.
        """
        found = []
        for name, rule in self.rules.items():
            if rule.rows is None:
                continue
            said = await self._said(connection, peer, name)
            if await asyncio.to_thread(_differ, said, await rule.rows(connection, peer)):
                found.append(name)
        return found

    async def _said(self, connection: Connection, peer: Peer, stream: str) -> dict[bytes, bytes]:
        """What a peer's log says: record id → digest. In pieces and in turns: a log may be long."""
        said: dict[bytes, bytes] = {}
        after, turns = 0, Turns()
        while rows := await table.entries_after(
            connection, peer.pool_key, after, count=PIECE, size=PIECE_BYTES, stream=stream
        ):
            for row in rows:
                after = row.entry.seq
                if row.state in {"apply", "erased"}:
                    payload = row.contents.value() if row.contents is not None else {GONE: True}
                    take(said, row.entry.record, payload)
                await turns.pause()
        return said

    async def free(self, peer: Peer) -> ReplicaState:
        """End a peer's quarantine: its next entries are judged by the chain that we hold."""
        async with self._store.transaction() as connection:
            state = replace(await table.replica(connection, peer.pool_key, lock=True), quarantine="")
            await table.put_replica(connection, state)
            return state


class ApplyFailed(MeshError):  # noqa: N818 - reads as what happened
    """An entry could not be applied; the batch is taken again with care."""

    def __init__(self, entry: Entry, error: Exception) -> None:
        super().__init__(_why(error))
        self.entry = entry


def own_certificates(origin: bytes, certificates: Iterable[bytes]) -> list[tuple[OnlineCertificate, bytes]]:
    """Online certificates that this very pool key signed; others raise LogProblem."""
    checked = []
    for raw in certificates:
        try:
            online = read_online(raw)
        except AuthenticationFailed as error:
            raise LogProblem("certificate", error.message) from None
        if online.pool != origin:
            raise LogProblem("certificate", "a certificate of another pool came with the log")
        checked.append((online, raw))
    return checked


def _differ(said: Mapping[bytes, bytes], rows: Mapping[bytes, bytes]) -> bool:
    log_says, table_says = without_superseded(said, rows)
    return bool(differing(buckets(log_says), buckets(table_says)))


async def _no_masters(connection: Connection) -> Mapping[str, Mastership]:
    del connection
    return {}


def _is_ours(error: Exception) -> bool:
    """Whether an error is of this one entry, not of the store's absence."""
    return not isinstance(error, OSError | TimeoutError)


def _why(error: Exception) -> str:
    text = error.message if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:300]
