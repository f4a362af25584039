"""Budgets over the control API. A budget's id is its scope and its period: "app:web/month"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from qgate.control.capability_bodies import BudgetBody
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged
from qgate.governance.budgets import named

if TYPE_CHECKING:
    from qgate.administration import Administration


BUDGET = Fields(key="id", search=("id", "currency"), filters=("scope", "subject", "period", "currency"))


class ForecastReply(BaseModel):
    """Where a period goes at the present rate: money an hour, the total at its end, seconds to the limit."""

    per_hour: float
    projected: str
    ends_in_s: int | None
    in_time: bool


class BudgetReply(BaseModel):
    """A budget and its present period. Amounts are text.

    ``spent`` is what gates have told; ``lost`` what silent ones hold, which counts as spent; ``committed``
    also what running ones have leased; ``used`` the part of the limit that is spent.
    """

    id: str
    scope: str
    subject: str | None
    period: str
    soft: str | None
    hard: str | None
    currency: str
    spent: str
    lost: str
    committed: str
    left: str | None
    used: float | None
    started_at: str
    ends_at: str
    forecast: ForecastReply
    version: int


class BudgetsReply(Page):
    """A page of budgets."""

    items: list[BudgetReply]  # type: ignore[assignment]


class BudgetDetailReply(BudgetReply):
    """A budget with who holds what of it, its past periods, and what it shifted."""

    gates: list[dict[str, Any]]
    history: list[dict[str, Any]]
    shifts: list[dict[str, Any]]


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """The routes of budgets."""
    router = APIRouter(prefix="/budgets", tags=["budgets"])
    budgets = administration.budgets
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=BudgetsReply)
    async def list_budgets(listing: Listing) -> dict[str, Any]:
        """Every budget with how its present period stands and where it goes."""
        return page(await budgets.list(), listing, BUDGET)

    @router.get("/shifts")
    async def list_shifts(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """What budgets sent to local models, and when they began and ended to ask for it."""
        return {"items": await budgets.shifts(limit)}

    @router.get("/{scope}/{period}", response_model=BudgetDetailReply)
    async def show_budget(scope: str, period: str, response: Response) -> dict[str, Any]:
        """One budget."""
        return tagged(await budgets.show(f"{scope}/{period}"), response)

    @router.put("/{scope}/{period}", response_model=BudgetReply)
    async def set_budget(
        scope: str, period: str, body: BudgetBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Set a budget's limits, at once and for every gate."""
        kind, subject = named(scope)
        async with unchanged.since("budget", f"{scope}/{period}", seen, budgets.show):
            row = await budgets.set(
                kind, subject, period, soft=body.soft, hard=body.hard, currency=body.currency, by=by
            )
        return tagged(row, response)

    @router.delete("/{scope}/{period}", status_code=204)
    async def remove_budget(scope: str, period: str, by: By, seen: Seen) -> None:
        """Lift a budget."""
        async with unchanged.since("budget", f"{scope}/{period}", seen, budgets.show):
            await budgets.remove(f"{scope}/{period}", by=by)

    return (router,)
