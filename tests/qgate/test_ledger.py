"""The ledger over a real PostgreSQL: nothing spends past a hard limit, whatever dies or goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest

from qgate.capability.finops.ledger import BudgetLedger, Hold
from qgate.capability.work import Hop, Outcome, Problem, Reservation, Usage
from qgate.governance.directory import Snapshot
from qgate.store import Store, StoreUnavailableError
from qgate.store.budgets import slices_of, standings
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.spending import CLOUD, LOCAL, app, budget, ledger, put, tokens, work

CENT = Decimal("0.01")


@pytest.fixture
async def second(store_dsn: str) -> AsyncIterator[Store]:
    """Another gate's connection to the same store."""
    opened = await Store.open(store_dsn)
    yield opened
    await opened.close()


async def committed(store: Store, name: str = "app:web/month") -> Decimal:
    async with store.connection() as connection:
        return (await standings(connection, silent_s=60))[name].committed


async def spent(store: Store, name: str = "app:web/month") -> Decimal:
    async with store.connection() as connection:
        return (await standings(connection, silent_s=60))[name].spent


async def spend(of: BudgetLedger, bound: Decimal, used: Decimal | None) -> Decimal:
    """One request: what it really cost (0 where it was refused)."""
    try:
        held = await of.reserve(work(), CLOUD, bound)
    except Problem as problem:
        if problem.code != "budget_exceeded":
            raise
        return Decimal(0)
    await asyncio.sleep(0)
    of.settle(held, None if used is None else tokens(used))
    return bound if used is None else used


# --- the race


async def test_two_gates_and_two_hundred_requests_never_pass_the_limit(store: Store, second: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "1"), budget("pool/day", "5"))
    gates = [ledger(store, snapshot, gate="a"), ledger(second, snapshot, gate="b")]
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(spend(gates[number % 2], 2 * CENT, CENT if number % 5 else None))
            for number in range(200)
        ]
    total = sum((task.result() for task in running), Decimal(0))
    assert Decimal("0.7") <= total <= 1
    for gate in gates:
        await gate.flush()
    assert await spent(store) == total
    assert total <= await committed(store) <= 1
    for gate in gates:
        await gate.close()
    assert await committed(store) == total
    assert await spent(store, "pool/day") == total


async def test_what_one_gate_gave_back_another_can_spend(store: Store, second: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "1"))
    first, other = ledger(store, snapshot, gate="a"), ledger(second, snapshot, gate="b")
    held = [await first.reserve(work(), CLOUD, CENT) for _ in range(90)]
    with pytest.raises(Problem, match="budget app:web/month has"):
        await other.reserve(work(), CLOUD, 20 * CENT)
    for one in held:
        first.settle(one, tokens("0.001"))
    await first.flush(everything=True)
    await asyncio.sleep(0.6)  # what the store said no to is not asked again for half a second
    assert await other.reserve(work(), CLOUD, 80 * CENT)


async def test_an_idle_slice_is_called_back_when_another_gate_needs_it(store: Store, second: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "1"))
    first, other = ledger(store, snapshot, gate="a"), ledger(second, snapshot, gate="b")
    running = [asyncio.ensure_future(first.run()), asyncio.ensure_future(other.run())]
    try:
        first.settle(await first.reserve(work(), CLOUD, 90 * CENT), tokens("0"))
        assert await committed(store) >= Decimal("0.9")
        async with asyncio.timeout(60):
            while True:
                try:
                    held = await other.reserve(work(), CLOUD, 80 * CENT)
                    break
                except Problem:
                    await asyncio.sleep(0.05)  # the listeners are still connecting
        other.settle(held, tokens("0.8"))
        assert await committed(store) <= 1
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_dead_gates_slice_stays_spent(store: Store, second: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "1"))
    dead = ledger(store, snapshot, gate="a")
    await dead.reserve(work(), CLOUD, 60 * CENT)
    del dead  # nothing is settled, flushed or closed
    living = ledger(second, snapshot, gate="b")
    with pytest.raises(Problem):
        await living.reserve(work(), CLOUD, 50 * CENT)
    assert await living.reserve(work(), CLOUD, 39 * CENT)
    # The same gate's next run does not get it back either.
    with pytest.raises(Problem):
        await ledger(store, snapshot, gate="a").reserve(work(), CLOUD, 50 * CENT)


