"""A change sent twice: done once, told twice, and no secret kept."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshctl.client
from meshctl.dialling import UnixDialler, connect_unix
from qgate.control.idempotency import BODY_MAX, KEPT_S, RUNS_S, Requests
from qgate.gate import Gate
from qgate.governance.principal import Principal, Role
from tests.qgate.gates import gate_settings, running

DATABASE = {"name": "shop", "dsn": "postgresql://owner:canary-1@127.0.0.1:1/shop", "check": False}


async def post(client: httpx.AsyncClient, path: str, body: Any, key: str) -> tuple[int, dict[str, Any]]:
    reply = await client.post(path, json=body, headers={"Idempotency-Key": key})
    return reply.status_code, {**reply.json(), "replayed": reply.headers.get("idempotency-replayed")}


async def rows(gate: Gate) -> str:
    async with gate.parts.store.store.connection() as connection:
        return str([dict(row) for row in await connection.fetch("SELECT * FROM idempotency_keys")])


async def test_who_leaves_amid_a_request_asked_for_nothing(gate: Gate) -> None:
    done: list[object] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        done.append(await receive())

    heard = iter([{"type": "http.request", "body": b"", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(heard)

    async def send(message: Any) -> None:
        done.append(message)

    requests = Requests(application, gate.administration.office, gate="gate-1", digest_key=bytes(32))
    await requests(
        {
            "type": "http",
            "method": "POST",
            "path": "/control/v1/drain",
            "headers": [(b"idempotency-key", b"k")],
            "state": {"principal": Principal("uid=0", Role.OWNER, kind="local")},
        },
        receive,
        send,
    )
    assert done == []
    assert await rows(gate) == "[]"


async def test_a_key_is_one_principals_and_stands_for_one_request(gate: Gate) -> None:
    """Nobody hears another's reply, and nothing else is taken for what was done."""
    ran: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        del receive
        ran.append(scope["state"]["principal"].label)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/json")]})
        await send({"type": "http.response.body", "body": b'{"n": %d}' % len(ran), "more_body": False})

    requests = Requests(application, gate.administration.office, gate="gate-1", digest_key=bytes(32))

    async def asked(who: Principal, method: str, path: str, query: bytes, body: bytes) -> tuple[int, str]:
        heard: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            heard.append(message)

        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": query}
        headers = [(b"idempotency-key", b"k"), (b"content-type", b"application/json")]
        await requests({**scope, "headers": headers, "state": {"principal": who}}, receive, send)
        return heard[0]["status"], heard[1]["body"].decode()

    alice, branch = Principal("alice", Role.OWNER), Principal("alice", Role.OWNER, pool="branch")
    same = ("POST", "/control/v1/drain", b"a=1", b"{}")
    assert await asked(alice, *same) == (200, '{"n": 1}')
    assert await asked(branch, *same) == (200, '{"n": 2}')  # her namesake of another pool
    assert await asked(alice, *same) == (200, '{"n": 1}')
    for other in (
        ("PUT", "/control/v1/drain", b"a=1", b"{}"),
        ("POST", "/control/v1/apps", b"a=1", b"{}"),
        ("POST", "/control/v1/drain", b"a=2", b"{}"),
        ("POST", "/control/v1/drain", b"a=1", b"{ }"),
    ):
        status, text = await asked(alice, *other)
        assert (status, "idempotency-mismatch" in text) == (422, True), other
    assert ran == ["alice", "alice@branch"]


async def test_the_same_request_is_done_once_and_answered_twice(
    gate: Gate, client: httpx.AsyncClient
) -> None:
    status, first = await post(client, "/databases", DATABASE, "k1")
    assert (status, first["replayed"]) == (201, None)
    status, again = await post(client, "/databases", DATABASE, "k1")
    assert (status, again) == (201, {**first, "replayed": "true"})
    status, other = await post(client, "/databases", {**DATABASE, "pool_size": 3}, "k1")
    assert (status, other["code"]) == (422, "idempotency-mismatch")
    status, refused = await post(client, "/databases", DATABASE, "k2")
    assert (status, refused["code"]) == (409, "conflict")
    await client.delete("/databases/shop")
    assert (await post(client, "/databases", DATABASE, "k2"))[0] == 201  # a refusal is not kept
    assert "canary" not in await rows(gate)


async def test_a_secret_is_shown_once(gate: Gate, client: httpx.AsyncClient) -> None:
    await post(client, "/databases", DATABASE, "k0")
    app = {"name": "web", "databases": ["shop"], "policy": {}}
    status, made = await post(client, "/apps", app, "k1")
    assert status == 201
    status, again = await post(client, "/apps", app, "k1")
    assert (status, again["code"]) == (409, "already-done")
    kept = await rows(gate)
    assert made["password"] not in kept
    assert made["api_key"] not in kept


