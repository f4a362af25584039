"""The control surface: the HTTP face of a gate's administration, for meshctl and for whoever scripts it.

Thin on purpose: a call is checked (`bodies`), handed to the administration, and its answer written as JSON.
Errors are problem documents (`problems`). The description for tools is at /control/v1/openapi.json.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from qgate.capabilities import ADMINISTRATOR
from qgate.control import (
    budgets,
    catalogue,
    failover,
    incidents,
    openapi,
    pools,
    problems,
    providers,
    receipts,
    replication,
    resources,
    route,
    workers,
)
from qgate.governance.proving import Proving

if TYPE_CHECKING:
    from qgate.gate import Gate

PREFIX = "/control/v1"
NDJSON = "application/x-ndjson"

AUDIT_PAGE_MAX = 10_000
"""Audit entries in one answer; further ones are asked for with ``after``."""


Number = Annotated[int | None, Query(ge=0, le=(1 << 63) - 1)]
Word = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]


class AuditPage(BaseModel):
    """Entries, oldest first. ``next`` goes into ``after``, ``previous`` into ``before``; null at either end.

    ``total`` is the number of the newest entry of the chain.
    """

    items: list[dict[str, Any]]
    next: str | None = None
    previous: str | None = None
    total: int


def _workers(gate: Gate) -> tuple[APIRouter, ...]:
    return workers.routers(
        gate.capabilities.workers,
        gate.administration,
        offered=gate.compute.rows,
        whereabouts=gate.governing.watching.whereabouts,
    )


def control_api(gate: Gate) -> FastAPI:
    """The ASGI application over a gate."""
    application = FastAPI(
        title="qgate control",
        version=openapi.API_VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
    )
    problems.install(application)
    proving = Proving()
    application.include_router(_health(gate))
    for router in (_gate(gate), _audit(gate, proving)):
        application.include_router(router, prefix=PREFIX)
    for router in gate.governing.routers():
        application.include_router(router, prefix=PREFIX)
    for noun in (resources, providers, budgets, receipts, pools):
        for router in noun.routers(gate.administration):
            application.include_router(router, prefix=PREFIX)
    for router in _workers(gate):
        application.include_router(router, prefix=PREFIX)
    for router in failover.routers(gate.movement, gate.administration, gate.catalogue):
        application.include_router(router, prefix=PREFIX)
    for router in incidents.routers(gate.movement.journal, gate.administration):
        application.include_router(router, prefix=PREFIX)
    for router in (
        *catalogue.routers(gate.catalogue, gate.administration.office),
        *replication.routers(gate.logs, gate.files.state_dir, proving),
    ):
        application.include_router(router, prefix=PREFIX)
    for router in route.routers(gate.capabilities.engine, gate.parts.directory, ADMINISTRATOR):
        application.include_router(router, prefix=PREFIX)
    openapi.install(application)
    return application


def _health(gate: Gate) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives and its event loop turns."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """It serves: listening, and the store answers; else 503 with what is missing."""
        found = dict(gate.problems())
        state = {"status": "not ready" if found else "ready", "problems": found}
        return JSONResponse(state, 503 if found else 200)

    return router


def _gate(gate: Gate) -> APIRouter:
    router = APIRouter(tags=["gate"])

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """The gate, its store, tunnel sessions, application connections and totals."""
        return gate.status()

    @router.get("/key")
    async def key() -> dict[str, Any]:
        """Fingerprints to compare by eye, and when the certificates end."""
        return gate.key_document()

    @router.post("/drain", status_code=202)
    async def drain() -> dict[str, Any]:
        """Begin what SIGTERM begins; the gate ends when it is drained."""
        gate.ask_drain()
        return {
            "state": "draining",
            "sessions": len(gate.tunnel.sessions),
            "connections": len(gate.connections),
            "timeout_s": gate.settings.drain_timeout_s,
        }

    return router


def _audit(gate: Gate, proving: Proving) -> APIRouter:
    router = APIRouter(prefix="/audit", tags=["audit"])
    trail = gate.parts.trail

    @router.get("", response_model=AuditPage)
    async def list_audit_entries(
        after: Number = None,
        before: Number = None,
        limit: Annotated[int, Query(ge=1, le=AUDIT_PAGE_MAX)] = 100,
        app: Word = None,
        database: Word = None,
        kind: Word = None,
        q: Annotated[Word, Query(description="Text that is in the entry, without `after`.")] = None,
    ) -> dict[str, Any]:
        """Entries after number ``after``, oldest first; without it the newest ones, before ``before``."""
        found = await trail.entries(
            after=after, before=before, limit=limit, app=app, database=database, kind=kind, text=q
        )
        full = len(found) == limit
        return {
            "items": found,
            "next": str(found[-1]["seq"]) if full and after is not None else None,
            "previous": str(found[0]["seq"]) if full and after is None else None,
            "total": gate.parts.audit.head_seq,
        }

    @router.get("/stream", response_class=StreamingResponse)
    async def stream(after: Number = None) -> StreamingResponse:
        """Entries as they are written, one JSON object a line, until the caller hangs up."""

        async def lines() -> AsyncIterator[str]:
            async for entry in trail.follow(after=after):
                yield json.dumps(entry) + "\n"

        return StreamingResponse(lines(), media_type=NDJSON)

    @router.get("/export")
    async def export() -> StreamingResponse:
        """The whole chain, one JSON object a line, the signed head last."""
        return StreamingResponse(trail.export(), media_type=NDJSON)

    @router.post("/verify")
    async def verify() -> dict[str, Any]:
        """Recompute the chain and check every signed head. 429 "busy" while this gate proves something."""
        with proving.turn("the audit"):
            return await trail.verify()

    @router.get("/head")
    async def head() -> dict[str, Any]:
        """The newest signed head; keep it elsewhere."""
        return await trail.head() or {"seq": 0, "hash": None, "signature": None, "signed_at": None}

    return router
