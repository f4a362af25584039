"""Logs over the control API: how replication goes, checks, copies, archives, erasure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.resources import By
from qgate.control.spooling import Spool
from qgate.governance.logs import LIST_MAX, streams

if TYPE_CHECKING:
    from qgate.governance.logs import Logs
    from qgate.governance.proving import Proving

ARCHIVE: Final = "application/vnd.qgate-mesh.log"
ARCHIVE_MAX: Final = 16 * 1024**3
"""Bytes of one archive; models are no part of it."""


class PoolBody(Body):
    """One pool, or all of them where it is left out."""

    pool: Name | None = None


class EraseBody(Body):
    """Entries of our own log whose payloads shall go, and why."""

    places: Annotated[
        list[Annotated[int, Field(ge=1, le=(1 << 63) - 1)]], Field(min_length=1, max_length=10_000)
    ]
    reason: Annotated[str, Field(max_length=256)] = ""


def routers(logs: Logs, spool: Path, proving: Proving) -> tuple[APIRouter, ...]:
    """The routes of logs; archives that come are kept in ``spool`` while they are looked through. Logs are
    proved in the turns of ``proving``.
    """
    router = APIRouter(prefix="/logs", tags=["replication"])
    coming = Spool(spool, most=ARCHIVE_MAX)

    @router.get("")
    async def status() -> dict[str, Any]:
        """Every log in the store, ours first."""
        return await logs.status()

    @router.get("/streams")
    async def list_streams() -> dict[str, Any]:
        """Every stream that exists."""
        return {"items": streams()}

    @router.get("/entries")
    async def entries(
        pool: Name | None = None,
        after: Annotated[int | None, Query(ge=0, le=(1 << 63) - 1)] = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 20,
        stream: Annotated[str | None, Query(max_length=32)] = None,
        held: bool = False,
    ) -> dict[str, Any]:
        """Entries of one log (left out: ours) without payloads; without ``after`` the newest."""
        found = await logs.entries(pool, after=after, limit=limit, stream=stream, held=held)
        return {"items": found}

    @router.get("/stranded")
    async def stranded() -> dict[str, Any]:
        """What was put aside: other halves of forks, tails of restored logs."""
        return {"items": await logs.stranded()}

    @router.post("/verify")
    async def verify(body: PoolBody) -> dict[str, Any]:
        """Check every byte of one log, or of all. 429 "busy" while this gate proves something."""
        with proving.turn("a log"):
            return await logs.verify(body.pool)

    @router.post("/{pool}/repair")
    async def repair(pool: Name, by: By) -> dict[str, Any]:
        """Make the tables anew from a peer's log."""
        return await logs.repair(pool, by=by)

    @router.post("/{pool}/release")
    async def release(pool: Name, by: By) -> dict[str, Any]:
        """End a pool's quarantine."""
        return await logs.release(pool, by=by)

    @router.post("/erase")
    async def erase(body: EraseBody, by: By) -> dict[str, Any]:
        """Erase payloads of our own log, here and at every pool that has them."""
        return await logs.erase(body.places, reason=body.reason, by=by)

    @router.get("/redundancy")
    async def redundancy() -> dict[str, Any]:
        """Who has a readable copy of what we published."""
        return await logs.redundancy()

    @router.get("/{pool}/archive")
    async def export(pool: Name, whole: bool = False) -> StreamingResponse:
        """What that pool lacks of our log, sealed to it."""
        return StreamingResponse(await logs.export(pool, whole=whole), media_type=ARCHIVE)

    @router.put("/import")
    async def take(request: Request, by: By) -> dict[str, Any]:
        """Take an archive, or the receipt of one."""
        told = request.headers.get("content-length", "")
        async with coming.received(request.stream(), int(told) if told.isdecimal() else None) as file:
            return await logs.take(file, by=by)

    return (router,)
