"""What the pool shows of itself, over the control API. Log-in screens show it: looking needs no session."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.governance.showing import Showing

Line = Annotated[str, Field(max_length=1000)]
Colour = Annotated[str, Field(max_length=32)]


class BrandingBody(Body):
    """Fields that are left out stay. ``logo`` are lines of text; ``colours`` replace all that were set."""

    name: Line | None = None
    logo: Annotated[list[Line], Field(max_length=100)] | None = None
    colours: Annotated[dict[Colour, Colour], Field(max_length=32)] | None = None
    support: Line | None = None
    white_label: bool | None = None

    def given(self) -> dict[str, Any]:
        """Only what the caller named."""
        return self.model_dump(exclude_none=True)


def routers(showing: Showing) -> tuple[APIRouter, ...]:
    """The routes of branding."""
    router = APIRouter(prefix="/branding", tags=["branding"])

    @router.get("")
    async def show_branding(response: Response) -> dict[str, Any]:
        """The name, logo, colours and support line of the pool."""
        return tagged(await showing.show(), response)

    @router.post("/preview")
    async def preview_branding(body: BrandingBody) -> dict[str, Any]:
        """What a change would look like, with the contrast of every pair of colours; nothing is changed."""
        return await showing.preview(body.given())

    @router.patch("")
    async def set_branding(body: BrandingBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Change the fields that are named."""
        return tagged(await showing.set(body.given(), expected=seen, by=by), response)

    @router.delete("")
    async def reset_branding(response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Show the product's own again."""
        return tagged(await showing.reset(expected=seen, by=by), response)

    return (router,)
