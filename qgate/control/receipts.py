"""Receipts over the control API: of any app."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query

from qgate.control.paging import Fields, Listing, Page, page

if TYPE_CHECKING:
    from qgate.administration import Administration


USAGE: Final = Fields(key="id", search=("name",), filters=("currency",), own=("by", "app", "since"))
TEXT: Final = r"^[^\x00]*$"
USAGE_S: Final = 30 * 86400.0
USAGE_MAX_S: Final = 92 * 86400.0
"""The longest that is added up at once: receipts are read for it."""


class UsagePage(Page):
    """A page of what was used; money of different currencies is never added. ``since`` in unix seconds."""

    since: float
    by: str


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """The routes of receipts."""
    router = APIRouter(prefix="/receipts", tags=["receipts"])
    archive = administration.receipts

    @router.get("")
    async def list_receipts(
        app: Annotated[str | None, Query(max_length=200)] = None,
        since: float | None = None,
        before: Annotated[str | None, Query(max_length=200)] = None,
        after: Annotated[str | None, Query(max_length=200, pattern=TEXT, description="As `before`.")] = None,
        q: Annotated[
            str | None, Query(max_length=200, pattern=TEXT, description="Text that is in the receipt.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """The newest first; ``since`` is unix time, ``before`` the ``next`` of the page before."""
        found = await archive.list(app=app, since=since, before=before or after, limit=limit, text=q)
        return {"items": found, "next": found[-1]["id"] if len(found) == limit else None}

    @router.get("/{receipt}")
    async def show_receipt(receipt: str) -> dict[str, Any]:
        """One receipt as it was signed."""
        return await archive.show(receipt)

    usage = APIRouter(prefix="/usage", tags=["receipts"])

    @usage.get("", response_model=UsagePage)
    async def list_usage(
        listing: Listing,
        by: Literal["app", "team", "model", "task", "day"] = "app",
        app: Annotated[str | None, Query(max_length=200, pattern=TEXT)] = None,
        since: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    ) -> dict[str, Any]:
        """What receipts add up to, a row each app, team, model, task or day; without ``since`` of 30 days."""
        begin = max(time.time() - USAGE_MAX_S, since if since is not None else time.time() - USAGE_S)
        rows = await archive.usage(by=by, since=begin, app=app)
        return {**page(rows, listing, USAGE), "since": begin, "by": by}

    return (router, usage)
