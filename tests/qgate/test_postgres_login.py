"""Who may come in: an app's log-in at the gate, and what strangers learn from it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from qgate.governance.directory import App, Route
from qgate.postgres.strikes import CAPACITY, FORGOTTEN_AFTER_S, Strikes
from qgate.settings import PostgresSettings
from tests.qgate.apps import begin, connect, fetch, finish, logged_in, refused, sasl_data, take
from tests.qgate.shop import OWNER_PASSWORD, PASSWORDS, shop, upstream_cluster
from tests.qgate.wire import PASSWORD, SALT, WireStream, app, wire
from tunnel_proto import pgwire, scram
from tunnel_proto.constants import StreamCode

__all__ = ["shop", "upstream_cluster"]


def strangers() -> list[App]:
    now = time.time()
    verifier = scram.make_verifier(PASSWORD.encode(), salt=SALT)
    return [
        app(),
        app("revoked", revoked=True),
        app("expired", expires_at=now - 1),
        app("elsewhere", sidecars=frozenset({"desktop"})),
        app("past", verifiers=((verifier, now - 1),)),
        app("unbound", databases=frozenset()),
    ]


@pytest.mark.parametrize("user", ["nobody", "revoked", "expired", "elsewhere", "past", "unbound", "web"])
async def test_every_refused_log_in_looks_like_a_wrong_password(shop: Route, user: str) -> None:
    password = "wrong" if user == "web" else PASSWORD
    async with wire(strangers(), [shop], PASSWORDS) as running:
        stream, client = await begin(running, user)
        error = await finish(stream, client, password)
        assert (error["C"], error["S"]) == ("28P01", "FATAL")
        assert error["M"] == f'password authentication failed for user "{user}"'
        if user != "expired":  # it alone has proven a password, so it may hear more
            assert set(error) == {"S", "V", "C", "M"}
        (event,) = running.audit.of("session.refused")
        assert event.outcome == "28P01"
        reasons = {"web": "password", "nobody": "unknown", "past": "verifier", "unbound": "verifier"}
        reasons["elsewhere"] = "sidecar"
        assert event.detail == {"reason": reasons.get(user, user)}


async def test_an_unknown_user_is_shown_the_same_salt_each_time_and_the_usual_count(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        seen = []
        for user in ("nobody", "nobody", "web"):
            stream, client = await begin(running, user)
            challenge = client.challenge(await sasl_data(stream))
            seen.append((challenge.salt, challenge.iterations))
            stream.close()
        assert seen[0] == seen[1] != seen[2]
        assert len(seen[0][0]) == len(seen[2][0])
        assert seen[0][1] == seen[2][1]


async def test_authentication_is_sent_as_sensitive_and_nothing_else_is(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream = await logged_in(running)
        login = len(stream.sensitive)
        stream.arrive(pgwire.query("SELECT 1"))
        while (await take(stream))[0] != b"Z":
            pass
        assert login == len(stream.sensitive) == 3
        assert stream.compression == "auto"
        stream.close()


async def test_minigate_may_have_sent_the_sasl_request_itself(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        (await logged_in(running, sasl_sent=True)).close()


async def test_channel_binding_to_minigates_certificate(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        (await logged_in(running, tls=True, plus=True, cbind=b"h" * 32)).close()
        stream, client = await begin(running, "web", tls=True, plus=True, cbind=b"h" * 32)
        client._binding = b"x" * 32
        assert (await finish(stream, client, PASSWORD))["C"] == "28P01"


async def test_both_passwords_fit_during_an_overlap(shop: Route) -> None:
    now = time.time()
    verifiers = tuple(
        (scram.make_verifier(password, salt=SALT), until)
        for password, until in ((b"new", None), (PASSWORD.encode(), now + 60))
    )
    async with wire([app(verifiers=verifiers)], [shop], PASSWORDS) as running:
        for password in ("new", PASSWORD):
            await (await connect(running, password=password)).close()


async def test_an_empty_database_means_the_user_name(shop: Route) -> None:
    async with wire([app("shop")], [shop], PASSWORDS) as running:
        async with await connect(running, user="shop", database="shop") as connection:
            assert await fetch(connection, "SELECT 1") == [(1,)]
        packet = pgwire.startup_packet(pgwire.PROTOCOL_3_0, {"user": "shop", "database": ""})
        (await logged_in(running, "shop", startup=packet)).close()


@pytest.mark.parametrize("database", ["missing", "secret"])
async def test_an_unknown_and_a_forbidden_database_cannot_be_told_apart(shop: Route, database: str) -> None:
    secret = dataclasses.replace(shop, name="secret")
    async with wire([app()], [shop, secret], PASSWORDS) as running:
        error = await refused(running, database=database)
        assert f'database "{database}" does not exist' in str(error)
        assert "This app may use shop." in str(error)
        assert running.audit.of("session.refused")[0].outcome == "3D000"


async def test_a_log_in_that_takes_too_long_is_ended(shop: Route) -> None:
    settings = PostgresSettings(login_timeout_s=1.0)
    async with wire([app()], [shop], PASSWORDS, settings) as running:
        stream, _ = await begin(running, "web")
        await take(stream, b"R")
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["M"] == "canceling authentication due to timeout"
        stream.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"Q\0\0\0\5\0",
        b"p\0\0\0\3",
        b"p\0\1\0\0",
        b"p\0\0\0\5\0",
        b"X\0\0\0\4",
        b"\0" * 50,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_junk_in_place_of_a_proof(shop: Route, junk: bytes) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        packet = pgwire.startup_packet(pgwire.PROTOCOL_3_0, {"user": "web", "database": "shop"})
        stream = WireStream(running.metadata(packet))
        running.front.accept(running.peer, stream)  # type: ignore[arg-type]
        await take(stream, b"R")
        stream.arrive(junk)
        _, payload = await take(stream, b"E")
        assert pgwire.parse_report(payload)["C"] in {"08P01", "08006"}
        assert stream.eof_written
        assert stream.uncredited == 0
        stream.close()


@pytest.mark.parametrize(
    "metadata", [{}, {"startup": b"junk"}, {"startup": "text"}, {"startup": pgwire.SSL_REQUEST}]
)
async def test_a_malformed_stream_is_reset(shop: Route, metadata: dict[str, Any]) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        stream = WireStream(metadata)
        running.front.accept(running.peer, stream)  # type: ignore[arg-type]
        assert stream.reset_with is not None
        assert stream.reset_with[0] == StreamCode.PROTOCOL


async def test_no_session_begins_while_the_audit_is_full(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        running.audit.accepting = False
        assert "cannot record" in str(await refused(running))


async def test_an_upstream_that_cannot_be_reached_is_named_without_its_address(shop: Route) -> None:
    dead = dataclasses.replace(shop, hosts=(("127.0.0.1", 1),))
    async with wire([app()], [dead], PASSWORDS) as running:
        text = str(await refused(running))
        assert 'database "shop": the database server cannot be reached' in text
        assert "meshctl db check shop" in text
        assert "shop_owner" not in text


async def test_a_wrong_upstream_password_is_not_blamed_on_the_app(shop: Route) -> None:
    async with wire([app()], [shop], {"shop": (b"wrong",)}) as running:
        assert "refused the gate's credentials" in str(await refused(running))
        assert running.audit.of("session.refused")[0].outcome == "08004"


async def test_a_pending_upstream_password_is_found_and_promoted(shop: Route) -> None:
    async with wire([app()], [shop], {"shop": (b"stale", OWNER_PASSWORD.encode())}) as running:
        promoted: list[tuple[str, bool]] = []
        running.directory.on_promotion(lambda name, read_only: promoted.append((name, read_only)))
        await (await connect(running)).close()
        assert promoted == [("shop", False)]
        assert running.directory.passwords(shop, read_only=False)[0] == OWNER_PASSWORD.encode()


# --- guessing


def test_each_further_failure_costs_twice_as_much_up_to_a_bound() -> None:
    strikes = Strikes()
    holds = [strikes.failed("web", "laptop", float(at)) for at in range(8)]
    assert holds == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert strikes.failed("web", "desktop", 8.0) == strikes.failed("other", "laptop", 8.0) == 0.0
    assert strikes.failed("web", "laptop", 8.0 + FORGOTTEN_AFTER_S) == 0.0
    for _ in range(3):
        strikes.failed("web", "laptop", 70.0)
    strikes.succeeded("web", "laptop")
    assert strikes.failed("web", "laptop", 70.0) == 0.0


def test_memory_of_failures_is_bounded() -> None:
    strikes = Strikes()
    for i in range(CAPACITY + 10):
        strikes.failed(f"app {i}", "laptop", 0.0)
    assert len(strikes._failures) == CAPACITY


async def test_a_guesser_waits_and_whoever_knows_the_password_does_not(shop: Route) -> None:
    async with wire([app()], [shop], PASSWORDS) as running:
        for held in (False, False, True):
            stream, client = await begin(running, "web")
            challenge = client.challenge(await sasl_data(stream))
            keys = scram.derive_keys(b"a guess", challenge.salt, challenge.iterations)
            stream.arrive(pgwire.sasl_response(client.final(keys)))
            assert bool(stream.out) != held
            stream.arrive(pgwire.query("SELECT 'ahead of its time'"))
            if held:
                (await logged_in(running)).close()
                assert not stream.out
            _, payload = await take(stream, b"E")
            assert pgwire.parse_report(payload)["C"] == "28P01"
            stream.close()