async def test_many_at_once_are_done_once(client: httpx.AsyncClient) -> None:
    replies = await asyncio.gather(*(post(client, "/databases", DATABASE, "same") for _ in range(8)))
    codes = {status if status == 201 else one["code"] for status, one in replies}
    assert codes <= {201, "in-progress"}
    assert sum(status == 201 and one["replayed"] is None for status, one in replies) == 1


async def test_keys_end_and_their_bounds_hold(gate: Gate, client: httpx.AsyncClient) -> None:
    assert (await post(client, "/databases", DATABASE, "x" * 256))[1]["code"] == "invalid"
    large = {**DATABASE, "dsn": "x" * BODY_MAX}
    assert (await post(client, "/databases", large, "k"))[0] == 413
    await post(client, "/databases", DATABASE, "k1")

    async def age(seconds: float, status: str = "status") -> None:
        async with gate.parts.store.store.connection() as connection:
            await connection.execute(
                f"UPDATE idempotency_keys SET at = at - make_interval(secs => $1), status = {status}", seconds
            )

    await age(0, "NULL")
    assert (await post(client, "/databases", DATABASE, "k1"))[1]["code"] == "in-progress"
    await age(RUNS_S, "NULL")
    assert (await post(client, "/databases", DATABASE, "k1"))[1]["code"] == "outcome-unknown"
    await age(KEPT_S)
    assert (await post(client, "/databases", DATABASE, "k1"))[1]["code"] == "conflict"  # it ran anew


async def test_each_request_has_an_id(gate: Gate, client: httpx.AsyncClient) -> None:
    reply = await client.put("/aliases/a", json={"target": "m"}, headers={"X-Request-Id": "mine-7"})
    assert reply.headers["x-request-id"] == "mine-7"
    reply = await client.put("/aliases/b", json={"target": "m"}, headers={"X-Request-Id": "bad id"})
    own = reply.headers["x-request-id"]
    assert own.startswith("req-")
    await gate.parts.audit.flush()
    items = (await client.get("/audit?kind=admin")).json()["items"]
    found = {one["detail"]["name"]: one["detail"]["request"] for one in items if "request" in one["detail"]}
    assert found == {"a": "mine-7", "b": own}


class CutOnce(UnixDialler):
    """Lets the gate do all that was asked and say so, and cuts the first answer off; then it is elsewhere."""

    def __init__(self, path: Path, following: Path) -> None:
        super().__init__(path)
        self.following = following
        self.cut: list[bytes] = []

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        if self.cut:
            return connect_unix(self.following, timeout)
        ours, theirs = socket.socketpair()
        to_gate = connect_unix(self.path, timeout)

        def ask() -> None:
            while asked := theirs.recv(1 << 20):
                to_gate.sendall(asked)

        def carry() -> None:
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            with theirs, to_gate:
                self.cut.append(to_gate.recv(1 << 20))
                theirs.shutdown(socket.SHUT_RDWR)
                asking.join()

        threading.Thread(target=carry, daemon=True).start()
        return ours


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/databases", DATABASE),
        ("PATCH", "/apps/web", {"limits": {"queue": 7}}),
        ("PUT", "/aliases/fast", {"target": "m"}),
        ("DELETE", "/apps/web", None),
    ],
)
async def test_a_change_whose_answer_was_cut_off_is_done_once_at_another_gate(
    gate: Gate, client: httpx.AsyncClient, tmp_path: Path, store_dsn: str, method: str, path: str, body: Any
) -> None:
    await client.post("/apps", json={"name": "web", "databases": [], "policy": {}})
    shown = await client.get(path) if path.startswith("/apps") else None
    seen = {"If-Match": shown.headers["etag"]} if shown is not None else None
    shutil.copytree(tmp_path / "gate" / "keys", tmp_path / "second" / "keys")
    settings = gate_settings(tmp_path / "second", store_dsn, name="gate-2")
    async with running(settings) as second:
        dialler = CutOnce(gate.files.control_socket, second.files.control_socket)
        asked = meshctl.client.Gate(dialler)
        reply = await asyncio.to_thread(asked.call, method, path, body=body, headers=seen)
    assert reply.status in {200, 201}
    assert dialler.cut[0].startswith(b"HTTP/1.1 20")
    await gate.parts.audit.flush()
    made = [one["detail"] for one in (await client.get("/audit?kind=admin&limit=500")).json()["items"]]
    what = {"POST": "database.add", "PATCH": "app.change", "PUT": "alias.set", "DELETE": "app.revoke"}[method]
    assert [one["what"] for one in made].count(what) == 1
