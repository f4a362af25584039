"""The audit log as the relay sees it: `record` returns at once, and a task writes in batches.

What can be lost. An entry is in memory for at most one batch interval (`audit.batch_interval_s`, 0.25 s)
plus the time of one insert; a gate killed in between loses those entries and no others. While the store is
away or its disk is full, entries gather up to `audit.queue_max`; then `audit.when_full` decides: "refuse"
makes `accepting` false, so that no new session begins (those that run may fill a reserve of a quarter
more), "drop" goes on. Either way an entry that finds no place is counted, and the count itself becomes an
entry as soon as the store is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from qgate.store import Store, StoreUnavailableError
from qgate.store import audit as table
from tunnel_proto.audit_chain import SignedHead, canonical, link, sign_head
from tunnel_proto.certificate import OnlineKey

BATCH_MAX = 2_000

# Building a batch is CPU on the event loop; between slices of this many entries the relay gets its turn (~1
# ms).
_SLICE = 100
_RESERVE = 1.25
_RETRY_FIRST_S = 0.25
_RETRY_MOST_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_SECONDS_DIGITS = 6

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened. Times are unix seconds, durations seconds; `outcome` is "ok" or an SQLSTATE.

    `fingerprint` is the normalised statement without literals and `fingerprint_id` its short name. `count`
    is how many equal statements the event stands for; `rows`, `bytes_up`, `bytes_down` and `duration_s` are
    their sums.
    """

    kind: str
    app: str = ""
    sidecar: str = ""
    database: str = ""
    fingerprint: str | None = None
    fingerprint_id: str | None = None
    count: int = 1
    rows: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    duration_s: float = 0.0
    max_duration_s: float = 0.0
    outcome: str = "ok"
    started_at: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


_FIELDS = tuple(f.name for f in dataclasses.fields(AuditEvent) if f.name != "started_at")


