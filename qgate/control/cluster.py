"""All pools in one view: each linked peer is asked live, and nothing of its answer is stored.

A question goes to every paired pool at once and waits `ASK_S`. Whatever a pool answers is shown with its name
here; one that did not answer is named under "missing" with the reason, so that a screen never shows an absent
pool as an empty one. What a pool tells others is what flow "inventory" lets out: who works there and how that
goes, without addresses, costs or what people wrote.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from pydantic import BaseModel

from qgate.control.overview import Overview
from qgate.control.paging import Asked, Fields, Listing, page
from qgate.control.problems import ProblemError
from qgate.federation.ask import AskError
from qgate.federation.peer import Peer
from qgate.store import StoreUnavailableError

if TYPE_CHECKING:
    from qgate.control.whereabouts import Whereabouts
    from qgate.gate import Gate

ASK_S: Final = 2.0
ROWS_ASKED: Final = 1000
"""Rows that one pool is asked for at a time: about 400 KB."""

WORKER: Final = Fields(key="id", search=("pool", "name", "state"), filters=("pool", "state", "draining"))
INCIDENT: Final = Fields(
    key="id",
    search=("pool", "kind", "subject", "state", "severity"),
    filters=("pool", "kind", "state", "severity"),
)
LOG: Final = Fields(key="id", search=("pool", "of", "state"), filters=("pool", "of", "state"))
POOL: Final = Fields(key="id", search=("pool", "name", "kind"), filters=("pool", "state", "link"))

Rows = list[dict[str, Any]]


class Missing(BaseModel):
    """A pool that did not answer, and why."""

    pool: str
    code: str
    reason: str
    next: str


class ClusterPage(BaseModel):
    """A page of rows of all pools that answered; rows carry "pool"; ``own`` is what this one is called."""

    own: str
    items: list[dict[str, Any]]
    next: str | None = None
    total: int
    missing: list[Missing]


class ClusterOverviewReply(BaseModel):
    """A row a pool, ours first; ``own`` is what it is called."""

    own: str
    items: list[dict[str, Any]]
    missing: list[Missing]


class Cluster:
    """Answers other pools' questions about this one, and asks them ours."""

    def __init__(self, gate: Gate, overview: Overview, whereabouts: Whereabouts) -> None:
        self._gate = gate
        self._overview = overview
        self._whereabouts = whereabouts
        asks = gate.peering.asks
        for name, answer in (
            ("overview", self._own_overview),
            ("workers", self._own_workers),
            ("incidents", self._own_incidents),
            ("replication", self._own_replication),
            ("pools", self._own_pools),
        ):
            asks.question(name, "inventory", _answer(answer))

    # --- what this pool says of itself

    async def _own_overview(self) -> Rows:
        document = await self._overview.document()
        shown = (
            "workers",
            "sessions",
            "peers",
            "requests_s",
            "queries_s",
            "tokens_s",
            "errors_s",
            "running",
            "waiting",
            "incidents",
            "problems",
            "series",
        )
        gate = document["gate"]
        return [
            {
                "kind": document["pool"]["kind"],
                "version": gate["version"],
                "state": gate["state"],
                "gates": len(document["gates"]) or 1,
                **{name: document[name] for name in shown},
            }
        ]

    async def _own_workers(self) -> Rows:
        rows = []
        await self._whereabouts.read()
        for view in self._whereabouts.views().values():
            if "/" in view.name:
                continue  # another pool's, and shown there
            hardware = view.hardware
            rows.append(
                {
                    "name": view.name,
                    "state": view.state,
                    "draining": view.draining,
                    "jobs_running": view.jobs_running,
                    "jobs_queued": view.jobs_queued,
                    "slots": view.slots,
                    "models": len(view.models),
                    "resident": sorted(one.name for one in view.models.values() if one.state == "resident")[
                        :8
                    ],
                    "cpu": view.load.cpu,
                    "memory": hardware.memory if hardware else 0,
                    "memory_available": view.load.memory_available,
                    "gpus": [one.name for one in hardware.gpus[:8]] if hardware else [],
                    "vram": sum(one.vram for one in hardware.gpus) if hardware else 0,
                    "vram_used": sum(one.vram_used for one in view.load.gpus),
                    "seen_at": view.seen_at,
                }
            )
        rows.sort(key=lambda row: str(row["name"]))
        return rows

    async def _own_incidents(self) -> Rows:
        rows = await self._gate.movement.journal.incidents(limit=ROWS_ASKED, all_=False)
        shown = ("kind", "subject", "state", "severity", "seen", "opened_at", "seen_at", "escalated_at")
        return [{"number": row["id"], **{name: row[name] for name in shown}} for row in rows]

    async def _own_replication(self) -> Rows:
        status = await self._gate.logs.status()
        shown = ("own", "state", "problem", "seq", "entries", "held", "behind", "heard_at")
        return [{"of": row["pool"], **{name: row.get(name) for name in shown}} for row in status["items"]]

    async def _own_pools(self) -> Rows:
        rows = await self._gate.administration.pools.list()
        shown = ("name", "kind", "fingerprint", "state", "level", "trust", "link", "health", "rtt_s")
        return [{name: row.get(name) for name in shown} for row in rows]

    # --- all of them

    async def rows(self, question: str, key: str) -> tuple[Rows, list[dict[str, str]]]:
        """Rows of all pools, ours first, with "pool" and an "id"; and who is missing."""
        own = {
            "overview": self._own_overview,
            "workers": self._own_workers,
            "incidents": self._own_incidents,
            "replication": self._own_replication,
            "pools": self._own_pools,
        }[question]
        peers = [one for one in self._gate.parts.directory.peers() if one.paired]
        answers = await asyncio.gather(
            _tried(own()), *(_tried(self._all_of(peer, question)) for peer in peers)
        )
        names = [self._gate.parts.directory.own_pool().name, *(peer.name for peer in peers)]
        found: Rows = []
        missing = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, AskError):
                missing.append(
                    {"pool": name, "code": answer.code, "reason": answer.message, "next": answer.hint}
                )
                continue
            for row in answer:
                found.append({**row, "pool": name, "id": f"{name}/{row.get(key, '')}"})
        return found, missing

    async def _all_of(self, peer: Peer, question: str) -> Rows:
        """Everything that a pool has to say, in as many answers as it takes within the time."""
        found: Rows = []
        after = 0
        async with asyncio.timeout(ASK_S):
            while True:
                parameters = {"after": after, "limit": ROWS_ASKED}
                answer = await self._gate.peering.asks.ask(peer.pool_key, question, parameters, ASK_S)
                rows, total = _checked(peer, answer)
                found.extend(rows)
                after += len(rows)
                if not rows or after >= total:
                    return found

    async def overview(self) -> dict[str, Any]:
        """A row a pool."""
        found, missing = await self.rows("overview", "pool")
        return {"own": self._own(), "items": found, "missing": missing}

    async def page(self, question: str, key: str, listing: Asked, fields: Fields) -> dict[str, Any]:
        """A page of a question's rows."""
        found, missing = await self.rows(question, key)
        return {"own": self._own(), **page(found, listing, fields), "missing": missing}

    def _own(self) -> str:
        return self._gate.parts.directory.own_pool().name


