"""Who may do what over the control API: the one place where each request gets its principal or its refusal.

    over the control socket    the owner of the gate's files or root: owner of the pool
    either, with a token       the admin whose session the token is of
    over the tunnel, without   nothing but `PUBLIC`; a set-up node nothing but `SETUP`

A route needs the role that `OPERATIONS` names, else `Role.VIEWER` for reading and `Role.ADMIN` for anything
else: a route that nobody thought of is safe. The table is what lowers a route; a router raises one with
``dependencies=[needs(Role.OWNER)]`` as well as with the table. ``Qgate-Read-Only: 1`` on a request gives up
the right to change anything, for contexts that shall only watch.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastapi import Depends, Request
from starlette.routing import compile_path

from qgate.control.problems import problem, refusal
from qgate.governance.principal import AccessError, Principal, Role, unauthenticated
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    import re

    from tunnel_proto.certificate import NodeCertificate

__all__ = [
    "OPERATIONS",
    "PREFIX",
    "Access",
    "Keeper",
    "Principal",
    "Role",
    "least_role",
    "needs",
    "principal_of",
    "require",
]

PREFIX: Final = "/control/v1"
READ_ONLY_HEADER: Final = b"qgate-read-only"
TOKEN_MAX: Final = 8192
"""Characters of an access token that are looked at; ours have about 500."""

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})

OPERATIONS: Final[Mapping[tuple[str, str], Role]] = MappingProxyType(
    {
        # what changes nothing although it is no GET
        ("POST", "/audit/verify"): Role.VIEWER,
        ("POST", "/logs/verify"): Role.VIEWER,
        ("POST", "/route/explain"): Role.VIEWER,
        ("POST", "/models/fit"): Role.VIEWER,
        ("POST", "/licence/verify"): Role.VIEWER,
        ("POST", "/branding/preview"): Role.VIEWER,
        ("POST", "/configuration/diff"): Role.VIEWER,
        # one's own session
        ("POST", "/session"): Role.VIEWER,
        ("POST", "/session/token"): Role.VIEWER,
        ("DELETE", "/session"): Role.VIEWER,
        # one's own account; the routes ask for an owner where it is another's
        ("PUT", "/admins/{name}/password"): Role.VIEWER,
        ("POST", "/admins/{name}/second-factor"): Role.VIEWER,
        ("PUT", "/admins/{name}/second-factor"): Role.VIEWER,
        ("DELETE", "/admins/{name}/second-factor"): Role.VIEWER,
        # moving work about
        ("POST", "/databases/{name}/check"): Role.OPERATOR,
        ("POST", "/providers/{name}/check"): Role.OPERATOR,
        ("POST", "/workers/{name:path}/drain"): Role.OPERATOR,
        ("POST", "/workers/{name:path}/undrain"): Role.OPERATOR,
        ("POST", "/workers/{name:path}/probe"): Role.OPERATOR,
        ("PUT", "/workers/{name:path}/labels"): Role.OPERATOR,
        ("POST", "/workers/{name:path}/interrogate"): Role.OPERATOR,
        ("POST", "/models/load"): Role.OPERATOR,
        ("POST", "/models/unload"): Role.OPERATOR,
        ("POST", "/models/pin"): Role.OPERATOR,
        ("POST", "/models/unpin"): Role.OPERATOR,
        ("POST", "/models/groups"): Role.OPERATOR,
        ("POST", "/failover/orders"): Role.OPERATOR,
        ("POST", "/orders"): Role.OPERATOR,  # the route asks for an admin where the mode is to change
        ("DELETE", "/orders/{number}"): Role.OPERATOR,
        ("POST", "/incidents/{number}/ack"): Role.OPERATOR,
        ("POST", "/incidents/{number}/resolve"): Role.OPERATOR,
        # what tells more than a viewer needs
        ("GET", "/pairings"): Role.ADMIN,
        ("GET", "/pairings/{pairing_id}"): Role.ADMIN,
        ("GET", "/sessions"): Role.ADMIN,
        ("GET", "/admins"): Role.ADMIN,
        ("GET", "/admins/{name}"): Role.VIEWER,  # oneself; the route asks for an admin where it is another
        ("GET", "/admins/{name}/keys"): Role.VIEWER,
        ("GET", "/logs/{pool}/archive"): Role.ADMIN,
        ("GET", "/vault"): Role.ADMIN,
        # who people are
        ("GET", "/people"): Role.ADMIN,
        ("GET", "/people/{person}"): Role.ADMIN,
        ("GET", "/people/{person}/export"): Role.ADMIN,
        ("GET", "/signup"): Role.ADMIN,
        ("GET", "/signup/requests"): Role.ADMIN,
        ("GET", "/smtp"): Role.ADMIN,
        ("GET", "/smtp/mail"): Role.ADMIN,
        ("POST", "/people/{person}/erase"): Role.OWNER,
        # the inbox; what is read is everybody's own
        ("POST", "/notifications/read"): Role.VIEWER,
        ("POST", "/notifications/clear"): Role.OPERATOR,
        # the pool itself
        ("POST", "/admins"): Role.OWNER,
        ("PATCH", "/admins/{name}"): Role.OWNER,
        ("DELETE", "/admins/{name}"): Role.OWNER,
        ("POST", "/admins/{name}/unlock"): Role.OWNER,
        ("POST", "/admins/{name}/keys"): Role.OWNER,
        ("DELETE", "/admins/{name}/keys/{key}"): Role.OWNER,
        ("POST", "/session/first"): Role.OWNER,
        ("POST", "/session/setup-token"): Role.OWNER,
        ("PUT", "/licence"): Role.OWNER,
        ("DELETE", "/licence"): Role.OWNER,
        ("POST", "/vault/rekey"): Role.OWNER,
        ("POST", "/backup"): Role.OWNER,
        ("POST", "/logs/erase"): Role.OWNER,
        ("PUT", "/pools/{name}/trust"): Role.OWNER,
        ("POST", "/pools/{name}/unpair"): Role.OWNER,
        ("POST", "/pools/{name}/revoke"): Role.OWNER,
    }
)
"""Least role by method and path template under `PREFIX`, as the routes spell it; where several templates
match one path, the most demanding counts."""

HARMLESS: Final = frozenset(
    {
        ("POST", "/audit/verify"),
        ("POST", "/logs/verify"),
        ("POST", "/route/explain"),
        ("POST", "/models/fit"),
        ("POST", "/licence/verify"),
        ("POST", "/branding/preview"),
        ("POST", "/configuration/diff"),
        ("POST", "/session"),
        ("POST", "/session/token"),
        ("DELETE", "/session"),
    }
)
"""What a read-only principal may do although it is no GET."""

PUBLIC: Final = frozenset(
    {
        ("GET", "/healthz"),
        ("GET", f"{PREFIX}/branding"),
        ("POST", f"{PREFIX}/session"),
        ("POST", f"{PREFIX}/session/token"),
    }
)
"""What an enrolled admin node may ask over the tunnel before it has logged in."""

SETUP: Final = frozenset({("GET", "/healthz"), ("POST", f"{PREFIX}/session/first")})
"""All that a set-up node may ask."""

_ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Keeper(Protocol):
    """Knows sessions and nodes; hears of refusals."""

    async def bearer(self, token: str, node: NodeCertificate | None) -> Principal:
        """Whose token this is, presented by ``node`` (None: over the control socket). AccessError."""

    def stands(self, principal: Principal) -> bool:
        """Whether a session is still what it was when its request came; asked while an answer goes on."""

    def is_setup(self, node: NodeCertificate) -> bool:
        """Whether this is the node of a set-up token."""

    def refused(
        self, error: AccessError, *, operation: str, principal: Principal | None, node: NodeCertificate | None
    ) -> None:
        """Somebody was turned away; for the audit."""


class Access:
    """The control API behind its door: an ASGI application around one."""

    def __init__(self, application: _ASGIApp, keeper: Keeper) -> None:
        self._application = application
        self._keeper = keeper

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request, or refuse it before its body is read."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        node: NodeCertificate | None = state.get("node")
        principal: Principal | None = None
        try:
            principal = await self._principal(scope, node)
            if principal is not None:
                _admit(scope, principal)
        except AccessError as error:
            self._keeper.refused(
                error,
                operation=f"{scope['method']} {_shown_path(scope['path'])}",
                principal=principal,
                node=node,
            )
            await refusal(error)(scope, receive, send)
            return
        except MeshError as error:  # the store is away, and who asks is not known without it
            answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable", error.message, error.hint)
            await answer(scope, receive, send)
            return
        state["principal"] = principal
        state["refused"] = partial(self._refused_within, scope, principal, node)
        if principal is None or principal.kind == "local":
            await self._application(scope, receive, send)
        else:
            await self._while_it_stands(principal, scope, receive, send)

    def _refused_within(
        self,
        scope: Mapping[str, Any],
        principal: Principal | None,
        node: NodeCertificate | None,
        error: AccessError,
    ) -> None:
        """A route refused what the door had let in, for what it is about or what its body says."""
        if not error.audited:
            error.audited = True
            operation = f"{scope['method']} {_shown_path(scope['path'])}"
            self._keeper.refused(error, operation=operation, principal=principal, node=node)

    async def _while_it_stands(self, principal: Principal, scope: Any, receive: Any, send: Any) -> None:
        """Serve a session's request; an answer that goes on (events, the audit as it grows) ends with it."""
        over = asyncio.Event()

        async def watched(message: MutableMapping[str, Any]) -> None:
            if not message.get("more_body") or not (over.is_set() or not self._keeper.stands(principal)):
                if not over.is_set():
                    await send(message)
                return
            if not over.is_set():
                over.set()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            await asyncio.sleep(0)  # `listening` tells it to stop

        async def listening() -> Any:
            """What the client says next; once the session is over, that the client has gone."""
            said, ended = (asyncio.ensure_future(one) for one in (receive(), over.wait()))
            try:
                await asyncio.wait({said, ended}, return_when=asyncio.FIRST_COMPLETED)
                return said.result() if said.done() else {"type": "http.disconnect"}
            finally:
                said.cancel()
                ended.cancel()

        await self._application(scope, listening, watched)

    async def _principal(self, scope: Mapping[str, Any], node: NodeCertificate | None) -> Principal | None:
        """Who asks; None for what is asked before log-in."""
        asked = scope["method"], scope["path"]
        if node is not None and self._keeper.is_setup(node):
            if asked not in SETUP:
                raise AccessError(
                    HTTPStatus.FORBIDDEN,
                    "role",
                    "a set-up token makes the first owner and does nothing else",
                    hint="meshctl onboard",
                )
            return None
        token = _bearer(scope)
        if token is not None and asked not in PUBLIC:
            principal = await self._keeper.bearer(token, node)
            return _narrowed(principal) if _asks_read_only(scope) else principal
        if node is not None:
            if asked in PUBLIC:
                return None
            raise unauthenticated("this needs a session: log in first")
        client = scope.get("client")
        if client is None or not str(client[0]).startswith("uid="):
            raise unauthenticated("nobody vouches for this connection")
        local = Principal(str(client[0]), Role.OWNER, kind="local")
        return _narrowed(local) if _asks_read_only(scope) else local


