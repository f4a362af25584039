"""The licence over the control API: owners install it, everybody may look."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.governance.licence import Licences
from tunnel_proto.licence import TOKEN_MAX

Token = Annotated[str, Field(min_length=1, max_length=2 * TOKEN_MAX)]


class TokenBody(Body):
    """A licence as its vendor gave it."""

    token: Token


class LicenceBody(TokenBody):
    """``force`` also where it begins later, or ends before the one that is in force."""

    force: bool = False


def routers(licences: Licences) -> tuple[APIRouter, ...]:
    """The routes of the licence."""
    router = APIRouter(prefix="/licence", tags=["licence"])

    @router.get("")
    async def show_licence(response: Response) -> dict[str, Any]:
        """How the licence stands, what it gives, and what ends with it."""
        return tagged(await licences.show(), response)

    @router.post("/verify")
    async def verify_licence(body: TokenBody) -> dict[str, Any]:
        """How a licence would stand here; nothing is changed."""
        return await licences.verify(body.token)

    @router.put("")
    async def install_licence(body: LicenceBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Install a licence."""
        row = await licences.install(body.token, force=body.force, expected=seen, by=by)
        return tagged(row, response)

    @router.delete("")
    async def remove_licence(response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Remove the licence."""
        return tagged(await licences.remove(expected=seen, by=by), response)

    return (router,)
