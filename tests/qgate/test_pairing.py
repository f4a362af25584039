"""The ceremony between two administrations over real stores: by files, step by step, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import pytest

from qgate.federation.ceremony import PairingError
from qgate.governance.pools import Pools
from qgate.governance.problems import ConflictError
from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.peers import drop_old_pairings, open_pairings
from qgate.vault import KEY_BYTES, Vault
from tests.qgate.pool import BY, DAY, Pool
from tunnel_proto.errors import ConfigError


@dataclass
class Site:
    """One pool: its administration, and its admin's hands."""

    pool: Pool
    pools: Pools

    async def offer(self, *, new: bool = False, valid_s: float | None = None) -> str:
        reply = await self.pools.pairing.offer(valid_s=valid_s, online=False, new=new, by=BY)
        return str(reply["offer"])

    async def answer(self, offer: str, name: str | None = None) -> str:
        return str((await self.pools.pairing.answer(offer, name=name, by=BY))["answer"])

    async def confirm(self, answer: str, name: str | None = None) -> tuple[str, str]:
        reply = await self.pools.pairing.confirm(answer, name=name, by=BY)
        return reply["confirm"], reply["string"]

    async def finish(self, file: str) -> tuple[str, str]:
        reply = await self.pools.pairing.finish(file, by=BY)
        return reply.get("finish") or "", reply["string"]

    async def trust(self, name: str, level: int, string: str | None = None) -> str:
        reply = await self.pools.trust(name, level=level, string=string, permissions=None, by=BY)
        return str(reply["state"])

    async def state(self, name: str) -> str:
        return str((await self.pools.show(name))["state"])


@pytest.fixture
async def sites(store_server: EmbeddedPostgres) -> AsyncIterator[list[Site]]:
    """Three pools: hq, branch and mallory."""
    administrator = await asyncpg.connect(store_server.dsn())
    made, stores, names = [], [], []
    for name in ("hq", "branch", "mallory"):
        database = f"pairing_{secrets.token_hex(5)}"
        await administrator.execute(f"CREATE DATABASE {database}")
        store = await Store.open(store_server.dsn(database))
        pool = Pool(store, Vault((secrets.token_bytes(KEY_BYTES),)))
        await pool.watch.refresh()
        site = Site(pool, Pools(pool.office))
        await site.pools.name(name, "headquarters" if name == "hq" else "branch", by=BY)
        made.append(site)
        stores.append(store)
        names.append(database)
    yield made
    for store in stores:
        await store.close()
    for database in names:
        await administrator.execute(f"DROP DATABASE {database} WITH (FORCE)")
    await administrator.close()


async def strings(hq: Site, branch: Site) -> tuple[str, str]:
    """Everything up to the strings: what hq shows, what branch shows."""
    confirm, shown = await hq.confirm(await branch.answer(await hq.offer()))
    _, other = await branch.finish(confirm)
    return shown, other


