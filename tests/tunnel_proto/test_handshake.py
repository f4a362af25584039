"""The tunnel's handshake, told as conversations between an initiator and a responder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from tests.tunnel_proto.knocking import (
    CERTIFICATE,
    CHAIN,
    GATE,
    HELLO,
    LONGEST_MESSAGE_1,
    MESSAGE_1,
    NODE,
    WELCOME,
    Gate,
    RecordedMarks,
    call,
    initiator,
    refused,
)
from tunnel_proto.constants import (
    HELLO_MAX,
    MAC1_BYTES,
    MESSAGE_1_OVERHEAD,
    MESSAGE_2_OVERHEAD,
    NOISE_PROTOCOL_NAME,
    PACKET_LENGTH_BYTES,
    WELCOME_MAX,
)
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError
from tunnel_proto.handshake import (
    Established,
    Hello,
    InitiatorHandshake,
    Welcome,
)
from tunnel_proto.identity import Identity
from tunnel_proto.noise import PATTERNS, CipherState, HandshakeState, KeyPair
from tunnel_proto.packing import pack


def test_both_sides_agree() -> None:
    gate = Gate()
    calling, called = initiator(), gate.responder()

    theirs = called.receive(calling.message_1())
    assert theirs is not None
    ours = calling.receive(called.message_2())
    assert ours is not None

    assert ours.send_key == theirs.receive_key
    assert ours.receive_key == theirs.send_key
    assert len({ours.send_key, ours.receive_key}) == 2
    assert len(ours.send_key) == len(ours.receive_key) == 32
    assert ours.handshake_hash == theirs.handshake_hash
    assert theirs.hello == HELLO
    assert theirs.peer == CERTIFICATE
    assert ours.peer is None
    assert ours.welcome == theirs.welcome == WELCOME
    assert ours.leftover == theirs.leftover == b""
    assert gate.asked == ["admit", "authorise", "welcome"]


def test_every_handshake_has_its_own_keys() -> None:
    def keys(timestamp: int) -> Established:
        gate, calling = Gate(), initiator(replace(HELLO, timestamp=timestamp))
        result = gate.responder().receive(calling.message_1())
        assert result is not None
        return result

    first, second = keys(1), keys(2)
    assert first.send_key != second.send_key
    assert first.handshake_hash != second.handshake_hash


def test_bytes_may_arrive_one_by_one_and_records_may_follow_message_2() -> None:
    calling, called = initiator(), Gate().responder()
    for byte in (message_1 := calling.message_1())[:-1]:
        assert called.receive(bytes((byte,))) is None
    assert called.receive(message_1[-1:]) is not None
    message_2 = called.message_2() + b"first record"
    for byte in message_2[:20]:
        assert calling.receive(bytes((byte,))) is None
    ours = calling.receive(message_2[20:])
    assert ours is not None
    assert ours.leftover == b"first record"


# --- Silence ----------------------------------------------------------------------------------------------


@given(
    position=st.integers(min_value=0, max_value=len(MESSAGE_1) - 1),
    change=st.integers(min_value=1, max_value=255),
)
def test_any_changed_byte_of_message_1_is_refused(position: int, change: int) -> None:
    gate = Gate()
    responder = gate.responder()
    mutated = MESSAGE_1[:position] + bytes((MESSAGE_1[position] ^ change,)) + MESSAGE_1[position + 1 :]
    try:
        # A longer length only leaves the responder waiting for bytes that never come.
        assert responder.receive(mutated) is None
        assert position < PACKET_LENGTH_BYTES
    except AuthenticationFailed:
        pass
    with pytest.raises(LocalProtocolError):
        responder.message_2()
    # mac1 covers every byte: nothing was computed or recorded for it.
    assert gate.asked == []


@given(length=st.integers(min_value=0, max_value=len(MESSAGE_1) - 1))
def test_any_truncation_of_message_1_is_awaited_in_silence(length: int) -> None:
    gate = Gate()
    responder = gate.responder()
    assert responder.receive(MESSAGE_1[:length]) is None
    with pytest.raises(LocalProtocolError):
        responder.message_2()
    assert gate.asked == []


@given(length=st.integers(min_value=MESSAGE_1_OVERHEAD, max_value=len(MESSAGE_1) - 19))
def test_a_truncation_with_a_true_mac1_is_refused(length: int) -> None:
    # What somebody who knows the gate's public key can send: mac1 passes, the message does not open.
    gate = Gate()
    refused(gate.responder(), with_mac1(MESSAGE_1[2 : 2 + length]), "does not authenticate")
    assert gate.asked == ["admit"]


@given(
    position=st.integers(min_value=0, max_value=len(MESSAGE_1) - PACKET_LENGTH_BYTES - MAC1_BYTES - 1),
    change=st.integers(min_value=1, max_value=255),
)
@example(position=31, change=0x80)  # X25519 ignores this bit of the ephemeral key; the hash does not
def test_a_mutation_with_a_true_mac1_is_refused(position: int, change: int) -> None:
    gate = Gate()
    message = bytearray(MESSAGE_1[PACKET_LENGTH_BYTES:-MAC1_BYTES])
    message[position] ^= change
    refused(gate.responder(), with_mac1(bytes(message)), "does not authenticate")
    assert gate.asked == ["admit"]
    assert isinstance(gate.marks, RecordedMarks)
    assert gate.marks.accepted == []


def with_mac1(message: bytes, label: bytes = b"qgate-mesh/mac1/1") -> bytes:
    """A packet as docs/tunnel-handshake.md lays it out, written a second time from there."""
    covered = (len(message) + 16).to_bytes(2, "big") + message
    key = hashlib.blake2s(label + GATE.handshake_public).digest()
    return covered + hashlib.blake2s(covered, key=key, digest_size=16).digest()


def test_mac1_is_as_specified() -> None:
    assert with_mac1(MESSAGE_1[2:-16]) == MESSAGE_1


@given(noise=st.binary(min_size=2, max_size=3_000))
@example(noise=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600))  # a TLS ClientHello
@example(noise=b"GET / HTTP/1.1\r\nHost: gate\r\n\r\n")
@example(noise=bytes(100_000))
@example(noise=b"\x00\x08\x04\xd2\x16\x2f")  # PostgreSQL's SSLRequest
def test_noise_gets_nothing_and_costs_nothing(noise: bytes) -> None:
    gate = Gate()
    responder = gate.responder()
    try:
        assert responder.receive(noise) is None
        assert len(noise) < LONGEST_MESSAGE_1
    except AuthenticationFailed:
        pass
    with pytest.raises(LocalProtocolError):
        responder.message_2()
    assert gate.asked == []


def test_no_elliptic_curve_work_is_done_for_a_wrong_mac1(monkeypatch: pytest.MonkeyPatch) -> None:
    def worked(*_: object) -> bytes:
        raise AssertionError("elliptic-curve work for a stranger")

    monkeypatch.setattr("nacl.bindings.crypto_scalarmult", worked)
    monkeypatch.setattr("nacl.bindings.crypto_scalarmult_base", worked)
    refused(Gate().responder(), MESSAGE_1[:-1] + bytes((MESSAGE_1[-1] ^ 1,)), "mac1")
    refused(Gate(admitted=False).responder(), MESSAGE_1, "too many")


def test_impossible_lengths_are_refused_at_the_second_byte() -> None:
    for length in (
        0,
        1,
        MESSAGE_1_OVERHEAD + MAC1_BYTES - 1,
        MESSAGE_1_OVERHEAD + HELLO_MAX + MAC1_BYTES + 1,
        65535,
    ):
        refused(Gate().responder(), length.to_bytes(2, "big"), "impossible length")
    for length in (MESSAGE_1_OVERHEAD + MAC1_BYTES, MESSAGE_1_OVERHEAD + HELLO_MAX + MAC1_BYTES):
        assert Gate().responder().receive(length.to_bytes(2, "big")) is None
    assert LONGEST_MESSAGE_1 == 1_650  # all that a stranger can make a gate hold


def test_bytes_behind_message_1_are_refused_before_anything_is_computed() -> None:
    gate = Gate()
    refused(gate.responder(), MESSAGE_1 + b"\x00", "behind message 1")
    assert gate.asked == []


def test_a_spent_budget_refuses_before_anything_is_computed() -> None:
    gate = Gate(admitted=False)
    refused(gate.responder(), MESSAGE_1, "too many failed handshakes")
    assert gate.asked == ["admit"]


def test_a_message_for_another_gate_is_refused() -> None:
    gate = Gate()
    refused(gate.responder(identity=Identity.generate()), MESSAGE_1, "mac1")
    assert gate.asked == []


def test_message_2_sent_back_is_no_message_1() -> None:
    responder = Gate().responder()
    responder.receive(MESSAGE_1)
    packet = responder.message_2()
    packet = packet + bytes(200)
    with pytest.raises(AuthenticationFailed):
        Gate().responder().receive(packet)


@pytest.mark.parametrize(
    "point", [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f")], ids=["0", "1", "-1"]
)
def test_an_ephemeral_of_small_order_is_refused(point: bytes) -> None:
    gate = Gate()
    refused(gate.responder(), with_mac1(point + MESSAGE_1[34:-16]), "small order")
    assert gate.asked == ["admit"]


def test_a_gate_key_of_small_order_is_refused_before_anything_is_sent() -> None:
    calling = InitiatorHandshake(
        identity=NODE, hello=HELLO, responder_key=bytes(32), ephemeral=os.urandom(32)
    )
    with pytest.raises(AuthenticationFailed, match="small order"):
        calling.message_1()
    with pytest.raises(LocalProtocolError):
        calling.message_1()


def test_another_noise_implementation_can_be_the_initiator() -> None:
    """Packets built by hand around the PyPI package noiseprotocol are understood, and understand us."""
    theirs = NoiseConnection.from_name(NOISE_PROTOCOL_NAME.encode("ascii"))
    theirs.set_as_initiator()
    theirs.set_prologue(b"qgate-mesh/tunnel")
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, NODE.handshake_key)
    theirs.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, GATE.handshake_public)
    theirs.start_handshake()
    responder = Gate().responder()
    established = responder.receive(with_mac1(bytes(theirs.write_message(HELLO.pack()))))
    assert established is not None
    message_2 = responder.message_2()
    assert with_mac1(message_2[2:-16], b"qgate-mesh/mac1/2") == message_2
    assert Welcome.unpack(bytes(theirs.read_message(message_2[2:-16]))) == WELCOME
    assert theirs.get_handshake_hash() == established.handshake_hash
    assert CipherState(established.receive_key).decrypt_with_ad(b"", bytes(theirs.encrypt(b"up"))) == b"up"
    assert theirs.decrypt(CipherState(established.send_key).encrypt_with_ad(b"", b"down")) == b"down"


def test_another_noise_implementation_can_be_the_responder() -> None:
    theirs = NoiseConnection.from_name(NOISE_PROTOCOL_NAME.encode("ascii"))
    theirs.set_as_responder()
    theirs.set_prologue(b"qgate-mesh/tunnel")
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, GATE.handshake_key)
    theirs.start_handshake()
    calling = initiator()
    assert Hello.unpack(bytes(theirs.read_message(calling.message_1()[2:-16]))) == HELLO
    ours = calling.receive(with_mac1(bytes(theirs.write_message(WELCOME.pack())), b"qgate-mesh/mac1/2"))
    assert ours is not None
    assert ours.welcome == WELCOME
    assert theirs.decrypt(CipherState(ours.send_key).encrypt_with_ad(b"", b"up")) == b"up"


# --- Versions and refusals --------------------------------------------------------------------------------


def test_a_known_node_hears_of_a_version_mismatch() -> None:
    calling, called = initiator(replace(HELLO, versions=(2, 3))), Gate().responder()
    theirs = called.receive(calling.message_1())
    assert theirs is not None
    assert theirs.welcome.refusal == "version"
    assert theirs.send_key == theirs.receive_key == b""
    with pytest.raises(RemoteProtocolError, match="gate-a speaks tunnel version 1 at most") as caught:
        calling.receive(called.message_2())
    assert caught.value.hint == "upgrade the gate"


def test_a_stranger_hears_nothing_of_a_version_mismatch() -> None:
    refused(*call(Gate(problem="not enrolled"), replace(HELLO, versions=(2, 3))), "not enrolled")


def test_the_gate_may_refuse_with_a_word_of_its_own() -> None:
    calling = initiator()
    called = Gate(welcome=replace(WELCOME, refusal="draining")).responder()
    theirs = called.receive(calling.message_1())
    assert theirs is not None
    assert theirs.send_key == b""
    with pytest.raises(RemoteProtocolError, match="gate-a refuses this node for now: draining"):
        calling.receive(called.message_2())


@pytest.mark.parametrize(
    "welcome", [replace(WELCOME, version=2), replace(WELCOME, features=frozenset({"quic"}))]
)
def test_a_welcome_chooses_among_what_was_offered(welcome: Welcome) -> None:
    with pytest.raises(LocalProtocolError, match="offered"):
        Gate(welcome=welcome).responder().receive(MESSAGE_1)


def test_an_initiator_refuses_a_choice_it_did_not_offer() -> None:
    # The gate believes that more was offered, as a broken or newer one might.
    for welcome, problem in (
        (replace(WELCOME, version=2), "version that was not offered"),
        (replace(WELCOME, features=frozenset({"quic"})), "feature that was not offered"),
    ):
        calling = initiator()
        with pytest.raises(RemoteProtocolError, match=problem):
            calling.receive(answer(calling.message_1(), welcome.pack()))


def answer(message_1: bytes, payload: bytes) -> bytes:
    """Message 2 with any payload, as only the gate's key can make it."""
    state = HandshakeState(
        PATTERNS["IK"],
        initiator=False,
        prologue=b"qgate-mesh/tunnel",
        s=KeyPair(GATE.handshake_key),
        e=KeyPair(os.urandom(32)),
    )
    state.read_message(message_1[2:-16])
    return with_mac1(state.write_message(payload), b"qgate-mesh/mac1/2")


