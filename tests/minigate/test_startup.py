"""The start-up conversation without sockets: every first packet, in any chunking."""

from __future__ import annotations

import json
import struct
from http import HTTPStatus
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigate.http_reply import http_error
from minigate.startup import (
    ALPN,
    ALPN_HTTP,
    BeginTls,
    Command,
    ForwardCancel,
    OpenHttp,
    OpenStream,
    Refuse,
    Send,
    StartupConversation,
    Wire,
    recognise,
)
from tunnel_proto.pgwire import (
    GSSENC_REQUEST,
    MAX_STARTUP_PACKET,
    SSL_REQUEST,
    cancel_request,
    parse_report,
    startup_packet,
)

STARTUP = startup_packet(0x0003_0000, {"user": "web", "database": "shop"})
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
HTTP = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _talk(*chunks: bytes, tls: bool = False) -> list[Command]:
    conversation = StartupConversation(tls_available=tls)
    commands: list[Command] = []
    for chunk in chunks:
        if not conversation.done:
            commands += conversation.receive(chunk)
    return commands


def _refusal(commands: list[Command]) -> tuple[str, str, str]:
    """Severity, SQLSTATE and message of the ErrorResponse that ends ``commands``."""
    command = commands[-1]
    assert isinstance(command, Refuse)
    assert command.reply[:1] == b"E"
    fields = parse_report(command.reply[5:])
    return fields["S"], fields["C"], fields["M"]


# --- recognising


@pytest.mark.parametrize(
    ("head", "wire"),
    [
        (b"", None),
        (b"\0", Wire.POSTGRESQL),
        (STARTUP, Wire.POSTGRESQL),
        (b"\x16", None),
        (CLIENT_HELLO, Wire.TLS),
        (b"\x16\x02", Wire.UNKNOWN),
        (b"P", None),
        (b"PO", None),
        (b"POST", None),
        (b"POST ", Wire.HTTP),
        (b"GET / HTTP/1.0", Wire.HTTP),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Wire.HTTP2),
        (b"PR", None),
        (b"POSTS", Wire.UNKNOWN),
        (b"get / ", Wire.UNKNOWN),
        (b"SSH-2.0-OpenSSH", Wire.UNKNOWN),
        (b"\x10\x14\0\x04MQTT", Wire.UNKNOWN),
        (b"\xff" * 40, Wire.UNKNOWN),
    ],
)
def test_first_bytes_tell_the_protocol(head: bytes, wire: Wire | None) -> None:
    assert recognise(head) is wire


@given(st.one_of(st.binary(max_size=40), st.sampled_from([STARTUP, SSL_REQUEST, HTTP, CLIENT_HELLO])))
def test_what_is_told_stays_told(data: bytes) -> None:
    told = [recognise(data[:size]) for size in range(len(data) + 1)]
    known = [one for one in told if one is not None]
    assert len(set(known)) <= 1
    assert told[: len(told) - len(known)] == [None] * (len(told) - len(known))


# --- PostgreSQL


_CONVERSATIONS = [
    STARTUP,
    STARTUP + b"p\0\0\0\x08late",
    SSL_REQUEST,
    GSSENC_REQUEST,
    cancel_request(7, b"1234"),
    cancel_request(7, b"k" * 256),
    HTTP,
    CLIENT_HELLO,
    b"\0\0\x27\x11" + b"x" * 20,
    b"\0\0\0\x07\0\0\0",
    startup_packet(0x0003_270F, {"user": "web", "_pq_.shine": "1"}),
    startup_packet(0x0002_0000, {"user": "web"}),
    b"garbage",
]


@given(
    data=st.sampled_from(_CONVERSATIONS),
    cuts=st.lists(st.integers(min_value=0, max_value=120), max_size=8),
    tls=st.booleans(),
)
def test_chunking_changes_nothing(data: bytes, cuts: list[int], tls: bool) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[start:end] for start, end in pairwise(edges)]
    whole, cut = _talk(data, tls=tls), _talk(*chunks, tls=tls)
    assert [type(command) for command in whole] == [type(command) for command in cut]
    for one, other in zip(whole, cut, strict=True):
        if isinstance(one, OpenStream) and isinstance(other, OpenStream):
            assert one.startup == other.startup  # what followed it comes by another way
        elif isinstance(one, OpenHttp) and isinstance(other, OpenHttp):
            assert one.rest.startswith(other.rest)
        elif isinstance(one, BeginTls) and isinstance(other, BeginTls):
            assert one.received.startswith(other.received)
        else:
            assert one == other


@given(st.lists(st.binary(max_size=60), max_size=12), st.booleans())
def test_no_bytes_make_it_fail(chunks: list[bytes], tls: bool) -> None:
    for command in _talk(*chunks, tls=tls):
        assert isinstance(command, Send | BeginTls | OpenStream | OpenHttp | ForwardCancel | Refuse)


@given(st.binary(max_size=200))
def test_no_start_up_packet_makes_it_fail(body: bytes) -> None:
    packet = struct.pack("!I", len(body) + 4) + body
    _talk(packet)
    _talk(SSL_REQUEST, packet)


@pytest.mark.parametrize(
    "requests",
    [(), (SSL_REQUEST,), (GSSENC_REQUEST,), (SSL_REQUEST, GSSENC_REQUEST), (GSSENC_REQUEST, SSL_REQUEST)],
)
def test_encryption_may_be_asked_for_in_any_order(requests: tuple[bytes, ...]) -> None:
    commands = _talk(*requests, STARTUP)
    assert commands[:-1] == [Send(b"N")] * len(requests)
    last = commands[-1]
    assert isinstance(last, OpenStream)
    assert (last.startup.user, last.startup.database) == ("web", "shop")
    assert last.startup.packet == STARTUP


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_encryption_is_asked_for_once(request_: bytes) -> None:
    assert _refusal(_talk(request_, request_))[:2] == ("FATAL", "0A000")