async def test_two_pools_are_paired_by_four_files_and_two_strings(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer()
    answer = await branch.answer(offer)
    assert await branch.state("hq") == "answered"
    confirm, shown_at_hq = await hq.confirm(answer)
    finish, shown_at_branch = await branch.finish(confirm)
    assert (await hq.finish(finish))[1] == shown_at_hq
    assert shown_at_hq != shown_at_branch
    assert len(shown_at_hq.replace("-", "")) * 5 >= 40
    assert await hq.state("branch") == await branch.state("hq") == "confirmed"
    assert (await branch.pools.show("hq"))["level"] == 0
    assert await branch.trust("hq", 2, shown_at_hq.upper().replace("-", " ")) == "paired"
    assert await hq.state("branch") == "confirmed"  # each side for itself
    assert await hq.trust("branch", 3, shown_at_branch) == "paired"
    row = await hq.pools.show("branch")
    assert (row["level"], row["trust"], row["kind"]) == (3, "knowledge", "branch")
    assert row["gates"][0]["host"] == "gate.example"
    assert (await branch.pools.show("hq"))["fingerprint"] == (await hq.pools.own())["fingerprint"]
    assert ("pool.trust", "branch") in await hq.pool.told()


async def test_each_step_done_twice_gives_the_same_file(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer()
    assert await hq.offer() == offer
    answer = await branch.answer(offer)
    assert await branch.answer(offer) == answer
    confirm = await hq.confirm(answer)
    assert await hq.confirm(answer) == confirm
    finish = await branch.finish(confirm[0])
    assert await branch.finish(confirm[0]) == finish
    assert await hq.finish(finish[0]) == await hq.finish(finish[0])
    assert await branch.trust("hq", 1, confirm[1]) == await branch.trust("hq", 1, confirm[1]) == "paired"
    # The offer was used up: the next one is another.
    assert await hq.offer() != offer


async def test_a_step_cut_off_by_a_crash_is_done_again(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer()
    step = asyncio.create_task(branch.answer(offer))
    while not step.done():  # cut at every point in turn until one goes through
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        answered = await branch.answer(offer)
        assert await branch.answer(offer) == answered
    confirm, shown = await hq.confirm(answered)
    await branch.finish(confirm)
    assert await branch.trust("hq", 2, shown) == "paired"


async def test_three_wrong_strings_end_it(sites: list[Site]) -> None:
    hq, branch, _ = sites
    shown, own = await strings(hq, branch)
    for left in ("2 more tries", "1 more try"):
        with pytest.raises(PairingError, match=left):
            await branch.trust("hq", 2, "aaaa-bbbb-cccc")
    with pytest.raises(PairingError, match="this is the string that this side shows"):
        await branch.trust("hq", 2, own)  # a slip, not a guess
    with pytest.raises(PairingError) as refused:
        await branch.trust("hq", 2, "aaaa-bbbb-cccc")
    assert refused.value.code == "pairing-ended"
    assert await branch.state("hq") == "unpaired"
    with pytest.raises(PairingError):
        await branch.trust("hq", 2, shown)
    with pytest.raises(ConflictError, match="is not verified yet"):
        await branch.trust("hq", 2)


async def test_a_man_in_the_middle_shows_other_strings(sites: list[Site]) -> None:
    hq, branch, mallory = sites
    # Mallory answers hq's offer as "branch" and offers to the branch as "hq".
    await mallory.pools.name("branch", "branch", by=BY)
    confirm, shown_at_hq = await hq.confirm(await mallory.answer(await hq.offer()))
    _, _ = await mallory.finish(confirm)
    await mallory.pools.unpair("hq", by=BY)
    await mallory.pools.name("hq", "headquarters", by=BY)
    confirm, _ = await mallory.confirm(await branch.answer(await mallory.offer()))
    _, shown_at_branch = await branch.finish(confirm)
    with pytest.raises(PairingError, match="that is not what hq shows"):
        await branch.trust("hq", 2, shown_at_hq)
    with pytest.raises(PairingError, match="that is not what branch shows"):
        await hq.trust("branch", 2, shown_at_branch)


async def test_a_third_pools_answer_is_refused(sites: list[Site]) -> None:
    hq, branch, mallory = sites
    offer = await hq.offer()
    await hq.confirm(await branch.answer(offer))
    with pytest.raises(PairingError, match="answered by the pool branch") as refused:
        await hq.confirm(await mallory.answer(offer))
    assert refused.value.code == "pairing-used"


@pytest.mark.parametrize("field", ["commitment", "created", "expires", "online", "id", "pool"])
async def test_a_tampered_offer_is_refused(sites: list[Site], field: str) -> None:
    hq, branch, mallory = sites
    document = json.loads(await hq.offer())
    other = json.loads(await mallory.offer())
    document[field] = (
        not document[field]
        if field == "online"
        else other[field]
        if field in {"commitment", "id", "pool"}
        else document[field] + 1
    )
    with pytest.raises(ConfigError, match="damaged"):
        await branch.answer(json.dumps(document))


async def test_a_replayed_file_leads_nowhere(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer()
    answer = await branch.answer(offer)
    confirm, shown = await hq.confirm(answer)
    await branch.finish(confirm)
    await branch.trust("hq", 2, shown)
    await branch.pools.unpair("hq", by=BY)
    for step in (branch.answer(offer), branch.finish(confirm)):
        with pytest.raises(PairingError, match="this pairing is over"):
            await step
    # An answer to another offer, with the id of an open one, is no answer to it.
    fresh = json.loads(await hq.offer(new=True))
    forged = json.loads(answer)
    forged["id"] = fresh["id"]
    with pytest.raises(ConfigError, match="its signature is not that of the pool"):
        await hq.confirm(json.dumps(forged))


async def test_times_and_oneself(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer(valid_s=3600)
    with pytest.raises(PairingError, match="paired with itself"):
        await hq.answer(offer)
    branch.pool.clock.now += 3601
    with pytest.raises(PairingError, match="expired"):
        await branch.answer(offer)
    branch.pool.clock.now -= 3601 + 3600
    with pytest.raises(PairingError, match="60 minutes in the future") as refused:
        await branch.answer(offer)
    assert refused.value.code == "pairing-clock"
    branch.pool.clock.now += 3600
    answer = await branch.answer(offer)
    hq.pool.clock.now -= DAY
    with pytest.raises(PairingError, match="24 hours in the future"):
        await hq.confirm(answer)
    hq.pool.clock.now += DAY + 3601
    with pytest.raises(PairingError, match="expired meanwhile"):
        await hq.confirm(answer)


async def test_files_out_of_order_say_what_to_do(sites: list[Site]) -> None:
    hq, branch, _ = sites
    offer = await hq.offer()
    answer = await branch.answer(offer)
    with pytest.raises(PairingError, match="this answer was made here"):
        await branch.confirm(answer)
    with pytest.raises(ConfigError, match="no answer of a pairing"):
        await hq.confirm(offer)
    with pytest.raises(PairingError, match="this is an offer") as refused:
        await branch.finish(offer)
    assert refused.value.hint == "meshctl pool pair answer FILE"
    with pytest.raises(PairingError, match="not that far"):
        await branch.trust("hq", 2, "aaaa-aaaa-aaaa")
    for nonsense in ("", "[]", "{}", '{"type": 1.5}', "x" * 70_000):
        with pytest.raises(ConfigError):
            await branch.finish(nonsense)


async def test_unpairing_is_taken_back_and_revocation_is_not(sites: list[Site]) -> None:
    hq, branch, _ = sites
    shown, other = await strings(hq, branch)
    await branch.trust("hq", 2, shown)
    await hq.trust("branch", 2, other)
    await branch.pools.unpair("hq", by=BY)
    assert (await branch.pools.show("hq"))["level"] == 0
    assert await branch.trust("hq", 1) == "paired"  # the key was verified in its time
    await branch.pools.unpair("hq", by=BY)
    # Or mended from the other side, by a ceremony of its own; hq stays paired all the while.
    confirm, shown = await hq.confirm(await branch.answer(await hq.offer()))
    await branch.finish(confirm)
    assert (await hq.state("branch"), await branch.state("hq")) == ("paired", "confirmed")
    assert await branch.trust("hq", 2, shown) == "paired"
    await branch.pools.revoke("hq", by=BY)
    assert await branch.state("hq") == "revoked"
    with pytest.raises(ConflictError, match="never comes back"):
        await branch.trust("hq", 2)
    with pytest.raises(PairingError) as refused:
        await branch.answer(await hq.offer(new=True))
    assert refused.value.code == "pairing-revoked"


async def test_names_are_ones_own_affair(sites: list[Site]) -> None:
    hq, branch, mallory = sites
    await mallory.pools.name("hq", "headquarters", by=BY)
    await branch.answer(await hq.offer())
    with pytest.raises(ConflictError, match="the name hq is taken here") as refused:
        await branch.answer(await mallory.offer())
    assert "--as" in refused.value.hint
    await branch.answer(await mallory.offer(), name="other")
    assert {row["name"] for row in await branch.pools.list()} == {"hq", "other"}
    hq_again = str((await hq.pools.pairing.offer(valid_s=None, online=True, new=True, by=BY))["offer"])
    await hq.pools.pairing.confirm_online(await mallory.answer(hq_again, name="real"))
    assert "hq-2" in {row["name"] for row in await hq.pools.list()}, "nobody was there to be asked for one"
    nobody = Pools(Pool(hq.pool.store, hq.pool.vault).office)
    assert (await nobody.own())["named"] is False


async def test_what_came_to_nothing_is_forgotten_after_a_while(sites: list[Site]) -> None:
    hq, branch, _ = sites
    shown, _ = await strings(hq, branch)
    await branch.trust("hq", 2, shown)
    await hq.offer(new=True, valid_s=60)
    async with hq.pool.store.transaction() as connection:
        await drop_old_pairings(connection, hq.pool.office.now() + timedelta(days=1))
        assert len(await open_pairings(connection)) == 1  # good for seven days
    async with branch.pool.store.transaction() as connection:
        await drop_old_pairings(connection, hq.pool.office.now() + timedelta(days=365))
        assert await connection.fetchval("SELECT count(*) FROM pairings WHERE state = 'done'") == 1
