"""Incidents of this pool, over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.resources import By

if TYPE_CHECKING:
    from qgate.administration import Administration
    from qgate.federation.incidents import Journal

LIST_MAX = 10_000


class NoteBody(Body):
    """What whoever answers wants to have noted."""

    note: Annotated[str, Field(max_length=2000)] = ""


def routers(journal: Journal, administration: Administration) -> tuple[APIRouter, ...]:
    """One router a noun."""
    router = APIRouter(prefix="/incidents", tags=["incidents"])

    @router.get("")
    async def list_incidents(
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 100,
        all_: Annotated[bool, Query(alias="all")] = False,
    ) -> dict[str, Any]:
        """Incidents, newest first; resolved ones with ``all``."""
        return {"items": await journal.incidents(limit=limit, all_=all_)}

    @router.get("/{number}")
    async def show(number: int) -> dict[str, Any]:
        """One incident with what was seen of it."""
        return await journal.show(number)

    @router.post("/{number}/ack")
    async def acknowledge(number: int, by: By, body: NoteBody | None = None) -> dict[str, Any]:
        """Somebody looks after it: it is not escalated."""
        shown = await journal.acknowledge(number, by=by, note=body.note if body else "")
        await administration.noted("incident.ack", str(number), by)
        return shown

    @router.post("/{number}/resolve")
    async def resolve(number: int, by: By, body: NoteBody | None = None) -> dict[str, Any]:
        """It is over."""
        shown = await journal.resolve(number, by=by, note=body.note if body else "")
        await administration.noted("incident.resolve", str(number), by)
        return shown

    return (router,)
