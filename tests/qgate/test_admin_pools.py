"""One pool's administrators at another: what a grant is worth there, its ceiling, its end, and forgeries."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from qgate.federation.admin_words import who_of
from qgate.federation.peer import Permissions
from qgate.gate import Gate
from qgate.governance.admin_sessions import Grant, proof_of, read_grant, seal_grant
from qgate.governance.authors import author_problem
from qgate.governance.principal import AccessError, Role
from qgate.governance.problems import ConflictError
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.admin_node import CHEAP, PASSWORD, AdminNode, dialled_in_vain, refusals
from tests.qgate.gates import control, until
from tests.qgate.peering import know, pair, peer_of, pools
from tunnel_proto.certificate import NodeCertificate, read_chain


@dataclasses.dataclass
class Pair:
    """Two pools that are paired at level 4, and alice of hq with a session there."""

    hq: Gate
    branch: Gate
    at_hq: httpx.AsyncClient
    at_branch: httpx.AsyncClient
    alice: AdminNode

    async def to_branch(self) -> AdminNode:
        """Alice's machine, connected to the branch, with a token of it."""
        await self.alice.reach(self.branch)
        minted = await self.alice.mint()
        assert minted.status == 200, minted.body
        return self.alice

    @property
    def node(self) -> NodeCertificate:
        """Alice's key, as gates see it."""
        return read_chain(self.alice.chain)[1]

    async def refused_at_branch(self) -> str:
        """Why alice's token is not taken at the branch, whichever tunnel it comes through."""
        with pytest.raises(AccessError) as refused:
            await self.branch.governing.administering.logins.bearer(self.alice.token, self.node)
        return refused.value.message


async def linked(one: Gate, other: Gate) -> None:
    """Wait for the tunnel between two pools."""
    await until(
        lambda: (
            one.peering.links.up(other.parts.keys.pool_key)
            and other.peering.links.up(one.parts.keys.pool_key)
        )
    )


@asynccontextmanager
async def two_pools(folder: Path, store_server: EmbeddedPostgres) -> AsyncIterator[Pair]:
    """A pair, with its gates in ``folder``."""
    async with AsyncExitStack() as stack:
        hq, branch = await stack.enter_async_context(pools(folder, store_server, "hq", "branch"))
        for gate in (hq, branch):
            gate.governing.administering.cost(CHEAP)
        await pair(hq, branch, level=4)
        await linked(hq, branch)
        at_hq = await stack.enter_async_context(control(hq))
        at_branch = await stack.enter_async_context(control(branch))
        made = await at_hq.post("/admins", json={"name": "alice", "role": "owner", "password": PASSWORD})
        assert made.status_code == 201, made.text
        alice = AdminNode("alice-laptop")
        stack.push_async_callback(alice.close)
        await alice.enrol(at_hq, "alice")
        await alice.reach(hq)
        assert (await alice.login("alice")).status == 201
        yield Pair(hq, branch, at_hq, at_branch, alice)


@pytest.fixture
async def paired(tmp_path: Path, store_server: EmbeddedPostgres) -> AsyncIterator[Pair]:
    async with two_pools(tmp_path, store_server) as made:
        yield made


async def test_a_session_is_good_at_a_pool_that_trusts_its_own(paired: Pair) -> None:
    told = (await paired.alice.login("alice")).body["pools"]
    assert [one["name"] for one in told] == ["hq", "branch"]
    assert told[1]["gates"][0]["public"] == paired.branch.parts.keys.node.handshake_public.hex()
    home = paired.alice.token
    alice = await paired.to_branch()
    who = (await alice.call("GET", "/session")).body
    assert (who["label"], who["role"], who["pool"]) == ("alice@hq", "operator", "hq")
    assert (await alice.call("POST", "/databases", {})).code == "role"
    assert (await alice.call("GET", "/session", token=home)).status == 401  # hq's token opens hq
    assert (await alice.login("alice", remember=False)).code == "elsewhere"
    assert ("role", "POST /control/v1/databases") in await refusals(paired.at_branch, paired.branch)


@pytest.mark.parametrize(
    ("ceiling", "role"), [("auditor", "viewer"), ("operator", "operator"), ("admin", "admin")]
)
async def test_the_ceiling_holds_at_once(paired: Pair, ceiling: str, role: str) -> None:
    alice = await paired.to_branch()
    await know(paired.branch, peer_of(paired.hq, level=4, permissions=Permissions(admin_role=ceiling)))
    minted = await alice.mint()
    assert minted.body["role"] == role
    assert (await alice.call("GET", "/session")).body["role"] == role
    for path in ("/vault/rekey", "/session/setup-token", "/pools/hq/revoke"):
        assert (await alice.call("POST", path, {})).code == "role"  # never an owner
    await know(paired.branch, peer_of(paired.hq, level=4, permissions=Permissions(admin_role="auditor")))
    assert (await alice.call("GET", "/session")).body["role"] == "viewer"


