"""Scheduled orders over the control API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from qgate.control.access import require
from qgate.control.bodies import Body
from qgate.control.resources import By
from qgate.control.seen import Reason
from qgate.governance.orders import Orders

Number = Annotated[int, Field(ge=1, le=2**62)]


class OrderBody(Body):
    """What is to be done, and when: ``at`` in unix seconds, or ``in_s`` seconds from now."""

    what: Annotated[str, Field(max_length=40)]
    arguments: Annotated[dict[str, Any], Field(max_length=16)] = Field(default_factory=dict)
    at: Annotated[float, Field(ge=0, le=4e9)] | None = None
    in_s: Annotated[float, Field(ge=0, le=4e7)] | None = None
    reason: Reason = ""
    dry_run: bool = False


def routers(orders: Orders) -> tuple[APIRouter, ...]:
    """The routes of orders."""
    router = APIRouter(prefix="/orders", tags=["orders"])

    @router.get("")
    async def list_orders(
        all: bool = False,  # noqa: A002 - the parameter's name
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    ) -> dict[str, Any]:
        """Orders that are to come; with ``all`` also those that are over."""
        return {"items": await orders.list(all_=all, limit=limit, before=before)}

    @router.get("/kinds")
    async def list_kinds() -> dict[str, Any]:
        """What can be ordered."""
        return {
            "items": [{"what": one.what, "description": one.description} for one in orders.kinds.values()]
        }

    @router.get("/{number}")
    async def show_order(number: Number) -> dict[str, Any]:
        """One order and what came of it."""
        return await orders.show(number)

    @router.post("", status_code=201)
    async def add_order(body: OrderBody, request: Request, by: By) -> dict[str, Any]:
        """Have something done at a time; with ``dry_run`` say whether it could be done now."""
        require(request, orders.role(body.what))
        now = orders.office.clock()
        at = body.at if body.at is not None else now + (body.in_s or 0.0)
        return await orders.add(
            body.what, body.arguments, at=at, reason=body.reason, dry_run=body.dry_run, by=by
        )

    @router.delete("/{number}")
    async def cancel_order(number: Number, request: Request, by: By) -> dict[str, Any]:
        """Let it not be done."""
        require(request, orders.role((await orders.show(number))["what"]))
        return await orders.cancel(number, by=by)

    return (router,)
