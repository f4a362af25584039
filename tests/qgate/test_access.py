"""Who may do what: the table of least roles, and the door in front of the control API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse

from qgate.control import problems
from qgate.control.access import OPERATIONS, PREFIX, Access, least_role, needs, principal_of
from qgate.governance.principal import AccessError, Principal, Role, least, unauthenticated
from tunnel_proto.certificate import NodeCertificate

NODE = NodeCertificate(b"p" * 32, "admin", "laptop", b"v" * 32, b"h" * 32, 1, 0, 2**40)
SETUP = NodeCertificate(b"p" * 32, "admin", "setup", b"v" * 32, b"s" * 32, 1, 0, 2**40)


class Door:
    """A keeper with one session for each role, and what it was told of refusals."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []
        self.looks = 0

    async def bearer(self, token: str, node: NodeCertificate | None) -> Principal:
        if token == "watching":
            return Principal("ann", Role.OWNER, session="01", read_only=True)
        if token not in list(Role):
            raise unauthenticated("this token is none of this gate's")
        return Principal("ann", Role(token), pool="hq", session="02")

    def stands(self, principal: Principal) -> bool:
        self.looks += 1
        return self.looks < 3

    def is_setup(self, node: NodeCertificate) -> bool:
        return node is SETUP

    def refused(
        self, error: AccessError, *, operation: str, principal: Principal | None, node: NodeCertificate | None
    ) -> None:
        self.refusals.append((error.code, operation))


def surface() -> FastAPI:
    """An API with a route for each kind of need."""
    application = FastAPI(openapi_url=None)
    problems.install(application)
    router = APIRouter(prefix=PREFIX)

    async def who(request: Request) -> dict[str, Any]:
        principal = principal_of(request)
        return {"label": principal.label, "role": principal.role}

    async def open_to_all() -> dict[str, str]:
        return {"ok": "yes"}

    for method, path in (
        ("GET", "/status"),
        ("POST", "/drain"),
        ("POST", "/failover/orders"),
        ("POST", "/vault/rekey"),
        ("DELETE", "/session"),
        ("GET", "/sessions"),
    ):
        router.add_api_route(path, who, methods=[method])
    router.add_api_route("/session", open_to_all, methods=["POST"])
    router.add_api_route("/session/first", open_to_all, methods=["POST"])

    async def events() -> StreamingResponse:
        async def on_and_on() -> AsyncIterator[str]:
            while True:
                yield "data: 1\n\n"

        return StreamingResponse(on_and_on())

    router.add_api_route("/live", events, methods=["GET"])
    router.add_api_route("/raised", who, methods=["GET"], dependencies=[needs(Role.OWNER)])
    application.include_router(router)
    application.add_api_route("/healthz", open_to_all)
    return application


class Asking:
    """Calls to a surface from one place."""

    def __init__(self, door: Door, *, client: tuple[str, int] | None, node: NodeCertificate | None) -> None:
        guarded = Access(surface(), door)

        async def application(scope: Any, receive: Any, send: Any) -> None:
            scope["client"] = client
            scope["state"] = {} if node is None else {"node": node}
            await guarded(scope, receive, send)

        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=application), base_url="http://gate"
        )

    async def __call__(self, method: str, path: str, token: str = "", **headers: str) -> httpx.Response:
        """One request under the prefix."""
        sent = {"authorization": f"Bearer {token}"} if token else {}
        address = path if path == "/healthz" else PREFIX + path
        return await self._client.request(
            method, address, headers={**sent, **{k.replace("_", "-"): v for k, v in headers.items()}}
        )


@pytest.fixture
def door() -> Door:
    return Door()


def test_roles_are_ordered() -> None:
    assert [role for role in Role if Role.OPERATOR.covers(role)] == [Role.VIEWER, Role.OPERATOR]
    assert least(Role.OWNER, Role.OPERATOR, Role.ADMIN) is Role.OPERATOR


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/status", Role.VIEWER),
        ("GET", "/sessions", Role.ADMIN),
        ("HEAD", "/sessions", Role.ADMIN),
        ("POST", "/databases", Role.ADMIN),
        ("DELETE", "/nobody/knows/this", Role.ADMIN),
        ("POST", "/workers/gpu/box-1/drain", Role.OPERATOR),
        ("POST", "/incidents/7/ack", Role.OPERATOR),
        ("POST", "/vault/rekey", Role.OWNER),
        ("PUT", "/pools/hq/trust", Role.OWNER),
    ],
)
def test_the_least_role_of_a_request(method: str, path: str, role: Role) -> None:
    assert least_role(method, PREFIX + path) is role


