"""Logging in and out over the control API. Times in replies of `/session` are unix seconds.

    POST   /session              {name, password, totp?, read_only?}
           201 {grant, token, token_expires_at, expires_at, session, principal: {name, role, pool: ""},
                pools: [{name, pool_key, gates: [{name, host, port, public}]}, …]}
           this pool comes first; keys are in hexadecimal
    POST   /session/token        {grant, read_only?}      200 {token, token_expires_at, role}, and `pools`
           as of now at the pool that the grant is of
    GET    /session              200 {name, role, pool, kind, session, read_only, label}
    DELETE /session              204, here and at every pool that hears of it
    GET    /sessions             {items: [{session, admin, node, client, second_factor, read_only,
                                 opened_at, expires_at}]}, times in ISO 8601
    DELETE /sessions/{sid}       204
    POST   /session/setup-token  over the control socket only: 201 {setup_token, expires_at, gates}
    POST   /session/first        {name, password, offer?} with a set-up token's node, or over the socket:
                                 201 {name, role, node, fingerprint, bundle, pools}; without an offer
                                 node, fingerprint and bundle are ""

The token goes into ``Authorization: Bearer``. What is refused is in the audit as ``admin.refused``:
401 "unauthenticated", 401 "second-factor-needed" (send ``totp`` too), 403 "second-factor-required",
"elsewhere", "not-for-this-pool", 409 "claimed", 429 "locked-out" and "busy" with Retry-After.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from qgate.control.access import needs, node_of, principal_of
from qgate.control.bodies import Body, Name
from qgate.control.resources import By
from qgate.governance.admin_sessions import GRANT_MAX
from qgate.governance.logins import Attempt
from qgate.governance.passwords import LENGTH_MOST
from qgate.governance.principal import AccessError, Role
from qgate.governance.problems import InvalidRequestError

if TYPE_CHECKING:
    from qgate.governance.first_owner import FirstOwner
    from qgate.governance.logins import Logins

Password = Annotated[str, Field(min_length=1, max_length=LENGTH_MOST)]
Code = Annotated[str, Field(max_length=16)]
SID = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class LoginBody(Body):
    """Who logs in. ``totp`` is the app's code; with ``read_only`` the session can change nothing."""

    name: Name
    password: Password = Field(repr=False)
    totp: Code = Field(default="", repr=False)
    read_only: bool = False


class GrantBody(Body):
    """A grant, as log-in gave it; ``read_only`` for a token that can change nothing."""

    grant: Annotated[str, Field(max_length=GRANT_MAX)] = Field(repr=False)
    read_only: bool = False


class FirstBody(Body):
    """The first owner, and the key that they will use (left out: none)."""

    name: Name
    password: Password = Field(repr=False)
    offer: Annotated[str, Field(max_length=65_536)] | None = None


def routers(logins: Logins, first: FirstOwner) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_session(logins), _first(logins, first), _sessions(logins))


def _session(logins: Logins) -> APIRouter:
    router = APIRouter(prefix="/session", tags=["session"])

    @router.post("", status_code=201, operation_id="session_open")
    async def log_in(request: Request, body: LoginBody) -> dict[str, Any]:
        """Log in with name and password, over a tunnel with a key of one's own or the control socket."""
        attempt = Attempt(body.name, body.password, body.totp, body.read_only)
        with _audited(logins, request, body.name):
            return await logins.log_in(attempt, node_of(request))

    @router.post("/token", operation_id="session_token")
    async def token(request: Request, body: GrantBody) -> dict[str, Any]:
        """An access token of a few minutes for a grant of this pool, or of one that this one trusts."""
        with _audited(logins, request):
            return await logins.mint(body.grant, node_of(request), read_only=body.read_only)

    @router.get("", operation_id="session_show")
    async def who(request: Request) -> dict[str, Any]:
        """Who the caller is here."""
        principal = principal_of(request)
        return {
            "name": principal.name,
            "role": str(principal.role),
            "pool": principal.pool,
            "kind": principal.kind,
            "session": principal.session,
            "read_only": principal.read_only,
            "label": principal.label,
        }

    @router.delete("", status_code=204, operation_id="session_close")
    async def log_out(request: Request) -> None:
        """End the caller's session, here and wherever it is honoured."""
        principal = principal_of(request)
        if principal.kind == "local":
            raise InvalidRequestError("over the control socket there is no session to end")
        await logins.end(principal)

    return router


def _first(logins: Logins, first: FirstOwner) -> APIRouter:
    router = APIRouter(prefix="/session", tags=["session"])

    @router.post(
        "/setup-token", status_code=201, operation_id="session_setup_token", dependencies=[needs(Role.OWNER)]
    )
    async def setup_token(request: Request, by: By) -> dict[str, Any]:
        """What makes the first owner from elsewhere, once; an earlier one stops being good."""
        with _audited(logins, request):
            return await first.token(principal_of(request), by=by)

    @router.post("/first", status_code=201, operation_id="session_first")
    async def claim(request: Request, body: FirstBody) -> dict[str, Any]:
        """Make the first owner, where there is no admin yet."""
        node = node_of(request)
        by = principal_of(request).label if node is None else f"node:{node.name}"
        with _audited(logins, request, body.name):
            return await first.claim(body.name, body.password, body.offer, by=by)

    return router


def _sessions(logins: Logins) -> APIRouter:
    router = APIRouter(prefix="/sessions", tags=["session"])

    @router.get("", operation_id="sessions_list")
    async def sessions(admin: Name | None = None) -> dict[str, Any]:
        """Sessions of this pool's admins that stand, newest first."""
        return {"items": await logins.sessions(admin)}

    @router.delete("/{sid}", status_code=204, operation_id="sessions_end")
    async def end(sid: SID, by: By) -> None:
        """End a session, here and wherever it is honoured."""
        await logins.revoke(bytes.fromhex(sid), by=by)

    return router


@contextlib.contextmanager
def _audited(logins: Logins, request: Request, name: str = "") -> Iterator[None]:
    """A refusal inside goes into the audit, with the name that was tried."""
    try:
        yield
    except AccessError as error:
        principal = getattr(request.state, "principal", None)
        error.audited = True
        logins.refused(
            error,
            operation=f"{request.method} {request.url.path}",
            principal=principal,
            node=node_of(request),
            name=name,
        )
        raise
