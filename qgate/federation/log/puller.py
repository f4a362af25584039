"""Fetches one pool's log: asks, takes what comes, waits for news. Also fetches our own tail back after a
restore.

    links say that the pool is up → open a stream → Pull, take, Pull ... until its end → wait for News → Pull
    ...

Of a pool's gates one fetches at a time (a lease in the store); of a batch, entries that another gate took
meanwhile are duplicates and cost nothing but their bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import structlog

from qgate.federation.log import vector
from qgate.federation.log.entry import check_contents, check_signature
from qgate.federation.log.incarnation import supersedes
from qgate.federation.log.pace import Pace
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.publisher import head_of, place
from qgate.federation.log.replica import Forked, Gap, Refused
from qgate.federation.log.replicas import Arrived, Replicas, Taken, arrived, own_certificates
from qgate.federation.log.sequencer import Sequencer
from qgate.federation.log.stream_ear import LogStream
from qgate.federation.log.vector import EMPTY, Head
from qgate.federation.peer import Peer
from qgate.store import Store, StoreUnavailableError
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.log import Row
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import MeshError, TunnelError
from tunnel_proto.link import Stream, StreamError, StreamReceiver
from tunnel_proto.log_messages import (
    KIND_LOG,
    Certificates,
    Entries,
    Fill,
    Filled,
    LogMessage,
    News,
    Pull,
    Snapshot,
    Sorry,
)

LOOK_S: Final = 30.0
"""How often a pool is asked although it told no news: a lost message must not matter."""

RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 60.0
FILL_MAX: Final = 500
ANSWER_S: Final = 60.0
"""How long nothing at all may come while an answer is waited for: a slow link is not late."""

ASK_AGAIN_S: Final = 60.0
"""Between two questions for contents that were lost: a peer may have got them meanwhile."""
SNAPSHOT_BYTES_MAX: Final = 256 * 1024 * 1024

Fetched = Head | Literal["unproven", "away"]
"""What came of asking for our own log: the head after it; or the peer could not show what it said to have;
or it, or a store, was away.
"""

_UNABLE: Final = frozenset({"store-unavailable", "truncated", "not-told", "contradicted"})
"""What an honest peer may say that has our tail and cannot give it now."""

log = structlog.get_logger(__name__)


class Links(Protocol):
    """What the puller needs of the tunnels between pools."""

    def up(self, pool_key: bytes) -> bool:
        """Whether a stream to that pool can be opened now."""

    def open(self, pool_key: bytes, kind: str, meta: dict[str, Any], receiver: StreamReceiver) -> Stream:
        """Open a stream. LocalProtocolError where no link is up."""


@dataclass(slots=True)
class Progress:
    """How fetching a pool's log goes, for people. ``behind`` in entries, None while unknown."""

    state: str = "waiting"  # waiting, fetching, current, refused, quarantined, reclaiming
    problem: str = ""
    behind: int | None = None
    entries: int = 0
    applied: int = 0
    bytes: int = 0
    heard_at: float | None = None
    held_until: float | None = None
    refusals: int = 0
    reclaimed: int = 0  # entries of our own that it gave back
    retry_s: float = 0.0  # how long it waits after what went wrong last


def _always() -> bool:
    return True