async def test_the_sockets_owner_owns_the_pool(door: Door) -> None:
    ask = Asking(door, client=("uid=1000", 4711), node=None)
    reply = await ask("POST", "/vault/rekey")
    assert reply.json() == {"label": "uid=1000", "role": "owner"}
    assert (await ask("GET", "/raised")).status_code == 200


async def test_a_connection_that_nobody_vouches_for_gets_nothing(door: Door) -> None:
    for client in (None, ("127.0.0.1", 5)):
        reply = await Asking(door, client=client, node=None)("GET", "/status")
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated")
        assert reply.json()["next"] == "meshctl login"
    assert door.refusals == [("unauthenticated", f"GET {PREFIX}/status")] * 2


async def test_a_node_pretending_to_be_the_socket_is_a_node(door: Door) -> None:
    ask = Asking(door, client=("uid=0", 1), node=NODE)
    assert (await ask("GET", "/status")).status_code == 401


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    ("method", "path", "need"),
    [
        ("GET", "/status", Role.VIEWER),
        ("POST", "/failover/orders", Role.OPERATOR),
        ("POST", "/drain", Role.ADMIN),
        ("GET", "/sessions", Role.ADMIN),
        ("POST", "/vault/rekey", Role.OWNER),
        ("GET", "/raised", Role.OWNER),
    ],
)
async def test_no_action_beyond_the_role(door: Door, role: Role, method: str, path: str, need: Role) -> None:
    ask = Asking(door, client=None, node=NODE)
    reply = await ask(method, path, token=role)
    if role.covers(need):
        assert (reply.status_code, reply.json()["label"]) == (200, "ann@hq")
    else:
        assert (reply.status_code, reply.json()["code"]) == (403, "role")
        assert f"needs the role {need}" in reply.json()["detail"]
        assert door.refusals == [("role", f"{method} {PREFIX}{path}")]  # also where the route itself refuses


async def test_a_wrong_token_is_refused_wherever_it_comes_from(door: Door) -> None:
    for client, node in ((("uid=0", 1), None), (None, NODE)):
        ask = Asking(door, client=client, node=node)
        assert (await ask("GET", "/status", token="stolen")).status_code == 401
        assert (await ask("GET", "/status", token="x" * 9000)).status_code == 401
        reply = await ask("GET", "/status", authorization="Basic YTpi")
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


async def test_whose_address_is_in_a_path_is_not_kept(door: Door) -> None:
    ask = Asking(door, client=None, node=NODE)
    assert (await ask("GET", "/people/alice%40example.org/export", token="viewer")).status_code == 403
    assert door.refusals == [("role", f"GET {PREFIX}/people/ADDRESS/export")]


async def test_reading_only_is_kept_to(door: Door) -> None:
    far = Asking(door, client=None, node=NODE)
    near = Asking(door, client=("uid=0", 1), node=None)
    assert (await far("GET", "/status", token="watching")).status_code == 200
    assert (await far("POST", "/drain", token="watching")).json()["code"] == "read-only"
    assert (await far("DELETE", "/session", token="watching")).status_code == 200
    assert (await near("POST", "/drain", qgate_read_only="1")).json()["code"] == "read-only"
    assert (await near("POST", "/drain", qgate_read_only="0")).status_code == 200
    assert (await far("POST", "/drain", token="owner", qgate_read_only="1")).json()["code"] == "read-only"


async def test_an_answer_that_goes_on_ends_with_its_session(door: Door) -> None:
    reply = await Asking(door, client=None, node=NODE)("GET", "/live", token="viewer")
    assert (reply.status_code, reply.text) == (200, "data: 1\n\n" * 2)
    assert door.looks == 3


async def test_before_log_in_there_is_log_in(door: Door) -> None:
    ask = Asking(door, client=None, node=NODE)
    assert (await ask("POST", "/session")).status_code == 200
    assert (await ask("GET", "/healthz")).status_code == 200
    for path in ("/session/first", "/drain"):
        assert (await ask("POST", path)).status_code == 401


async def test_a_set_up_token_makes_the_first_owner_and_nothing_else(door: Door) -> None:
    ask = Asking(door, client=None, node=SETUP)
    assert (await ask("POST", "/session/first")).status_code == 200
    for method, path in (("POST", "/session"), ("GET", "/status"), ("POST", "/vault/rekey")):
        assert (await ask(method, path, token="owner")).json()["code"] == "role"


def test_the_table_spells_its_templates_as_paths() -> None:
    assert all(path.startswith("/") and method.isupper() for method, path in OPERATIONS)
