"""A pool at a glance: what it carries, what it costs, what is wrong with it, and how that went of late.

Rates are of this gate, from counters that it keeps anyway, sampled once a second into a ring of `SERIES_LEN`
values each. What only the store knows (incidents, costs, budgets, sibling gates) is read when somebody looks
and is at most `STORE_S` old.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from pydantic import BaseModel

from qgate.capability.finops.prices import plain
from qgate.control.whereabouts import is_elsewhere
from qgate.store import StoreUnavailableError
from qgate.store.overview import cost_between, incidents_by_state

if TYPE_CHECKING:
    from qgate.capability.workers import WorkerView
    from qgate.control.whereabouts import Whereabouts
    from qgate.gate import Gate

SAMPLE_S: Final = 1.0
SERIES_LEN: Final = 60
STORE_S: Final = 5.0

WRITTEN_S: Final = 5.0
"""Receipts younger than this may not be in the store yet: they are counted the next time."""

BURN_DOWNS: Final = 10

RATES: Final = ("requests_s", "queries_s", "tokens_s", "errors_s")
LEVELS: Final = ("running", "waiting", "connections", "sessions")


class WorkersReply(BaseModel):
    """The pool's workers that this gate knows of, in sum, ``elsewhere`` at other pools. Memory in bytes."""

    total: int
    serving: int
    draining: int
    away: int
    elsewhere: int
    jobs_running: int
    jobs_queued: int
    slots: int
    vram: int
    vram_used: int
    memory: int
    memory_available: int


class OverviewReply(BaseModel):
    """A pool at a glance. Rates are per second over the last 5 s; series begin with the oldest value.

    ``store`` is empty where the store answers; else why its part is old or missing.
    """

    pool: dict[str, Any]
    gate: dict[str, Any]
    gates: list[dict[str, Any]]
    workers: WorkersReply
    sessions: dict[str, int]
    peers: dict[str, int]
    requests_s: float
    queries_s: float
    tokens_s: float
    errors_s: float
    running: int
    waiting: int
    cost_today: list[dict[str, str]]
    burn_down: list[dict[str, Any]]
    incidents: dict[str, int]
    certificates: list[dict[str, Any]]
    problems: dict[str, str]
    store: str
    series: dict[str, list[float]]


class Series:
    """Rings of values by name: rates of counters, and levels as they are. Times are monotonic seconds."""

    def __init__(self, length: int = SERIES_LEN) -> None:
        self._values: dict[str, deque[float]] = {
            name: deque([0.0] * length, length) for name in (*RATES, *LEVELS)
        }
        self._before: tuple[float, ...] | None = None
        self._at = 0.0

    def sample(self, counters: tuple[float, ...], levels: tuple[float, ...], now: float) -> None:
        """Take counters in the order of `RATES` and levels in that of `LEVELS`."""
        before, took = self._before, now - self._at
        self._before, self._at = counters, now
        for name, level in zip(LEVELS, levels, strict=True):
            self._values[name].append(level)
        if before is not None and took > 0:
            for name, count, last in zip(RATES, counters, before, strict=True):
                self._values[name].append(round(max(0.0, count - last) / took, 3))

    def rate(self, name: str, over: int = 5) -> float:
        """The mean of the last values."""
        newest = list(self._values[name])[-over:]
        return round(sum(newest) / len(newest), 3)

    def shown(self) -> dict[str, list[float]]:
        """All of them, oldest value first."""
        return {name: list(values) for name, values in self._values.items()}


