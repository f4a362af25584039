"""This pool, its peers, and the ceremony that pairs them, over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged
from qgate.federation.peer import Permissions
from qgate.federation.transcript import FILE_MAX

if TYPE_CHECKING:
    from qgate.administration import Administration

File = Annotated[str, Field(max_length=FILE_MAX)]
POOL = Fields(
    key="name",
    search=("name", "kind", "fingerprint"),
    filters=("kind", "state", "level", "trust", "link", "health"),
)
PAIRING = Fields(key="id", search=("id", "peer", "state"), filters=("state",))

Flows = Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=64)]


class PoolBody(Body):
    """What this pool is called, and what it is."""

    name: Name
    kind: Literal["headquarters", "satellite", "branch", "pool"] = "pool"


class OfferBody(Body):
    """How an offer is made: ``new`` also where one is still open."""

    valid_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    online: bool = False
    new: bool = False


class FileBody(Body):
    """A file of a pairing; ``name`` is what the peer shall be called here."""

    file: File
    name: Name | None = None


class PermissionsBody(Body):
    """What differs from the level's preset."""

    allow_send: Flows = Field(default_factory=list)
    allow_receive: Flows = Field(default_factory=list)
    deny_send: Flows = Field(default_factory=list)
    deny_receive: Flows = Field(default_factory=list)
    admin_role: Literal["auditor", "operator", "admin"] = "operator"


class TrustBody(Body):
    """A level, the string that the peer shows (the first time), and refinements."""

    level: Annotated[int, Field(ge=0, le=4)]
    string: Annotated[str, Field(max_length=100)] | None = None
    permissions: PermissionsBody | None = None


class OrderBody(Body):
    """Peers in the order of failover."""

    names: Annotated[list[Name], Field(max_length=1000)]


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_pool(administration), _pairings(administration), _pools(administration))


def _pool(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/pool", tags=["pools"])
    pools = administration.pools

    unchanged = Unchanged(administration.office)

    async def shown(_name: str) -> dict[str, Any]:
        return await pools.own()

    @router.get("")
    async def own(response: Response) -> dict[str, Any]:
        """This pool and the pairings under way."""
        return tagged(await pools.own(), response)

    @router.put("")
    async def name_it(body: PoolBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Say what this pool is called."""
        name = administration.office.directory.own_pool().name
        async with unchanged.since("pool", name, seen, shown):
            return tagged(await pools.name(body.name, body.kind, by=by), response)

    return router


def _pairings(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/pairings", tags=["pools"])
    pairing = administration.pools.pairing

    @router.get("", response_model=Page)
    async def under_way(listing: Listing) -> dict[str, Any]:
        """Pairings that are neither done nor ended."""
        return page(await pairing.under_way(), listing, PAIRING)

    @router.get("/{pairing_id}")
    async def show(pairing_id: Annotated[str, Field(max_length=64)]) -> dict[str, Any]:
        """One pairing with the files made here."""
        return await pairing.show(pairing_id)

    @router.post("/offer", status_code=201)
    async def offer(body: OfferBody, by: By) -> dict[str, Any]:
        """Make an offer, or give the open one again."""
        return await pairing.offer(valid_s=body.valid_s, online=body.online, new=body.new, by=by)

    @router.post("/answer", status_code=201)
    async def answer(body: FileBody, by: By) -> dict[str, Any]:
        """Answer an offer."""
        return await pairing.answer(body.file, name=body.name, by=by)

    @router.post("/online", status_code=201)
    async def online(body: FileBody, by: By) -> dict[str, Any]:
        """Answer an offer over the network, up to the strings."""
        return await pairing.answer_online(body.file, name=body.name, by=by)

    @router.post("/confirm", status_code=201)
    async def confirm(body: FileBody, by: By) -> dict[str, Any]:
        """Confirm an answer."""
        return await pairing.confirm(body.file, name=body.name, by=by)

    @router.post("/finish", status_code=201)
    async def finish(body: FileBody, by: By) -> dict[str, Any]:
        """Take a confirmation or a finish."""
        return await pairing.finish(body.file, by=by)

    return router


def _pools(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/pools", tags=["pools"])
    pools = administration.pools
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=Page)
    async def list_pools(listing: Listing) -> dict[str, Any]:
        """Every peer in the order of failover."""
        return page(await pools.list(), listing, POOL)

    @router.put("")
    async def order(body: OrderBody, by: By) -> dict[str, Any]:
        """Put peers into the order of failover."""
        return {"items": await pools.order(body.names, by=by)}

    @router.get("/{name}")
    async def show(name: str, response: Response) -> dict[str, Any]:
        """One peer, its gates and what it may do."""
        return tagged(await pools.show(name), response)

    @router.put("/{name}/trust")
    async def trust(name: str, body: TrustBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Set what a peer may do here; the first time with the string that it shows."""
        given = body.permissions
        permissions = None if given is None else Permissions.from_json(given.model_dump())
        async with unchanged.since("pool", name, seen, pools.show):
            row = await pools.trust(
                name, level=body.level, string=body.string, permissions=permissions, by=by
            )
        return tagged(row, response)

    @router.post("/{name}/unpair")
    async def unpair(name: str, by: By, seen: Seen) -> dict[str, Any]:
        """End a pairing; it may be taken up again."""
        async with unchanged.since("pool", name, seen, pools.show):
            return await pools.unpair(name, by=by)

    @router.post("/{name}/revoke")
    async def revoke(name: str, by: By, seen: Seen) -> dict[str, Any]:
        """Refuse a pool's key for good."""
        async with unchanged.since("pool", name, seen, pools.show):
            return await pools.revoke(name, by=by)

    return router
