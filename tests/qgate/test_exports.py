"""What a pool publishes for the day when it is dead: each change once, to those who may hear it."""

from __future__ import annotations

import functools
from decimal import Decimal
from typing import Any

from qgate.capability.finops.budgets import Budget
from qgate.federation.exports import Exports
from qgate.federation.guests import unsealed
from qgate.federation.peer import Peer
from qgate.federation.sealing import open_sealed
from qgate.governance.apps import NewApp
from qgate.governance.databases import NewDatabase
from qgate.store.budgets import all_budgets, put_budget
from qgate.store.guest_slices import forget_slices, put_slices
from qgate.store.peers import put_own_pool, put_peer
from tests.qgate.pool import BY, GATE, Pool
from tunnel_proto.certificate import issue_online
from tunnel_proto.enrolment import GateAddress, make_offer
from tunnel_proto.identity import Identity
from tunnel_proto.packing import unpack
from tunnel_proto.roster import read_roster
from tunnel_proto.scram import parse_verifier

GPU = Identity(b"g" * 32, b"h" * 32)
ADDRESS = GateAddress("gpu-1", "gpu.example", 7443, GPU.handshake_public)


class Home:
    """A pool that is called hq, with one app, and what it put into its outbox."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.online: dict[bytes, Identity] = {}
        self.exports = Exports(
            pool.store,
            directory=pool.directory,
            pool_key=pool.identity.verify_key,
            online=pool.signing,
            gates=lambda: (GATE,),
            clock=pool.clock,
        )

    async def know(
        self, level: int = 2, state: str = "paired", pool: Identity = GPU, name: str = "gpu"
    ) -> None:
        self.online[pool.verify_key] = pool  # a pool of this test has one key for everything
        certificate = issue_online(pool, pool.verify_key, not_before=0, not_after=2**31, serial=1)
        peer = Peer(
            pool.verify_key,
            name,
            state=state,
            level=level,
            gates=(ADDRESS,),
            online_certificate=certificate,
        )
        async with self.pool.store.transaction() as connection:
            await put_own_pool(connection, "hq", "pool", self.pool.office.now())
            await put_peer(connection, peer, self.pool.office.now())
        await self.pool.watch.refresh()

    async def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Reconcile, and take what lies in the outbox."""
        await self.pool.watch.refresh()
        await self.exports.reconcile()
        async with self.pool.store.transaction() as connection:
            rows = await connection.fetch("DELETE FROM outbox RETURNING id, stream, payload")
        found = [
            (row["stream"], unpack(row["payload"], max_bytes=1 << 20, max_items=10_000))
            for row in sorted(rows, key=lambda row: row["id"])
        ]
        return [(stream, self._opened(payload)) for stream, payload in found]

    def _opened(self, payload: dict[str, Any]) -> dict[str, Any]:
        """What each pool of the test finds for itself, put together as if nothing were sealed."""
        if "sealed" not in payload:
            return payload
        together: dict[str, Any] = {"verifiers": {}, "keys": {}, "budgets": {}}
        for identity in self.online.values():
            own = unsealed(payload, identity.verify_key, functools.partial(open_sealed, identity))
            for name, parts in together.items():
                parts.update({pool: part for pool, part in own[name].items() if part})
        return {**payload, **together}

    async def app(self, name: str = "web", **fields: Any) -> dict[str, Any]:
        return await self.pool.apps.create(NewApp(name, ("shop",), **fields), by=BY)


async def home(pool: Pool) -> Home:
    await pool.databases.add(
        NewDatabase("shop", "postgresql://owner@db.example/shop", password="first", check=False), by=BY
    )
    return Home(pool)