def _answer(own: Callable[[], Awaitable[Rows]]) -> Callable[[Peer, Mapping[str, Any]], Awaitable[Any]]:
    async def answer(_peer: Peer, parameters: Mapping[str, Any]) -> Any:
        after, limit = parameters.get("after", 0), parameters.get("limit", ROWS_ASKED)
        if not (type(after) is int and type(limit) is int and after >= 0 and 0 < limit <= ROWS_ASKED):
            raise ProblemError(422, "invalid", "after and limit are no numbers that can be")
        rows = await own()
        return {"rows": rows[after : after + limit], "total": len(rows)}

    return answer


def _checked(peer: Peer, answer: Any) -> tuple[Rows, int]:
    """Rows of an answer. AskError where it is not what was asked for."""
    match answer:
        case {"rows": list() as rows, "total": int() as total} if (
            all(isinstance(row, dict) and all(isinstance(name, str) for name in row) for row in rows)
            and len(rows) <= ROWS_ASKED
        ):
            return [{name: _plain(value) for name, value in row.items()} for row in rows], total
        case _:
            raise AskError("peer-malformed", f"the answer of the pool {peer.name} is not what was asked for")


def _plain(value: Any) -> Any:
    """Another pool's value as JSON can hold it, without control characters."""
    match value:
        case str():
            return "".join(one if one.isprintable() else "·" for one in value[:500])
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list():
            return [_plain(one) for one in value]
        case _:
            return value


async def _tried(rows: Awaitable[Rows]) -> Rows | AskError:
    try:
        return await rows
    except AskError as error:
        return error
    except TimeoutError:
        return AskError("peer-slow", f"it did not answer within {ASK_S:g} s")
    except StoreUnavailableError as error:
        return AskError("store-unavailable", error.message)


def routers(cluster: Cluster) -> tuple[APIRouter, ...]:
    """The routes of all pools."""
    router = APIRouter(prefix="/cluster", tags=["cluster"])

    @router.get("/overview", response_model=ClusterOverviewReply)
    async def show_cluster_overview() -> dict[str, Any]:
        """Every pool at a glance."""
        return await cluster.overview()

    @router.get("/workers", response_model=ClusterPage)
    async def list_cluster_workers(listing: Listing) -> dict[str, Any]:
        """The workers of all pools."""
        return await cluster.page("workers", "name", listing, WORKER)

    @router.get("/incidents", response_model=ClusterPage)
    async def list_cluster_incidents(listing: Listing) -> dict[str, Any]:
        """The incidents of all pools that are not resolved."""
        return await cluster.page("incidents", "number", listing, INCIDENT)

    @router.get("/replication", response_model=ClusterPage)
    async def list_cluster_replication(listing: Listing) -> dict[str, Any]:
        """Every log at every pool."""
        return await cluster.page("replication", "of", listing, LOG)

    @router.get("/pools", response_model=ClusterPage)
    async def list_cluster_pools(listing: Listing) -> dict[str, Any]:
        """Which pool sees which, and how it stands to it."""
        return await cluster.page("pools", "name", listing, POOL)

    return (router,)