def test_after_gss_tls_is_still_possible() -> None:
    assert _talk(GSSENC_REQUEST, SSL_REQUEST, tls=True) == [Send(b"N"), Send(b"S"), BeginTls(b"")]


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
@pytest.mark.parametrize("tls", [False, True])
def test_bytes_stuffed_after_an_encryption_request_are_refused(request_: bytes, tls: bool) -> None:
    """CVE-2021-23222: whoever sits in between must not get his bytes read as the encrypted client's."""
    commands = _talk(request_ + STARTUP, tls=tls)
    assert not any(isinstance(command, Send | BeginTls | OpenStream) for command in commands)
    severity, sqlstate, message = _refusal(commands)
    assert (severity, sqlstate) == ("FATAL", "08P01")
    assert "unencrypted data" in message


def test_tls_then_start_up_or_cancel() -> None:
    for packet, kind in ((STARTUP, OpenStream), (cancel_request(1, b"key!"), ForwardCancel)):
        conversation = StartupConversation(tls_available=True)
        assert conversation.receive(SSL_REQUEST) == [Send(b"S"), BeginTls(b"")]
        assert conversation.tls_established(None) == []
        (command,) = conversation.receive(packet)
        assert isinstance(command, kind)
        assert conversation.encrypted


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_nothing_is_encrypted_twice(request_: bytes) -> None:
    conversation = StartupConversation(tls_available=True)
    conversation.receive(SSL_REQUEST)
    conversation.tls_established(ALPN)
    assert _refusal(conversation.receive(request_))[1] == "0A000"


@pytest.mark.parametrize(
    ("alpn", "said", "kind"),
    [
        (ALPN, STARTUP, OpenStream),
        (ALPN_HTTP, HTTP, OpenHttp),
        (None, HTTP, OpenHttp),
        (ALPN, HTTP, Refuse),
        (ALPN_HTTP, STARTUP, Refuse),
        (None, STARTUP, Refuse),
        (None, CLIENT_HELLO, Refuse),
    ],
)
def test_direct_tls_carries_what_its_alpn_names(alpn: str | None, said: bytes, kind: type) -> None:
    conversation = StartupConversation(tls_available=True)
    assert conversation.receive(CLIENT_HELLO) == [BeginTls(CLIENT_HELLO)]
    assert conversation.tls_established(alpn) == []
    (command,) = conversation.receive(said)
    assert isinstance(command, kind)


def test_direct_tls_with_another_alpn_is_closed() -> None:
    conversation = StartupConversation(tls_available=True)
    conversation.receive(CLIENT_HELLO)
    assert conversation.tls_established("h2") == [Refuse(b"", "direct TLS without ALPN")]


def test_direct_tls_without_a_certificate_gets_an_alert() -> None:
    (command,) = _talk(CLIENT_HELLO)
    assert isinstance(command, Refuse)
    assert command.reply[0] == 0x15


@pytest.mark.parametrize("length", [MAX_STARTUP_PACKET + 1, 0x00FF_FFFF, 7, 4, 0])
def test_an_impossible_length_is_refused_before_its_body_comes(length: int) -> None:
    assert _refusal(_talk(struct.pack("!I", length)))[1] == "08P01"


def test_the_longest_start_up_packet_is_taken() -> None:
    filler = MAX_STARTUP_PACKET - len(startup_packet(0x0003_0000, {"user": "u", "options": ""}))
    packet = startup_packet(0x0003_0000, {"user": "u", "options": "x" * filler})
    assert len(packet) == MAX_STARTUP_PACKET
    assert isinstance(_talk(packet)[-1], OpenStream)


@pytest.mark.parametrize("size", [0, 3, 257])
def test_a_cancel_key_of_impossible_length_is_refused(size: int) -> None:
    packet = cancel_request(1, b"k" * size)
    assert _refusal(_talk(packet))[1] == "08P01"


def test_old_protocols_and_missing_users_are_told_so() -> None:
    assert _refusal(_talk(startup_packet(0x0002_0000, {"user": "web"})))[1] == "0A000"
    assert _refusal(_talk(startup_packet(0x0003_0000, {"database": "shop"})))[1] == "28000"


# --- HTTP


def test_http_opens_a_stream_at_its_first_bytes() -> None:
    assert _talk(HTTP[:3]) == []
    assert _talk(HTTP[:3], HTTP[3:9]) == [OpenHttp(HTTP[:9])]
    assert _talk(HTTP) == [OpenHttp(HTTP)]


def test_http2_is_told_to_use_http1() -> None:
    (command,) = _talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert isinstance(command, Refuse)
    settings, goaway = command.reply[:9], command.reply[9:]
    assert settings == bytes.fromhex("000000 04 00 00000000")
    assert goaway[:9] == struct.pack("!I", len(goaway) - 9)[1:] + bytes.fromhex("07 00 00000000")
    assert goaway[9:17] == bytes.fromhex("00000000 0000000d")
    assert b"HTTP/1.1" in goaway[17:]


def test_a_response_of_our_own_has_the_shape_of_openais_errors() -> None:
    reply = http_error(HTTPStatus.SERVICE_UNAVAILABLE, "no_gate", "no gate is reachable")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "no_gate"
    assert http_error(HTTPStatus.BAD_GATEWAY, "x", "y", head_only=True).endswith(b"\r\n\r\n")
    assert b"Retry-After" not in http_error(HTTPStatus.BAD_GATEWAY, "x", "y")
