"""The replicated model catalogue over the control API: who writes it, its records, what is in review."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged

if TYPE_CHECKING:
    from qgate.governance.catalogue import Catalogue
    from qgate.governance.office import Office

RECORD = Fields(key="name", search=("name", "pool", "by"), filters=("pool",))
REVIEW = Fields(key="seq", search=("name", "pool"), filters=("pool",))

Reason = Annotated[str, Field(max_length=256)]
Record = Annotated[str, Field(min_length=1, max_length=200)]


class DecisionBody(Body):
    """A pool (left out: this one) and why."""

    pool: Name | None = None
    reason: Reason = ""


class GroupBody(Body):
    """Who may promote, and who only votes; left out, all members may and nobody only votes."""

    promoters: Annotated[list[Name], Field(max_length=50)] | None = None
    witnesses: Annotated[list[Name], Field(max_length=50)] | None = None


class RecordBody(Body):
    """What the catalogue says of a model."""

    document: Annotated[dict[str, Any], Field(max_length=200)]


class ReviewBody(Body):
    """Whether a stranded write is written again."""

    accept: bool


def routers(catalogue: Catalogue, office: Office) -> tuple[APIRouter, ...]:
    """The routes of the catalogue."""
    router = APIRouter(prefix="/catalogue", tags=["catalogue"])
    unchanged = Unchanged(office)

    @router.get("")
    async def status() -> dict[str, Any]:
        """Group, epoch, master, and whether it is frozen."""
        return await catalogue.status()

    @router.post("/promote")
    async def promote(body: DecisionBody, by: By) -> dict[str, Any]:
        """Make a pool the master."""
        return await catalogue.promote(body.pool, by=by, reason=body.reason)

    @router.post("/demote")
    async def demote(body: DecisionBody, by: By) -> dict[str, Any]:
        """Make nobody the master."""
        return await catalogue.demote(by=by, reason=body.reason)

    @router.post("/resolve")
    async def resolve(body: DecisionBody, by: By) -> dict[str, Any]:
        """End a freeze by picking the master."""
        return await catalogue.resolve(body.pool, by=by, reason=body.reason)

    @router.put("/group")
    async def group(body: GroupBody, by: By) -> dict[str, Any]:
        """Sign a new group: every pool of trust 3 is a member."""
        return await catalogue.set_group(body.promoters, body.witnesses, by=by)

    @router.get("/records", response_model=Page)
    async def records(listing: Listing) -> dict[str, Any]:
        """Every record, by name."""
        return page(await catalogue.records(), listing, RECORD)

    @router.put("/records/{name:path}")
    async def put(name: Record, body: RecordBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Write a record, at the master only."""
        async with unchanged.since("catalogue", name, seen, catalogue.record):
            return tagged(await catalogue.put(name, body.document, by=by), response)

    @router.delete("/records/{name:path}", status_code=204)
    async def remove(name: Record, by: By, seen: Seen) -> None:
        """Remove a record, at the master only."""
        async with unchanged.since("catalogue", name, seen, catalogue.record):
            await catalogue.remove(name, by=by)

    @router.get("/reviews", response_model=Page)
    async def reviews(listing: Listing) -> dict[str, Any]:
        """Writes that do not count, because their master had been replaced."""
        return page(await catalogue.reviews(), listing, REVIEW)

    @router.post("/reviews/{pool}/{seq}")
    async def decide(
        pool: Name, seq: Annotated[int, Path(ge=0, le=(1 << 63) - 1)], body: ReviewBody, by: By
    ) -> dict[str, Any]:
        """Write a stranded record again, or let it go."""
        await catalogue.decide_review(pool, seq, accept=body.accept, by=by)
        return {"items": await catalogue.reviews()}

    return (router,)
