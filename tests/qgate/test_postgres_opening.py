"""Between an app's first word and its first statement: what changes, fails or ends meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qgate.governance.directory import Limits, Route
from qgate.postgres.front import PostgresFront
from tests.kit.cluster import Cluster
from tests.qgate.apps import begin, connect, finish, logged_in, sasl_data, take
from tests.qgate.hostile import Hostile, Peer, hostile
from tests.qgate.shop import PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import PASSWORD, SALT, Wire, WireStream, app, wire
from tunnel_proto import pgwire, scram

__all__ = ["shop", "upstream_cluster"]


async def prove(stream: WireStream, client: scram.ScramClient, *more: bytes) -> None:
    """Send the proof and whatever follows it in the same packet."""
    challenge = client.challenge(await sasl_data(stream))
    keys = scram.derive_keys(PASSWORD.encode(), challenge.salt, challenge.iterations)
    stream.arrive(pgwire.sasl_response(client.final(keys)) + b"".join(more))


# --- what changes meanwhile


@pytest.mark.parametrize(
    "changed",
    [
        {"revoked": True},
        {"expires_at": 1.0},
        {"verifiers": ((scram.make_verifier(b"new", salt=SALT), None),)},
        {"databases": frozenset({"elsewhere"})},
        {"sidecars": frozenset({"desktop"})},
        {"read_only": True},
        {"statement_classes": frozenset({"select"})},
    ],
)
async def test_an_app_that_changes_while_it_logs_in_stays_outside(
    shop: Route, changed: dict[str, Any]
) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream, client = await begin(running, "web")
        running.change(apps=[app(**changed)])
        error = await finish(stream, client, PASSWORD)
        assert (error["C"], error["S"]) == ("28P01", "FATAL")
        assert running.front.pool.counts() == {}
        assert [event.outcome for event in running.audit.events] == ["28P01"]


async def test_other_limits_are_no_reason_to_refuse_a_log_in_under_way(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream, client = await begin(running, "web")
        running.change(apps=[app(limits=Limits(idle_timeout_s=9.0))])
        await prove(stream, client)
        while (await take(stream))[0] != b"Z":
            pass
        (live,) = running.front.live
        assert live.app is not None
        assert live.app.limits.idle_timeout_s == 9.0
        stream.close()


# --- what ends meanwhile


@asynccontextmanager
async def unanswered() -> AsyncIterator[tuple[Hostile, asyncio.Event]]:
    """A server that takes connections and says nothing, and whether it was left."""
    left = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.reader.read()
        left.set()

    async with hostile(silent) as server:
        yield server, left


@pytest.mark.parametrize("ending", ["stream", "revoked"])
async def test_a_session_that_ends_while_it_opens_leaves_no_place_taken(ending: str) -> None:
    one = app(limits=Limits(max_connections=1, queue=0))
    async with unanswered() as (server, left), wire([one], [server.route()], {}) as running:
        stream, client = await begin(running, "web")
        await prove(stream, client)
        while not server.connections:
            await asyncio.sleep(0.005)
        if ending == "stream":
            stream.close()
        else:
            running.change(apps=[app(revoked=True)])
            await stream.until(lambda: stream.eof_written)
        await asyncio.wait_for(left.wait(), 20)
        stream.close()
        assert not running.front._app_slots
        assert running.front.pool.counts() == {"shop": (0, 0, 0)}


# --- what fails meanwhile


async def fatal(stream: WireStream) -> dict[str, str]:
    """The fields of the error that ends ``stream``."""
    while (found := await take(stream))[0] != b"E":
        pass
    await stream.until(lambda: stream.eof_written)
    stream.close()
    return pgwire.parse_report(found[1])


def nothing_left(running: Wire) -> bool:
    return not running.front._app_slots and all(
        taken == (0, 0, 0) for taken in running.front.pool.counts().values()
    )


async def test_an_unexpected_fault_while_opening_is_told_and_leaves_nothing(
    shop: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_lease", "opened", "admit"):
        async with wire([app()], [shop], PASSWORDS) as running:
            with monkeypatch.context() as patch:
                patch.setattr(PostgresFront, name, _broken)
                stream, client = await begin(running, "web")
                await prove(stream, client)
                assert (await fatal(stream))["C"] == "XX000"
            while running.front.pool._tasks:
                await asyncio.sleep(0.005)
            assert nothing_left(running)
            assert [event.outcome for event in running.audit.of("session.refused")] == ["XX000"]
            await (await connect(running)).close()


def _broken(*_: object) -> None:
    raise RuntimeError("nobody expects this")


async def test_credentials_that_are_not_there_are_the_gates_own_trouble(shop: Route) -> None:
    keyed = dataclasses.replace(shop, sslkey_secret="nowhere")
    async with wire([app()], [keyed], PASSWORDS) as running:
        stream, client = await begin(running, "web")
        await prove(stream, client)
        error = await fatal(stream)
        assert (error["C"], "cannot open its credentials" in error["M"]) == ("08001", True)
        assert nothing_left(running)


async def test_a_password_that_cannot_be_promoted_leaves_no_connection_open(
    shop: Route, upstream_cluster: Cluster
) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'web@laptop'"
    passwords = {"shop": (b"an old one", *PASSWORDS["shop"])}
    async with wire([app()], [shop], passwords) as running:
        running.directory.on_promotion(_broken)
        stream, client = await begin(running, "web")
        await prove(stream, client)
        assert (await fatal(stream))["C"] == "XX000"
        assert nothing_left(running)
        async with asyncio.timeout(60):
            while await asyncio.to_thread(upstream_cluster.scalar, count) != 0:
                await asyncio.sleep(0.02)


# --- what was sent ahead


async def test_what_follows_the_proof_at_once_is_credited_once(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream, client = await begin(running, "web")
        await prove(stream, client, pgwire.query("SELECT 7"), pgwire.query("SELECT 8"))
        answers = 0
        while answers < 3:
            answers += (await take(stream))[0] == b"Z"
        assert stream.uncredited == 0
        stream.close()
        (await logged_in(running)).close()
