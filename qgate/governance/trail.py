"""Reading the audit chain: queries, a live tail, export, verification and retention."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from qgate.governance.audit import AuditEvent, AuditLog, read_head_file, spell_time
from qgate.governance.proving import Turns
from qgate.store import Store
from qgate.store import audit as table
from tunnel_proto.audit_chain import ChainCheck, SignedHead, sign_marker
from tunnel_proto.certificate import OnlineKey

LIMIT_MAX = 10_000

_CHUNK = 1_000
_TAIL_CHECK_S = 5.0


class AuditTrail:
    """The chain, read. `pool_key` is the pool's Ed25519 key, `log` this gate's writer."""

    def __init__(
        self,
        store: Store,
        log: AuditLog,
        *,
        pool_key: bytes,
        online: OnlineKey,
        head_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._log = log
        self._pool_key = pool_key
        self._online = online
        self._head_file = head_file
        self._clock = clock

    async def entries(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
        app: str | None = None,
        database: str | None = None,
        kind: str | None = None,
        text: str | None = None,
    ) -> list[dict[str, Any]]:
        """Entries after number `after`, oldest first; without it the last `limit` that fit, of those before
        `before` or of the whole chain. `text` is looked for in the whole entry, where no `after` is given.
        """
        limit = max(1, min(limit, LIMIT_MAX))
        async with self._store.connection() as connection:
            if after is None:
                rows = await table.read_back(
                    connection,
                    before=before,
                    limit=limit,
                    app=app,
                    database=database,
                    kind=kind,
                    text=text,
                )
            else:
                rows = await table.read(
                    connection, after=after, limit=limit, app=app, database=database, kind=kind
                )
        return [_shown(row) for row in rows]

    async def follow(self, *, after: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Entries after `after` (or from now on), and then each new one as it is written, until the reader
        stops.
        """
        stir = asyncio.Event()
        listener = await self._store.listen(table.CHANNEL, lambda _: stir.set(), lost=stir.set)
        try:
            if after is None:
                async with self._store.connection() as connection:
                    after, _ = await table.head(connection)
            while True:
                stir.clear()
                while rows := await self.entries(after=after, limit=_CHUNK):
                    for row in rows:
                        yield row
                    after = rows[-1]["seq"]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TAIL_CHECK_S):
                        await stir.wait()
                await listener.check()
        finally:
            await listener.close()

    async def export(self) -> AsyncIterator[str]:
        """The chain as NDJSON: the retention marker if there is one, every entry with its hash, a signed
        head last.
        """
        await self._log.flush()
        head = await self._log.sign()
        async with self._store.connection() as connection:
            marker = await table.last_marker(connection)
        if marker is not None:
            yield json.dumps({"marker": marker.as_json()}) + "\n"
        after = marker.seq if marker else 0
        while rows := await self._chunk(after, head.seq if head else 0):
            for row in rows:
                yield f'{{"seq":{row.seq},"hash":"{row.hash.hex()}","entry":{row.entry}}}\n'
            after = rows[-1].seq
        if head is not None:
            yield json.dumps({"head": head.as_json()}) + "\n"

    async def head(self) -> dict[str, Any] | None:
        """The newest signed head, to be kept somewhere else."""
        async with self._store.connection() as connection:
            signed = await table.last_signed_head(connection)
        return signed.as_json() if signed else None

    async def verify(self, *, heads: tuple[SignedHead, ...] = ()) -> dict[str, Any]:
        """Walk the whole chain; `heads` are further signed heads that were kept elsewhere.

        Returns `{ok, entries, first_bad_seq, problem, head}`.
        """
        await self._log.flush()
        if self._head_file is not None:
            heads = (*heads, *read_head_file(self._head_file))
        async with self._store.transaction(snapshot=True) as connection:
            marker = await table.last_marker(connection)
            stored = await table.signed_heads(connection)
            last_seq, last_hash = await table.head(connection)
            # Every signed head is a signature, and there may be thousands.
            check = await asyncio.to_thread(ChainCheck, self._pool_key, (*stored, *heads), marker)
            # Not "after the marker": an entry put in front of it would go unseen.
            after, going, turns = 0, True, Turns()
            while going and (rows := await table.read(connection, after=after, limit=_CHUNK)):
                for row in rows:
                    after = row.seq
                    if not check.entry(row.seq, row.entry, row.hash):
                        going = False
                        break
                    await turns.pause()
        finding = check.end(last_seq, last_hash)
        if finding is None:
            await self._log.sign()
        return {
            "ok": finding is None,
            "entries": check.entries,
            "first_bad_seq": finding.seq if finding else None,
            "problem": finding.problem if finding else "",
            "head": await self.head(),
        }

    async def retire(self, days: int) -> int:
        """Remove entries older than `days`, leaving a signed marker; returns how many went. The newest
        always stays.
        """
        async with self._store.transaction() as connection:
            seq, _ = await table.lock_head(connection)
            last = await table.last_before(connection, spell_time(self._clock() - days * 86_400))
            if last is None or last.seq >= seq:
                return 0
            marker = sign_marker(
                self._online.identity,
                self._online.certificate,
                seq=last.seq,
                hash=last.hash,
                at=int(self._clock()),
            )
            removed = await table.cut(connection, marker)
        if removed:
            self._log.record(
                AuditEvent("audit.retention", count=removed, detail={"removed_through": last.seq})
            )
        return removed

    async def _chunk(self, after: int, until: int) -> list[table.AuditRow]:
        async with self._store.connection() as connection:
            rows = await table.read(connection, after=after, limit=_CHUNK)
        return [row for row in rows if row.seq <= until]


def _shown(row: table.AuditRow) -> dict[str, Any]:
    return {**json.loads(row.entry), "hash": row.hash.hex()}
