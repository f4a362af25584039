"""This pool, its peers, and the ceremony that pairs them, over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.resources import By
from qgate.federation.peer import Permissions
from qgate.federation.transcript import FILE_MAX

if TYPE_CHECKING:
    from qgate.administration import Administration

File = Annotated[str, Field(max_length=FILE_MAX)]
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

    @router.get("")
    async def own() -> dict[str, Any]:
        """This pool and the pairings under way."""
        return await pools.own()

    @router.put("")
    async def name_it(body: PoolBody, by: By) -> dict[str, Any]:
        """Say what this pool is called."""
        return await pools.name(body.name, body.kind, by=by)

    return router


def _pairings(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/pairings", tags=["pools"])
    pairing = administration.pools.pairing

    @router.get("")
    async def under_way() -> dict[str, Any]:
        """Pairings that are neither done nor ended."""
        return {"items": await pairing.under_way()}

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

    @router.get("")
    async def list_pools() -> dict[str, Any]:
        """Every peer in the order of failover."""
        return {"items": await pools.list()}

    @router.put("")
    async def order(body: OrderBody, by: By) -> dict[str, Any]:
        """Put peers into the order of failover."""
        return {"items": await pools.order(body.names, by=by)}

    @router.get("/{name}")
    async def show(name: str) -> dict[str, Any]:
        """One peer, its gates and what it may do."""
        return await pools.show(name)

    @router.put("/{name}/trust")
    async def trust(name: str, body: TrustBody, by: By) -> dict[str, Any]:
        """Set what a peer may do here; the first time with the string that it shows."""
        given = body.permissions
        permissions = None if given is None else Permissions.from_json(given.model_dump())
        return await pools.trust(name, level=body.level, string=body.string, permissions=permissions, by=by)

    @router.post("/{name}/unpair")
    async def unpair(name: str, by: By) -> dict[str, Any]:
        """End a pairing; it may be taken up again."""
        return await pools.unpair(name, by=by)

    @router.post("/{name}/revoke")
    async def revoke(name: str, by: By) -> dict[str, Any]:
        """Refuse a pool's key for good."""
        return await pools.revoke(name, by=by)

    return router
