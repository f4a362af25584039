"""The inbox over the control API. What is read is each admin's own; what is cleared is cleared for all.

GET  /notifications        ?limit=&after=&severity=warning&kind=&q=&unread=true&cleared=true
                           {items, next, total, unread}
POST /notifications/read   {ids?}   all without ids     {read}
POST /notifications/clear  {ids?}   all without ids     {cleared}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from qgate.control.access import needs
from qgate.control.bodies import Body
from qgate.control.paging import TEXT_MAX
from qgate.control.resources import By
from qgate.control.seen import WITHOUT_NUL
from qgate.governance.notifications import LIST_MAX
from qgate.governance.principal import Role

if TYPE_CHECKING:
    from qgate.governance.notifications import Notifications

NUMBER_MAX = 2**62


class WhichBody(Body):
    """Which notifications; all where none is named."""

    ids: Annotated[list[Annotated[int, Field(ge=1, le=NUMBER_MAX)]], Field(max_length=LIST_MAX)] | None = None


def routers(notifications: Notifications) -> tuple[APIRouter, ...]:
    """One router a noun."""
    router = APIRouter(prefix="/notifications", tags=["notifications"])

    @router.get("")
    async def list_notifications(
        by: By,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 100,
        after: Annotated[int | None, Query(ge=1, le=NUMBER_MAX)] = None,
        severity: Literal["info", "warning", "critical"] = "info",
        kind: Annotated[str | None, Query(pattern=r"^[a-z][a-z.-]{0,63}$")] = None,
        q: Annotated[str | None, Query(max_length=TEXT_MAX, pattern=WITHOUT_NUL)] = None,
        *,
        unread: bool = False,
        cleared: bool = False,
    ) -> dict[str, Any]:
        """The newest first, of that severity and above, with ``q`` in their words; ``cleared`` ones too."""
        return await notifications.list(
            by,
            limit=limit,
            before=after,
            severity=severity,
            kind=kind,
            text=q,
            unread=unread,
            cleared=cleared,
        )

    @router.post("/read", dependencies=[needs(Role.VIEWER)])
    async def read_notifications(by: By, body: WhichBody | None = None) -> dict[str, Any]:
        """Note that you have read them."""
        return await notifications.read(by, body.ids if body else None)

    @router.post("/clear", dependencies=[needs(Role.OPERATOR)])
    async def clear_notifications(by: By, body: WhichBody | None = None) -> dict[str, Any]:
        """Put them away, for everybody."""
        return await notifications.clear(body.ids if body else None, by=by)

    return (router,)
