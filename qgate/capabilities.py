"""The capability side of one gate: what there is to run requests on, the engine, and the surfaces over both.

open     the gate's own text engine, the connection pool to providers, what the directory knows
run      ledger, receipts, workers' silence
drain    HTTP and SQL sessions end; requests that run may finish
close    whatever is left

http stream ──▶ HttpFront ─┐
database qg ──▶ VirtualFront ─┼─▶ Desk ─▶ Engine ─▶ workers | the gate's own engine | providers | pools
/v1 on the control socket ─┘
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from qgate.capability.engine import Engine
from qgate.capability.finops.ledger import BudgetLedger
from qgate.capability.finops.prices import PriceTable
from qgate.capability.finops.rates import RateLimits
from qgate.capability.inventory import Inventory
from qgate.capability.nlp.executor import NlpExecutor, engine_facts
from qgate.capability.nlp.pool import Pool
from qgate.capability.providers.executor import ProviderExecutor
from qgate.capability.providers.offers import offers
from qgate.capability.receipts import Receipts
from qgate.capability.work import Executor
from qgate.capability.workers import Workers
from qgate.governance.audit import AuditLog
from qgate.governance.directory import App, Directory
from qgate.governance.policy import CapabilityPolicy
from qgate.http.application import Application, Door
from qgate.http.desk import Desk, ModelCard
from qgate.http.front import HttpFront
from qgate.http.intake import Intake
from qgate.http.protocol import Patience
from qgate.http.sql import SqlDesk
from qgate.postgres.virtual_front import VirtualFront
from qgate.settings import GateSettings
from qgate.store import Store
from tunnel_proto.certificate import OnlineKey

ADMINISTRATOR: Final = App("admin", (), frozenset(), policy=CapabilityPolicy(kindred=True, reuse=True))
"""Who asks over the control socket: whoever may open it may ask for anything."""


class Capabilities:
    """Made once a gate's store, directory and audit are there; `clock` is unix time."""

    def __init__(
        self,
        settings: GateSettings,
        *,
        store: Store,
        directory: Directory,
        audit: AuditLog,
        online: OnlineKey,
        pool_key: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.prices = PriceTable.load()
        self.inventory = Inventory()
        self.workers = Workers(self.inventory, settings=directory.setting, label=directory.label)
        self.nlp = Pool(settings.nlp) if settings.nlp.enabled else None
        self.providers = ProviderExecutor(directory, clock=clock)
        self.ledger = BudgetLedger(
            store, directory, gate=settings.name, prices=self.prices, audit=audit, clock=clock
        )
        self.receipts = Receipts(
            store,
            gate=settings.name,
            online=online,
            pool_key=pool_key,
            on_shift=self.ledger.shifted,
            clock=clock,
        )
        self.executors: dict[str, Executor] = {"worker": self.workers, "provider": self.providers}
        if self.nlp is not None:
            self.executors["nlp"] = NlpExecutor(self.nlp, settings.nlp)
        self.engine = Engine(
            inventory=self.inventory,
            executors=self.executors,
            ledger=self.ledger,
            receipts=self.receipts,
            settings=directory.setting,
            clock=clock,
            random=random.Random(),
            audit=audit.record,
        )
        self.rates = RateLimits()
        self.intake = Intake(directory, clock, time.monotonic, os.urandom, self.rates, directory.setting)
        self.desk = Desk(
            self.intake,
            self.engine,
            ShownModels(self.inventory),
            self.receipts,
            accepting=lambda: audit.accepting,
        )
        self.door = Door(Application(self.desk, settings.http, wall=clock))
        self.http = HttpFront(
            self.door,
            Patience(head_s=settings.http.head_timeout_s, body_s=settings.http.body_timeout_s),
            origin=directory.origin,
        )
        self.administrator = Application(self.desk, settings.http, principal=ADMINISTRATOR, wall=clock)
        self.sql = VirtualFront(
            SqlDesk(self.desk, directory, ShownLists(self)),
            directory=directory,
            audit=audit,
            message_max=settings.http.max_body,
            wall=clock,
        )
        directory.subscribe(self._directory_changed)

    async def open(self, stack: AsyncExitStack) -> None:
        """Start what needs a running loop; ``stack`` ends it."""
        await self.providers.open()
        stack.push_async_callback(self.providers.close)
        stack.push_async_callback(self.ledger.close)
        stack.push_async_callback(self.receipts.close)
        if self.nlp is not None:
            await stack.enter_async_context(self.nlp)
            self.inventory.nlp_changed(engine_facts(self.settings.nlp))
        self._adopt_providers()
        stack.push_async_callback(self.engine.close)
        stack.callback(self.workers.close)
        stack.push_async_callback(self.http.close)
        stack.push_async_callback(self.sql.close)

    async def run(self) -> None:
        """Keep the ledger and the receipts written, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ledger.run(), name="ledger")
            tasks.create_task(self.receipts.run(), name="receipts")

    async def drain(self, timeout: float) -> None:
        """Take nothing new; wait up to ``timeout`` seconds for what runs."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.http.drain(timeout))
            tasks.create_task(self.sql.drain(timeout))

    def _directory_changed(self, names: frozenset[str]) -> None:
        if any(name.partition(":")[0] in {"provider", "price"} for name in names):
            self._adopt_providers()

    def _adopt_providers(self) -> None:
        known = self.directory.providers().values()
        self.inventory.providers_changed(offers(known, self.prices, self.directory.prices()))


class ShownModels:
    """The models of the inventory as cards, the best known deployment of each name first."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def models(self, app: App) -> Iterator[ModelCard]:
        """One card a name; workers' and providers' models, not the gate's own engine."""
        del app  # which of them it may name is for the surface to say
        shown: set[str] = set()
        for name, version, group in self._inventory.models():
            live = [one for one in group.deployments.values() if one.node.live and one.node.kind != "nlp"]
            if not live or name in shown:
                continue
            shown.add(name)
            best = max(live, key=lambda one: (one.resident, -one.busy))
            state = best.state
            yield ModelCard(
                name=name,
                owner=best.node.name,
                kinds=tuple(sorted(best.kinds)),
                context=state.context if state is not None else 0,
                state=state.state if state is not None else "provider",
                size=state.size if state is not None else 0,
                family=state.family if state is not None else "",
                quant=state.quant if state is not None else "",
                parameters=state.params if state is not None else 0,
                version=version,
            )


class ShownLists:
    """SHOW workers and SHOW budgets, each scoped to who asks."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities

    def workers(self, app: App) -> list[Sequence[Any]]:
        """The workers that have something for this app."""
        policy = app.policy
        rows: list[Sequence[Any]] = []
        if policy is None:
            return rows
        for node in sorted(self._capabilities.inventory.nodes.values(), key=lambda one: one.name):
            if node.kind != "worker":
                continue
            names = sorted({model for model, _ in node.deployments if policy.allows_model(model)})
            if names:
                state = "draining" if node.draining else "up" if node.live else "away"
                queued = sum(one.state.queued for one in node.deployments.values() if one.state is not None)
                rows.append((node.name, state, len(names), max(0, node.reported - queued), queued))
        return rows

    def budgets(self, app: App) -> list[Sequence[Any]]:
        """The budgets that bind this app."""
        team = app.policy.team if app.policy is not None else None
        return [
            (row["scope"], row["subject"], row["period"], row[kind], row["spent"], row["currency"], kind)
            for row in self._capabilities.ledger.standing()
            for kind in ("soft", "hard")
            if row[kind] is not None and _binds(row, app.name, team)
        ]


def _binds(row: Mapping[str, Any], app: str, team: str | None) -> bool:
    match row["scope"]:
        case "app":
            return bool(row["subject"] == app)
        case "team":
            return team is not None and bool(row["subject"] == team)
        case _:
            return True