# --- Message 2 --------------------------------------------------------------------------------------------


@given(data=st.data())
def test_any_changed_byte_of_message_2_is_refused(data: st.DataObject) -> None:
    calling, called = initiator(), Gate().responder()
    called.receive(calling.message_1())
    message_2 = bytearray(called.message_2())
    position = data.draw(st.integers(min_value=0, max_value=len(message_2) - 1))
    message_2[position] ^= data.draw(st.integers(min_value=1, max_value=255))
    try:
        assert calling.receive(bytes(message_2)) is None
        assert position < PACKET_LENGTH_BYTES
    except AuthenticationFailed:
        with pytest.raises(LocalProtocolError):
            calling.receive(b"")


def test_an_impostor_cannot_answer() -> None:
    calling = initiator()
    message_1 = calling.message_1()
    with pytest.raises(AuthenticationFailed, match="mac1"):
        calling.receive(message_1)
    calling = initiator()
    calling.message_1()
    with pytest.raises(AuthenticationFailed, match="impossible length"):
        calling.receive(b"HTTP/1.1 400 Bad Request\r\n")
    assert int.from_bytes(b"HT", "big") > MESSAGE_2_OVERHEAD + WELCOME_MAX + MAC1_BYTES


def test_a_malformed_hello_under_a_true_key_meets_silence() -> None:
    for payload in (b"", b"\xc1", pack(["client"]), HELLO.pack() + b"\x00", bytes(HELLO_MAX)):
        state = HandshakeState(
            PATTERNS["IK"],
            initiator=True,
            prologue=b"qgate-mesh/tunnel",
            s=KeyPair(NODE.handshake_key),
            e=KeyPair(os.urandom(32)),
            rs=GATE.handshake_public,
        )
        gate = Gate()
        refused(gate.responder(), with_mac1(state.write_message(payload)), r"malformed|shortest")
        assert gate.asked == ["admit"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: initiator(replace(HELLO, timestamp=0)),
        lambda: initiator(replace(HELLO, versions=(2, 1))),
        lambda: initiator(replace(HELLO, chain=b"")),
        lambda: Gate(welcome=replace(WELCOME, node="")).responder().receive(MESSAGE_1),
    ],
)
def test_we_do_not_send_what_a_peer_would_refuse(make: Callable[[], object]) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        make()


