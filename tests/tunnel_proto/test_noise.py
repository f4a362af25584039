"""Noise: interoperation with another implementation, and what must be refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError, TunnelError
from tunnel_proto.noise import MAX_NONCE, PATTERNS, CipherState, HandshakeState, KeyPair, dh

IK = PATTERNS["IK"]
NAME = b"Noise_IK_25519_ChaChaPoly_BLAKE2b"
PROLOGUE = b"interoperation"

# The points of small order on Curve25519 and its twist with their non-canonical encodings: multiplied
# by any clamped scalar they give zero.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


def fresh() -> KeyPair:
    return KeyPair(os.urandom(32))


def pair(prologue: bytes = PROLOGUE) -> tuple[HandshakeState, HandshakeState]:
    responder_key = fresh()
    return (
        HandshakeState(IK, initiator=True, prologue=prologue, s=fresh(), e=fresh(), rs=responder_key.public),
        HandshakeState(IK, initiator=False, prologue=prologue, s=responder_key, e=fresh()),
    )


def other(*, initiator: bool, static: KeyPair, responder_public: bytes | None = None) -> NoiseConnection:
    connection = NoiseConnection.from_name(NAME)
    connection.set_prologue(PROLOGUE)
    connection.set_keypair_from_private_bytes(Keypair.STATIC, static.private)
    if initiator:
        connection.set_as_initiator()
        connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, responder_public)
    else:
        connection.set_as_responder()
    connection.start_handshake()
    return connection


def talk(ours: HandshakeState, theirs: NoiseConnection) -> None:
    assert theirs.handshake_finished
    assert theirs.get_handshake_hash() == ours.handshake_hash
    send, receive = ours.split()
    for number in range(20):
        text = b"message %d" % number
        assert theirs.decrypt(send.encrypt_with_ad(b"", text)) == text
        assert receive.decrypt_with_ad(b"", theirs.encrypt(text)) == text
        if number == 10:
            send.rekey()
            theirs.rekey_inbound_cipher()
            receive.rekey()
            theirs.rekey_outbound_cipher()


def test_we_call_another_implementation() -> None:
    static, responder_key = fresh(), fresh()
    ours = HandshakeState(IK, initiator=True, prologue=PROLOGUE, s=static, e=fresh(), rs=responder_key.public)
    theirs = other(initiator=False, static=responder_key)
    assert theirs.read_message(ours.write_message(b"hello")) == b"hello"
    assert ours.read_message(bytes(theirs.write_message(b"welcome"))) == b"welcome"
    talk(ours, theirs)


def test_another_implementation_calls_us() -> None:
    static, responder_key = fresh(), fresh()
    ours = HandshakeState(IK, initiator=False, prologue=PROLOGUE, s=responder_key, e=fresh())
    theirs = other(initiator=True, static=static, responder_public=responder_key.public)
    assert ours.read_message(bytes(theirs.write_message(b"hello"))) == b"hello"
    assert ours.rs == static.public
    assert theirs.read_message(ours.write_message(b"welcome")) == b"welcome"
    talk(ours, theirs)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused(point: str) -> None:
    with pytest.raises(AuthenticationFailed, match="small order"):
        dh(fresh(), bytes.fromhex(point))


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_message_with_an_ephemeral_of_small_order_is_refused(point: str) -> None:
    initiator, responder = pair()
    message = initiator.write_message(b"")
    with pytest.raises(AuthenticationFailed):
        responder.read_message(bytes.fromhex(point) + message[32:])


def test_an_all_zero_secret_is_refused_even_if_the_library_gave_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacl.bindings.crypto_scalarmult", lambda _private, _public: bytes(32))
    with pytest.raises(AuthenticationFailed, match="small order"):
        dh(KeyPair(b"\x01" * 32), b"\x09" + bytes(31))


def test_different_prologues_do_not_meet() -> None:
    responder_key = fresh()
    initiator = HandshakeState(
        IK, initiator=True, prologue=b"a", s=fresh(), e=fresh(), rs=responder_key.public
    )
    responder = HandshakeState(IK, initiator=False, prologue=b"b", s=responder_key, e=fresh())
    with pytest.raises(AuthenticationFailed):
        responder.read_message(initiator.write_message(b""))


@given(cut=st.integers(min_value=0, max_value=95))
def test_a_short_message_is_an_error_of_the_peer(cut: int) -> None:
    initiator, responder = pair()
    message = initiator.write_message(b"")
    assert len(message) == 96
    with pytest.raises((RemoteProtocolError, AuthenticationFailed)):
        responder.read_message(message[:cut])


def test_a_failed_handshake_is_over() -> None:
    initiator, responder = pair()
    message = initiator.write_message(b"")
    with pytest.raises(AuthenticationFailed):
        responder.read_message(message[:-1] + bytes((message[-1] ^ 1,)))
    with pytest.raises(LocalProtocolError, match="over"):
        responder.read_message(message)
    with pytest.raises(LocalProtocolError, match="over"):
        responder.write_message(b"")


def test_turns_are_kept() -> None:
    initiator, responder = pair()
    with pytest.raises(LocalProtocolError, match="turn"):
        responder.write_message(b"")
    with pytest.raises(LocalProtocolError, match="turn"):
        initiator.read_message(b"")
    with pytest.raises(LocalProtocolError, match="not finished"):
        initiator.split()
    with pytest.raises(LocalProtocolError, match="not finished"):
        _ = initiator.handshake_hash


def test_a_missing_key_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match="needs the peer's key"):
        HandshakeState(IK, initiator=True, s=fresh(), e=fresh())
    responder_key = fresh()
    without_static = HandshakeState(IK, initiator=True, e=fresh(), rs=responder_key.public)
    with pytest.raises(LocalProtocolError, match="needs the static key"):
        without_static.write_message(b"")


def test_messages_have_a_greatest_length() -> None:
    initiator, responder = pair()
    with pytest.raises(LocalProtocolError, match="65,535"):
        initiator.write_message(bytes(65536))
    with pytest.raises(RemoteProtocolError, match="65,535"):
        responder.read_message(bytes(65536))


def test_the_reserved_nonce_is_never_used() -> None:
    cipher = CipherState(bytes(32))
    cipher._n = MAX_NONCE - 1
    cipher.encrypt_with_ad(b"", b"the last one")
    with pytest.raises(LocalProtocolError, match="used up"):
        cipher.encrypt_with_ad(b"", b"")
    with pytest.raises(LocalProtocolError, match="used up"):
        cipher.decrypt_with_ad(b"", bytes(16))


def test_a_failure_to_open_does_not_move_the_nonce() -> None:
    sender, receiver = CipherState(bytes(32)), CipherState(bytes(32))
    sealed = sender.encrypt_with_ad(b"ad", b"text")
    for forged in (b"", sealed[:-1], sealed + b"\x00", bytes(20)):
        with pytest.raises(AuthenticationFailed):
            receiver.decrypt_with_ad(b"ad", forged)
    with pytest.raises(AuthenticationFailed):
        receiver.decrypt_with_ad(b"other", sealed)
    assert receiver.n == 0
    assert receiver.decrypt_with_ad(b"ad", sealed) == b"text"


def test_a_cipher_without_a_key_passes_text_and_cannot_rekey() -> None:
    cipher = CipherState()
    assert cipher.encrypt_with_ad(b"", b"text") == b"text"
    assert cipher.decrypt_with_ad(b"", b"text") == b"text"
    with pytest.raises(LocalProtocolError):
        cipher.rekey()


@given(noise=st.binary(max_size=200))
def test_nothing_but_our_own_errors_comes_out(noise: bytes) -> None:
    _, responder = pair()
    with pytest.raises(TunnelError):
        responder.read_message(noise)


def test_no_private_key_is_shown() -> None:
    key = KeyPair(bytes(range(32)))
    assert repr(key.private) not in repr(key)
    with pytest.raises(LocalProtocolError) as caught:
        KeyPair(b"secret")
    assert "secret" not in str(caught.value)
