"""Works, candidates, ledgers and budgets for the tests of finops and providers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from qgate.capability.finops.budgets import Budget
from qgate.capability.finops.ledger import BudgetLedger
from qgate.capability.finops.prices import ListedPrice, PriceTable
from qgate.capability.inventory import Candidate
from qgate.capability.work import Attempt, Kind, Usage, Work
from qgate.governance.directory import App, CapabilityPolicy, Directory, Snapshot
from qgate.store import Store
from qgate.store.budgets import put_budget
from qgate.vault import Vault
from tunnel_proto.request import CapabilityRequest

PRICE = ListedPrice(Decimal(1), Decimal(1))
"""A millionth a token: a thousand tokens cost 0.001."""
CLOUD = Candidate(
    kind="provider", node="acme", model="big", version="big", kinds=frozenset({"chat"}), local=False
)
LOCAL = Candidate(kind="worker", node="worker-1", model="small")

_numbers = itertools.count(1)


def app(name: str = "web", **policy: Any) -> App:
    return App(name, (), frozenset(), policy=CapabilityPolicy(**policy))


def work(
    of: App | None = None,
    *,
    kind: Kind = "chat",
    body: Mapping[str, Any] | None = None,
    stream: bool = False,
    **request: Any,
) -> Work:
    return Work(
        id=f"req_{next(_numbers):024x}",
        app=of or app(),
        request=CapabilityRequest(task=request.pop("task", "chat"), **request),
        kind=kind,
        body=body if body is not None else {"messages": [{"role": "user", "content": "hello"}]},
        stream=stream,
        received_at=1_700_000_000.0,
    )


def attempt(of: Work, candidate: Candidate = CLOUD, **fields: Any) -> Attempt:
    return Attempt(id=f"{of.id}.1", work=of, candidate=candidate, **fields)


def budget(target: str, hard: str | None = None, soft: str | None = None, **fields: Any) -> Budget:
    """`budget("app:web/month", "10")`."""
    scope, _, period = target.partition("/")
    scope, _, subject = scope.partition(":")
    return Budget(
        scope,
        subject,
        period,
        None if soft is None else Decimal(soft),
        None if hard is None else Decimal(hard),
        **fields,
    )


def tokens(cost: str | Decimal) -> Usage:
    """Usage that costs so much."""
    return Usage(prompt_tokens=int(Decimal(cost) * 1_000_000))


async def put(store: Store, *budgets: Budget) -> Snapshot:
    """Write budgets; the snapshot that a gate would read."""
    async with store.transaction() as connection:
        for one in budgets:
            from datetime import UTC, datetime

            await put_budget(connection, one, by="test", at=datetime.now(UTC))
    return Snapshot(budgets={one.id: one for one in budgets})


def ledger(
    store: Store,
    snapshot: Snapshot,
    *,
    gate: str = "gate-1",
    prices: Mapping[str, ListedPrice] | None = None,
    **clocks: Any,
) -> BudgetLedger:
    directory = Directory(snapshot, unseal=Vault((bytes(32),)).unseal)
    return BudgetLedger(
        store,
        directory,
        gate=gate,
        prices=PriceTable({"big": PRICE} if prices is None else prices),
        **({"clock": time.time} | clocks),
    )
