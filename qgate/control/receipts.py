"""Receipts over the control API: of any app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

if TYPE_CHECKING:
    from qgate.administration import Administration


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """The routes of receipts."""
    router = APIRouter(prefix="/receipts", tags=["receipts"])
    archive = administration.receipts

    @router.get("")
    async def list_receipts(
        app: Annotated[str | None, Query(max_length=200)] = None,
        since: float | None = None,
        before: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """The newest first; ``since`` is unix time, ``before`` the ``next`` of the page before."""
        found = await archive.list(app=app, since=since, before=before, limit=limit)
        return {"items": found, "next": found[-1]["id"] if len(found) == limit else None}

    @router.get("/{receipt}")
    async def show_receipt(receipt: str) -> dict[str, Any]:
        """One receipt as it was signed."""
        return await archive.show(receipt)

    return (router,)
