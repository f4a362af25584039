"""Limits of time hold whatever a client leaves half said, and a cancel hits what it was meant for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from qgate.governance.directory import Limits, Route, with_limits
from qgate.postgres.back import connect, send_cancel
from qgate.postgres.cancels import MAX_CANCELS
from qgate.postgres.conversation import Conversation
from qgate.postgres.fingerprint import Fingerprints
from qgate.postgres.timeouts import CANCEL_GRACE_S, Timeouts
from qgate.postgres.upstream import Endpoint
from tests.qgate.apps import logged_in, take
from tests.qgate.hostile import Peer, hostile
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import Wire, WireStream, app, wire
from tunnel_proto import pgwire
from tunnel_proto.pgwire import PostgresError, message, query, ready_for_query

__all__ = ["shop", "upstream_cluster"]
PARSE = message(b"P", b"\0SELECT pg_sleep(60)\0\0\0")
BIND, EXECUTE = message(b"B", b"\0\0\0\0\0\0\0\0"), message(b"E", b"\0\0\0\0\0")
COPY_IN = message(b"G", b"\0\0\0")
LONG = query("SELECT '" + "x" * 20_000 + "'")


# --- what is due


class Clocked:
    """A conversation at times that a test tells, under limits of 1 s (statement), 2 s (transaction), 4 s."""

    def __init__(self) -> None:
        self.talk = Conversation(fingerprints=Fingerprints(), finished=lambda *_: None)
        limits = Limits(statement_timeout_s=1.0, idle_in_transaction_s=2.0, idle_timeout_s=4.0)
        self.timeouts = Timeouts(limits, Limits(statement_timeout_s=9.0))

    def due(self, now: float) -> str | None:
        found = self.timeouts.check(self.talk, now)
        assert self.timeouts.next_check > now
        return found.sqlstate if isinstance(found, PostgresError) else found

    def first(self, until: float = 30.0) -> tuple[float, str | None]:
        """When something is due first, looking only when told to."""
        now = 0.0
        while now < until:
            found = self.due(now)
            if found is not None:
                return round(now, 3), found
            now = self.timeouts.next_check
        return until, None


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ([], (4.0, "57P05")),
        ([query("SELECT pg_sleep(60)")], (1.0, "cancel")),
        ([query("SELECT pg_sleep(60)"), b"Q"], (1.0, "cancel")),
        ([query("SELECT pg_sleep(60)"), LONG[:9000]], (1.0, "cancel")),
        ([PARSE + BIND + EXECUTE + pgwire.SYNC], (1.0, "cancel")),
        ([PARSE + BIND + EXECUTE + pgwire.FLUSH], (1.0, "cancel")),
        ([PARSE + BIND + EXECUTE + pgwire.FLUSH, b"S\0"], (1.0, "cancel")),
        ([PARSE + BIND + EXECUTE + PARSE], (1.0, "cancel")),
        ([b"Q"], (4.0, "57P05")),
        ([LONG[:9000]], (4.0, "57P05")),
        ([PARSE + pgwire.FLUSH], (2.0, "25P03")),
        ([PARSE + pgwire.SYNC], (30.0, None)),
    ],
)
def test_a_limit_goes_by_what_the_server_does(said: list[bytes], due: tuple[float, str | None]) -> None:
    clocked = Clocked()
    for data in said:
        clocked.talk.frontend(data, 0.0)
    assert clocked.first() == due


def test_a_copy_waits_for_the_client_and_holds_its_transaction() -> None:
    clocked = Clocked()
    clocked.talk.frontend(query("COPY t FROM STDIN"), 0.0)
    clocked.talk.backend(COPY_IN, 0.5)
    clocked.talk.frontend(message(b"d", b"1\n"), 1.9)
    assert clocked.due(3.8) is None
    assert clocked.due(3.9) == "25P03"
    clocked.talk.frontend(message(b"c"), 4.0)
    assert clocked.due(4.1) == "cancel"  # it ran since 0.0


@pytest.mark.parametrize("status", [b"T", b"E"])
def test_an_open_transaction_has_a_limit_of_its_own(status: bytes) -> None:
    clocked = Clocked()
    clocked.talk.frontend(query("BEGIN"), 0.0)
    clocked.talk.backend(ready_for_query(status), 0.0)
    clocked.talk.frontend(b"Q", 0.0)
    assert clocked.first() == (2.0, "25P03")


def test_what_goes_on_after_its_cancel_is_ended() -> None:
    clocked = Clocked()
    clocked.talk.frontend(query("SELECT 1"), 0.0)
    assert [clocked.due(1.0), clocked.due(1.5), clocked.due(1.0 + CANCEL_GRACE_S)] == [
        "cancel",
        None,
        "57014",
    ]


def test_each_statement_is_cancelled_for_itself() -> None:
    clocked = Clocked()
    for at in (0.0, 5.0):
        clocked.talk.frontend(query("SELECT 1"), at)
        assert clocked.due(at + 1.0) == "cancel"
        clocked.talk.timeout_cancel = True
        clocked.talk.backend(message(b"C", b"SELECT 1\0") + ready_for_query(), at + 1.5)
        assert not clocked.talk.timeout_cancel


@pytest.mark.parametrize(
    ("said", "code"), [(PARSE + BIND + EXECUTE + pgwire.FLUSH, "57014"), (PARSE + pgwire.FLUSH, "25P03")]
)
async def test_limits_hold_without_a_sync_on_a_real_server(shop: Route, said: bytes, code: str) -> None:
    limits = with_limits(Limits(), {"statement_timeout_s": 0.2, "idle_in_transaction_s": 0.2})
    async with wire([app(limits=limits)], [shop], PASSWORDS) as running:
        stream = await logged_in(running)
        stream.arrive(said + b"S")
        while (found := await take(stream))[0] != b"E":
            pass
        assert pgwire.parse_report(found[1])["C"] == code
        stream.close()


# --- cancels

DONE = message(b"C", b"SELECT 1\0") + ready_for_query()


def ask_to_cancel(running: Wire) -> WireStream:
    """Send the cancel request of the only session; its stream, which ends when the cancel was taken."""
    (live,) = running.front.live
    assert live.lease is not None
    request = WireStream({"pid": live.lease.upstream.pid, "key": live.cancel_key})
    running.front.cancel(running.peer, request)  # type: ignore[arg-type]
    return request


def overdue(running: Wire) -> None:
    (live,) = running.front.live
    assert live.conversation is not None
    live._cancel_overdue(live.conversation)


@pytest.mark.parametrize("ask", [ask_to_cancel, overdue])
async def test_a_cancel_that_comes_too_late_is_not_sent(ask: Callable[[Wire], object]) -> None:
    second = asyncio.Event()

    async def served(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        peer.send(DONE)
        await peer.message()
        await second.wait()
        peer.send(DONE)
        await peer.reader.read()

    async def courier(peer: Peer) -> None:
        assert await peer.reader.read() == b"", "the next statement was cancelled"

    async with hostile(served, courier) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        couriers = running.front._cancels._couriers
        for _ in range(MAX_CANCELS):
            await couriers.take(1.0)
        stream.arrive(query("SELECT 1"))
        ask(running)
        while not couriers.waiting:
            await asyncio.sleep(0)
        await take(stream, b"C")
        stream.arrive(query("SELECT 2"))
        couriers.give()
        while server.connections < 2 or couriers.taken >= MAX_CANCELS:
            await asyncio.sleep(0.002)
        (live,) = running.front.live
        assert live.lease is not None
        assert live.conversation is not None
        assert not live.lease.upstream.cancelled
        assert not live.conversation.timeout_cancel
        second.set()
        await take(stream, b"Z")
        await take(stream, b"C")
        stream.close()


async def test_nothing_new_reaches_the_server_before_it_has_taken_a_cancel() -> None:
    taken, arrived, heard = asyncio.Event(), asyncio.Event(), asyncio.Queue[bytes]()

    async def served(peer: Peer) -> None:
        await peer.log_in()
        await peer.message()
        await arrived.wait()
        peer.send(pgwire.error_response("ERROR", "57014", "canceling statement"), ready_for_query())
        while True:
            kind, payload = await peer.message()
            heard.put_nowait(payload)
            if kind == b"X":
                return
            peer.send(DONE)

    async def courier(peer: Peer) -> None:
        assert pgwire.parse_startup(await peer.packet()) == pgwire.CancelRequest(4711, b"key!")
        arrived.set()
        await taken.wait()

    async with hostile(served, courier) as server, wire([app()], [server.route()], {}) as running:
        stream = await logged_in(running)
        stream.arrive(query("SELECT 1"))
        request = ask_to_cancel(running)
        await take(stream, b"E")
        await take(stream, b"Z")
        stream.arrive(query("SELECT 2"))
        stream.receiver.eof_received()
        assert heard.empty()
        assert request.reset_with is None
        taken.set()
        assert await heard.get() == b"SELECT 2\0"
        await request.until(lambda: request.reset_with is not None)
        await take(stream, b"C")
        await take(stream, b"Z")
        stream.close()


async def test_a_cancel_goes_to_the_address_that_was_connected_to() -> None:
    async def normal(peer: Peer) -> None:
        await peer.log_in()
        await peer.answer()

    seen: list[object] = []

    async def courier(peer: Peer) -> None:
        seen.append(pgwire.parse_startup(await peer.packet()))

    async with hostile(normal, courier) as server:
        route = server.route(hosts=(("localhost", server.port),))
        upstream = await connect(route, "owner", [], parameters={})
        upstream.endpoint = Endpoint("elsewhere.invalid", 1)  # as if the name had moved
        await send_cancel(upstream, 2.0)
        assert seen == [pgwire.CancelRequest(4711, b"key!")]
        upstream.close()
