"""Streams of the kind "results": what `qgate.federation.results` decides, done at one gate, both ends.

Each gate that may send jobs to a peer holds one such stream to it (flow "jobs", as the jobs themselves
had). On it the peer says a `JobResult` for each result that it keeps for this pool, and we answer
`JobRecorded` once our store has a receipt for the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from qgate.capability.work import Attempt, Work
from qgate.federation.links import Carrier, PeerLinks, Peers
from qgate.federation.peer import Peer
from qgate.federation.results import (
    KEPT_DAYS,
    TELLING_MAX,
    Docket,
    Home,
    Telling,
    docket_purpose,
    judge,
    receipt_id,
    recovered_fields,
    request_of,
)
from qgate.federation.trust import may
from qgate.governance.audit import AuditEvent
from qgate.governance.docket_keys import DocketKeys, forget_docket_keys
from qgate.store import Store, StoreUnavailableError
from qgate.store.receipts import ReceiptRow, add_receipts
from qgate.store.results import (
    ResultRow,
    add_results,
    drop_results,
    forget_results,
    list_results,
    recorded,
    silence_of_gates,
)
from qgate.vault import VaultError
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, MeshError, RemoteProtocolError
from tunnel_proto.identity import fingerprint
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import KIND_RESULTS, Decoder, JobRecorded, JobResult, encode
from tunnel_proto.receipt import check_receipt, read_receipt

LOOK_S: Final = 1.0
SIBLINGS_S: Final = 15.0
"""How often results that a sibling of this gate has kept are looked for."""

SETTLE_S: Final = 0.5
"""How long a job's end waits for its result to be in the store; then it is said all the same."""

QUEUE_MAX: Final = 10_000
RETRY_S: Final = 1.0
REFUSED_RETRY_S: Final = 30.0
FRAME_MAX: Final = 128 << 10
STREAMS_MAX: Final = 4
"""Streams on which a pool may ask one gate for results at once: each looks into the store, and one of them is
enough, for whichever gate hears a result records it."""

FORGET_EVERY_S: Final = 3600.0

log = structlog.get_logger(__name__)


class Recorder(Protocol):
    """The receipts of this gate."""

    def pending(self, receipt_id: str) -> bool:
        """Whether it was issued here and is not in the store yet."""

    def recover(self, fields: Mapping[str, Any]) -> ReceiptRow:
        """Sign a receipt for a request whose gate died."""


