"""PostgreSQL messages: what is built can be read, and what is damaged is refused with its SQLSTATE."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto import pgwire

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


def startup(version: int = pgwire.PROTOCOL_3_0, /, **parameters: str) -> pgwire.Startup:
    parsed = pgwire.parse_startup(pgwire.startup_packet(version, parameters))
    assert isinstance(parsed, pgwire.Startup)
    return parsed


def refused(packet: bytes) -> str:
    with pytest.raises(pgwire.PostgresError) as caught:
        pgwire.parse_startup(packet)
    return caught.value.sqlstate


def test_startup_says_who_and_where() -> None:
    packet = pgwire.startup_packet(
        pgwire.PROTOCOL_3_0, {"user": "web", "database": "shop", "TimeZone": "UTC"}
    )
    parsed = pgwire.parse_startup(packet)
    assert isinstance(parsed, pgwire.Startup)
    assert (parsed.user, parsed.database, parsed.packet) == ("web", "shop", packet)
    assert parsed.parameters["TimeZone"] == "UTC"
    assert not parsed.needs_negotiation


@pytest.mark.parametrize("parameters", [{"user": "web"}, {"user": "web", "database": ""}])
def test_missing_or_empty_database_means_the_user_name(parameters: dict[str, str]) -> None:
    assert startup(pgwire.PROTOCOL_3_0, **parameters).database == "web"


@pytest.mark.parametrize(
    ("version", "negotiated", "needs"),
    [
        (0x0003_0000, 0x0003_0000, False),
        (0x0003_0002, 0x0003_0002, False),
        (0x0003_0003, 0x0003_0002, True),
        (0x0003_0000 + 9999, 0x0003_0002, True),
    ],
)
def test_versions_above_3_2_are_negotiated_down(version: int, negotiated: int, needs: bool) -> None:
    parsed = startup(version, user="web")
    assert (parsed.negotiated, parsed.needs_negotiation) == (negotiated, needs)


def test_protocol_options_are_kept_apart_and_need_negotiation() -> None:
    parsed = startup(pgwire.PROTOCOL_3_0, **{"user": "web", "_pq_.compression": "zstd"})
    assert parsed.protocol_options == {"_pq_.compression": "zstd"}
    assert "_pq_.compression" not in parsed.parameters
    assert parsed.needs_negotiation


@pytest.mark.parametrize("version", [0x0002_0000, 0x0004_0000, 0x04D2_162F, 0])
def test_other_major_versions_are_not_supported(version: int) -> None:
    assert refused(pgwire.startup_packet(version, {"user": "web"})) == "0A000"


@pytest.mark.parametrize("length", [0, 3, 4, 7, 10_001, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_impossible_start_up_lengths_are_refused_from_their_first_four_bytes(length: int) -> None:
    with pytest.raises(pgwire.PostgresError) as caught:
        pgwire.startup_length(struct.pack("!I", length))
    assert caught.value.sqlstate == "08P01"


@pytest.mark.parametrize(
    "body",
    [b"user\0web\0", b"user\0web", b"user\0web\0\0x\0y\0\0", b"", b"user\0web\0\0\0", b"user\0\0"],
)
def test_bad_start_up_layouts(body: bytes) -> None:
    assert refused(struct.pack("!II", len(body) + 8, pgwire.PROTOCOL_3_0) + body) == "08P01"


@pytest.mark.parametrize("parameters", [{}, {"user": ""}, {"database": "shop"}])
def test_a_user_name_is_required(parameters: dict[str, str]) -> None:
    assert refused(pgwire.startup_packet(pgwire.PROTOCOL_3_0, parameters)) == "28000"


def test_encryption_requests() -> None:
    assert pgwire.parse_startup(pgwire.SSL_REQUEST) == pgwire.SSLRequest()
    assert pgwire.parse_startup(pgwire.GSSENC_REQUEST) == pgwire.GSSENCRequest()


@pytest.mark.parametrize("size", [4, 32, 256])
def test_cancel_keys_of_4_to_256_bytes(size: int) -> None:
    key = bytes(range(256))[:size]
    assert pgwire.parse_startup(pgwire.cancel_request(4711, key)) == pgwire.CancelRequest(4711, key)


@pytest.mark.parametrize("size", [0, 3, 257])
def test_other_cancel_keys_are_refused(size: int) -> None:
    assert refused(pgwire.cancel_request(4711, bytes(size))) == "08P01"


@pytest.mark.parametrize(
    ("word", "kind"),
    [("", ""), ("off", ""), ("0", ""), ("true", "physical"), ("ON", "physical"), ("database", "database")],
)
def test_replication_words(word: str, kind: str) -> None:
    assert startup(user="web", replication=word).replication == kind


def test_an_unknown_replication_word_is_an_error() -> None:
    with pytest.raises(pgwire.PostgresError, match="replication"):
        _ = startup(user="web", replication="maybe").replication


@given(
    st.dictionaries(TEXT.filter(lambda name: name != "" and not name.startswith("_pq_.")), TEXT, max_size=8)
)
def test_start_up_parameters_survive_the_round_trip(parameters: dict[str, str]) -> None:
    parameters["user"] = "web"
    assert startup(pgwire.PROTOCOL_3_0, **parameters).parameters == parameters


@given(st.binary(max_size=200))
def test_parse_startup_never_raises_anything_else(packet: bytes) -> None:
    for candidate in (packet, struct.pack("!II", len(packet) + 8, pgwire.PROTOCOL_3_0) + packet):
        with contextlib.suppress(pgwire.PostgresError):
            pgwire.parse_startup(candidate)


def test_error_response_has_the_fields_drivers_need() -> None:
    error = pgwire.PostgresError("no\0 entry", sqlstate="28P01", hint="ask", detail="why")
    response = error.response()
    assert response[:1] == b"E"
    assert struct.unpack("!I", response[1:5])[0] == len(response) - 1
    assert pgwire.parse_report(response[5:]) == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "28P01",
        "M": "no entry",
        "D": "why",
        "H": "ask",
    }


@pytest.mark.parametrize("payload", [b"", b"\0", b"SERROR\0Mno code\0\0", b"SERROR\0Mno end"])
def test_reports_without_a_sqlstate_or_an_end_are_tolerated(payload: bytes) -> None:
    assert "C" not in pgwire.parse_report(payload)


@given(st.binary(max_size=100))
def test_parse_report_never_raises(payload: bytes) -> None:
    pgwire.parse_report(payload)


def test_negotiate_protocol_version_layout() -> None:
    assert pgwire.negotiate_protocol_version(pgwire.PROTOCOL_3_2, ["_pq_.x"]) == (
        b"v\x00\x00\x00\x13\x00\x03\x00\x02\x00\x00\x00\x01_pq_.x\0"
    )


@pytest.mark.parametrize("size", [0, 3, 257])
def test_backend_key_data_with_impossible_keys_is_refused(size: int) -> None:
    with pytest.raises(pgwire.PostgresError):
        pgwire.parse_backend_key_data(bytes(4 + size))


def test_backend_key_data_round_trip() -> None:
    assert pgwire.parse_backend_key_data(pgwire.backend_key_data(99, b"k" * 32)[5:]) == (99, b"k" * 32)


def test_sasl_messages_round_trip() -> None:
    assert pgwire.parse_mechanisms(pgwire.authentication_sasl(["A", "B"])[9:]) == ("A", "B")
    initial = pgwire.sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=x")
    assert pgwire.parse_sasl_initial_response(initial[5:]) == ("SCRAM-SHA-256", b"n,,n=,r=x")
    none = pgwire.message(b"p", b"SCRAM-SHA-256\0\xff\xff\xff\xff")
    assert pgwire.parse_sasl_initial_response(none[5:]) == ("SCRAM-SHA-256", None)


@pytest.mark.parametrize("payload", [b"", b"X", b"X\0", b"X\0\0\0\0\5abc", b"X\0\0\0\0\1abc"])
def test_damaged_sasl_initial_responses(payload: bytes) -> None:
    with pytest.raises(pgwire.PostgresError) as caught:
        pgwire.parse_sasl_initial_response(payload)
    assert caught.value.sqlstate == "08P01"


@given(st.lists(st.binary(max_size=30), max_size=6), st.integers(1, 9))
def test_message_buffer_gives_the_same_messages_for_any_chunking(payloads: list[bytes], step: int) -> None:
    wire = b"".join(pgwire.message(b"D", payload) for payload in payloads) + b"xy"
    buffer = pgwire.MessageBuffer(1000)
    seen = []
    for at in range(0, len(wire), step):
        buffer.feed(wire[at : at + step])
        while (found := buffer.next_message()) is not None:
            seen.append(found[1])
    assert seen == payloads
    assert buffer.rest() == b"xy"


@pytest.mark.parametrize("length", [0, 3, 1001, 0x8000_0000])
def test_message_buffer_refuses_impossible_lengths(length: int) -> None:
    buffer = pgwire.MessageBuffer(1000)
    buffer.feed(b"p" + struct.pack("!I", length))
    with pytest.raises(pgwire.PostgresError) as caught:
        buffer.next_message()
    assert caught.value.sqlstate == "08P01"
