"""Moving nodes between pools, over the control API: mode, orders, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen
from qgate.governance.catalogue import AUTOMATIC
from tunnel_proto.roster import ORDER_NODES_MAX

if TYPE_CHECKING:
    from qgate.administration import Administration
    from qgate.federation.movement import Movement
    from qgate.governance.catalogue import Catalogue

HISTORY_MAX = 10_000

MOVE = Fields(
    key="at",
    search=("node", "rule", "from", "to", "cause", "by"),
    filters=("role", "rule", "from", "to", "home", "gate", "by"),
    own=("node",),
)


class ModeBody(Body):
    """How nodes of this pool move."""

    mode: Literal["auto", "manual"]
    authority: bool = False
    dry_run: bool = False


class MoveBody(Body):
    """An order: ``pool`` is where to, ``of`` whose nodes (left out: ours), ``nodes`` empty all of them."""

    verb: Literal["move", "back", "reassign"] = "move"
    pool: Name | None = None
    of: Name | None = None
    nodes: Annotated[list[Name], Field(max_length=ORDER_NODES_MAX)] = Field(default_factory=list)
    dry_run: bool = False


def routers(
    movement: Movement, administration: Administration, catalogue: Catalogue
) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_failover(movement, administration, catalogue),)


def _failover(movement: Movement, administration: Administration, catalogue: Catalogue) -> APIRouter:
    router = APIRouter(prefix="/failover", tags=["failover"])

    @router.get("")
    async def status() -> dict[str, Any]:
        """The mode, the order of pools, and where the nodes stand that are connected to this gate."""
        return movement.status()

    @router.put("/mode")
    async def mode(body: ModeBody, by: By, seen: Seen) -> dict[str, Any]:
        """Let nodes move by themselves, or not; every node hears of it at once. With ``authority``, let a
        majority of the catalogue's group move its master, or not; refused where there can be none. If-Match
        names the version of the setting.
        """
        if body.authority:
            plan, setting = await catalogue.plan_automatic(body.mode), AUTOMATIC
        else:
            plan, setting = movement.plan_mode(body.mode), "failover.mode"
        if not body.dry_run:
            await administration.preferences.set(setting, body.mode, expected=seen, by=by)
        return {**plan, "dry_run": body.dry_run}

    @router.post("/orders")
    async def order(body: MoveBody, by: By) -> dict[str, Any]:
        """Order nodes to another pool, or home again; with ``dry_run`` only say which would hear it."""
        plan = movement.plan_order(body.verb, pool=body.pool, of=body.of, nodes=body.nodes)
        if body.dry_run:
            return {**plan.shown(), "dry_run": True}
        given = await movement.rosters.order(
            plan.verb, home=plan.home, target=plan.target, nodes=plan.nodes, by=by
        )
        await administration.noted("failover.order", plan.verb, by, {**plan.shown(), **given})
        return {**plan.shown(), **given, "dry_run": False}

    @router.get("/history", response_model=Page)
    async def history(listing: Listing, node: str | None = None) -> dict[str, Any]:
        """Moves that nodes told of, newest first. The newest 10,000 can be looked through."""
        return page(await movement.journal.history(limit=HISTORY_MAX, node=node), listing, MOVE)

    return router
