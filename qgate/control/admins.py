"""Administrators over the control API: accounts, roles, passwords, second factors, client keys.

    GET    /admins                        {items: [account]}
    POST   /admins                        {name, role, password}            201 account
    GET    /admins/{name}                 account
    PATCH  /admins/{name}                 {role?, disabled?}                account
    DELETE /admins/{name}                 204
    POST   /admins/{name}/unlock          204
    PUT    /admins/{name}/password        {password, current?}              204; the admin's sessions end
    POST   /admins/{name}/second-factor   {current?}                        {name, secret, uri}
                                          shown once; counts once confirmed
    PUT    /admins/{name}/second-factor   {code, current?}                  account
    DELETE /admins/{name}/second-factor   {current?}                        204
    GET    /admins/{name}/keys            {items: [{name, fingerprint, serial, state, expires_at, …}]}
    POST   /admins/{name}/keys            {offer, valid_days?, readmit?}
                                          201 {name, admin, fingerprint, bundle, pools}
    DELETE /admins/{name}/keys/{key}      204; its tunnels are cut and its sessions end

    account: {name, role, state: "active"|"disabled", second_factor, created_at, created_by,
              password_changed_at, logged_in_at, disabled_at, locked_until, version}

An admin may change their own password and second factor, and look at themselves; their password is asked for
(``current``), for a second factor where one is set already. An owner may do all of it for everybody else,
without.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from qgate.control.access import principal_of
from qgate.control.bodies import Body, Name
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.session import Code, Password
from qgate.governance.principal import AccessError, Principal, Role
from qgate.governance.problems import InvalidRequestError

if TYPE_CHECKING:
    from qgate.governance.admins import Admins


class AdminBody(Body):
    """A new account."""

    name: Name
    role: Role
    password: Password = Field(repr=False)


class ChangeBody(Body):
    """What changes; what is left out stays."""

    role: Role | None = None
    disabled: bool | None = None


class PasswordBody(Body):
    """A new password, and the present one where it is one's own."""

    password: Password = Field(repr=False)
    current: Password | None = Field(default=None, repr=False)


class CodeBody(Body):
    """What the authenticator app shows, and the present password where it replaces one's own."""

    code: Code = Field(repr=False)
    current: Password | None = Field(default=None, repr=False)


class CurrentBody(Body):
    """The present password, where it is one's own account."""

    current: Password | None = Field(default=None, repr=False)


class KeyBody(Body):
    """A client key's offer, as `meshctl context offer` wrote it. One that was revoked is refused unless
    ``readmit`` is true.
    """

    offer: Annotated[str, Field(max_length=65_536)]
    valid_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    readmit: bool = False


def routers(admins: Admins) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_accounts(admins), _secrets(admins), _keys(admins))


def _accounts(admins: Admins) -> APIRouter:
    router = APIRouter(prefix="/admins", tags=["admins"])

    @router.get("", operation_id="admins_list")
    async def list_admins() -> dict[str, Any]:
        """Every account of this pool."""
        return {"items": await admins.list()}

    @router.post("", status_code=201, operation_id="admins_create")
    async def create(body: AdminBody, by: By) -> dict[str, Any]:
        """Add an account."""
        return await admins.create(body.name, body.role, body.password, by=by)

    @router.get("/{name}", operation_id="admins_show")
    async def show(request: Request, name: str, response: Response) -> dict[str, Any]:
        """One account; one's own, or as an admin any."""
        _own_or(request, name, Role.ADMIN)
        return tagged(await admins.show(name), response)

    @router.patch("/{name}", operation_id="admins_change")
    async def change(name: str, body: ChangeBody, by: By, seen: Seen, response: Response) -> dict[str, Any]:
        """Set role or standing; who is disabled is logged out everywhere."""
        done = await admins.change(name, role=body.role, disabled=body.disabled, expected=seen, by=by)
        return tagged(done, response)

    @router.delete("/{name}", status_code=204, operation_id="admins_remove")
    async def remove(name: str, by: By, seen: Seen) -> None:
        """Remove an account with its sessions and client keys."""
        await admins.remove(name, expected=seen, by=by)

    @router.post("/{name}/unlock", status_code=204, operation_id="admins_unlock")
    async def unlock(name: str, by: By) -> None:
        """End the lock-out of a name."""
        await admins.unlock(name, by=by)

    return router


def _secrets(admins: Admins) -> APIRouter:
    router = APIRouter(prefix="/admins", tags=["admins"])

    @router.put("/{name}/password", status_code=204, operation_id="admins_password")
    async def password(request: Request, name: str, body: PasswordBody, by: By) -> None:
        """Replace a password; all sessions of the admin end."""
        principal = _own_or(request, name, Role.OWNER)
        current = _current(principal, name, body.current)
        await admins.set_password(name, body.password, current=current, by=by)

    @router.post("/{name}/second-factor", operation_id="admins_second_factor_begin")
    async def begin(request: Request, name: str, by: By, body: CurrentBody | None = None) -> dict[str, Any]:
        """A new secret for an authenticator app; it counts once a code of it came back."""
        own = _own_or(request, name, Role.OWNER).is_admin(name)
        current = body.current if body is not None else None
        return await admins.begin_second_factor(name, current=current, own=own, by=by)

    @router.put("/{name}/second-factor", operation_id="admins_second_factor_set")
    async def confirm(request: Request, name: str, body: CodeBody, by: By) -> dict[str, Any]:
        """Let the new secret count."""
        own = _own_or(request, name, Role.OWNER).is_admin(name)
        return await admins.confirm_second_factor(name, body.code, current=body.current, own=own, by=by)

    @router.delete("/{name}/second-factor", status_code=204, operation_id="admins_second_factor_drop")
    async def drop(request: Request, name: str, by: By, body: CurrentBody | None = None) -> None:
        """Let the password alone do again."""
        principal = _own_or(request, name, Role.OWNER)
        current = _current(principal, name, body.current if body is not None else None)
        await admins.drop_second_factor(name, current=current, by=by)

    return router


def _keys(admins: Admins) -> APIRouter:
    router = APIRouter(prefix="/admins", tags=["admins"])

    @router.get("/{name}/keys", operation_id="admins_keys_list")
    async def keys(request: Request, name: str) -> dict[str, Any]:
        """The client keys of an admin; one's own, or as an admin anybody's."""
        _own_or(request, name, Role.ADMIN)
        return {"items": await admins.keys(name)}

    @router.post("/{name}/keys", status_code=201, operation_id="admins_keys_enrol")
    async def enrol(name: str, body: KeyBody, by: By) -> dict[str, Any]:
        """Certify a client key; the bundle goes back to where the offer was made."""
        return await admins.enrol(name, body.offer, valid_days=body.valid_days, readmit=body.readmit, by=by)

    @router.delete("/{name}/keys/{key}", status_code=204, operation_id="admins_keys_revoke")
    async def revoke(name: str, key: str, by: By) -> None:
        """Refuse a client key from now on."""
        await admins.revoke_key(name, key, by=by)

    return router


def _own_or(request: Request, name: str, role: Role) -> Principal:
    """The caller, who is that admin or has at least ``role``. AccessError."""
    principal = principal_of(request)
    if principal.is_admin(name) or principal.role.covers(role):
        return principal
    raise AccessError(
        HTTPStatus.FORBIDDEN,
        "role",
        f"this needs the role {role} for any admin but oneself",
        hint="meshctl whoami",
    )


def _current(principal: Principal, name: str, current: str | None) -> str | None:
    """The password to check: one's own is always asked for."""
    if principal.is_admin(name) and current is None:
        raise InvalidRequestError("give the present password too", hint="send it as current")
    return current