class Overview:
    """What one gate can say of its pool."""

    def __init__(self, gate: Gate, whereabouts: Whereabouts) -> None:
        self._gate = gate
        self._whereabouts = whereabouts
        self.series = Series()
        self._stored: dict[str, Any] = {"incidents": {}, "cost": {}, "budgets": [], "gates": []}
        self._stored_at = -STORE_S
        self._store_problem = ""
        self._reading = asyncio.Lock()
        self._cost: dict[str, Decimal] = {}
        self._cost_until = datetime.fromtimestamp(0, UTC)

    def sample(self, now: float) -> None:
        """Take one sample; cheap, for it is taken though nobody looks."""
        gate = self._gate
        engine, front = gate.capabilities.engine, gate.parts.front.stats
        figures = engine.figures
        requests = figures.requests.total()
        self.series.sample(
            (
                requests,
                front.queries_total + gate.capabilities.sql.queries,
                figures.prompt_tokens + figures.completion_tokens,
                requests - figures.requests["ok"] + front.refused + front.denied_total,
            ),
            (figures.in_flight, engine.waiting, len(gate.connections), len(gate.tunnel.sessions)),
            now,
        )

    @property
    def gates(self) -> list[dict[str, Any]]:
        """The pool's gates as they were read last."""
        found: list[dict[str, Any]] = self._stored["gates"]
        return found

    async def document(self) -> dict[str, Any]:
        """The whole of it."""
        await self.read()
        return {**self.live(), **self._from_store()}

    def live(self) -> dict[str, Any]:
        """What is known without the store."""
        gate = self._gate
        own, keys = gate.parts.directory.own_pool(), gate.parts.keys
        sessions = list(gate.tunnel.sessions.values())
        peers = [one for one in gate.parts.directory.peers() if one.paired]
        now = gate.administration.office.clock()
        expiring = keys.expiring(now)
        return {
            "pool": {"name": own.name, "kind": own.kind, "named": own.named},
            "gate": {
                "name": gate.settings.name,
                "version": gate.version,
                "state": gate.state,
                "uptime_s": round(gate.uptime_s),
            },
            "workers": workers_in_sum(self._whereabouts.views()),
            "sessions": {
                "connected": sum(one.connected for one in sessions),
                "total": len(sessions),
                "connections": len(gate.connections),
                "streams": sum(len(one.streams) for one in sessions),
            },
            "peers": {
                "total": len(peers),
                "up": sum(gate.peering.links.up(one.pool_key) for one in peers),
            },
            **{name: self.series.rate(name) for name in RATES},
            "running": gate.capabilities.engine.figures.in_flight,
            "waiting": gate.capabilities.engine.waiting,
            "certificates": [
                {"name": name, "expires_at": ends, "expiring": name in expiring}
                for name, ends in (
                    ("online.cert", keys.online_terms.not_after),
                    ("node.cert", keys.certificate.not_after),
                )
            ],
            "problems": dict(gate.problems()),
            "series": self.series.shown(),
        }

    # --- what only the store knows

    def _from_store(self) -> dict[str, Any]:
        stored = self._stored
        return {
            "incidents": {name: stored["incidents"].get(name, 0) for name in ("open", "acknowledged")},
            "cost_today": [
                {"currency": currency, "amount": plain(amount) or "0"}
                for currency, amount in sorted(stored["cost"].items())
            ],
            "burn_down": stored["budgets"],
            "gates": stored["gates"],
            "store": self._store_problem,
        }

    async def read(self) -> None:
        """Read from the store what is older than `STORE_S`; a store that is away leaves what was known."""
        await self._whereabouts.read()
        async with self._reading:
            if time.monotonic() - self._stored_at < STORE_S:
                return
            gate = self._gate
            try:
                async with gate.parts.store.store.connection() as connection:
                    incidents = await incidents_by_state(connection)
                    await self._add_cost(connection)
                budgets = await gate.administration.budgets.list()
                gates = await gate.administration.sidecars.gates()
            except (StoreUnavailableError, TimeoutError) as error:
                self._store_problem = getattr(error, "message", "") or "no answer in time"
            else:
                self._store_problem = ""
                budgets.sort(key=lambda row: row["used"] or 0.0, reverse=True)
                self._stored = {
                    "incidents": incidents,
                    "cost": dict(self._cost),
                    "budgets": [_burn(row) for row in budgets[:BURN_DOWNS]],
                    "gates": [
                        {"name": one["name"], "seen_at": one["seen_at"], "serving": one["in_bundles"]}
                        for one in gates
                    ],
                }
            self._stored_at = time.monotonic()

    async def _add_cost(self, connection: Any) -> None:
        """Add what was paid since the last look; a new day (UTC) begins anew."""
        until = self._gate.administration.office.now() - timedelta(seconds=WRITTEN_S)
        midnight = until.replace(hour=0, minute=0, second=0, microsecond=0)
        if self._cost_until < midnight:
            self._cost, self._cost_until = {}, midnight
        if until <= self._cost_until:
            return
        for currency, amount in (await cost_between(connection, self._cost_until, until)).items():
            self._cost[currency] = self._cost.get(currency, Decimal(0)) + amount
        self._cost_until = until


def workers_in_sum(views: Mapping[str, WorkerView]) -> dict[str, int]:
    """All workers together; memory and jobs are those of workers that are there."""
    found = dict.fromkeys(WorkersReply.model_fields, 0)
    for view in views.values():
        found["total"] += 1
        if is_elsewhere(view.state):
            found["elsewhere"] += 1
            continue
        if view.state != "present":
            found["away"] += 1
            continue
        found["draining" if view.draining else "serving"] += 1
        found["jobs_running"] += view.jobs_running
        found["jobs_queued"] += view.jobs_queued
        found["slots"] += view.slots
        found["memory_available"] += view.load.memory_available
        found["vram_used"] += sum(one.vram_used for one in view.load.gpus)
        if view.hardware is not None:
            found["memory"] += view.hardware.memory
            found["vram"] += sum(one.vram for one in view.hardware.gpus)
    return found


def _burn(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in ("id", "hard", "soft", "currency", "spent", "used", "ends_at")}
    return {**shown, **row["forecast"]}


def routers(overview: Overview) -> tuple[APIRouter, ...]:
    """The route of the overview."""
    router = APIRouter(tags=["overview"])

    @router.get("/overview", response_model=OverviewReply)
    async def show_overview() -> dict[str, Any]:
        """This pool at a glance, as this gate sees it."""
        return await overview.document()

    return (router,)
