"""Receipts of this gate: signed at once, kept in batches by a task of their own.

A receipt that is not written yet is found in memory. While the store is away they gather up to `QUEUE_MAX`;
beyond it the oldest are counted and dropped, for the client holds a signed copy of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from qgate.capability.finops.prices import plain
from qgate.capability.work import Hop, Outcome, Receipt, Work
from qgate.store import Store, StoreUnavailableError
from qgate.store.receipts import ReceiptRow, add_receipts, find_receipt
from tunnel_proto.certificate import OnlineKey
from tunnel_proto.receipt import ReceiptSigner, spell

QUEUE_MAX: Final = 50_000
BATCH_MAX: Final = 1_000
INTERVAL_S: Final = 0.25
ID_MAX: Final = 64
_RETRY_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 5.0

log = structlog.get_logger(__name__)

OnShift = Callable[[Work, Outcome], None]
OnIssue = Callable[[Work, str], None]


def _ignored(work: Work, outcome: Outcome) -> None:
    del work, outcome


class Receipts:
    """Issues, keeps and finds receipts. `on_shift` hears of a request that a budget sent elsewhere."""

    def __init__(
        self,
        store: Store,
        *,
        gate: str,
        online: OnlineKey,
        pool_key: bytes,
        on_shift: OnShift = _ignored,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issued = 0
        self.dropped = 0
        self._store = store
        self._gate = gate
        self._online = online
        self._signer = ReceiptSigner(pool_key)
        self._on_shift = on_shift
        self._on_issue: list[OnIssue] = []
        self._clock = clock
        self._waiting: OrderedDict[str, ReceiptRow] = OrderedDict()
        self._arrived = asyncio.Event()
        self._writing = asyncio.Lock()

    def issue(self, work: Work, *, outcome: Outcome) -> Receipt:
        """Sign one now. Its id is the request's, so that a stream can name it before it begins."""
        signed = self._signer.sign(
            fields_of(work, outcome, gate=self._gate),
            online=self._online.identity,
            certificate=self._online.certificate,
        )
        self.issued += 1
        row = ReceiptRow(work.id, outcome.ended_at or self._clock(), work.app.name, signed.text)
        self._waiting[work.id] = row
        if len(self._waiting) > QUEUE_MAX:
            self._waiting.popitem(last=False)
            self.dropped += 1
        self._arrived.set()
        if outcome.shift:
            self._on_shift(work, outcome)
        for heard in self._on_issue:
            heard(work, signed.text)
        return Receipt(work.id, signed.document, signed.text)

    def on_issue(self, callback: OnIssue) -> None:
        """Call ``callback`` with each request that ends and its receipt's text."""
        self._on_issue.append(callback)

    def pending(self, receipt_id: str) -> bool:
        """Whether it was issued here and is not in the store yet."""
        return receipt_id in self._waiting

    def recover(self, fields: Mapping[str, Any]) -> ReceiptRow:
        """Sign a receipt for a request whose gate died before it could; whoever asks writes it."""
        signed = self._signer.sign(fields, online=self._online.identity, certificate=self._online.certificate)
        return ReceiptRow(fields["id"], self._clock(), fields["app"], signed.text)

    async def get(self, receipt_id: str, app: str | None) -> Mapping[str, Any] | None:
        """The signed document, None where there is none of this app (None: of any app).

        StoreUnavailableError where it would be in the store and that is away.
        """
        if len(receipt_id) > ID_MAX or not receipt_id.isascii() or not receipt_id.isprintable():
            return None
        row = self._waiting.get(receipt_id)
        if row is None:
            async with self._store.connection() as connection:
                row = await find_receipt(connection, receipt_id, app)
        if row is None or (app is not None and row.app != app):
            return None
        document: dict[str, Any] = json.loads(row.document)
        return document

    async def run(self) -> None:
        """Write what is issued, until cancelled."""
        told = 0
        while True:
            await self._arrived.wait()
            await asyncio.sleep(INTERVAL_S)
            self._arrived.clear()
            try:
                await self.flush()
            except (StoreUnavailableError, TimeoutError):
                self._arrived.set()
                await asyncio.sleep(_RETRY_S)
            except Exception:  # they are in memory and with the clients: no reason to take the gate down
                log.exception("receipts could not be written")
                self._arrived.set()
                await asyncio.sleep(_RETRY_S)
            if self.dropped != told:
                log.warning("receipts were dropped, because the store is away", dropped=self.dropped - told)
                told = self.dropped

    async def flush(self) -> None:
        """Write all that is waiting. StoreUnavailableError leaves it waiting."""
        async with self._writing:
            while self._waiting:
                rows = [row for _, row in zip(range(BATCH_MAX), self._waiting.values(), strict=False)]
                async with self._store.connection() as connection:
                    await add_receipts(connection, rows)
                for row in rows:
                    self._waiting.pop(row.id, None)

    async def close(self) -> None:
        """Write what is left, for as long as that does not take too long."""
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.flush()


def fields_of(work: Work, outcome: Outcome, *, gate: str) -> dict[str, Any]:
    """What a receipt says before it is signed: facts and figures, none of the content.

    Times are UTC to the second, durations whole milliseconds, amounts text: every language spells them alike.
    """
    last = outcome.hops[-1] if outcome.hops else None
    fields: dict[str, Any] = {
        "id": work.id,
        "app": work.app.name,
        "team": work.app.policy.team if work.app.policy is not None else None,
        "task": work.request.task,
        "model": last.model if last else None,
        "model_version": last.version if last else None,
        "nodes": [_hop(hop) for hop in outcome.hops],
        "gate": gate,
        "began_at": spell(outcome.began_at),
        "ended_at": spell(outcome.ended_at),
        "duration_ms": max(0, round((outcome.ended_at - outcome.began_at) * 1000)),
        "first_token_ms": None if outcome.first_token_s is None else round(outcome.first_token_s * 1000),
        "tokens_in": outcome.usage.prompt_tokens,
        "tokens_out": outcome.usage.completion_tokens,
        "tokens_cached": outcome.usage.cached_tokens,
        "outcome": outcome.outcome,
        "finish_reason": outcome.finish_reason,
        "price": plain(outcome.cost),
        "currency": outcome.currency,
    }
    if outcome.shift:
        fields["shift"] = outcome.shift
    return fields


def _hop(hop: Hop) -> dict[str, Any]:
    shown: dict[str, Any] = {"node": hop.node, "kind": hop.kind, "model": hop.model, "version": hop.version}
    if hop.usage is not None:
        shown |= {"tokens_in": hop.usage.prompt_tokens, "tokens_out": hop.usage.completion_tokens}
    if hop.worker:
        shown["worker"] = hop.worker
    if hop.reason:
        shown["left_because"] = hop.reason
    return shown
