"""Who tries what is not theirs is refused, and the audit tells: forged, stolen and foreign sessions."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from qgate.federation.peer import Permissions
from qgate.governance.admin_sessions import Token, read_token, seal_token
from qgate.governance.principal import Role
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.admin_node import PASSWORD, AdminNode, refusals
from tests.qgate.peering import know, peer_of
from tests.qgate.test_admin_pools import Pair, two_pools

STATUS = "GET /control/v1/status"


@dataclasses.dataclass
class Stage:
    """One pair of pools for all attacks of this file, and what the branch's audit had told before each."""

    runner: asyncio.Runner
    pair: Pair
    told: int = 0

    def play(self, attack: Callable[[Stage], Awaitable[None]]) -> None:
        """Let an attack run."""

        async def played() -> None:
            self.told = len(await refusals(self.pair.at_branch, self.pair.branch))
            await attack(self)

        self.runner.run(played())

    async def audited(self) -> list[tuple[str, str]]:
        """(code, operation) of what the branch has refused since."""
        return (await refusals(self.pair.at_branch, self.pair.branch))[self.told :]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, store_server: EmbeddedPostgres) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        made = two_pools(tmp_path_factory.mktemp("attacks"), store_server)
        yield Stage(runner, runner.run(_entered(made)))
        runner.run(_left(made))


async def _entered(made: AbstractAsyncContextManager[Pair]) -> Pair:
    return await made.__aenter__()


async def _left(made: AbstractAsyncContextManager[Pair]) -> None:
    await made.__aexit__(None, None, None)


def test_no_token_but_the_right_one_opens_anything(stage: Stage) -> None:
    stage.play(_no_token_but_the_right_one_opens_anything)


async def _no_token_but_the_right_one_opens_anything(stage: Stage) -> None:
    paired = stage.pair
    home = paired.alice.token
    alice = await paired.to_branch()
    online, now = paired.branch.parts.online.identity, int(time.time())
    good = read_token(
        alice.token, online=online.verify_key, at=paired.branch.parts.keys.pool_key, now=time.time()
    )

    def signed(**changes: object) -> str:
        changed: Token = dataclasses.replace(good, **changes)  # type: ignore[arg-type]
        return seal_token(online, changed)

    bad = {
        "of the pool that the session is of": home,
        "signed by that pool": seal_token(paired.hq.parts.online.identity, good),
        "signed by that pool, for an owner": seal_token(
            paired.hq.parts.online.identity, dataclasses.replace(good, role=Role.OWNER)
        ),
        "signed by its own holder": seal_token(alice.identity, dataclasses.replace(good, role=Role.OWNER)),
        "over": signed(issued_at=now - 400, expires_at=now - 100),
        "over by a moment": signed(issued_at=now - 300, expires_at=now),
        "of tomorrow": signed(issued_at=now + 86_400, expires_at=now + 86_500),
        "good for too long": signed(expires_at=now + 86_400),
        "of another key": signed(client="0000-1111"),
        "of no key": signed(client=""),
        "of an own session that there is not": signed(pool=paired.branch.parts.keys.pool_key),
        "of a pool that nobody knows": signed(pool=b"x" * 32),
        "made for another pool": signed(at=paired.hq.parts.keys.pool_key),
        "a grant": alice.grant,
        "altered": alice.token[:-2] + ("A" if alice.token[-2] != "A" else "B") + alice.token[-1],
        "short": alice.token[:-40],
        "nothing": "qgt1.",
    }
    for what, token in bad.items():
        reply = await alice.call("GET", "/status", token=token)
        assert (reply.status, reply.code) == (401, "unauthenticated"), what
        assert reply.headers["www-authenticate"] == "Bearer"
    assert await stage.audited() == [("unauthenticated", STATUS)] * len(bad)
    assert (await alice.call("GET", "/status")).status == 200


def test_a_stolen_session_is_worth_nothing_with_another_key(stage: Stage) -> None:
    stage.play(_a_stolen_session_is_worth_nothing_with_another_key)