class Results:
    """Keeps, tells and takes results at one gate. ``underway(request)``: it runs here; ``clock``: unix s."""

    def __init__(
        self,
        *,
        links: PeerLinks,
        peers: Peers,
        store: Store,
        dockets: DocketKeys,
        receipts: Recorder,
        gate: str,
        pool_key: bytes,
        underway: Callable[[str], bool],
        audit: Callable[[AuditEvent], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.recovered = 0
        self.store = store
        self.dockets = dockets
        self.receipts = receipts
        self.gate = gate
        self.run_id = os.urandom(8).hex()
        self.pool_key = pool_key
        self.underway = underway
        self.audit = audit
        self.clock = clock
        self._links = links
        self._peers = peers
        self._expected: dict[str, tuple[bytes, str, bytes]] = {}
        self._waiting: OrderedDict[str, ResultRow] = OrderedDict()
        self._written: dict[str, asyncio.Event] = {}
        self._arrived = asyncio.Event()
        self._asked: dict[bytes, _Asked] = {}
        self._refused_until: dict[bytes, float] = {}
        self._told: dict[bytes, list[_Told]] = {}
        links.serve(KIND_RESULTS, "jobs", self._accept)

    # --- for jobs that we send

    def docket(self, attempt: Attempt, peer: Peer) -> bytes:
        """What we shall have to know of an attempt at a peer, sealed for this pool."""
        work = attempt.work
        team = work.app.policy.team if work.app.policy is not None else None
        docket = Docket(
            work.app.name,
            work.request.task,
            self.gate,
            self.run_id,
            work.received_at or self.clock(),
            team,
        )
        return self.dockets.seal(docket.dump(), docket_purpose(peer.pool_key, attempt.id))

    # --- for jobs that we execute

    def expect(self, receipt: str, pool_key: bytes, job: str, docket: bytes) -> None:
        """A job begins whose receipt will have that id."""
        self._expected[receipt] = (pool_key, job, docket)

    def issued(self, work: Work, receipt: str) -> None:
        """A request has ended, and this is its receipt."""
        expected = self._expected.pop(work.id, None)
        if expected is None:
            return
        pool_key, job, docket = expected
        self._waiting[work.id] = ResultRow(pool_key, job, docket, receipt, self.clock())
        self._written[work.id] = asyncio.Event()
        if len(self._waiting) > QUEUE_MAX:
            dropped, _ = self._waiting.popitem(last=False)
            self._settle([dropped])
            log.warning("a result was dropped, because the store is away", receipt=dropped)
        self._arrived.set()

    async def settled(self, receipt: str) -> None:
        """Wait until its result is kept, or nothing more can be done for it now."""
        written = self._written.get(receipt)
        if written is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await written.wait()

    def over(self, receipt: str) -> None:
        """It has ended, with a receipt or without."""
        self._expected.pop(receipt, None)

    # --- life

    async def run(self) -> None:
        """Write what is to be kept, tell what is kept, ask peers for theirs, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(), name="results kept")
            tasks.create_task(self._look(), name="results told")

    async def close(self) -> None:
        """End the streams, and write what is left for as long as that does not take too long."""
        for asked in list(self._asked.values()):
            asked.end(StreamCode.GATE_SHUTDOWN, "the gate stops")
        for told in [one for held in self._told.values() for one in held]:
            told.end(StreamCode.GATE_SHUTDOWN, "the gate stops")
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._flush()

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                await self._flush()
            except (MeshError, TimeoutError):
                self._settle(list(self._written))  # nobody waits for a store that is away
                self._arrived.set()
                await asyncio.sleep(RETRY_S)

    async def _flush(self) -> None:
        while self._waiting:
            rows = dict(self._waiting)
            async with self.store.connection() as connection:
                await add_results(connection, list(rows.values()))
            for receipt, row in rows.items():
                self._waiting.pop(receipt, None)
                for told in self._told.get(row.pool, ()):
                    told.stirred = True
            self._settle(rows)

    def _settle(self, receipts: Iterable[str]) -> None:
        for receipt in receipts:
            if (written := self._written.pop(receipt, None)) is not None:
                written.set()

    async def _look(self) -> None:
        forget_at = 0.0
        while True:
            now = time.monotonic()
            self._ask(now)
            try:
                for told in [one for held in self._told.values() for one in held]:
                    await told.tell(now)
                for asked in list(self._asked.values()):
                    await asked.take()
                if now >= forget_at:
                    forget_at = now + FORGET_EVERY_S
                    await self._forget()
            except (StoreUnavailableError, TimeoutError):
                pass  # the directory's watch has said so already
            except Exception:  # results wait where they are kept: no reason to take the gate down
                log.exception("results could not be told or taken")
            await asyncio.sleep(LOOK_S)

    async def _forget(self) -> None:
        now = datetime.fromtimestamp(self.clock(), UTC)
        async with self.store.connection() as connection:
            await forget_docket_keys(connection, now)
            if count := await forget_results(connection, now - timedelta(days=KEPT_DAYS)):
                log.warning("results were given up that nobody asked for", count=count, days=KEPT_DAYS)

    # --- streams

    def _ask(self, now: float) -> None:
        for peer in self._peers.peers():
            key = peer.pool_key
            if key in self._asked or not may(peer, "jobs", "send") or not self._links.up(key):
                continue
            if now < self._refused_until.get(key, 0.0):
                continue
            asked = _Asked(self, peer)
            try:
                asked.stream = self._links.open(key, KIND_RESULTS, {}, asked)
            except LocalProtocolError:
                continue
            self._asked[key] = asked

    def asked_over(self, asked: _Asked, error: StreamError | None) -> None:
        """Our stream to a peer is over; a refusal is not hammered at."""
        key = asked.peer.pool_key
        if self._asked.get(key) is asked:
            del self._asked[key]
        if error is not None and error.code in {StreamCode.REFUSED, StreamCode.LIMIT}:
            self._refused_until[key] = time.monotonic() + REFUSED_RETRY_S

    def _accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        del carrier
        held = self._told.setdefault(peer.pool_key, [])
        if len(held) >= STREAMS_MAX:
            stream.reset(
                StreamCode.LIMIT, f"a pool asks for results on at most {STREAMS_MAX} streams at once"
            )
            return
        told = _Told(self, peer.pool_key, stream)
        held.append(told)
        stream.receiver = told

    def told_over(self, told: _Told) -> None:
        """A peer's stream is over."""
        held = self._told.get(told.pool_key, [])
        if told in held:
            held.remove(told)


class _Told(Ignore):
    """A peer's gate asks for the results that we keep for its pool."""

    def __init__(self, results: Results, pool_key: bytes, stream: Stream) -> None:
        self.pool_key = pool_key
        self.stirred = True
        self._results = results
        self._stream: Stream | None = stream
        self._decoder = Decoder(FRAME_MAX)
        self._telling = Telling()
        self._acknowledged: list[str] = []
        self._looked_at = 0.0

    async def tell(self, now: float) -> None:
        """Forget what was acknowledged, and tell what is due. StoreUnavailableError."""
        done, self._acknowledged = self._acknowledged, []
        idle = not (done or self.stirred or self._telling.told)
        if idle and now < self._looked_at + SIBLINGS_S:
            return
        self.stirred, self._looked_at = False, now
        try:
            async with self._results.store.connection() as connection:
                if done:
                    await drop_results(connection, self.pool_key, done)
                rows = await list_results(connection, self.pool_key, 2 * TELLING_MAX)
        except BaseException:
            self._acknowledged, self.stirred = done + self._acknowledged, True
            raise
        by_job = {row.job: row for row in rows}
        for job in self._telling.due(by_job, now):
            row = by_job[job]
            if self._stream is not None:
                with contextlib.suppress(LocalProtocolError):
                    self._stream.write(encode(JobResult(job, row.docket, row.receipt)), boundary=True)

    def end(self, code: int, message: str) -> None:
        """Close it from here."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code, message)
        self._results.told_over(self)

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Acknowledgements."""
        stream = self._stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, JobRecorded):
                    raise RemoteProtocolError("only acknowledgements are said on this stream")
                self._telling.acknowledged(message.job)
                self._acknowledged.append(message.job)
        except RemoteProtocolError as error:
            log.warning("a peer broke the protocol", stream="results", error=error.message)
            self.end(StreamCode.PROTOCOL, error.message)

    def eof_received(self) -> None:
        """The other gate asks no more."""
        self.end(StreamCode.CANCELLED, "")

    def stream_closed(self, error: StreamError | None) -> None:
        """It comes back by itself; what was not acknowledged is kept."""
        self._stream = None
        self._results.told_over(self)


class _Asked(Ignore):
    """Our stream to a peer, on which it tells what it keeps for us."""

    def __init__(self, results: Results, peer: Peer) -> None:
        self.peer = peer
        self.stream: Stream | None = None
        self._results = results
        self._decoder = Decoder(FRAME_MAX)
        self._heard: list[JobResult] = []

    async def take(self) -> None:
        """Record what was heard, and acknowledge. StoreUnavailableError leaves it to be told again."""
        heard, self._heard = self._heard, []
        if not heard:
            return
        done, rows = await self._sorted(heard)
        if rows:
            async with self._results.store.transaction() as connection:
                await add_receipts(connection, [row for row, _ in rows])
            for row, message in rows:
                self._note(row, message)
                done.append(message.job)
        for job in done:
            if self.stream is not None:
                with contextlib.suppress(LocalProtocolError):
                    self.stream.write(encode(JobRecorded(job)), boundary=True)

    async def _sorted(self, heard: list[JobResult]) -> tuple[list[str], list[tuple[ReceiptRow, JobResult]]]:
        results, done, rows = self._results, [], []
        async with results.store.connection() as connection:
            there = await recorded(connection, [request_of(one.job) for one in heard])
            home = Home(results.gate, results.run_id, await silence_of_gates(connection))
        taken: set[str] = set()
        for one in heard:
            request = request_of(one.job)
            try:
                docket, theirs = self._read(one)
            except MeshError as error:
                log.warning(
                    "a result is none of ours", pool=self.peer.name, job=one.job, reason=error.message
                )
                done.append(one.job)
                continue
            underway = results.underway(request) or results.receipts.pending(request)
            word = judge(docket, home, recorded=request in there or request in taken, underway=underway)
            if word == "known":
                done.append(one.job)
            elif word == "record":
                taken.add(request)
                fields = recovered_fields(
                    request, docket, theirs, pool=self.peer.name, gate=results.gate, now=results.clock()
                )
                rows.append((results.receipts.recover(fields), one))
        return done, rows

    def _read(self, one: JobResult) -> tuple[Docket, Mapping[str, Any]]:
        """What we sealed and what the peer signed. MeshError where either is not what it should be."""
        results, key = self._results, self.peer.pool_key
        try:
            docket = Docket.load(results.dockets.unseal(one.docket, docket_purpose(key, one.job)))
            theirs = read_receipt(one.receipt)
            genuine = check_receipt(theirs, pool=fingerprint(key))
        except ValueError as error:
            raise VaultError(f"a result that cannot be read: {error}") from None
        if genuine.id != receipt_id(results.pool_key, one.job):
            raise VaultError("its receipt is of another job")
        return docket, theirs

    def _note(self, row: ReceiptRow, message: JobResult) -> None:
        self._results.recovered += 1
        log.info("a request of a gate that died is recorded", request=row.id, pool=self.peer.name)
        detail = {"request": row.id, "receipt": row.id, "job": message.job, "pool": self.peer.name}
        self._results.audit(
            AuditEvent("job.recovered", app=row.app, started_at=self._results.clock(), detail=detail)
        )

    def end(self, code: int, message: str) -> None:
        """Close it from here."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(code, message)
        self._results.asked_over(self, None)

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Results."""
        if self.stream is None:
            return
        self.stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, JobResult) or len(self._heard) >= 2 * TELLING_MAX:
                    raise RemoteProtocolError("only results are said on this stream, and only so many")
                self._heard.append(message)
        except RemoteProtocolError as error:
            log.warning("a peer broke the protocol", stream="results", error=error.message)
            self.end(StreamCode.PROTOCOL, error.message)

    def eof_received(self) -> None:
        """The peer says no more."""
        self.end(StreamCode.CANCELLED, "")

    def stream_closed(self, error: StreamError | None) -> None:
        """It is opened again where that is allowed."""
        self.stream = None
        self._results.asked_over(self, error)