async def test_an_admin_asks_the_mesh_itself_over_a_session(paired: Pair) -> None:
    alice = paired.alice
    body = {"model": "no-such-model", "messages": [{"role": "user", "content": "Hello."}]}
    ask = ("POST", "/chat/completions", body)
    through = await alice.call(*ask, prefix="/v1")
    assert (through.status, through.body["error"]["code"]) == (404, "model_not_found")
    assert (await alice.call("GET", "/models", prefix="/v1")).status == 200
    assert (await alice.call(*ask, prefix="/v1", token="")).status == 401
    assert (await paired.at_hq.post("http://gate/v1/chat/completions", json=body)).status_code == 404
    assert (await alice.mint(read_only=True)).body["role"] == "owner"
    assert (await alice.call(*ask, prefix="/v1")).code == "read-only"
    await paired.hq.parts.audit.flush()
    told = (await paired.at_hq.get("/audit", params={"kind": "admin"})).json()["items"]
    asked = [one["detail"] for one in told if one["detail"]["what"] == "ask"]
    assert [(one["by"], one["name"]) for one in asked] == [("alice", "/v1/chat/completions")]
    await paired.to_branch()
    assert (await alice.call(*ask, prefix="/v1")).code == "role", "an operator moves work and brings none"
    await know(paired.branch, peer_of(paired.hq, level=4, permissions=Permissions(admin_role="admin")))
    await alice.mint()
    assert (await alice.call(*ask, prefix="/v1")).status == 404


async def test_home_tells_where_the_pools_are_with_each_token(paired: Pair) -> None:
    told = (await paired.alice.mint()).body["pools"]
    assert [one["name"] for one in told] == ["hq", "branch"]
    alice = await paired.to_branch()
    assert "pools" not in (await alice.mint()).body, "another pool's word moves nobody"


async def test_who_logs_out_at_home_is_out_everywhere(paired: Pair) -> None:
    alice = await paired.to_branch()
    sid = (await alice.call("GET", "/session")).body["session"]
    assert (await paired.at_hq.delete(f"/sessions/{sid}")).status_code == 204
    assert (await alice.call("GET", "/status")).code == "unauthenticated"
    assert (await alice.mint()).status == 401


async def test_who_logs_out_away_from_home_is_out_at_home_too(paired: Pair) -> None:
    home = paired.alice.token
    alice = await paired.to_branch()
    token = alice.token
    assert (await alice.call("DELETE", "/session")).status == 204
    assert (await alice.call("DELETE", "/session", token=token)).status == 401  # and not twice
    assert (await paired.at_hq.get("/sessions")).json()["items"] == []
    await alice.reach(paired.hq)
    assert (await alice.call("GET", "/status", token=home)).status == 401


async def test_who_knows_a_sessions_id_does_not_end_it(paired: Pair) -> None:
    alice = await paired.to_branch()
    sid = bytes.fromhex((await alice.call("GET", "/session")).body["session"])
    asks, home = paired.branch.peering.asks, paired.hq.parts.keys.pool_key
    for proof in ({}, {"proof": b""}, {"proof": bytes(16)}, {"proof": "text"}):
        said = await asks.ask(home, "admin-session", {"sid": sid, "end": True, **proof}, 10.0)
        assert said["stands"] is True
    assert [one["session"] for one in (await paired.at_hq.get("/sessions")).json()["items"]] == [sid.hex()]
    await paired.hq.parts.audit.flush()
    told = (await paired.at_hq.get("/audit", params={"kind": "admin.refused"})).json()["items"]
    assert [(one["outcome"], one["detail"]["by"]) for one in told] == [("not-the-holder", "pool:branch")] * 4
    # Nor does the word of a third pool count for a session of hq, at whatever pool it is honoured.
    hq = paired.branch.parts.directory.peer(home)
    assert hq is not None
    third = dataclasses.replace(hq, name="third", pool_key=b"t" * 32)
    await paired.branch.governing.administering.logins.peer_says_over(third, sid, time.time() + 60)
    assert (await alice.call("GET", "/status")).status == 200
    assert (await alice.mint()).status == 200
    # Who has the grant ends it there too.
    grant = proof_of(alice.grant)
    said = await asks.ask(home, "admin-session", {"sid": sid, "end": True, "proof": grant}, 10.0)
    assert said["stands"] is False