# --- Misuse and secrecy -----------------------------------------------------------------------------------


def test_each_step_is_taken_once() -> None:
    calling, called = initiator(), Gate().responder()
    with pytest.raises(LocalProtocolError):
        calling.receive(b"")
    with pytest.raises(LocalProtocolError):
        called.message_2()
    message_1 = calling.message_1()
    with pytest.raises(LocalProtocolError):
        calling.message_1()
    called.receive(message_1)
    with pytest.raises(LocalProtocolError):
        called.receive(message_1)
    message_2 = called.message_2()
    with pytest.raises(LocalProtocolError):
        called.message_2()
    calling.receive(message_2)
    with pytest.raises(LocalProtocolError):
        calling.receive(message_2)


def test_nothing_secret_is_shown() -> None:
    calling, called = initiator(), Gate().responder()
    theirs = called.receive(calling.message_1())
    ours = calling.receive(called.message_2() + b"leftover")
    assert ours is not None
    shown = f"{ours!r} {theirs!r} {calling!r} {called!r} {ours}"
    for secret in (ours.send_key, ours.receive_key, NODE.handshake_key, GATE.handshake_key, b"leftover"):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_neither_certificate_nor_names_are_readable_on_the_wire() -> None:
    calling, called = initiator(), Gate().responder()
    message_1 = calling.message_1()
    called.receive(message_1)
    wire = message_1 + called.message_2()
    for text in (
        CHAIN[:40],
        b"laptop",
        b"client",
        b"gate-a",
        b"zstd",
        NODE.handshake_public,
        NODE.verify_key,
    ):
        assert text not in wire
