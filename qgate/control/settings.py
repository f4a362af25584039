"""Settings of the database, and the options of qgate.toml beside them, over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from qgate.control.access import require
from qgate.control.bodies import SettingBody
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import WITHOUT_NUL, Seen, tagged
from qgate.governance.principal import Role
from qgate.governance.registry import SETTINGS

if TYPE_CHECKING:
    from qgate.administration import Administration

SETTING = Fields(
    key="name",
    search=("name", "description", "section", "value"),
    filters=("group", "section", "type", "source", "restart_needed", "owner_only"),
)

Why = Annotated[str, Query(max_length=500, pattern=WITHOUT_NUL)]


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """The routes of settings."""
    router = APIRouter(prefix="/settings", tags=["settings"])
    preferences = administration.preferences

    @router.get("", response_model=Page)
    async def list_settings(listing: Listing) -> dict[str, Any]:
        """Every setting of the registry, then every option of qgate.toml, each with its source."""
        return page([*await preferences.list(), *administration.file_settings()], listing, SETTING)

    @router.get("/history")
    async def list_changes(
        name: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    ) -> dict[str, Any]:
        """Changes of one setting, or of all, newest first: who, when, from what to what, why."""
        return {"items": await preferences.history(name, limit=limit, before=before)}

    @router.get("/{name}")
    async def show_setting(name: str, response: Response) -> dict[str, Any]:
        """One setting."""
        if (row := administration.file_setting(name)) is not None:
            return row
        return tagged(await preferences.get(name), response)

    @router.put("/{name}")
    async def set_setting(
        name: str,
        body: SettingBody,
        request: Request,
        response: Response,
        by: By,
        seen: Seen,
        reason: Why = "",
    ) -> dict[str, Any]:
        """Change a setting for every gate of the pool."""
        administration.refuse_file_setting(name)
        refuse_role(request, name)
        row = await preferences.set(name, body.value, by=by, expected=seen, reason=reason)
        return tagged(row, response)

    @router.delete("/{name}")
    async def reset_setting(
        name: str, request: Request, response: Response, by: By, seen: Seen, reason: Why = ""
    ) -> dict[str, Any]:
        """Return a setting to its default."""
        administration.refuse_file_setting(name)
        refuse_role(request, name)
        return tagged(await preferences.reset(name, by=by, expected=seen, reason=reason), response)

    return (router,)


def refuse_role(request: Request, name: str) -> None:
    """AccessError where a setting is the owners' and the caller is none."""
    setting = SETTINGS.get(name)
    if setting is not None and setting.owner_only:
        require(request, Role.OWNER)