async def refused_soon(paired: Pair, alice: AdminNode) -> None:
    """Wait until the branch has heard that alice is out."""
    async with asyncio.timeout(30):
        while (await alice.call("GET", "/status")).status != 401:
            await asyncio.sleep(0.05)


async def test_who_is_disabled_at_home_is_out_where_only_the_log_tells_of_it(paired: Pair) -> None:
    alice = await paired.to_branch()

    async def deaf(sid: bytes, expires_at: float) -> None:
        del sid, expires_at

    paired.hq.governing.administering.logins.tell_over = deaf
    office = paired.branch.governing.administering.logins._office
    began = office.now()

    async def problem() -> str:
        async with office.store.connection() as connection:
            return await author_problem(office, connection, "alice@hq", since=began, need=Role.OPERATOR)

    assert await problem() == ""
    bob = {"name": "bob", "role": "owner", "password": PASSWORD}
    assert (await paired.at_hq.post("/admins", json=bob)).status_code == 201
    assert (await paired.at_hq.patch("/admins/alice", json={"disabled": True})).status_code == 200
    await refused_soon(paired, alice)
    assert (await alice.mint()).status == 401
    assert "disabled or removed at hq" in await problem()  # and what she ordered before is not done
    # Nobody hears who she is, or that bob was made.
    async with office.store.connection() as connection:
        rows = await connection.fetch("SELECT who, is_out FROM admin_words")
    assert [(row["who"], row["is_out"]) for row in rows] == [
        (who_of(paired.hq.parts.keys.pool_key, "alice"), True)
    ]
    # Enabled again, she may; another account of her name has ordered nothing.
    await paired.at_hq.patch("/admins/alice", json={"disabled": False})
    async with asyncio.timeout(30):
        while await problem():
            await asyncio.sleep(0.05)
    assert (await paired.at_hq.delete("/admins/alice")).status_code == 204
    assert (await paired.at_hq.post("/admins", json={**bob, "name": "alice"})).status_code == 201
    async with asyncio.timeout(30):
        while "another account" not in await problem():
            await asyncio.sleep(0.05)


async def test_a_log_out_that_was_not_heard_is_asked_for(paired: Pair) -> None:
    alice = await paired.to_branch()

    async def deaf(sid: bytes, expires_at: float) -> None:
        del sid, expires_at

    paired.hq.governing.administering.logins.tell_over = deaf
    await paired.at_hq.patch("/admins/alice", json={"disabled": False})
    sid = (await paired.at_hq.get("/sessions")).json()["items"][0]["session"]
    assert (await paired.at_hq.delete(f"/sessions/{sid}")).status_code == 204
    assert (await alice.mint()).status == 401
    async with asyncio.timeout(30):  # from here on it is known
        while (await alice.call("GET", "/status")).status != 401:
            await asyncio.sleep(0.05)


async def test_a_pool_that_is_cut_off_honours_the_grant(paired: Pair) -> None:
    await paired.hq.tunnel.close()
    await paired.hq.peering.links.close()
    await until(lambda: not paired.branch.peering.links.up(paired.hq.parts.keys.pool_key))
    alice = await paired.to_branch()
    assert (await alice.call("GET", "/status")).status == 200


async def test_an_answer_that_goes_on_ends_when_the_session_would(paired: Pair) -> None:
    alice = await paired.to_branch()
    logins = paired.branch.governing.administering.logins
    node = next(one.peer for one in paired.branch.tunnel.sessions.values() if one.peer.role == "admin")
    principal = await logins.bearer(alice.token, node)
    assert 11 * 3600 < principal.until - time.time() <= 12 * 3600
    assert logins.stands(principal)
    assert not logins.stands(dataclasses.replace(principal, until=time.time() - 1))


