"""Places and their queue, and what a lease may pass on."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.control.bodies import DatabaseBody
from qgate.governance.databases import NewDatabase
from qgate.governance.directory import Limits, Route
from qgate.postgres.back import connect
from qgate.postgres.pool import LeaseKey, Pool
from qgate.postgres.slots import Slots
from qgate.postgres.upstream import Upstream
from tests.qgate.hostile import Peer, hostile
from tunnel_proto.pgwire import PostgresError


async def test_places_go_to_whoever_came_first() -> None:
    slots = Slots("x", 1, queue=10)
    await slots.take(1)
    order: list[int] = []

    async def waiter(number: int) -> None:
        await slots.take(5)
        order.append(number)
        slots.give()

    tasks = [asyncio.create_task(waiter(i)) for i in range(5)]
    while slots.waiting < 5:
        await asyncio.sleep(0)
    slots.give()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert slots.unused


async def test_the_queue_is_bounded_in_length_and_time() -> None:
    slots = Slots("x", 1, queue=1)
    await slots.take(1)
    waiting = asyncio.create_task(slots.take(0.05))
    await asyncio.sleep(0)
    for timeout in (1.0, 0.0):
        with pytest.raises(PostgresError) as caught:
            await slots.take(timeout)
        assert caught.value.sqlstate == "53300"
    with pytest.raises(PostgresError, match="too many connections for x"):
        await waiting
    slots.give()
    assert slots.unused


async def test_a_waiter_that_gives_up_takes_nothing_with_it() -> None:
    slots = Slots("x", 1, queue=5)
    await slots.take(1)
    waiting = asyncio.create_task(slots.take(5))
    await asyncio.sleep(0)
    slots.give()  # handed to the waiter, which is cancelled before it runs
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.unused


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 4))
def test_no_order_of_events_loses_or_makes_a_place(steps: list[int], limit: int) -> None:
    async def run() -> None:
        slots = Slots("x", limit, queue=5)
        held: list[int] = []
        tasks: list[asyncio.Task[None]] = []

        async def taker() -> None:
            await slots.take(60)
            held.append(1)

        for step in steps:
            if step <= 1:
                tasks.append(asyncio.create_task(taker()))
            elif step == 2 and held:
                held.pop()
                slots.give()
            elif step == 3 and tasks:
                tasks[len(tasks) // 2].cancel()
            await asyncio.sleep(0) if step != 4 else None
            assert slots.taken <= limit
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while held:
            held.pop()
            slots.give()
        assert slots.unused

    asyncio.run(run())


def test_a_database_has_fifty_connections_unless_told_otherwise() -> None:
    route = Route(name="shop", hosts=(), dbname="shop", user="owner")
    asked = NewDatabase(name="shop", dsn="")
    body = DatabaseBody.model_fields["pool_size"]
    assert route.pool_size == asked.pool_size == body.default == 50


def key(app: str = "web") -> LeaseKey:
    return LeaseKey("shop", app, "owner", ())


async def normal(peer: Peer) -> None:
    await peer.log_in()
    await peer.answer()


async def settle(pool: Pool) -> None:
    while pool._tasks:
        await asyncio.wait(pool._tasks)


async def test_a_connection_that_became_idle_goes_to_a_waiter_of_its_own_kind() -> None:
    async with hostile(normal) as server:
        route = server.route(pool_size=1)
        pool = Pool()

        async def dial() -> Upstream:
            return await connect(route, "owner", [], parameters={})

        first = await pool.lease(route, key(), dial, timeout=1)
        waiting = asyncio.create_task(pool.lease(route, key(), dial, timeout=5))
        stranger = asyncio.create_task(pool.lease(route, key("other"), dial, timeout=5))
        while pool.counts()["shop"][2] < 2:
            await asyncio.sleep(0)
        pool.give_back(first, reusable=True)
        second = await waiting
        assert second.reused
        assert second.upstream is first.upstream
        pool.give_back(second, reusable=True)
        third = await stranger
        assert not third.reused
        assert server.connections == 2
        pool.give_back(third, reusable=False)
        await pool.close()
        assert pool.counts() == {"shop": (0, 0, 0)}


@pytest.mark.parametrize("mischief", ["cancelled", "not reusable", "renewed", "no idle time", "bad reset"])
async def test_what_is_never_leased_again(mischief: str) -> None:
    async def bad_reset(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(b"Z\0\0\0\5T")
        await peer.reader.read()

    async with hostile(bad_reset if mischief == "bad reset" else normal) as server:
        route = server.route(pool_idle_s=0.0 if mischief == "no idle time" else 60.0)
        pool = Pool()

        async def dial() -> Upstream:
            return await connect(route, "owner", [], parameters={})

        lease = await pool.lease(route, key(), dial, timeout=1)
        if mischief == "cancelled":
            lease.upstream.cancelled = True
        if mischief == "renewed":
            pool.renew("shop")
        pool.give_back(lease, reusable=mischief != "not reusable")
        await settle(pool)
        assert pool.counts() == {"shop": (0, 0, 0)}
        again = await pool.lease(route, key(), dial, timeout=1)
        assert not again.reused
        pool.give_back(again, reusable=False)
        await pool.close()


async def test_a_server_that_speaks_to_an_idle_connection_ends_it() -> None:
    async def chatty(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(b"C\0\0\0\x10DISCARD ALL\0Z\0\0\0\5I")
        await peer.writer.drain()
        await asyncio.sleep(0.05)
        peer.send(b"D\0\0\0\6\0\0")
        await peer.reader.read()

    async with hostile(chatty) as server:
        pool = Pool()
        route = server.route()

        async def dial() -> Upstream:
            return await connect(route, "owner", [], parameters={})

        pool.give_back(await pool.lease(route, key(), dial, timeout=1), reusable=True)
        await settle(pool)
        assert pool.counts() == {"shop": (0, 1, 0)}
        while pool.counts() != {"shop": (0, 0, 0)}:
            await asyncio.sleep(0.005)
        await pool.close()


async def test_a_failing_connect_gives_its_place_back() -> None:
    route = Route(
        name="shop", hosts=(("127.0.0.1", 1),), dbname="x", user="owner", limits=Limits(max_connections=1)
    )
    pool = Pool()

    async def dial() -> Upstream:
        return await connect(route, "owner", [], parameters={})

    for _ in range(3):
        with pytest.raises(PostgresError):
            await pool.lease(dataclasses.replace(route, pool_size=1), key(), dial, timeout=1)
    assert pool.counts() == {"shop": (0, 0, 0)}