def spell_time(at: float) -> str:
    """Unix seconds as entries spell them: ISO 8601 in UTC with microseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def entry_of(event: AuditEvent, *, seq: int, gate: str) -> str:
    """The event as entry `seq` of the chain, in canonical JSON. Absent values are left out."""
    entry: dict[str, Any] = {"v": 1, "seq": seq, "started_at": spell_time(event.started_at), "gate": gate}
    for name in _FIELDS:
        value = getattr(event, name)
        if isinstance(value, float):
            value = round(value, _SECONDS_DIGITS)
        if value or value == 0:
            entry[name] = value
    try:
        text = canonical(entry)
    except (TypeError, ValueError, RecursionError):
        # One event that cannot be spelled must not hold up all that follow it.
        entry |= {"detail": {"unreadable": True}, "duration_s": 0.0, "max_duration_s": 0.0}
        text = canonical(entry)
    # jsonb holds neither NUL nor half a surrogate pair; a client may have put either into a statement.
    if "\\u0000" in text or "\\ud" in text:
        text = canonical(_storable(entry))
    return text


class AuditLog:
    """Takes events from the relay and appends them to the pool's chain.

    `setting` looks a setting up by name; `clock` gives unix seconds. Every signed head is also written to
    `head_file`, so that whoever can change the store cannot make the newest one disappear.
    """

    def __init__(
        self,
        store: Store,
        *,
        gate: str,
        online: OnlineKey,
        setting: Callable[[str], Any],
        head_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.written = 0
        self.dropped = 0
        self.head_seq = 0
        self._store = store
        self._gate = gate
        self._online = online
        self._setting = setting
        self._head_file = head_file
        self._clock = clock
        self._queue: deque[AuditEvent] = deque()
        self._arrived = asyncio.Event()
        self._writing = asyncio.Lock()
        self._uncertain: tuple[int, bytes, int] | None = None
        self._dropped_untold = 0
        self._signed_seq = 0
        self._sign_at = 0.0

    @property
    def queued(self) -> int:
        """How many events wait to be written."""
        return len(self._queue)

    @property
    def accepting(self) -> bool:
        """Whether a new session may begin as far as the audit log is concerned."""
        limit: int = self._setting("audit.queue_max")
        when_full: str = self._setting("audit.when_full")
        return len(self._queue) < limit or when_full == "drop"

    def record(self, event: AuditEvent) -> None:
        """Take an event; never waits. One that finds the queue and its reserve full is counted instead."""
        limit: int = self._setting("audit.queue_max")
        if self._setting("audit.when_full") == "refuse":
            limit = int(limit * _RESERVE)
        if len(self._queue) >= limit:
            self.dropped += 1
            self._dropped_untold += 1
            return
        if not event.started_at:
            event = dataclasses.replace(event, started_at=self._clock())
        self._queue.append(event)
        self._arrived.set()

    async def run(self) -> None:
        """Write batches and sign heads until cancelled; then `close` writes what is left."""
        wait = _RETRY_FIRST_S
        while True:
            if not self._queue:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._until_signing()):
                        await self._arrived.wait()
            if self._queue:
                await asyncio.sleep(self._setting("audit.batch_interval_s"))
            try:
                await self.flush()
                if self._until_signing() == 0.0:
                    await self.sign()
            except StoreUnavailableError as error:
                log.warning("audit entries wait for the store", queued=self.queued, reason=error.message)
            except Exception:
                log.exception("audit entries could not be written", queued=self.queued)
            else:
                wait = _RETRY_FIRST_S
                continue
            await asyncio.sleep(wait)
            wait = min(2 * wait, _RETRY_MOST_S)

    async def close(self) -> None:
        """Write and sign what is left; gives up on a store that is away and says how much was lost."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.flush()
                await self.sign()
        except (StoreUnavailableError, TimeoutError):
            log.error("audit entries could not be written before the end", lost=self.queued)

    async def flush(self) -> None:
        """Write everything that waits now. StoreUnavailableError where the store is away; nothing is lost
        by it.
        """
        async with self._writing:
            while True:
                self._arrived.clear()
                if self._uncertain is not None:
                    await self._settle()
                if self._dropped_untold:
                    self._tell_dropped()
                if not self._queue:
                    return
                await self._write_batch()

    async def sign(self) -> SignedHead | None:
        """Sign the newest entry's hash and keep it; None for an empty chain."""
        async with self._store.transaction() as connection:
            seq, digest = await table.head(connection)
            self.head_seq = seq
            if seq == 0:
                return None
            signed = sign_head(
                self._online.identity, self._online.certificate, seq=seq, hash=digest, at=int(self._clock())
            )
            await table.put_signed_head(connection, signed)
        if self._head_file is not None:
            await asyncio.to_thread(_replace_file, self._head_file, json.dumps(signed.as_json()) + "\n")
        self._signed_seq = seq
        self._sign_at = self._clock() + self._setting("audit.sign_interval_s")
        return signed

    def _until_signing(self) -> float | None:
        """Seconds until a head is due, None while nothing is unsigned: an idle gate sleeps."""
        if self.head_seq <= self._signed_seq:
            return None
        return max(0.0, self._sign_at - self._clock())

    async def _write_batch(self) -> None:
        events = list(itertools.islice(self._queue, BATCH_MAX))
        async with self._store.transaction() as connection:
            seq, digest = await table.lock_head(connection)
            rows: list[table.AuditRow] = []
            for event in events:
                seq += 1
                entry = entry_of(event, seq=seq, gate=self._gate)
                digest = link(digest, entry)
                rows.append(table.AuditRow(seq, entry, digest))
                if seq % _SLICE == 0:
                    await asyncio.sleep(0)
            # From here until the commit is answered it may or may not have happened.
            self._uncertain = (seq, digest, len(rows))
            await table.append(connection, rows)
        self._landed()

    async def _settle(self) -> None:
        """Find out whether the batch whose commit was not answered is in the chain."""
        assert self._uncertain is not None
        seq, digest, _ = self._uncertain
        async with self._store.connection() as connection:
            if await table.holds(connection, seq, digest):
                self._landed()
            else:
                self._uncertain = None

    def _landed(self) -> None:
        assert self._uncertain is not None
        self.head_seq, _, count = self._uncertain
        self._uncertain = None
        for _ in range(count):
            self._queue.popleft()
        self.written += count

    def _tell_dropped(self) -> None:
        lost, self._dropped_untold = self._dropped_untold, 0
        self._queue.append(AuditEvent("audit.dropped", count=lost, outcome="lost", started_at=self._clock()))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return (
            value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
            .encode("utf-16", "surrogatepass")
            .decode("utf-16", "replace")
        )
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value


def _replace_file(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def read_head_file(path: Path) -> Iterator[SignedHead]:
    """The signed head that this gate wrote down, if it has one that can be read."""
    with contextlib.suppress(OSError, ValueError):
        yield SignedHead.from_json(json.loads(path.read_text()))
