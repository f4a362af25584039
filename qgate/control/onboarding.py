"""Onboarding over the control API: which first steps are done. What does them are ordinary operations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from qgate.control.bodies import Body
from qgate.control.resources import By
from qgate.governance.onboarding import Onboarding

Step = Annotated[str, Field(max_length=40)]


class StepBody(Body):
    """Pass over a step, or take it up again."""

    state: Literal["skipped", "open"]


def routers(onboarding: Onboarding) -> tuple[APIRouter, ...]:
    """The routes of onboarding."""
    router = APIRouter(prefix="/onboarding", tags=["onboarding"])

    @router.get("")
    async def show_onboarding() -> dict[str, Any]:
        """Every first step, whether it is done, and what does it."""
        return await onboarding.show()

    @router.post("/machine")
    async def check_machine(by: By) -> dict[str, Any]:
        """Look at the machine of this gate."""
        return await onboarding.check_machine(by=by)

    @router.put("/{step}")
    async def set_step(step: Step, body: StepBody, by: By) -> dict[str, Any]:
        """Skip a step, or take it up again."""
        if body.state == "skipped":
            return await onboarding.skip(step, by=by)
        return await onboarding.reopen(step, by=by)

    return (router,)
