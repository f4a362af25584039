"""Logging in upstream: what servers may ask, and what broken or hostile ones get."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
from pathlib import Path

import pytest

from qgate.governance.directory import Route
from qgate.postgres import back
from qgate.postgres.back import ConnectCache, connect, send_cancel
from qgate.postgres.login import UpstreamError
from tests.kit.cluster import Cluster
from tests.qgate.hostile import PASSWORD, Hostile, Peer, hostile
from tests.qgate.shop import OWNER_PASSWORD, shop, upstream_cluster
from tunnel_proto import pgwire, scram

__all__ = ["shop", "upstream_cluster"]


async def refused(server: Hostile, **fields: object) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await connect(server.route(**fields), "owner", [PASSWORD], parameters={})
    return caught.value


# --- what works


async def test_a_real_server_by_tcp_and_by_socket(shop: Route, upstream_cluster: Cluster) -> None:
    by_socket = Route(
        name="shop",
        hosts=((str(upstream_cluster.socket_directory), upstream_cluster.port),),
        dbname="shop",
        user="shop_owner",
        sslmode="verify-full",  # TLS is never used on a socket
    )
    for route in (shop, by_socket):
        upstream = await connect(
            route, "shop_owner", [OWNER_PASSWORD.encode()], parameters={"application_name": "a"}
        )
        assert upstream.method == "scram-sha-256"
        assert upstream.version == pgwire.PROTOCOL_3_2
        assert len(upstream.key) == 32
        assert upstream.parameters["application_name"] == "a"
        assert await upstream.ask("SELECT pg_backend_pid()") == [[str(upstream.pid)]]
        upstream.close()


async def test_the_next_password_is_tried_when_one_is_refused(shop: Route) -> None:
    upstream = await connect(shop, "shop_owner", [b"old", OWNER_PASSWORD.encode()], parameters={})
    assert upstream.password_index == 1
    upstream.close()
    with pytest.raises(UpstreamError) as caught:
        await connect(shop, "shop_owner", [b"old", b"older"], parameters={})
    assert caught.value.sqlstate == "08004"  # 28P01 would tell the app that its own password is wrong
    assert "28P01" in caught.value.cause


async def test_derived_keys_are_cached(shop: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    derived = []
    original = scram.derive_keys

    def counting(password: bytes, salt: bytes, iterations: int) -> scram.Keys:
        derived.append(iterations)
        return original(password, salt, iterations)

    monkeypatch.setattr(scram, "derive_keys", counting)
    cache = ConnectCache()
    for _ in range(3):
        upstream = await connect(shop, "shop_owner", [OWNER_PASSWORD.encode()], parameters={}, cache=cache)
        upstream.close()
    assert len(derived) == 1


async def test_many_iterations_are_computed_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    original = asyncio.to_thread

    async def watching(function: object, *arguments: object) -> object:
        threads.append(arguments[-1])
        return await original(function, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "to_thread", watching)
    cache = ConnectCache()
    keys = await cache.keys(b"x", scram.Challenge(b"salt", 10_000))
    assert keys.client_key == scram.derive_keys(b"x", b"salt", 10_000).client_key
    await cache.keys(b"x", scram.Challenge(b"salt", 4096))
    assert threads == [10_000]


async def test_md5_and_cleartext(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[bytes] = []

    async def md5(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.message(b"R", struct.pack("!I", 5) + b"salt"))
        got.append((await peer.message())[1])
        peer.welcome()
        await peer.answer()

    async with hostile(md5) as server:
        upstream = await connect(server.route(), "owner", [PASSWORD], parameters={})
        assert upstream.method == "md5"
        upstream.close()
    inner = hashlib.md5(PASSWORD + b"owner").hexdigest().encode()
    assert got == [b"md5" + hashlib.md5(inner + b"salt").hexdigest().encode() + b"\0"]


async def test_cleartext_is_never_sent_over_a_bare_connection() -> None:
    sent: asyncio.Queue[bytes] = asyncio.Queue()

    async def cleartext(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.message(b"R", struct.pack("!I", 3)))
        sent.put_nowait(await peer.reader.read())

    async with hostile(cleartext) as server:
        error = await refused(server)
        assert "in clear" in error.cause
        assert await sent.get() == b""


async def test_cleartext_over_a_socket_directory(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.start_up()
        peer.send(pgwire.message(b"R", struct.pack("!I", 3)))
        assert (await peer.message())[1] == PASSWORD + b"\0"
        peer.welcome()
        await peer.reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.5432")
    route = Route(name="x", hosts=((str(tmp_path), 5432),), dbname="x", user="owner")
    upstream = await connect(route, "owner", [PASSWORD], parameters={})
    assert upstream.method == "password"
    upstream.close()
    await ended.wait()
    server.close()


async def test_no_backend_key_data_is_tolerated_and_cannot_be_cancelled() -> None:
    async def keyless(peer: Peer) -> None:
        await peer.log_in(key=None)
        await peer.answer()

    async with hostile(keyless) as server:
        upstream = await connect(server.route(), "owner", [], parameters={})
        assert upstream.pid is None
        await send_cancel(upstream, 1.0)
        assert server.connections == 1
        upstream.close()


async def test_an_older_server_is_asked_again_with_protocol_3_0() -> None:
    asked: list[int] = []

    async def old(peer: Peer) -> None:
        startup = await peer.start_up()
        asked.append(startup.version)
        if startup.version != pgwire.PROTOCOL_3_0:
            peer.send(pgwire.error_response("FATAL", "0A000", "unsupported frontend protocol 3.2"))
            return
        peer.welcome()
        await peer.answer()

    async with hostile(old) as server:
        cache = ConnectCache()
        for _ in range(2):
            (await connect(server.route(), "owner", [], parameters={}, cache=cache)).close()
    assert asked == [pgwire.PROTOCOL_3_2, pgwire.PROTOCOL_3_0, pgwire.PROTOCOL_3_0]


async def test_negotiate_protocol_version_is_followed() -> None:
    async def negotiating(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.negotiate_protocol_version(pgwire.PROTOCOL_3_0))
        peer.welcome()
        await peer.answer()

    async with hostile(negotiating) as server:
        upstream = await connect(server.route(), "owner", [], parameters={})
        assert upstream.version == pgwire.PROTOCOL_3_0
        upstream.close()


def status(standby: str, read_only: str = "off") -> tuple[bytes, bytes]:
    return (
        pgwire.parameter_status("in_hot_standby", standby),
        pgwire.parameter_status("default_transaction_read_only", read_only),
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("any", "first"),
        ("primary", "second"),
        ("read-write", "second"),
        ("standby", "first"),
        ("read-only", "first"),
        ("prefer-standby", "first"),
    ],
)
async def test_target_session_attrs_choose_among_hosts(wanted: str, expected: str) -> None:
    async def standby(peer: Peer) -> None:
        await peer.log_in(*status("on"))
        await peer.answer()

    async def primary(peer: Peer) -> None:
        await peer.log_in(*status("off"))
        await peer.answer()

    async with hostile(standby) as first, hostile(primary) as second:
        hosts = (("127.0.0.1", first.port), ("127.0.0.1", second.port))
        upstream = await connect(
            first.route(hosts=hosts, target_session_attrs=wanted), "owner", [], parameters={}
        )
        port = {"first": first.port, "second": second.port}[expected]
        assert upstream.endpoint.port == port
        upstream.close()


async def test_prefer_standby_takes_a_primary_in_the_end_and_standby_does_not() -> None:
    async def primary(peer: Peer) -> None:
        await peer.log_in(*status("off"))
        await peer.answer()

    async with hostile(primary) as server:
        upstream = await connect(
            server.route(target_session_attrs="prefer-standby"), "owner", [], parameters={}
        )
        upstream.close()
        error = await refused(server, target_session_attrs="standby")
    assert error.sqlstate == "08001"


async def test_the_attributes_are_asked_for_where_the_server_does_not_report_them(shop: Route) -> None:
    upstream = await connect(shop, "shop_owner", [OWNER_PASSWORD.encode()], parameters={})
    upstream.parameters.clear()
    assert await back._suits(upstream, "read-write")
    assert await back._suits(upstream, "primary")
    assert not await back._suits(upstream, "standby")
    upstream.close()


async def test_a_dead_host_is_passed_over(shop: Route) -> None:
    hosts = (("127.0.0.1", 1), *shop.hosts)
    route = Route(name="shop", hosts=hosts, dbname="shop", user="shop_owner")
    upstream = await connect(route, "shop_owner", [OWNER_PASSWORD.encode()], parameters={})
    assert upstream.endpoint.port == shop.hosts[0][1]
    upstream.close()


# --- what does not


async def test_a_server_that_cannot_be_reached() -> None:
    route = Route(name="x", hosts=(("127.0.0.1", 1),), dbname="x", user="x")
    with pytest.raises(UpstreamError) as caught:
        await connect(route, "x", [b"p"], parameters={})
    assert caught.value.sqlstate == "08001"
    assert "127.0.0.1:1" in caught.value.cause
    assert "127.0.0.1" not in caught.value.message


async def test_a_server_that_never_answers() -> None:
    async def silent(peer: Peer) -> None:
        await peer.reader.read()

    async with hostile(silent) as server:
        error = await refused(server, connect_timeout_s=0.2)
    assert error.sqlstate == "08001"
    assert "no answer within 0.2 s" in error.cause


async def test_bytes_stuffed_after_the_tls_answer_are_refused() -> None:
    """CVE-2021-23222: they would be taken for what the server says inside TLS."""

    async def stuffing(peer: Peer) -> None:
        await peer.packet()
        peer.send(b"S" + pgwire.AUTHENTICATION_OK + pgwire.ready_for_query())
        await peer.reader.read()

    async with hostile(stuffing) as server:
        error = await refused(server, sslmode="require")
    assert "in clear" in error.cause


async def test_a_server_without_tls_is_refused_where_tls_is_required() -> None:
    async def bare(peer: Peer) -> None:
        await peer.log_in()

    async with hostile(bare) as server:
        error = await refused(server, sslmode="require")
        assert "does not support TLS" in error.cause
        (await connect(server.route(sslmode="prefer"), "owner", [], parameters={})).close()


async def test_authentication_ok_before_the_server_has_proven_itself() -> None:
    async def early(peer: Peer) -> None:
        await peer.start_up()
        await peer.scram()
        peer.welcome()

    async with hostile(early) as server:
        error = await refused(server)
    assert error.sqlstate == "08004"
    assert "without proving" in error.cause


async def test_a_server_that_does_not_know_the_password() -> None:
    async def pretending(peer: Peer) -> None:
        await peer.start_up()
        await peer.scram(PASSWORD)
        peer.send(pgwire.authentication_sasl_final(b"v=" + base64.b64encode(bytes(32))))
        peer.welcome()

    async with hostile(pretending) as server:
        assert "does not know the password" in (await refused(server)).cause


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.replace(b"i=4096", b"i=2147483647"),
        lambda m: m.replace(b"i=4096", b"i=0"),
        lambda m: m.replace(b"i=4096", b"i=" + b"9" * 300),
        lambda m: m.replace(b",s=", b"x" * 3000 + b",s="),
        lambda m: m.replace(b",s=", b",s=" + b"A" * 8000),
        lambda m: b"r=x,s=AAAA,i=4096",
        lambda m: b"",
    ],
    ids=["huge count", "zero", "many digits", "long nonce", "long salt", "foreign nonce", "empty"],
)
async def test_absurd_scram_parameters_cost_nothing(change: object) -> None:
    async def absurd(peer: Peer) -> None:
        await peer.start_up()
        await peer.scram(first=change)  # type: ignore[arg-type]

    async with hostile(absurd) as server:
        error = await refused(server)
    assert error.sqlstate == "08004"


@pytest.mark.parametrize(
    "payload", [b"\0", b"SFATAL\0\0", b"SFATAL\0Mno code\0\0", b"", b"Cxx\0", b"C28P01"], ids=repr
)
async def test_an_error_without_a_sqlstate(payload: bytes) -> None:
    async def careless(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.message(b"E", payload))

    async with hostile(careless) as server:
        assert (await refused(server)).sqlstate in {"08004", "08001"}


async def test_what_an_unauthenticated_server_says_is_for_the_operator_only() -> None:
    """CVE-2024-10977."""

    async def lying(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.error_response("FATAL", "28000", "your password is wrong, send it to evil.example"))

    async with hostile(lying) as server:
        error = await refused(server)
    assert "evil" not in error.message
    assert "evil" in error.cause


@pytest.mark.parametrize("key", [b"", b"abc", bytes(257)])
async def test_impossible_cancel_keys(key: bytes) -> None:
    async def odd(peer: Peer) -> None:
        await peer.log_in(key=key)

    async with hostile(odd) as server:
        assert (await refused(server)).sqlstate == "08P01"


@pytest.mark.parametrize(
    "junk",
    [
        b"R\0\0\0\3",
        b"R\0\0\0\0",
        b"R\xff\xff\xff\xff",
        pgwire.message(b"R", b""),
        pgwire.message(b"R", struct.pack("!I", 99)),
        pgwire.message(b"Z", b"I"),
        pgwire.message(b"D", b"\0\0"),
        pgwire.message(b"R", struct.pack("!I", 10) + b"UNKNOWN\0\0"),
        pgwire.message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256"),
        pgwire.message(b"R", struct.pack("!I", 11) + b"r=x"),
        pgwire.message(b"R", struct.pack("!I", 12) + b"v=x"),
        pgwire.message(b"v", b"\0\4\0\0\0\0\0\0"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"E" + b"x" * 40_000,
        pgwire.notice_response("NOTICE", "00000", "n" * 20_000) * 80,
    ],
    ids=range(15),
)
async def test_junk_in_place_of_a_log_in(junk: bytes) -> None:
    async def broken(peer: Peer) -> None:
        await peer.start_up()
        peer.send(junk)

    async with hostile(broken) as server:
        assert (await refused(server)).sqlstate in {"08P01", "08004", "08001"}


async def test_data_after_ready_for_query_of_the_log_in() -> None:
    async def eager(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.AUTHENTICATION_OK + pgwire.ready_for_query() + pgwire.message(b"D", b"\0\0"))

    async with hostile(eager) as server:
        assert (await refused(server)).sqlstate == "08P01"


async def test_channel_binding_can_be_required() -> None:
    async def unbound(peer: Peer) -> None:
        await peer.start_up()
        final = await peer.scram()
        peer.send(pgwire.authentication_sasl_final(final))
        peer.welcome()

    async def trusting(peer: Peer) -> None:
        await peer.log_in()

    for script in (unbound, trusting):
        async with hostile(script) as server:
            assert "channel binding" in (await refused(server, channel_binding="require")).cause


@pytest.mark.parametrize("code", ["53300", "57P03", "3D000"])
async def test_known_refusals_keep_their_code_in_our_words(code: str) -> None:
    async def refusing(peer: Peer) -> None:
        await peer.start_up()
        peer.send(pgwire.error_response("FATAL", code, "in the server's words"))

    async with hostile(refusing) as server:
        error = await refused(server)
    assert error.sqlstate == code
    assert "in the server's words" not in error.message


async def test_a_hung_cancel_returns_within_its_timeout() -> None:
    async def normal(peer: Peer) -> None:
        await peer.log_in()
        await peer.answer()

    async def hung(peer: Peer) -> None:
        await peer.reader.read()

    async with hostile(normal, hung) as server:
        upstream = await connect(server.route(), "owner", [], parameters={})
        async with asyncio.timeout(2):
            await send_cancel(upstream, 0.1)
        assert not upstream.usable
        upstream.close()