async def test_an_app_that_is_too_large_to_be_told_stays_at_home(pool: Pool) -> None:
    hq = await home(pool)
    await hq.know()
    await hq.app("large")
    assert "large" in [payload.get("app") for _, payload in await hq.told()]
    many = [f"laptop-{number:055d}" for number in range(10_000)]
    async with pool.store.connection() as connection:
        await connection.execute("UPDATE apps SET sidecars = $1 WHERE name = 'large'", many)
    await hq.app("web")
    told = {payload["app"]: payload for stream, payload in await hq.told() if stream == "guests"}
    assert sorted(told) == ["large", "web"]
    assert (told["large"].get("gone"), told["web"].get("gone")) == (True, None)
    assert await hq.told() == [], "it is said once"


async def test_a_pool_without_peers_publishes_nothing(pool: Pool) -> None:
    hq = await home(pool)
    await hq.app()
    assert await hq.told() == []
    await hq.know(level=1)
    assert await hq.told() == []


async def test_a_new_peer_hears_of_nodes_apps_and_the_roster_once(pool: Pool) -> None:
    hq = await home(pool)
    made = await hq.app()
    offer = make_offer(Identity.generate(), role="client", name="laptop", now=pool.clock())
    await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    await hq.know()
    told = await hq.told()
    assert [stream for stream, _ in told] == ["nodes", "guests", "roster"]
    node, app, roster = (payload for _, payload in told)
    assert (node["name"], node["role"], node["revoked"]) == ("laptop", "client", False)
    assert (app["app"], app["databases"]) == ("web", ["shop"])
    ((verifier, until),) = app["verifiers"][GPU.verify_key.hex()]
    parse_verifier(verifier)
    assert until is None
    assert made["password"] not in str(told)
    found = read_roster(roster["roster"], pool_key=pool.identity.verify_key, now=pool.clock())
    assert (found.name, found.mode, [one.name for one in found.pools]) == ("hq", "auto", ["hq", "gpu"])
    assert found.pools[1].gates == (ADDRESS,)
    assert await hq.told() == [], "nothing has changed"


async def test_each_pool_gets_a_verifier_of_its_own(pool: Pool) -> None:
    hq = await home(pool)
    await hq.app()
    other = Identity(b"o" * 32, b"p" * 32)
    await hq.know()
    await hq.know(pool=other, name="branch")
    told = dict(await hq.told())
    by_pool = told["guests"]["verifiers"]
    assert by_pool.keys() == {GPU.verify_key.hex(), other.verify_key.hex()}
    salts = {parse_verifier(one[0][0]).salt for one in by_pool.values()}
    assert len(salts) == 2


async def test_a_rotation_keeps_a_pools_salt_while_both_passwords_count(pool: Pool) -> None:
    hq = await home(pool)
    await hq.app()
    await hq.know()
    before = dict(await hq.told())["guests"]["verifiers"][GPU.verify_key.hex()]
    await pool.apps.rotate("web", overlap_s=600, by=BY)
    after = dict(await hq.told())["guests"]["verifiers"][GPU.verify_key.hex()]
    assert len(after) == 2
    new, old = (parse_verifier(one[0]) for one in after)
    assert new.salt == old.salt
    assert new != old
    assert after[1][0] == before[0][0]
    assert after[1][1] == pool.clock() + 600


async def test_who_may_not_come_is_said_to_be_gone(pool: Pool) -> None:
    hq = await home(pool)
    await hq.app("web")
    await hq.app("stays", failover=False)
    await hq.know()
    assert [one["app"] for stream, one in await hq.told() if stream == "guests"] == ["web"]
    await pool.apps.revoke("web", by=BY)
    assert await hq.told() == [("guests", {"app": "web", "gone": True})]
    assert await hq.told() == []


async def test_a_revoked_node_is_told_as_revoked(pool: Pool) -> None:
    hq = await home(pool)
    offer = make_offer(Identity.generate(), role="client", name="laptop", now=pool.clock())
    await pool.sidecars.enrol(offer, valid_days=None, by=BY)
    await hq.know()
    await hq.told()
    await pool.sidecars.revoke("laptop", by=BY)
    (first, gone), (second, node) = await hq.told()
    assert (first, gone["subject"], gone["role"]) == ("revocations", "node", "client")
    assert gone["handshake"] == node["handshake"]
    assert (second, node["revoked"]) == ("nodes", True)


