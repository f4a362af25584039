"""Incidents of this pool, over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By

if TYPE_CHECKING:
    from qgate.administration import Administration
    from qgate.federation.incidents import Journal

LIST_MAX = 10_000

INCIDENT = Fields(
    key="id",
    search=("kind", "subject", "state", "severity", "note", "answered_by"),
    filters=("kind", "subject", "state", "severity", "answered_by"),
    own=("all",),
)


Number = Annotated[int, Path(ge=0, le=(1 << 63) - 1)]


class NoteBody(Body):
    """What whoever answers wants to have noted."""

    note: Annotated[str, Field(max_length=2000)] = ""


def routers(journal: Journal, administration: Administration) -> tuple[APIRouter, ...]:
    """One router a noun."""
    router = APIRouter(prefix="/incidents", tags=["incidents"])

    @router.get("", response_model=Page)
    async def list_incidents(
        listing: Listing, all_: Annotated[bool, Query(alias="all")] = False
    ) -> dict[str, Any]:
        """Incidents, newest first; resolved ones with ``all``. The newest 10,000 can be looked through."""
        return page(await journal.incidents(limit=LIST_MAX, all_=all_), listing, INCIDENT)

    @router.get("/{number}")
    async def show(number: Number) -> dict[str, Any]:
        """One incident with what was seen of it."""
        return await journal.show(number)

    @router.post("/{number}/ack")
    async def acknowledge(number: Number, by: By, body: NoteBody | None = None) -> dict[str, Any]:
        """Somebody looks after it: it is not escalated."""
        shown = await journal.acknowledge(number, by=by, note=body.note if body else "")
        await administration.noted("incident.ack", str(number), by)
        return shown

    @router.post("/{number}/resolve")
    async def resolve(number: Number, by: By, body: NoteBody | None = None) -> dict[str, Any]:
        """It is over."""
        shown = await journal.resolve(number, by=by, note=body.note if body else "")
        await administration.noted("incident.resolve", str(number), by)
        return shown

    return (router,)