# --- what a reservation becomes


async def test_usage_frees_what_was_set_aside_and_an_unknown_outcome_does_not(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1")))
    for _ in range(20):
        gate.settle(await gate.reserve(work(), CLOUD, 50 * CENT), tokens("0.01"))
    gate.settle(await gate.reserve(work(), CLOUD, 50 * CENT), None)
    await gate.flush()
    assert await spent(store) == Decimal("0.7")
    with pytest.raises(Problem):
        await gate.reserve(work(), CLOUD, 50 * CENT)


async def test_settling_twice_counts_once(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1")))
    held = await gate.reserve(work(), CLOUD, CENT)
    gate.settle(held, tokens("0.01"))
    gate.settle(held, tokens("0.01"))
    await gate.flush()
    assert await spent(store) == CENT


async def test_a_provider_that_charges_more_than_the_bound_is_counted_in_full(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1")))
    gate.settle(await gate.reserve(work(), CLOUD, CENT), tokens("0.99"))
    await gate.flush()
    assert (await spent(store), await committed(store)) == (Decimal("0.99"), Decimal("0.99"))
    with pytest.raises(Problem):
        await gate.reserve(work(), CLOUD, 2 * CENT)
    assert gate.overdrawn == {"app:web/month": 1}


async def test_every_budget_that_counts_must_have_room_or_none_is_touched(store: Store) -> None:
    snapshot = await put(
        store,
        budget("app:web/month", "1"),
        budget("team:red/week", "0.05"),
        budget("provider:acme/hour", "1"),
        budget("app:other/month", "0"),
    )
    gate = ledger(store, snapshot)
    red = work(app(team="red"))
    with pytest.raises(Problem, match="team:red/week") as caught:
        await gate.reserve(red, CLOUD, 6 * CENT)
    assert caught.value.status == 402
    assert caught.value.detail["budget"] == "team:red/week"
    assert caught.value.detail["left"] == "0.05"
    for name in ("app:web/month", "provider:acme/hour"):
        assert await committed(store, name) == 0
    gate.settle(await gate.reserve(red, CLOUD, 4 * CENT), tokens("0.04"))
    await gate.flush()
    assert [await spent(store, name) for name in ("app:web/month", "team:red/week")] == 2 * [4 * CENT]


async def test_what_costs_nothing_is_never_held(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "0")))
    assert (await gate.reserve(work(), LOCAL, Decimal(5))).amount == 0
    assert gate.verdict(work(), LOCAL).action == "ok"
    with pytest.raises(Problem):
        await gate.reserve(work(), CLOUD, CENT)


async def test_a_model_without_a_price_is_refused_where_a_budget_counts(store: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "1"))
    gate = ledger(store, snapshot, prices={})
    assert gate.verdict(work(), CLOUD).action == "refused"
    assert "provider price set acme/big" in gate.verdict(work(), CLOUD).reason
    with pytest.raises(Problem, match="nobody has said"):
        await gate.reserve(work(), CLOUD, CENT)
    assert gate.verdict(work(app("unbudgeted")), CLOUD).action == "ok"


async def test_a_request_may_bound_itself(store: Store) -> None:
    gate = ledger(store, Snapshot())
    modest = work(budget=Decimal("0.001"))
    assert gate.verdict(modest, CLOUD).action == "refused"
    with pytest.raises(Problem) as caught:
        await gate.reserve(modest, CLOUD, CENT)
    assert caught.value.param == "budget"
    assert gate.verdict(work(budget=Decimal(1)), CLOUD).action == "ok"