async def _a_stolen_session_is_worth_nothing_with_another_key(stage: Stage) -> None:
    paired = stage.pair
    made = await paired.at_branch.post(
        "/admins", json={"name": "mallory", "role": "viewer", "password": PASSWORD}
    )
    assert made.status_code == 201, made.text
    alice = await paired.to_branch()
    thief = AdminNode("mallory-laptop")
    await thief.enrol(paired.at_branch, "mallory")
    await thief.reach(paired.branch)
    try:
        for method, path in (("GET", "/status"), ("DELETE", "/session"), ("POST", "/drain")):
            assert (await thief.call(method, path, token=alice.token)).code == "unauthenticated"
        assert (await thief.mint(alice.grant)).code == "unauthenticated"
    finally:
        await thief.close()
    near = await paired.at_branch.get("/status", headers={"authorization": f"Bearer {alice.token}"})
    assert near.status_code == 401
    told = await stage.audited()
    assert [what.split()[1] for _, what in told] == [
        f"/control/v1{path}" for path in ("/status", "/session", "/drain", "/session/token", "/status")
    ]
    assert (await alice.call("GET", "/session")).body["label"] == "alice@hq"  # and she is still in


def test_a_namesake_of_another_pool_is_somebody_else(stage: Stage) -> None:
    stage.play(_a_namesake_of_another_pool_is_somebody_else)


async def _a_namesake_of_another_pool_is_somebody_else(stage: Stage) -> None:
    """alice@hq, whatever her role here may be at most, is not this pool's own alice."""
    paired = stage.pair
    body = {"name": "alice", "role": "owner", "password": PASSWORD}
    assert (await paired.at_branch.post("/admins", json=body)).status_code == 201
    near = await paired.at_branch.post("/session", json={"name": "alice", "password": PASSWORD})
    session = near.json()["session"]
    alice = await paired.to_branch()
    own = (
        ("PUT", "/admins/alice/password", {"password": "another long password", "current": PASSWORD}),
        ("POST", "/admins/alice/second-factor", None),
        ("PUT", "/admins/alice/second-factor", {"code": "000000"}),
        ("DELETE", "/admins/alice/second-factor", {"current": PASSWORD}),
    )
    look = (("GET", "/admins/alice", None), ("GET", "/admins/alice/keys", None))
    owners = (
        ("PATCH", "/admins/alice", {"role": "viewer"}),
        ("DELETE", "/admins/alice", None),
        ("POST", "/admins/alice/keys", {"offer": alice.offer()}),
        ("PUT", "/pools/hq/trust", {"level": 4}),
        ("PUT", "/settings/admin.require_second_factor", {"value": False}),
    )
    asked = []
    for method, path, sent in (*own, *look, *owners, ("DELETE", f"/sessions/{session}", None)):
        reply = await alice.call(method, path, sent)
        assert (reply.status, reply.code) == (403, "role"), (method, path)
        asked.append(("role", f"{method} /control/v1{path}"))
    assert await stage.audited() == asked
    # As an admin she may look at accounts and end sessions, and still be nobody's owner.
    permissions = Permissions(admin_role="admin")
    await know(paired.branch, peer_of(paired.hq, level=4, permissions=permissions))
    assert (await alice.mint()).body["role"] == "admin"
    for method, path, sent in (*own, *owners):
        assert (await alice.call(method, path, sent)).code == "role", (method, path)
        asked.append(("role", f"{method} /control/v1{path}"))
    assert await stage.audited() == asked
    assert (await paired.at_branch.get("/admins/alice")).json()["version"] == 1  # nothing came of it


def test_guessing_ends_in_a_lock_and_a_notice(stage: Stage) -> None:
    stage.play(_guessing_ends_in_a_lock_and_a_notice)


async def _guessing_ends_in_a_lock_and_a_notice(stage: Stage) -> None:
    paired = stage.pair
    await paired.alice.reach(paired.hq)
    for _ in range(5):
        reply = await paired.alice.login("alice", "wrong password 1", remember=False)
    assert reply.code == "locked-out"
    assert (await paired.alice.login("alice", remember=False)).code == "locked-out"
    codes = [code for code, _ in await refusals(paired.at_hq, paired.hq)]
    assert codes == ["unauthenticated"] * 4 + ["locked-out"] * 2
    await paired.hq.governing.staff.notifications.look()
    inbox = (await paired.at_hq.get("/notifications")).json()["items"]
    told = [f"{one['subject']} {one['body']}" for one in inbox if one["severity"] != "info"]
    assert [one for one in told if "alice" in one], inbox
