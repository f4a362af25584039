"""Copies of models at other pools over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from qgate.control.bodies import Body, Name
from qgate.control.resources import By
from qgate.control.seen import Seen
from tunnel_proto.messages import MODEL_NAME

if TYPE_CHECKING:
    from qgate.replicating import Replicating


class CopiesBody(Body):
    """A model of ours, and at how many other pools a copy of it shall be."""

    model: Annotated[str, Field(pattern=rf"^{MODEL_NAME}$")]
    copies: Annotated[int, Field(ge=0, le=50)]


def routers(replicating: Replicating) -> tuple[APIRouter, ...]:
    """The routes of copies."""
    router = APIRouter(prefix="/copies", tags=["replication"])

    @router.get("")
    async def list_copies() -> dict[str, Any]:
        """Our models with their copies, what comes here, and how much more each peer would take."""
        return await replicating.status()

    @router.put("")
    async def want_copies(body: CopiesBody, by: By, seen: Seen) -> dict[str, Any]:
        """Want so many copies of a model at other pools; 0 wants none, and removes none."""
        return await replicating.replicate(body.model, body.copies, expected=seen, by=by)

    attested = APIRouter(prefix="/attested", tags=["replication"])

    @attested.get("/{pool}")
    async def attested_by(pool: Name) -> dict[str, Any]:
        """The workers that a peer vouches for, and the speeds that it measured."""
        return await replicating.vouching.attested_by(pool)

    keys = APIRouter(prefix="/online-keys", tags=["pools"])

    @keys.get("")
    async def online_keys(pool: Name | None = None) -> dict[str, Any]:
        """Online keys of a peer, or of this pool: newest first, and by whose word each came."""
        return {"items": await replicating.vouching.keys_of(pool, replicating.pool_key)}

    return (router, attested, keys)