def _shown_path(path: str) -> str:
    """A path for the audit: a person may be named by their address, and the audit keeps what it has."""
    return "/".join("ADDRESS" if "@" in part else part for part in path[:200].split("/"))


def least_role(method: str, path: str) -> Role:
    """The least role for a request; ``path`` with `PREFIX`, or a path template."""
    short = path.removeprefix(PREFIX)
    asked = "GET" if method in _READING else method
    found = [role for (verb, pattern), role in _COMPILED if verb == asked and pattern.match(short)]
    if found:
        return max(found, key=list(Role).index)
    return Role.VIEWER if method in _READING else Role.ADMIN


def _admit(scope: Mapping[str, Any], principal: Principal) -> None:
    """AccessError where the principal may not do what is asked."""
    method, path = scope["method"], scope["path"]
    need = least_role(method, path)
    if not principal.role.covers(need):
        raise _too_little(principal, need)
    if principal.read_only and method not in _READING and (method, path.removeprefix(PREFIX)) not in HARMLESS:
        raise AccessError(
            HTTPStatus.FORBIDDEN,
            "read-only",
            "this session was opened for reading only",
            hint="meshctl login, without --read-only",
        )


def _too_little(principal: Principal, need: Role) -> AccessError:
    whose = f" of the pool {principal.pool}" if principal.pool else ""
    return AccessError(
        HTTPStatus.FORBIDDEN,
        "role",
        f"this needs the role {need}; {principal.name}{whose} is {principal.role} here",
        hint="ask an owner of this pool"
        if principal.pool
        else f"ask an owner: meshctl admin role {principal.name} {need}",
    )