async def test_rosters_follow_mode_and_peers_and_are_renewed(pool: Pool) -> None:
    hq = await home(pool)
    await hq.know()
    serials = []

    async def newest() -> list[str]:
        told = dict(await hq.told())
        if "roster" not in told:
            return []
        key = pool.identity.verify_key
        found = read_roster(told["roster"]["roster"], pool_key=key, now=pool.clock())
        serials.append(found.serial)
        return [found.mode, *(one.name for one in found.pools)]

    assert await newest() == ["auto", "hq", "gpu"]
    await pool.settings.set("failover.mode", "manual", by=BY)
    assert await newest() == ["manual", "hq", "gpu"]
    await hq.know(level=1)
    assert await newest() == ["manual", "hq"]
    await hq.know(level=2)
    assert await newest() == ["manual", "hq", "gpu"]
    assert await newest() == []
    pool.clock.now += 4 * 86_400
    assert await newest() == ["manual", "hq", "gpu"]
    assert serials == sorted(set(serials)), "each is newer than the last"


async def test_apps_from_before_there_were_spares_are_counted(pool: Pool) -> None:
    hq = await home(pool)
    await pool.settings.set("failover.spares", 0, by=BY)
    await hq.app("old")
    await pool.settings.reset("failover.spares", by=BY)
    await hq.know()
    assert dict(await hq.told())["guests"]["verifiers"] == {}
    assert hq.exports.lacking == 1
    await pool.apps.rotate("old", overlap_s=0, by=BY)
    assert len(dict(await hq.told())["guests"]["verifiers"]) == 1
    assert hq.exports.lacking == 0


async def test_an_apps_budgets_are_told_in_part_and_again_when_they_change(pool: Pool) -> None:
    hq = await home(pool)
    await hq.app()
    await hq.know()

    async def limit(hard: str) -> list[Any]:
        budget = Budget("app", "web", "month", None, Decimal(hard), "EUR")
        async with pool.store.transaction() as connection:
            await put_budget(connection, budget, by=BY, at=pool.office.now())
        told = await hq.told()
        return [one["budgets"].get(GPU.verify_key.hex()) for stream, one in told if stream == "guests"]

    assert await limit("10") == [[["month", "2.5", "EUR"]]]
    assert await limit("10") == [], "nothing has changed"
    assert await limit("40") == [[["month", "10", "EUR"]]]


async def test_a_slice_is_a_budget_of_the_guest_until_its_home_takes_it_back(pool: Pool) -> None:
    async def slices(*told: tuple[str, str, str]) -> list[tuple[str, Decimal | None]]:
        async with pool.store.transaction() as connection:
            await put_slices(connection, GPU.verify_key, "gpu/web", told)
            return [(one.id, one.hard) for one in await all_budgets(connection)]

    month, day = ("month", "2.5", "EUR"), ("day", "1", "EUR")
    assert await slices(month, day) == [
        ("app:gpu/web/day", Decimal(1)),
        ("app:gpu/web/month", Decimal("2.5")),
    ]
    assert await slices(month) == [("app:gpu/web/month", Decimal("2.5"))]
    own = Budget("app", "gpu/web", "month", None, Decimal("0.5"), "EUR")
    async with pool.store.transaction() as connection:
        await put_budget(connection, own, by=BY, at=pool.office.now())
    assert await slices(month) == [(own.id, own.hard)], "what this pool's admin set stays"
    assert await slices() == [(own.id, own.hard)]
    async with pool.store.transaction() as connection:
        await put_slices(connection, GPU.verify_key, "gpu/other", (day,))
        await forget_slices(connection, GPU.verify_key)
        assert [one.id for one in await all_budgets(connection)] == [own.id]
