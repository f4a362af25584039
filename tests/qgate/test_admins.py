"""Administrators at one gate: accounts, log-in over the tunnel, lock-out, second factor, first boot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.control.access import OPERATIONS, PREFIX, least_role
from qgate.gate import Gate
from qgate.governance.passwords import verifies
from qgate.governance.principal import Role
from qgate.governance.second_factor import STEP_S, code_at
from qgate.store import admins as table
from tests.qgate.admin_node import CHEAP, PASSWORD, AdminNode, dialled_in_vain, refusals
from tests.qgate.gates import Sidecar, control, gate_settings, make_directory, running, until
from tunnel_proto.setup_token import read_setup


@pytest.fixture
async def gate(tmp_path: Path, store_dsn: str) -> AsyncIterator[Gate]:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as gate:
        gate.governing.administering.cost(CHEAP)
        yield gate


@pytest.fixture
async def local(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    async with control(gate) as client:
        yield client


@pytest.fixture
async def nodes() -> AsyncIterator[list[AdminNode]]:
    """Closed at the end."""
    made: list[AdminNode] = []
    yield made
    for node in made:
        await node.close()


async def admin(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode], name: str = "alice", role: str = "owner"
) -> AdminNode:
    """An account with a client key that is connected and logged in."""
    made = await local.post("/admins", json={"name": name, "role": role, "password": PASSWORD})
    assert made.status_code == 201, made.text
    node = AdminNode(f"{name}-laptop")
    nodes.append(node)
    await node.enrol(local, name)
    await node.reach(gate)
    reply = await node.login(name)
    assert reply.status == 201, reply.body
    return node


async def test_an_admin_logs_in_over_the_tunnel_and_out_again(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    who = await alice.call("GET", "/session")
    assert {key: who.body[key] for key in ("name", "role", "pool", "kind")} == {
        "name": "alice",
        "role": "owner",
        "pool": "",
        "kind": "session",
    }
    assert (await alice.call("PUT", "/settings/app.queue", {"value": 7})).status == 200
    await gate.parts.audit.flush()
    entries = (await local.get("/audit", params={"kind": "admin"})).json()["items"]
    assert entries[-1]["detail"]["by"] == "alice"
    listed = (await local.get("/sessions")).json()["items"]
    assert [(one["admin"], one["node"]) for one in listed] == [("alice", "alice-laptop")]
    assert (await alice.call("DELETE", "/session")).status == 204
    for path in ("/session", "/status"):
        assert (await alice.call("GET", path)).code == "unauthenticated"
    assert (await alice.call("DELETE", "/session")).status == 401  # the same log-out again
    assert (await alice.mint()).status == 401
    assert (await local.get("/sessions")).json()["items"] == []


async def test_the_reply_of_log_in_is_what_a_client_needs(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    reply = await alice.login("alice")
    assert reply.body["grant"].startswith("qgs1.")
    assert reply.body["token"].startswith("qgt1.")
    now = time.time()
    assert 200 < reply.body["token_expires_at"] - now <= 300
    assert reply.body["expires_at"] - now <= 12 * 3600
    pool = reply.body["pools"][0]
    assert pool["pool_key"] == gate.parts.keys.pool_key.hex()
    assert pool["gates"][0]["public"] == gate.parts.keys.node.handshake_public.hex()
    minted = await alice.mint(read_only=True)
    assert (await alice.call("GET", "/status")).status == 200
    assert (await alice.call("DELETE", "/settings/app.queue")).code == "read-only"
    assert minted.body["role"] == "owner"


async def test_a_token_is_good_for_its_own_key_alone(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    thief = await admin(gate, local, nodes, "mallory", "viewer")
    for token in (alice.token, alice.token[:-4] + "AAAA", alice.grant, "qgt1.", "x"):
        stolen = await thief.call("GET", "/status", token=token)
        assert (stolen.status, stolen.code) == (401, "unauthenticated")
    assert (await thief.mint(alice.grant)).status == 401
    assert (await local.get("/status", headers={"authorization": f"Bearer {alice.token}"})).status_code == 401
    assert {code for code, _ in await refusals(local, gate)} == {"unauthenticated"}
    assert len(await refusals(local, gate)) == 7
    # A session of the socket is of no use anywhere else.
    near = await local.post("/session", json={"name": "alice", "password": PASSWORD})
    token = near.json()["token"]
    assert (await local.get("/session", headers={"authorization": f"Bearer {token}"})).json()[
        "name"
    ] == "alice"
    assert (await thief.call("GET", "/status", token=token)).status == 401


@pytest.mark.parametrize("role", ["viewer", "operator", "admin", "owner"])
async def test_a_role_does_what_it_covers_and_no_more(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode], role: str
) -> None:
    node = await admin(gate, local, nodes, "ann", role)
    paths = (await local.get("/openapi.json")).json()["paths"]
    asked = 0
    for template, methods in paths.items():
        if not template.startswith(PREFIX) or template.startswith(f"{PREFIX}/session"):
            continue
        path = template.removeprefix(PREFIX)
        for part in ("name", "key", "scope", "period", "number", "pool", "model", "seq", "sid"):
            path = path.replace("{" + part + "}", "nobody")
        for method in (one.upper() for one in methods):
            need = least_role(method, PREFIX + path)
            if Role(role).covers(need):
                continue
            reply = await node.call(method, path, {} if method != "GET" else None)
            assert (reply.status, reply.code) == (403, "role"), (method, path, reply)
            asked += 1
    assert (asked > 20) is (role in {"viewer", "operator"})
    assert len(await refusals(local, gate)) == asked


async def test_every_route_has_its_least_role(gate: Gate, local: httpx.AsyncClient) -> None:
    paths = (await local.get("/openapi.json")).json()["paths"]
    routes = {
        (method.upper(), path.removeprefix(PREFIX)) for path, methods in paths.items() for method in methods
    }
    spelled = {(method, path.replace(":path}", "}")) for method, path in OPERATIONS}
    assert spelled <= routes, "the table names routes that do not exist"
    lowered = {
        (method, path)
        for method, path in routes
        if method != "GET" and least_role(method, PREFIX + path) in {Role.VIEWER, Role.OPERATOR}
    }
    assert lowered <= spelled, "a mutation is open to less than an admin without the table saying so"


async def test_a_viewer_is_no_owner_of_others(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    await admin(gate, local, nodes, "alice")
    ann = await admin(gate, local, nodes, "ann", "viewer")
    for method, path, body in (
        ("GET", "/admins/alice", None),
        ("GET", "/admins/alice/keys", None),
        ("PUT", "/admins/alice/password", {"password": "another long password"}),
        ("POST", "/admins/alice/second-factor", None),
        ("PUT", "/admins/alice/second-factor", {"code": "000000"}),
        ("DELETE", "/admins/alice/second-factor", None),
    ):
        assert (await ann.call(method, path, body)).status == 403, (method, path)
    assert [code for code, _ in await refusals(local, gate)] == ["role"] * 6
    assert (await ann.call("GET", "/admins/ann")).body["role"] == "viewer"
    assert (await ann.call("PUT", "/admins/ann/password", {"password": "a new long password"})).status == 422
    wrong = await ann.call(
        "PUT", "/admins/ann/password", {"password": "a new long password", "current": "not it at all"}
    )
    assert (wrong.status, wrong.code) == (403, "wrong-password")
    assert (await refusals(local, gate))[-1] == ("wrong-password", "PUT /control/v1/admins/ann/password")
    changed = await ann.call(
        "PUT", "/admins/ann/password", {"password": "a new long password", "current": PASSWORD}
    )
    assert changed.status == 204
    assert (await ann.call("GET", "/session")).status == 401  # all sessions end
    assert (await ann.login("ann")).status == 401
    assert (await ann.login("ann", "a new long password")).status == 201


async def test_five_wrong_passwords_lock_name_and_key(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    heard: list[str] = []
    gate.governing.administering.logins.lockouts.heard.append(lambda subject, seconds: heard.append(subject))
    for _ in range(4):
        assert (await alice.login("alice", "wrong password 1")).code == "unauthenticated"
    locked = await alice.login("alice", "wrong password 1")
    assert (locked.status, locked.code) == (429, "locked-out")
    assert 890 <= int(locked.headers["retry-after"]) <= 900
    assert (await alice.login("alice")).code == "locked-out"  # the right one as well
    assert heard[0].startswith("key:")
    assert heard[1] == "name:alice"
    near = await local.post("/session", json={"name": "alice", "password": PASSWORD})
    assert near.status_code == 429  # the name is locked, wherever one asks
    await gate.parts.audit.flush()
    noted = (await local.get("/audit", params={"kind": "admin.locked-out"})).json()["items"]
    assert sorted(one["detail"]["subject"] for one in noted) == sorted(heard)
    assert (await alice.call("GET", "/session")).status == 200  # who was in stays in
    assert (await local.post("/admins/alice/unlock")).status_code == 204
    assert (await local.post("/session", json={"name": "alice", "password": PASSWORD})).status_code == 201
    assert (await alice.login("alice")).status == 201  # from her own key as well, which was locked with her
    codes = [code for code, _ in await refusals(local, gate)]
    assert codes == ["unauthenticated"] * 4 + ["locked-out"] * 3


async def test_guessing_many_names_from_one_key_locks_the_key(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    codes = [(await alice.login(f"name{n}", "wrong password 1")).code for n in range(5)]
    assert codes == ["unauthenticated"] * 4 + ["locked-out"]
    assert (await alice.login("alice")).code == "locked-out"
    assert (await local.post("/session", json={"name": "alice", "password": PASSWORD})).status_code == 201


async def test_a_key_is_one_admins(gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]) -> None:
    await admin(gate, local, nodes)
    ann = await admin(gate, local, nodes, "ann", "viewer")
    assert (await ann.login("alice", remember=False)).code == "unauthenticated"
    unowned = await local.post("/sidecars", json={"offer": AdminNode("x").offer()})
    assert (unowned.status_code, unowned.json()["code"]) == (422, "invalid")
    assert "meshctl admin enroll" in unowned.json()["next"]


async def test_a_revoked_key_is_cut_off(gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]) -> None:
    alice = await admin(gate, local, nodes)
    assert len((await local.get("/admins/alice/keys")).json()["items"]) == 1
    beside = await local.delete("/sidecars/alice-laptop")
    assert (beside.status_code, beside.json()["next"]) == (409, "meshctl admin revoke alice alice-laptop")
    assert (await local.delete("/admins/alice/keys/alice-laptop")).status_code == 204
    await until(lambda: not gate.tunnel.sessions)
    assert (await local.get("/sessions")).json()["items"] == []
    await alice.close()
    for _ in range(2):
        assert await dialled_in_vain(alice, gate)
    await gate.parts.audit.flush()
    noted = (await local.get("/audit", params={"kind": "node.refused"})).json()["items"]
    # Once for all its tries, of which there are some a second.
    assert [(one["sidecar"], one["outcome"]) for one in noted] == [("alice-laptop", "revoked")]


async def test_how_owners_log_in_and_when_pools_part_is_for_owners(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    bob = await admin(gate, local, nodes, "bob", "admin")
    for method, path, body in (
        ("PUT", "/settings/admin.require_second_factor", {"value": False}),
        ("DELETE", "/settings/admin.session_hours", None),
        ("PUT", "/settings/automation.purge_peers", {"value": True}),
        ("PUT", "/automations/purge-peers", {"on": True}),
        ("POST", "/automations/purge-peers/run", None),
    ):
        refused = await bob.call(method, path, body)
        assert (refused.status, refused.code) == (403, "role"), (method, path)
    assert len(await refusals(local, gate)) == 5
    assert (await bob.call("PUT", "/automations/fan-out", {"on": False})).status == 200
    assert (await bob.call("POST", "/automations/rain/run")).status == 404


async def test_who_is_disabled_is_out_at_once(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    ann = await admin(gate, local, nodes, "ann", "operator")
    assert (await local.patch("/admins/ann", json={"role": "viewer"})).json()["version"] == 2
    assert (await ann.call("GET", "/session")).body["role"] == "viewer"  # at once, without a new log-in
    assert (await local.patch("/admins/ann", json={"disabled": True})).json()["state"] == "disabled"
    assert (await ann.call("GET", "/session")).status == 401
    assert (await ann.mint()).status == 401
    assert (await ann.login("ann")).status == 401
    assert (await local.patch("/admins/ann", json={"disabled": False})).json()["state"] == "active"
    assert (await ann.login("ann")).status == 201
    assert (await local.delete("/admins/ann")).status_code == 204
    assert (await local.get("/admins/ann")).status_code == 404


async def test_an_operator_leaves_the_orders_of_admins_alone(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    ann = await admin(gate, local, nodes, "ann", "operator")
    order = {"what": "mode", "arguments": {"mode": "manual"}, "in_s": 3600.0}
    assert (await ann.call("POST", "/orders", order)).code == "role"
    made = await local.post("/orders", json=order)
    assert made.status_code == 201, made.text
    number = made.json()["number"]
    assert (await ann.call("DELETE", f"/orders/{number}")).code == "role"
    assert [what for _, what in await refusals(local, gate)] == [
        "POST /control/v1/orders",
        f"DELETE /control/v1/orders/{number}",
    ]
    assert (await local.delete(f"/orders/{number}")).json()["state"] == "cancelled"


async def test_who_is_disabled_while_logging_in_is_not_let_in(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await admin(gate, local, nodes, "ann", "operator")
    looked, go_on = threading.Event(), threading.Event()

    def slowly(verifier: str, password: str) -> bool:
        looked.set()
        return go_on.wait(20) and verifies(verifier, password)

    monkeypatch.setattr("qgate.governance.logins.verifies", slowly)
    trying = asyncio.create_task(ann.login("ann", remember=False))
    await until(looked.is_set)
    assert (await local.patch("/admins/ann", json={"disabled": True})).status_code == 200
    go_on.set()
    assert (await trying).status == 401
    assert (await local.get("/sessions")).json()["items"] == []


async def test_passwords_are_looked_at_one_by_one(
    gate: Gate, local: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgate.governance.logins.WAITING_MOST", 2)
    bodies = [{"name": f"ann{n}", "role": "viewer", "password": PASSWORD} for n in range(12)]
    replies = await asyncio.gather(*(local.post("/admins", json=body) for body in bodies))
    assert {reply.status_code for reply in replies} == {201, 429}
    assert {reply.json()["code"] for reply in replies if reply.status_code == 429} == {"busy"}
    assert len((await local.get("/admins")).json()["items"]) == sum(one.status_code == 201 for one in replies)


async def test_what_goes_on_ends_with_the_session(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    followed = asyncio.create_task(alice.listen("/audit/stream"))
    await local.put("/settings/app.queue", json={"value": 9})
    await until(lambda: b"app.queue" in alice.heard)
    sid = (await local.get("/sessions")).json()["items"][0]["session"]
    assert (await local.delete(f"/sessions/{sid}")).status_code == 204
    await local.put("/settings/app.queue", json={"value": 10})
    async with asyncio.timeout(10):
        await followed
    assert b'"value": 10' not in alice.heard


async def test_the_last_owner_stays(gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]) -> None:
    await admin(gate, local, nodes)
    for ask in (
        local.patch("/admins/alice", json={"role": "admin"}),
        local.patch("/admins/alice", json={"disabled": True}),
        local.delete("/admins/alice"),
    ):
        reply = await ask
        assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert (await local.get("/admins/alice")).json()["role"] == "owner"


async def test_a_second_factor_is_asked_for_once_it_was_shown(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    import base64

    alice = await admin(gate, local, nodes)
    begun = await alice.call("POST", "/admins/alice/second-factor")
    secret = base64.b32decode(begun.body["secret"] + "=" * (-len(begun.body["secret"]) % 8))
    assert begun.body["uri"].startswith("otpauth://totp/")
    assert (await alice.login("alice")).status == 201  # it does not count yet
    assert (await alice.call("PUT", "/admins/alice/second-factor", {"code": "12"})).status == 422
    step = int(time.time()) // STEP_S
    confirmed = await alice.call("PUT", "/admins/alice/second-factor", {"code": code_at(secret, step)})
    assert confirmed.body["second_factor"] is True
    assert (await alice.login("alice", remember=False)).code == "second-factor-needed"
    used = await alice.login("alice", totp=code_at(secret, step), remember=False)
    assert used.code == "unauthenticated"  # each code once
    assert (await alice.login("alice", totp=code_at(secret, step + 1))).status == 201
    async with gate.parts.store.store.transaction() as connection:  # as a gate that looked before it was used
        assert not await table.use_step(connection, "alice", step + 1)
    assert "second_factor" not in str(await refusals(local, gate))
    # A session alone does not replace it; the owner of the gate's files does.
    factor = "/admins/alice/second-factor"
    for method, body in (("POST", None), ("POST", {}), ("PUT", {"code": "000000"})):
        bare = await alice.call(method, factor, body)
        assert (bare.status, "present password" in bare.body["detail"]) == (422, True)
    wrong = await alice.call("POST", factor, {"current": "not the password"})
    assert (wrong.status, wrong.code) == (403, "wrong-password")
    before = (await _row(gate))["pending_factor"]
    assert before is None
    again = await alice.call("POST", factor, {"current": PASSWORD})
    secret = base64.b32decode(again.body["secret"] + "=" * (-len(again.body["secret"]) % 8))
    code = code_at(secret, int(time.time()) // STEP_S)
    assert (await alice.call("PUT", factor, {"code": code})).status == 422
    assert (await alice.call("PUT", factor, {"code": code, "current": "not the password"})).status == 403
    assert (await alice.call("PUT", factor, {"code": code, "current": PASSWORD})).status == 200
    assert (await local.post(factor)).status_code == 200
    # A new vault key opens it too.
    assert (await local.post("/vault/rekey")).json()["secrets"] >= 1
    row = await _row(gate)
    assert row["second_factor"] is not None
    assert secret not in row["second_factor"]
    assert (await local.delete("/admins/alice/second-factor")).status_code == 204
    assert (await alice.login("alice")).status == 201
    await local.put("/settings/admin.require_second_factor", json={"value": True})
    required = await alice.login("alice", remember=False)
    assert (required.status, required.code) == (403, "second-factor-required")


async def _row(gate: Gate) -> Any:
    async with gate.parts.store.store.connection() as connection:
        return await connection.fetchrow("SELECT * FROM admins")


async def test_nothing_secret_is_stored_or_shown(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    assert (await _row(gate))["verifier"].startswith("$argon2id$")
    shown = (await local.get("/admins")).text + (await local.get("/audit", params={"limit": 1000})).text
    for secret in (PASSWORD, "argon2id", alice.grant, alice.token):
        assert secret not in shown


@pytest.mark.parametrize("password", ["short", "aaaaaaaaaaaaaaaa", "alice-alice-1234"])
async def test_a_weak_password_is_refused(local: httpx.AsyncClient, password: str) -> None:
    reply = await local.post("/admins", json={"name": "alice", "role": "owner", "password": password})
    assert reply.status_code == 422
    assert password not in reply.text


async def test_a_sidecar_does_not_reach_the_control_api(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    sidecar = Sidecar("web-1")
    await sidecar.enrol(local)
    node = AdminNode("web-1", sidecar.identity)
    nodes.append(node)
    node.chain = sidecar.bundle.chain
    assert await dialled_in_vain(node, gate)  # its certificate is for the role "client"
    client = sidecar.dial()
    await until(lambda: client.state == "up")
    node._client = client
    for method, path in (("GET", "/status"), ("POST", "/session"), ("GET", "/session")):
        reply = await node.call(method, path, {}, token=alice.token)
        assert reply.status in {401, 404}, reply
        assert "sessions" not in str(reply.body)
    assert (await node.call("GET", "/healthz", prefix="", token="")).status in {401, 404}


async def test_an_admins_node_reaches_the_apps_api_with_a_session_only(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    alice = await admin(gate, local, nodes)
    assert (await alice.call("GET", "/models", prefix="/v1")).status == 200
    assert (await alice.call("GET", "/models", prefix="/v1", token="")).status == 401
    assert (await alice.call("GET", "/healthz", prefix="", token="")).body == {"status": "ok"}


# --- first boot


async def claimant(text: str, gate: Gate, nodes: list[AdminNode]) -> AdminNode:
    """Whoever has a set-up token, connected."""
    token = read_setup(text, now=time.time())
    node = AdminNode("setup", token.identity)
    node.chain = token.chain
    nodes.append(node)
    return await node.reach(gate)


async def test_a_set_up_token_makes_the_first_owner_once(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    asked = await local.post("/session/setup-token")
    assert asked.status_code == 201, asked.text
    text = asked.json()["setup_token"]
    assert read_setup(text, now=time.time()).gates == gate.gate_addresses()
    holder = await claimant(text, gate, nodes)
    for method, path in (("GET", "/status"), ("POST", "/session"), ("POST", "/vault/rekey")):
        assert (await holder.call(method, path, {})).code == "role"
    own = AdminNode("alice-laptop")
    nodes.append(own)
    body = {"name": "alice", "password": PASSWORD, "offer": own.offer()}
    weak = await holder.call("POST", "/session/first", {**body, "password": "short"})
    assert weak.status == 422
    wrong = await holder.call("POST", "/session/first", {**body, "offer": "{}"})
    assert wrong.status == 422
    claimed = await holder.call("POST", "/session/first", body)
    assert (claimed.status, claimed.body["role"]) == (201, "owner"), claimed.body
    again = await holder.call("POST", "/session/first", {**body, "name": "mallory"})
    assert (again.status, again.code) == (409, "claimed")
    own.adopt(claimed.body["bundle"])
    await own.reach(gate)
    assert (await own.login("alice")).status == 201
    await until(lambda: len(gate.tunnel.sessions) == 1)  # the set-up node is cut off
    await holder.close()
    assert await dialled_in_vain(holder, gate)
    assert (await local.post("/session/setup-token")).json()["code"] == "claimed"
    assert (await local.post("/session/first", json={"name": "bob", "password": PASSWORD})).status_code == 409
    assert [one["name"] for one in (await local.get("/admins")).json()["items"]] == ["alice"]


async def test_an_older_set_up_token_is_no_longer_good(
    gate: Gate, local: httpx.AsyncClient, nodes: list[AdminNode]
) -> None:
    old = read_setup((await local.post("/session/setup-token")).json()["setup_token"], now=time.time())
    await claimant((await local.post("/session/setup-token")).json()["setup_token"], gate, nodes)
    node = AdminNode("setup", old.identity)
    node.chain = old.chain
    assert await dialled_in_vain(node, gate)


async def test_a_guessed_seed_is_nobody(gate: Gate, local: httpx.AsyncClient) -> None:
    real = read_setup((await local.post("/session/setup-token")).json()["setup_token"], now=time.time())
    guessed = AdminNode("setup")
    guessed.chain = real.chain  # it can be seen by nobody, and helps nobody
    assert await dialled_in_vain(guessed, gate)


async def test_a_sidecar_may_be_called_setup(gate: Gate, local: httpx.AsyncClient) -> None:
    sidecar = Sidecar("setup")
    await sidecar.enrol(local)
    taken = await local.post("/session/setup-token")
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert (
        await local.post("/session/first", json={"name": "alice", "password": PASSWORD})
    ).status_code == 201
    await gate.governing.administering.first._clear()
    assert [row["state"] for row in (await local.get("/sidecars")).json()["items"]] == ["active"]


async def test_the_sockets_owner_makes_the_first_owner_without_a_token(
    gate: Gate, local: httpx.AsyncClient
) -> None:
    made = await local.post("/session/first", json={"name": "alice", "password": PASSWORD})
    assert (made.status_code, made.json()["bundle"]) == (201, "")
    assert (await local.post("/session", json={"name": "alice", "password": PASSWORD})).status_code == 201