def principal_of(request: Request) -> Principal:
    """Who asks, inside a route. AccessError where nobody has logged in."""
    found = getattr(request.state, "principal", None)
    if not isinstance(found, Principal):
        raise unauthenticated("this needs a session: log in first")
    return found


def node_of(request: Request) -> NodeCertificate | None:
    """The node at the other end of the tunnel; None over the control socket."""
    return getattr(request.state, "node", None)


def needs(role: Role) -> Any:
    """A dependency that asks for at least ``role``, beside what `OPERATIONS` says."""

    def check(request: Request) -> None:
        require(request, role)

    return Depends(check)


def require(request: Request, role: Role) -> None:
    """AccessError where who asks has not at least ``role``: for routes to which it depends on the body."""
    principal = principal_of(request)
    if not principal.role.covers(role):
        raise _too_little(principal, role)


def _narrowed(principal: Principal) -> Principal:
    return dataclasses.replace(principal, read_only=True)


def _bearer(scope: Mapping[str, Any]) -> str | None:
    """The token of the Authorization header; None where there is no such header."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer" or not 0 < len(token) <= TOKEN_MAX:
                raise unauthenticated("the Authorization header holds no bearer token")
            return str(token.strip())
    return None


def _asks_read_only(scope: Mapping[str, Any]) -> bool:
    return any(name == READ_ONLY_HEADER and value not in {b"", b"0"} for name, value in scope["headers"])


def _compiled() -> tuple[tuple[tuple[str, re.Pattern[str]], Role], ...]:
    return tuple(
        ((method, compile_path(template)[0]), role) for (method, template), role in OPERATIONS.items()
    )


_COMPILED: Final = _compiled()