class Puller:
    """Keeps the replica of one pool's log current. `pace()` is the bytes/s that a backfill may take."""

    def __init__(
        self,
        pool_key: bytes,
        *,
        own_key: bytes,
        gate: str,
        store: Store,
        links: Links,
        peer: Callable[[bytes], Peer | None],
        replicas: Replicas,
        sequencer: Sequencer,
        reclaim: Callable[[Connection, Row], Awaitable[None]],
        rate: Callable[[], float],
        fetches: Callable[[], bool] = _always,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.progress = Progress()
        self.stir = asyncio.Event()
        self.wanted: asyncio.Future[Fetched] | None = None
        self._key = pool_key
        self._own = own_key
        self._gate = gate
        self._store = store
        self._links = links
        self._peer = peer
        self._replicas = replicas
        self._sequencer = sequencer
        self._reclaim = reclaim
        self._rate = rate
        self._fetches = fetches
        self._clock = clock
        self._pace = Pace(0.0)
        self._number = 0
        self._ear: LogStream | None = None
        self._ask_again_at = 0.0
        self._wait = RETRY_FIRST_S

    def look(self) -> None:
        """Something may have changed: ask now."""
        self._wait = RETRY_FIRST_S
        self.stir.set()

    async def fetch_own(self) -> Fetched:
        """Get back what that pool has of our own log."""
        if self.wanted is None:
            self.wanted = asyncio.get_running_loop().create_future()
            self.stir.set()
        return await asyncio.shield(self.wanted)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self.stir.clear()
                try:
                    if self._links.up(self._key):
                        await self._session()
                    else:
                        self.progress.state = "waiting"
                        self._disappoint()
                        await self._pause(LOOK_S)
                        continue
                except StoreUnavailableError as error:
                    self.progress.problem = error.message
                except MeshError as error:
                    self._failed(error)
                    if self.progress.state not in {"refused", "quarantined"}:
                        self.progress.state = "waiting"
                    self._disappoint()
                except Exception as error:
                    log.error("fetching a log failed", pool=self._key.hex()[:8], exc_info=error)
                    self.progress.state, self.progress.problem = (
                        "waiting",
                        "a defect; the gate's log has more",
                    )
                    self._disappoint()
                await self._rest_after_failure()
        finally:
            self._close()

    def _failed(self, error: MeshError) -> None:
        """A session ended. What it was refused for is not asked for again at once."""
        self.progress.problem = error.message
        if isinstance(error, StreamError) and error.code in {StreamCode.REFUSED, StreamCode.REVOKED}:
            self.progress.refusals += 1
        # The end of the stream stirs whoever waits for an answer; it is no news.
        self.stir.clear()

    async def _rest_after_failure(self) -> None:
        """Twice as long each time, until `look` tells that something may have changed."""
        self.progress.retry_s = wait = self._wait
        self._wait = min(2 * wait, RETRY_MOST_S)
        await self._rest(wait)

    # --- one stream

    async def _session(self) -> None:
        ear = LogStream()
        ear.attach(self._links.open(self._key, KIND_LOG, {}, ear))
        self._ear = ear
        inbox: asyncio.Queue[LogMessage | TunnelError] = asyncio.Queue()
        reader = asyncio.get_running_loop().create_task(self._read(ear, inbox))
        try:
            while True:
                self.stir.clear()
                peer = self._peer(self._key)
                if peer is None or peer.state != "paired":
                    return
                if self.wanted is not None:
                    await self._fetch_own(peer, ear, inbox)
                if self._fetches() and await self._leased():
                    await self._catch_up(peer, ear, inbox)
                    await self._fill(peer, ear, inbox)
                    await self._fill_own(peer, ear, inbox)
                if reader.done():
                    raise TunnelError("the log stream ended")
                await self._pause(LOOK_S)
        finally:
            reader.cancel()
            self._close()

    async def _read(self, ear: LogStream, inbox: asyncio.Queue[LogMessage | TunnelError]) -> None:
        """Part news from answers."""
        try:
            while True:
                message = await ear.next()
                if isinstance(message, News):
                    self.stir.set()
                else:
                    inbox.put_nowait(message)
        except TunnelError as error:
            inbox.put_nowait(error)
            self.stir.set()

    async def _catch_up(
        self, peer: Peer, ear: LogStream, inbox: asyncio.Queue[LogMessage | TunnelError]
    ) -> None:
        gaps = 0
        while True:
            await self._wait_for_pace()
            question, certificates = await self._question(peer.pool_key)
            await ear.send(question)
            taken, more, end = await self._answer(peer, question, inbox, certificates)
            progress = self.progress
            progress.heard_at = self._clock()
            progress.entries += taken.accepted
            progress.applied += taken.applied
            progress.held_until = taken.wake_at or progress.held_until
            progress.behind = max(0, end.seq - taken.state.head.seq)
            match taken.stopped:
                case None:
                    progress.problem, progress.retry_s = "", 0.0
                    self._wait = RETRY_FIRST_S
                case Gap():
                    gaps += 1
                    if gaps > 2:
                        raise LogProblem("gap", "the peer leaves out entries of its log")
                    continue
                case Forked(seq=seq):
                    progress.state = "quarantined"
                    log.error("a pool contradicts itself and is quarantined", pool=peer.name, seq=seq)
                    raise LogProblem(
                        "fork",
                        f"{peer.name} signed two entries for number {seq}; nothing more of it is taken",
                        hint=f"ask its admin, then: meshctl pool verify {peer.name} --release",
                    )
                case Refused(code=code, message=message):
                    progress.state = "quarantined" if code == "quarantined" else "refused"
                    if code != "quarantined":
                        log.warning("an entry is refused", pool=peer.name, code=code, reason=message)
                    raise LogProblem(code, message)
            if not more:
                progress.state = "current"
                if not taken.accepted:
                    return
                continue  # asking once more is how the origin hears what we have now
            progress.state = "fetching"
            await self._leased()

    async def _question(self, origin: bytes) -> tuple[Pull, list[bytes]]:
        async with self._store.connection() as connection:
            if origin == self._own:
                head = (await table.own_head(connection)).head
            else:
                head = (await table.replica(connection, origin)).head
            known = await table.known_at(connection, origin, vector.wanted(head))
            certificates = await table.certificates(connection, origin)
        asked = vector.points(head, lambda seq: at.hash if (at := known.get(seq)) else None)
        self._number += 1
        return Pull(self._number, origin, place(head), asked, tuple(certificates)[:64]), []

    async def _answer(
        self,
        peer: Peer,
        question: Pull,
        inbox: asyncio.Queue[LogMessage | TunnelError],
        certificates: list[bytes],
    ) -> tuple[Taken, bool, Head]:
        snapshot = b""
        kept: list[Arrived] = []
        size = 0
        while True:
            message = await self._next(inbox)
            match message:
                case Certificates(origin, raw) if origin == question.origin:
                    certificates += raw
                case Snapshot(number, _, raw_snapshot) if number == question.id:
                    snapshot = raw_snapshot
                case Entries(number, _, end, items, more, True) if number == question.id and snapshot:
                    kept += arrived(items)
                    size += self._spend(message)
                    if size > SNAPSHOT_BYTES_MAX:
                        raise LogProblem("snapshot", "the peer's snapshot is larger than allowed")
                    if not more:
                        taken = await self._replicas.take_snapshot(peer, snapshot, kept, certificates)
                        return taken, head_of(end) != taken.state.head, head_of(end)
                case Entries(number, _, end, items, more, False) if number == question.id:
                    self._spend(message)
                    taken = await self._replicas.take(peer, arrived(items), certificates)
                    return taken, more, head_of(end)
                case Sorry(number, code, text) if number == question.id:
                    raise LogProblem(code, f"{peer.name} does not tell: {text}")
                case _:
                    raise LogProblem("protocol", "the peer answers what was not asked")

    async def _fill(self, peer: Peer, ear: LogStream, inbox: asyncio.Queue[LogMessage | TunnelError]) -> None:
        """Ask for contents that were withheld and may be told now; the peer may still say no."""
        while places := await self._replicas.withheld(peer, FILL_MAX):
            await self._wait_for_pace()
            self._number += 1
            await ear.send(Fill(self._number, peer.pool_key, tuple(places)))
            answer = await self._next(inbox)
            if not isinstance(answer, Filled) or answer.id != self._number:
                return
            self._spend(answer)
            filled = await self._replicas.fill(peer, arrived(answer.items))
            await self._replicas.release(peer)
            if filled < len(places):
                return

    async def _fill_own(
        self, peer: Peer, ear: LogStream, inbox: asyncio.Queue[LogMessage | TunnelError]
    ) -> None:
        """Ask for contents of our own log that came back without them from another peer."""
        places = await self._sequencer.lost(FILL_MAX)
        now = time.monotonic()
        if not places or now < self._ask_again_at:
            return
        self._ask_again_at = now + ASK_AGAIN_S
        self._number += 1
        await ear.send(Fill(self._number, self._own, tuple(places)))
        answer = await self._next(inbox)
        if isinstance(answer, Filled) and answer.id == self._number:
            self._spend(answer)
            came = [(one.entry, one.contents) for one in arrived(answer.items)]
            if filled := await self._sequencer.refill(came, self._reclaim):
                log.info("contents of our own log came back", pool=peer.name, entries=filled)

    async def _fetch_own(
        self, peer: Peer, ear: LogStream, inbox: asyncio.Queue[LogMessage | TunnelError]
    ) -> None:
        """Ask for our own log beyond where our store ends."""
        wanted = self.wanted
        assert wanted is not None
        head: Head | None = None
        failure: Literal["unproven", "away"] = "away"
        self.progress.state = "reclaiming"
        try:
            more = True
            while more:
                question, certificates = await self._question(self._own)
                await ear.send(question)
                entries, more, raw = await self._own_entries(question, inbox)
                certificates += raw
                async with self._store.connection() as connection:
                    await table.put_certificates(
                        connection, self._own, own_certificates(self._own, certificates)
                    )
                    ours = await table.certificates(connection, self._own)
                    before = (await table.own_head(connection)).head
                for one in entries:
                    if one.entry.pool != self._own or one.entry.signer not in ours:
                        raise LogProblem("origin", "the peer shows entries as ours that are not")
                    check_signature(one.entry)
                    if one.contents is not None:
                        check_contents(one.entry, one.contents)
                entries = await self._part_ways(entries, before)
                if not entries:
                    break
                head = await self._sequencer.reclaimed(
                    [(one.entry, one.contents) for one in entries],
                    self._reclaim,
                    erased=frozenset(one.entry.seq for one in entries if one.missing == "erased"),
                )
                self.progress.reclaimed += len(entries)
            failure = "unproven"
            log.warning("our own log came back from a peer", pool=peer.name, head=head.seq if head else None)
        except LogProblem as problem:
            failure = "away" if problem.code in _UNABLE else "unproven"
            raise
        finally:
            self.wanted = None
            if not wanted.done():
                wanted.set_result(head or failure)

    async def _own_entries(
        self, question: Pull, inbox: asyncio.Queue[LogMessage | TunnelError]
    ) -> tuple[list[Arrived], bool, list[bytes]]:
        raw: list[bytes] = []
        while True:
            match await self._next(inbox):
                case Certificates(_, certificates):
                    raw += certificates
                case Entries(number, _, _, items, more, False) if number == question.id:
                    return arrived(items), more, raw
                case Sorry(_, code, text):
                    raise LogProblem(code, text)
                case _:
                    raise LogProblem("protocol", "the peer answers what was not asked")

    async def _part_ways(self, entries: list[Arrived], head: Head) -> list[Arrived]:
        """Where the peer has other entries than ours, and of a later life: cut ours back to what is shared.

        Returns what is new.
        """
        async with self._store.connection() as connection:
            known = await table.known_at(connection, self._own, [one.entry.seq for one in entries])
        fresh = [
            one for one in entries if (at := known.get(one.entry.seq)) is None or at.hash != one.entry.hash
        ]
        if fresh and fresh[0].entry.seq <= head.seq:
            seq = fresh[0].entry.seq
            async with self._store.connection() as connection:
                rows = await table.entries_at(connection, self._own, [seq - 1, seq])
            if [row.entry.seq for row in rows] != [one for one in (seq - 1, seq) if one]:
                raise LogProblem(
                    "diverged", f"the peer has another entry {seq} of ours, which is truncated here"
                )
            *before, there = (row.entry for row in rows)
            if not supersedes(fresh[0].entry, there):
                return []
            cut = Head(before[0].incarnation, before[0].seq, before[0].hash) if before else EMPTY
            await self._sequencer.cut_back(cut, "peers have other entries here")
        return fresh

    # --- small things

    async def _leased(self) -> bool:
        async with self._store.connection() as connection:
            return await table.lease(connection, self._key, self._gate)

    async def _next(self, inbox: asyncio.Queue[LogMessage | TunnelError]) -> LogMessage:
        """The next answer. TunnelError where the stream ended, or nothing has come for `ANSWER_S`."""
        while True:
            heard = self._ear.bytes if self._ear is not None else 0
            try:
                async with asyncio.timeout(ANSWER_S):
                    message = await inbox.get()
            except TimeoutError:
                if self._ear is None or self._ear.bytes == heard:
                    raise TunnelError("the peer has left a question about a log unanswered") from None
                continue
            if isinstance(message, TunnelError):
                raise message
            return message

    def _spend(self, message: Entries | Filled) -> int:
        size = sum(len(one.entry) + len(one.payload or b"") for one in message.items)
        self.progress.bytes += size
        rate = self._rate()
        if rate != self._pace.rate:
            self._pace = Pace(rate, at=time.monotonic())
        self._pace = self._pace.spent(size, time.monotonic())
        return size

    async def _wait_for_pace(self) -> None:
        if wait := self._pace.wait(time.monotonic()):
            await asyncio.sleep(wait)

    async def _pause(self, seconds: float) -> None:
        """Wait for news, for `look`, or until something held is due; then let that go on."""
        if self.progress.held_until is not None:
            due = self.progress.held_until - self._clock()
            seconds = max(0.01, min(seconds, due))
        await self._rest(seconds)
        held = self.progress.held_until
        if held is not None and held <= self._clock():
            self.progress.held_until = None
            peer = self._peer(self._key)
            if peer is not None:
                self.progress.held_until = (await self._replicas.release(peer)).wake_at

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stir.wait()

    def _disappoint(self) -> None:
        if self.wanted is not None and not self.wanted.done():
            self.wanted.set_result("away")
        self.wanted = None

    def _close(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None