async def test_another_currency_is_not_mistaken_for_ours(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1", currency="EUR")))
    assert "EUR" in gate.verdict(work(), CLOUD).reason
    with pytest.raises(Problem):
        await gate.reserve(work(), CLOUD, CENT)


# --- time


async def test_a_slice_ends_with_its_period_by_the_databases_clock(store: Store) -> None:
    snapshot = await put(store, budget("app:web/hour", "1"))
    now = [1000.0]
    # This gate's wall clock is an hour off; it is not asked.
    gate = ledger(store, snapshot, monotonic=lambda: now[0], clock=lambda: 0.0)
    held = await gate.reserve(work(), CLOUD, 20 * CENT)
    assert isinstance(held, Hold)
    slice_ = held.shares[0].slice
    assert slice_ is not None
    assert 1000.0 < slice_.until <= 1000.0 + 3600
    now[0] = slice_.until
    purse = held.shares[0].purse
    assert purse.free(now[0]) == 0
    # Settled late, it is still spent in the period in which it was set aside.
    gate.settle(held, tokens("0.2"))
    async with store.connection() as connection:
        rows = await slices_of(connection, "app:web/hour", slice_.started_at)
    assert [row["granted"] for row in rows] == [Decimal("0.2")]
    await gate.flush()
    async with store.connection() as connection:
        rows = await slices_of(connection, "app:web/hour", slice_.started_at)
    assert [row["spent"] for row in rows] == [Decimal("0.2")]
    assert purse.slices == []


async def test_the_database_knows_each_period(store: Store) -> None:
    names = [f"pool/{period}" for period in ("hour", "day", "week", "month")]
    await put(store, *(budget(name, "1") for name in names))
    async with store.connection() as connection:
        found = await standings(connection, silent_s=60)
        now = await connection.fetchval("SELECT now()")
    from qgate.capability.finops.budgets import period_of

    for name in names:
        expected = period_of(name.partition("/")[2], now)
        assert (found[name].started_at, found[name].ends_at) == expected


# --- the store away


async def test_while_the_store_is_away_a_gate_spends_what_it_leased_and_no_more(
    store_server: EmbeddedPostgres, store_dsn: str, store: Store
) -> None:
    snapshot = await put(store, budget("app:web/month", "10"), budget("team:red/month", soft="1"))
    severed = await Store.open(store_dsn)
    gate = ledger(severed, snapshot)
    gate.settle(await gate.reserve(work(), CLOUD, CENT), tokens("0"))
    await severed.close()
    red = work(app("free", team="red"))
    soft: list[Reservation] = [await gate.reserve(red, CLOUD, CENT)]
    for _ in range(20):  # two percent of ten
        await gate.reserve(work(), CLOUD, CENT)
    with pytest.raises(Problem) as caught:
        await gate.reserve(work(), CLOUD, CENT)
    assert caught.value.code == "unavailable"
    # A soft limit stops nobody; it is told when the store is back.
    gate.settle(soft[0], tokens("0.01"))
    gate.accounts._store = store
    gate.accounts._away_until = 0.0
    await gate.flush()
    assert await spent(store, "team:red/month") == CENT
    del store_server


async def test_a_budget_that_is_lowered_holds_at_once(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "10")))
    gate.settle(await gate.reserve(work(), CLOUD, CENT), tokens("0.01"))
    await put(store, budget("app:web/month", "0.1"))
    with pytest.raises(Problem):
        await gate.reserve(work(), CLOUD, Decimal(1))