async def test_a_pool_cannot_fill_another_with_sessions_that_are_over(
    paired: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgate.governance.logins.OVER_MOST", 2)
    directory = paired.branch.parts.directory
    hq = directory.peer(paired.hq.parts.keys.pool_key)
    assert hq is not None
    logins, later = paired.branch.governing.administering.logins, time.time() + 60
    for at in (-1e18, 0.0):
        await logins.peer_says_over(hq, b"p" * 16, at)  # long past: nothing to remember
    for number in (1, 2):
        await logins.peer_says_over(hq, bytes([number]) * 16, later)
    with pytest.raises(ConflictError):
        await logins.peer_says_over(hq, b"3" * 16, later)
    hq_key = paired.hq.parts.keys.pool_key
    assert directory.admins().over == {(hq_key, bytes([1]) * 16), (hq_key, bytes([2]) * 16)}


async def test_less_trust_ends_it_at_once(paired: Pair) -> None:
    alice = await paired.to_branch()
    await know(paired.branch, peer_of(paired.hq, level=3))
    await until(lambda: all(one.peer.role != "admin" for one in paired.branch.tunnel.sessions.values()))
    assert "does not take sessions" in await paired.refused_at_branch()
    await alice.close()
    assert await dialled_in_vain(alice, paired.branch)


async def test_a_revoked_pools_admins_are_out_at_once(paired: Pair) -> None:
    alice = await paired.to_branch()
    revoked = await paired.at_branch.post("/pools/hq/revoke")
    assert revoked.status_code == 200, revoked.text
    await until(lambda: all(one.peer.role != "admin" for one in paired.branch.tunnel.sessions.values()))
    assert "does not take sessions" in await paired.refused_at_branch()
    await alice.close()
    assert await dialled_in_vain(alice, paired.branch)


async def test_both_sides_must_want_it(paired: Pair) -> None:
    """The session's own pool keeps its admins at home: its word counts at the next token."""
    deny = Permissions(deny_send=frozenset({"admin"}))
    await know(paired.hq, peer_of(paired.branch, level=4, permissions=deny))
    await paired.alice.reach(paired.branch)
    assert (await paired.alice.mint()).status == 401
    await paired.alice.reach(paired.hq)
    reply = await paired.alice.login("alice")
    assert [one["name"] for one in reply.body["pools"]] == ["hq"]
    await paired.alice.reach(paired.branch)
    assert (await paired.alice.mint()).code == "not-for-this-pool"


async def test_trust_is_not_passed_on(paired: Pair, tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    """A third pool trusts the branch, which trusts hq: hq's admins are nobody there."""
    async with pools(tmp_path, store_server, "third") as [third], control(third) as at_third:
        third.governing.administering.cost(CHEAP)
        await pair(third, paired.branch, level=4)
        assert await dialled_in_vain(await _closed(paired.alice), third)
        # The same key, enrolled there for somebody else, gets the grant to that pool: it is worth nothing.
        await at_third.post("/admins", json={"name": "carol", "role": "viewer", "password": PASSWORD})
        carol = AdminNode("carol-laptop", paired.alice.identity)
        await carol.enrol(at_third, "carol")
        await carol.reach(third)
        try:
            assert (await carol.mint(paired.alice.grant)).code == "unauthenticated"
            # Nor may the branch make a grant in hq's name, or carry hq's admin over as its own.
            grant, _ = read_grant(paired.alice.grant, now=time.time())
            wide = dataclasses.replace(grant, pools=(third.parts.keys.pool_key,))
            for forged in (wide, dataclasses.replace(wide, role=Role.OWNER)):
                text = seal_grant(paired.branch.parts.online, forged)
                assert (await carol.mint(text)).code == "unauthenticated"
        finally:
            await carol.close()
        codes = [code for code, _ in await refusals(at_third, third)]
        assert codes == ["unauthenticated"] * 3


async def test_a_grant_of_a_pool_below_level_four_is_worth_nothing(paired: Pair) -> None:
    """The branch's own admins at hq, which trusts the branch at level 3."""
    await know(paired.hq, peer_of(paired.branch, level=3))
    now = int(time.time())
    grant = Grant(
        sid=b"b" * 16,
        name="bob",
        role=Role.OWNER,
        pool=paired.branch.parts.keys.pool_key,
        client=paired.alice.identity.fingerprint,
        issued_at=now,
        expires_at=now + 3600,
        pools=(paired.hq.parts.keys.pool_key,),
    )
    reply = await paired.alice.mint(seal_grant(paired.branch.parts.online, grant))
    assert (reply.status, reply.code) == (401, "unauthenticated")


async def test_a_session_that_its_pool_never_opened_does_not_stand(paired: Pair) -> None:
    """Whoever stole a pool's online key can sign a grant; the pool says that there is no such session."""
    grant, _ = read_grant(paired.alice.grant, now=time.time())
    forged = dataclasses.replace(grant, sid=b"f" * 16, role=Role.OWNER)
    await paired.alice.reach(paired.branch)
    reply = await paired.alice.mint(seal_grant(paired.hq.parts.online, forged))
    assert (reply.status, reply.body["detail"]) == (401, "this session is over")


async def _closed(node: AdminNode) -> AdminNode:
    await node.close()
    return node
