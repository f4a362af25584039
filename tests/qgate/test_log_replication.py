"""Two pools with stores of their own keep each other's logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qgate.federation.log.problems import LogProblem, StreamRefused
from qgate.federation.log.puller import Puller
from qgate.store import log as table
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.outbox import publish, waiting
from tests.qgate.log_pools import NewPool, PipeStream, TestPool, new_pools, pair, running, until
from tunnel_proto.constants import StreamCode


@pytest.fixture
async def new_pool(store_server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[NewPool]:
    """Makes pools, each with a database of its own."""
    async with new_pools(store_server, tmp_path) as new:
        yield new


async def test_what_is_published_here_is_applied_there(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1}, {"n": 2})
        await branch.say("workers", {"w": 1})
        await branch.has(hq, 2)
        await hq.has(branch, 1, "workers")
        assert await branch.heard(hq) == [{"n": 1}, {"n": 2}]
        await hq.say("nodes", {"n": 3})
        await branch.has(hq, 3)
        await until(lambda: hq.replication.heads() == branch.replication.heads())
        assert hq.replication.heads()[hq.key][1] == 4, "the incarnation's entry and three"


async def test_nothing_is_published_that_was_not_committed(new_pool: NewPool) -> None:
    hq = await new_pool("hq")

    async def fails() -> None:
        async with hq.store.transaction() as connection:
            await publish(connection, stream="nodes", record=b"r", payload={"n": 1})
            raise RuntimeError("after publishing")

    with pytest.raises(RuntimeError):
        await fails()
    async with hq.store.connection() as connection:
        assert await waiting(connection) == 0


@pytest.mark.parametrize("stream", ["audit", "settings", "api_keys", "incidents", "employees", "incarnation"])
async def test_the_outbox_refuses_what_has_no_stream(new_pool: NewPool, stream: str) -> None:
    hq = await new_pool("hq")
    with pytest.raises(StreamRefused):
        async with hq.store.transaction() as connection:
            await publish(connection, stream=stream, record=b"r", payload={"n": 1})


async def test_a_payload_that_is_too_large_is_refused_to_its_writer(new_pool: NewPool) -> None:
    hq = await new_pool("hq")
    with pytest.raises(LogProblem, match="524288 are allowed"):
        async with hq.store.transaction() as connection:
            await publish(connection, stream="nodes", record=b"r", payload={"n": bytes(1 << 20)})


async def test_a_partition_heals_and_nothing_comes_twice(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await branch.has(hq, 1)
        branch.links.disconnect(hq.key)
        await hq.say("nodes", {"n": 2}, {"n": 3})
        await until(lambda: hq.replication.head(hq.key).seq == 4)
        branch.links.reconnect(hq.key)
        await branch.has(hq, 3)
        assert await branch.heard(hq) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_trust_that_is_raised_later_brings_what_was_withheld(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch, level=1)
    async with running(hq, branch):
        await hq.say("nodes", {"n": "secret"})
        await hq.say("revocations", {"serial": 1})
        await branch.has(hq, 1, "revocations")
        assert await branch.heard(hq) == []
        async with branch.store.connection() as connection:
            payloads = await connection.fetch("SELECT payload FROM log_entries WHERE stream = 'nodes'")
        assert [row["payload"] for row in payloads] == [None], "it never left its pool"
        branch.trust(hq, 2)
        hq.trust(branch, 2)
        branch.replication.pullers[hq.key].look()
        await branch.has(hq, 1)


async def test_an_entry_that_cannot_be_applied_stops_its_stream_only(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    branch.broken.add(b"bad")
    async with running(hq, branch):
        await hq.say("nodes", {"n": 1})
        await hq.say("nodes", {"n": 2}, record=b"bad")
        await hq.say("nodes", {"n": 3})
        await hq.say("workers", {"w": 1})
        await branch.has(hq, 1, "workers")
        assert await branch.heard(hq) == [{"n": 1}]
        async with branch.store.connection() as connection:
            held = await table.waiting_entries(connection, hq.key)
        assert [(row.state, row.reason) for row in held] == [
            ("failed", "RuntimeError: a bug in applying"),
            ("held", "behind"),
        ]
        branch.broken.clear()
        branch.replication.look()
        await branch.has(hq, 3)
        assert await branch.heard(hq) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_an_erased_payload_is_gone_on_both_sides_and_the_chain_holds(new_pool: NewPool) -> None:
    hq, branch, late = await new_pool("hq"), await new_pool("branch"), await new_pool("late")
    pair(hq, branch)
    pair(hq, late)
    async with running(hq, branch):
        await hq.say("nodes", {"n": "personal"}, {"n": 2})
        await branch.has(hq, 2)
        assert await hq.replication.sequencer.erase([2], "asked by its owner") == 1
        await until(lambda: branch.replication.head(hq.key).seq == 4)
        for pool in (hq, branch):
            async with pool.store.connection() as connection:
                (row,) = await table.entries_at(connection, hq.key, [2])
            assert row.contents is None
        async with running(late):
            await until(lambda: late.replication.head(hq.key).seq == 4)
            assert await late.heard(hq) == [{"n": 2}]


async def test_a_late_pool_begins_at_a_snapshot(new_pool: NewPool) -> None:
    hq, branch, late = await new_pool("hq"), await new_pool("branch"), await new_pool("late")
    pair(hq, branch)
    pair(hq, late)
    async with running(hq, branch):
        for n in range(30):
            await hq.say("nodes", {"n": n}, record=bytes([n % 3 + 1]))
        await branch.has(hq, 3)
        await until(lambda: branch.replication.head(hq.key).seq == 31)
        assert await hq.replication.sequencer.truncate(keep=5) == 22
        await hq.say("nodes", {"n": "after"})
        await branch.has(hq, 4)
        async with running(late):
            await late.has(hq, 4)
            assert await late.heard(hq) == await branch.heard(hq)
            await until(lambda: late.replication.head(hq.key) == hq.replication.head(hq.key))


async def test_two_gates_of_one_pool_write_one_log(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    sibling = TestPool("hq", hq.store, identity=hq.identity, online=hq.online)
    sibling.meet(branch)
    async with running(hq, sibling, branch):
        await asyncio.gather(
            *(pool.say(stream, *({"n": n} for n in range(40))) for pool, stream in
              ((hq, "nodes"), (sibling, "workers"), (hq, "guests")))
        )  # fmt: skip
        for stream in ("nodes", "workers", "guests"):
            await branch.has(hq, 40, stream)
        await until(lambda: hq.replication.head(hq.key).seq == 121)
        assert branch.replication.head(hq.key) == sibling.replication.head(hq.key)
        assert hq.replication.signed + sibling.replication.signed == 120
        await branch.say("nodes", *({"n": n} for n in range(40)))
        await hq.has(branch, 40)
        async with hq.store.connection() as connection:
            rows = await table.entries_after(connection, branch.key, 0, count=1000, size=1 << 30)
        assert [row.entry.seq for row in rows] == list(range(1, 42)), "each once, whichever gate fetched it"


async def test_a_peer_that_refuses_its_log_is_asked_ever_more_rarely(new_pool: NewPool) -> None:
    hq, branch = await new_pool("hq"), await new_pool("branch")
    pair(hq, branch)
    takes, opened = hq.links.accept, 0

    def refuse(peer: object, session: object, stream: PipeStream) -> None:
        nonlocal opened
        opened += 1
        stream.reset(StreamCode.REFUSED, "log is not accepted from your pool here")

    hq.links.accept = refuse
    async with running(hq, branch):
        puller = await _puller(branch, hq)
        await until(lambda: puller.progress.refusals >= 2)
        await until(lambda: puller.progress.retry_s >= 2.0)  # it waits twice as long each time
        assert opened <= 4, "the end of a refused stream is no reason to ask at once"
        assert branch.replication.figures()["hq"].refusals == puller.progress.refusals
        hq.links.accept = takes
        await hq.say("nodes", {"n": 1})
        branch.links.changed(hq.key)  # as when the peer's level is raised
        await branch.has(hq, 1)
        await until(lambda: puller.progress.state == "current")
        found = branch.replication.figures()["hq"]
        assert (found.behind, found.current, found.entries) == (0, True, 2)


async def _puller(at: TestPool, of: TestPool) -> Puller:
    await until(lambda: of.key in at.replication.pullers)
    return at.replication.pullers[of.key]