async def test_a_removed_budget_holds_nobody_up(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1")))
    async with store.connection() as connection:
        await connection.execute("DELETE FROM budgets")
    assert (await gate.reserve(work(), CLOUD, Decimal(5))).amount == 5
    await gate.close()


# --- verdicts


async def test_the_soft_limit_asks_for_local_models_and_says_why(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "1", soft="0.5")))
    await gate.refresh()
    assert gate.verdict(work(), CLOUD).action == "ok"
    gate.settle(await gate.reserve(work(), CLOUD, 60 * CENT), tokens("0.6"))
    await gate.flush()
    await gate.refresh()
    verdict = gate.verdict(work(), CLOUD)
    assert (verdict.action, verdict.reason) == ("prefer-local", "app:web/month: its soft limit is reached")
    assert 0 < verdict.pressure < 1
    asked = work(model="big")
    for kind in ("worker", "provider"):
        hop = Hop("w1", kind, "small", "")
        gate.shifted(asked, Outcome("ok", "stop", Usage(), (hop,), 0.0, 1.0, shift=verdict.reason))
    await gate.flush()
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT what, budget, app, request, to_model FROM budget_shifts")
    assert [tuple(row) for row in rows] == [
        ("prefer-local", "app:web/month", "", "", ""),
        ("request", "app:web/month", "web", asked.id, "small"),
    ]


async def test_what_cannot_fit_any_more_is_refused_in_words(store: Store) -> None:
    gate = ledger(store, await put(store, budget("app:web/month", "0.005")))
    await gate.refresh()
    assert gate.verdict(work(body={"messages": []}), CLOUD).action == "ok"
    gate.settle(await gate.reserve(work(), CLOUD, Decimal("0.004")), tokens("0.004"))
    await gate.flush()
    await gate.refresh()
    verdict = gate.verdict(work(), CLOUD)
    assert verdict.action == "refused"
    assert "has 0.001 of 0.005 USD a month left until" in verdict.reason


async def test_the_arithmetic_of_the_store_survives_any_order(store_dsn: str, store: Store) -> None:
    """Told twice, told late, given back in pieces: committed is the greater of granted and spent."""
    await put(store, budget("app:web/month", "10"))
    raw = await asyncpg.connect(store_dsn, server_settings={"search_path": "qgate"})
    row = await raw.fetchrow("SELECT * FROM lease_budget('app:web/month', 'run', 'gate', 4, 4)")
    assert row is not None
    start = row["started_at"]

    async def tell(spent: str, back: str) -> Decimal:
        await raw.execute(
            "SELECT settle_slice('app:web/month', $1, 'run', $2, $3)", start, Decimal(spent), Decimal(back)
        )
        return await committed(store)

    assert await tell("1", "0") == 4
    assert await tell("1", "2") == 2
    assert await tell("0.5", "0") == 2  # an older word
    assert await tell("3", "0") == 3  # more than was granted
    assert await tell("3", "0") == 3
    nothing = await raw.fetchrow("SELECT * FROM lease_budget('app:web/month', 'other', 'gate', 7.5, 9)")
    assert nothing is not None
    assert (nothing["granted"], nothing["left_over"]) == (None, 7)
    await raw.close()


async def test_an_idle_slice_is_kept_while_nobody_can_be_told(store_dsn: str, store: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "10"))
    severed = await Store.open(store_dsn)
    now = [0.0]
    gate = ledger(severed, snapshot, monotonic=lambda: now[0])
    gate.settle(await gate.reserve(work(), CLOUD, CENT), tokens("0"))
    await severed.close()
    now[0] = 1000.0
    with pytest.raises(StoreUnavailableError):
        await gate.flush(everything=True)
    assert await gate.reserve(work(), CLOUD, 20 * CENT)


async def test_a_gate_survives_what_the_store_does_not_understand(store: Store) -> None:
    snapshot = await put(store, budget("app:web/month", "10"))
    gate = ledger(store, snapshot)
    async with store.connection() as connection:
        await connection.execute("ALTER FUNCTION settle_slice RENAME TO elsewhere")
        gate.settle(await gate.reserve(work(), CLOUD, CENT), tokens("0.01"))
        running = asyncio.ensure_future(gate.run())
        await asyncio.sleep(0.3)
        assert not running.done()
        await connection.execute("ALTER FUNCTION elsewhere RENAME TO settle_slice")
    async with asyncio.timeout(60):
        while await spent(store) != CENT:
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
