"""TLS to the upstream, against a real server: every sslmode, channel binding, client certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import psycopg
import pytest

from qgate.governance.directory import Route
from qgate.postgres.back import ConnectCache, connect
from qgate.postgres.login import UpstreamError
from qgate.postgres.tls import attempts
from tests.qgate.tls_server import SECRET, TlsServer, tls_server
from tests.qgate.wire import app, wire
from tunnel_proto import pgwire
from tunnel_proto.errors import ConfigError

__all__ = ["tls_server"]
PASSWORDS: Mapping[str, tuple[bytes, ...]] = {"shop": (SECRET.encode(),)}


async def method_of(route: Route, **more: bytes) -> str:
    upstream = await connect(route, route.user, [SECRET.encode()], parameters={}, client_key=more.get("key"))
    facts = (upstream.method, upstream.tls_facts() != "")
    assert await upstream.ask("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [
        ["t" if facts[1] else "f"]
    ]
    upstream.close()
    while not upstream.lost:
        await asyncio.sleep(0.001)
    return f"{facts[0]} {'over TLS' if facts[1] else 'bare'}"


async def cause_of(route: Route) -> str:
    with pytest.raises(UpstreamError) as caught:
        await connect(route, route.user, [SECRET.encode()], parameters={})
    return caught.value.cause


@pytest.mark.parametrize(
    ("user", "fields", "expected"),
    [
        ("scram_user", {}, "scram-sha-256-plus over TLS"),
        ("scram_user", {"channel_binding": "require"}, "scram-sha-256-plus over TLS"),
        ("scram_user", {"channel_binding": "disable"}, "scram-sha-256 over TLS"),
        ("scram_user", {"sslmode": "verify-ca"}, "scram-sha-256-plus over TLS"),
        ("scram_user", {"sslmode": "require", "sslrootcert": None}, "scram-sha-256-plus over TLS"),
        ("scram_user", {"sslmode": "prefer", "sslrootcert": None}, "scram-sha-256-plus over TLS"),
        ("scram_user", {"sslmode": "allow", "sslrootcert": None}, "scram-sha-256-plus over TLS"),
        ("bare_user", {"sslmode": "disable"}, "scram-sha-256 bare"),
        ("bare_user", {"sslmode": "prefer"}, "scram-sha-256 bare"),
        ("bare_user", {"sslmode": "allow"}, "scram-sha-256 bare"),
        ("md5_user", {}, "md5 over TLS"),
        ("clear_user", {}, "password over TLS"),
    ],
)
async def test_what_works(tls_server: TlsServer, user: str, fields: dict[str, object], expected: str) -> None:
    assert await method_of(tls_server.route(user, **fields)) == expected


@pytest.mark.parametrize(
    ("user", "fields", "words"),
    [
        ("scram_user", {"sslrootcert": "STRANGER"}, "certificate verify failed"),
        ("scram_user", {"sslmode": "verify-ca", "sslrootcert": "STRANGER"}, "certificate verify failed"),
        ("scram_user", {"sslmode": "require", "sslrootcert": "STRANGER"}, "certificate verify failed"),
        ("scram_user", {"sslrootcert": "system"}, "certificate verify failed"),
        ("scram_user", {"host": "localhost"}, "localhost"),
        ("scram_user", {"sslmode": "disable"}, "28000"),
        ("bare_user", {"sslmode": "require"}, "28000"),
        ("md5_user", {"channel_binding": "require"}, "channel binding"),
        ("scram_user", {"sslrootcert": "/nowhere/root.crt"}, "cannot be used"),
        ("scram_user", {"sslmode": "sometimes"}, "is not one of"),
        ("cert_user", {}, "28000"),
    ],
)
async def test_what_is_refused(
    tls_server: TlsServer, user: str, fields: dict[str, object], words: str
) -> None:
    if fields.get("sslrootcert") == "STRANGER":
        fields = {**fields, "sslrootcert": tls_server.stranger}
    if "host" in fields:
        fields = {"hosts": ((fields["host"], tls_server.port),)}
    assert words in await cause_of(tls_server.route(user, **fields))


async def test_a_client_certificate_logs_in(tls_server: TlsServer) -> None:
    route = tls_server.route("cert_user", sslcert=tls_server.client_certificate)
    assert await method_of(route, key=tls_server.client_key) == "none over TLS"
    damaged = tls_server.route(
        "cert_user", sslcert="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"
    )
    assert "cannot be used" in await cause_of(damaged)


async def test_contexts_are_made_once_a_route(tls_server: TlsServer) -> None:
    cache = ConnectCache()
    route = tls_server.route("scram_user")
    assert cache.context(route, None) is cache.context(route, None)
    assert cache.context(route, None) is not cache.context(
        tls_server.route("scram_user", sslmode="require"), None
    )


async def test_the_relay_and_its_cancel_go_over_tls(tls_server: TlsServer) -> None:
    route = tls_server.route("scram_user", name="shop")
    async with wire([app()], [route], PASSWORDS) as running:
        connection = await psycopg.AsyncConnection.connect(running.dsn(), autocommit=True)
        cursor = await connection.execute(
            "SELECT ssl, pg_backend_pid() FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert await cursor.fetchone() == (True, connection.info.backend_pid)
        task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        while not any(session.state == "active" for session in running.front.live):
            await asyncio.sleep(0.005)
        await connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await task
        big = await connection.execute("SELECT sum(length(repeat('x', 1000))) FROM generate_series(1, 1000)")
        assert await big.fetchone() == (1_000_000,)
        await connection.close()


async def test_an_older_server_speaks_3_0_to_a_3_2_client(tls_server: TlsServer) -> None:
    route = tls_server.route("scram_user", name="shop")
    async with wire([app()], [route], PASSWORDS) as running:
        connection = await psycopg.AsyncConnection.connect(running.dsn(max_protocol_version="3.2"))
        (live,) = running.front.live
        assert live.lease is not None
        assert (live.lease.upstream.version, len(live.lease.upstream.key)) == (pgwire.PROTOCOL_3_0, 4)
        assert len(live.cancel_key) == 32
        await connection.close()


def test_attempts_follow_libpq() -> None:
    assert attempts("prefer", socket_directory=False) == (True, False)
    assert attempts("allow", socket_directory=False) == (False, True)
    assert attempts("verify-full", socket_directory=True) == (False,)
    with pytest.raises(ConfigError):
        attempts("yes", socket_directory=False)
