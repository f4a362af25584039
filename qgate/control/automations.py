"""Automations over the control API: what each would do, its switch, and doing it now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.resources import By
from qgate.control.seen import Seen
from qgate.control.settings import refuse_role
from qgate.governance.automations import Automations

Name = Annotated[str, Field(max_length=63)]


class SwitchBody(Body):
    """Whether it does its work."""

    on: bool


def routers(automations: Automations) -> tuple[APIRouter, ...]:
    """The routes of automations."""
    router = APIRouter(prefix="/automations", tags=["automations"])

    @router.get("")
    async def list_automations() -> dict[str, Any]:
        """Every automation: its switch, what it did last, when it looks next."""
        return {"items": await automations.list()}

    @router.get("/{name}")
    async def show_automation(name: Name) -> dict[str, Any]:
        """One automation, with what it would do now; nothing is done."""
        return await automations.show(name)

    @router.put("/{name}")
    async def switch_automation(
        name: Name, body: SwitchBody, request: Request, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Turn it on or off for the whole pool; If-Match names the version of its setting."""
        refuse_role(request, automations.named(name).setting)
        return await automations.switch(name, on=body.on, expected=seen, by=by)

    @router.post("/{name}/run")
    async def run_automation(name: Name, request: Request, by: By) -> dict[str, Any]:
        """Do it once now; one that owners alone may turn on is theirs to run."""
        refuse_role(request, automations.named(name).setting)
        return await automations.run_now(name, by=by)

    return (router,)
