"""The published vectors: Noise byte for byte, and the primitives underneath with their edge cases."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from tunnel_proto import identity
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.noise import PATTERNS, CipherState, HandshakeState, KeyPair, dh

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> list[Any]:
    tests: list[Any] = json.loads((VECTORS / name).read_text("ascii"))["tests"]
    return tests


NOISE = load("noise_25519_chachapoly_blake2b.json")


def side(vector: dict[str, Any], *, initiator: bool) -> HandshakeState:
    """One party of a cacophony vector."""
    prefix = "init" if initiator else "resp"

    def value(name: str) -> bytes | None:
        text = vector.get(f"{prefix}_{name}")
        return None if text is None else bytes.fromhex(text)

    static, ephemeral = value("static"), value("ephemeral")
    return HandshakeState(
        PATTERNS[vector["protocol_name"].split("_")[1]],
        initiator=initiator,
        prologue=value("prologue") or b"",
        s=KeyPair(static) if static else None,
        e=KeyPair(ephemeral) if ephemeral else None,
        rs=value("remote_static"),
    )


def test_every_pattern_has_its_vector() -> None:
    assert {vector["protocol_name"].split("_")[1] for vector in NOISE} == set(PATTERNS)


@pytest.mark.parametrize("vector", NOISE, ids=lambda vector: vector["protocol_name"].split("_")[1])
def test_noise(vector: dict[str, Any]) -> None:
    initiator, responder = side(vector, initiator=True), side(vector, initiator=False)
    pattern = initiator.pattern
    count = len(pattern.messages)
    for index, message in enumerate(vector["messages"][:count]):
        payload, ciphertext = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        writer, reader = (initiator, responder) if index % 2 == 0 else (responder, initiator)
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload

    expected = bytes.fromhex(vector["handshake_hash"])
    assert initiator.handshake_hash == responder.handshake_hash == expected

    initiator_ciphers, responder_ciphers = initiator.split(), responder.split()
    for index, message in enumerate(vector["messages"][count:], start=count):
        payload, ciphertext = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        sender: CipherState
        receiver: CipherState
        if index % 2 == 0 or pattern.one_way:
            sender, receiver = initiator_ciphers[0], responder_ciphers[1]
        else:
            sender, receiver = responder_ciphers[0], initiator_ciphers[1]
        assert sender.encrypt_with_ad(b"", payload) == ciphertext
        assert receiver.decrypt_with_ad(b"", ciphertext) == payload


def test_wycheproof_x25519() -> None:
    zero = bytes(32).hex()
    refused = 0
    for number, flags, public, private, shared, _ in load("wycheproof_x25519.json"):
        key_pair = KeyPair(bytes.fromhex(private))
        # "acceptable" are twist points and non-canonical encodings, which RFC 7748 takes, and results
        # of all zeros, which we never do.
        if shared == zero:
            refused += 1
            with pytest.raises(AuthenticationFailed, match="small order"):
                dh(key_pair, bytes.fromhex(public))
        else:
            assert "ZeroSharedSecret" not in flags, number
            assert dh(key_pair, bytes.fromhex(public)).hex() == shared, number
    assert refused == 31


def test_wycheproof_chacha20_poly1305() -> None:
    for number, _, *values, result in load("wycheproof_chacha20_poly1305.json"):
        key, nonce, aad, message, ciphertext, tag = map(bytes.fromhex, values)
        sealed = ciphertext + tag
        if result == "valid":
            assert ChaCha20Poly1305(key).encrypt(nonce, message, aad) == sealed, number
            assert ChaCha20Poly1305(key).decrypt(nonce, sealed, aad) == message, number
            assert crypto_aead_chacha20poly1305_ietf_encrypt(message, aad, nonce, key) == sealed, number
            assert crypto_aead_chacha20poly1305_ietf_decrypt(sealed, aad, nonce, key) == message, number
        else:
            with pytest.raises((InvalidTag, ValueError)):
                ChaCha20Poly1305(key).decrypt(nonce, sealed, aad)
            with pytest.raises((CryptoError, ValueError, TypeError)):
                crypto_aead_chacha20poly1305_ietf_decrypt(sealed, aad, nonce, key)


@pytest.fixture
def no_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our verifier takes the message as it is: the vectors know nothing of domains."""
    monkeypatch.setattr(identity, "_signed_bytes", lambda _, message: message)


def ed25519_accepts(public: str, message: str, signature: str) -> bool:
    try:
        identity.verify(bytes.fromhex(public), "vectors", bytes.fromhex(message), bytes.fromhex(signature))
    except AuthenticationFailed:
        return False
    return True


@pytest.mark.usefixtures("no_domain")
def test_wycheproof_ed25519() -> None:
    for number, _, public, message, signature, result in load("wycheproof_ed25519.json"):
        assert ed25519_accepts(public, message, signature) == (result == "valid"), number


def test_libsodium_is_the_only_verifier() -> None:
    """Two libraries differ in what they accept, and nodes of one mesh must not."""
    product = Path(identity.__file__).parent.parent
    sources = {
        path.relative_to(product).as_posix(): path.read_text("utf-8")
        for program in ("tunnel_proto", "minigate", "qdaemon", "qgate", "meshctl")
        for path in (product / program).rglob("*.py")
    }
    assert {name for name, text in sources.items() if "crypto_sign_open" in text} == {
        "tunnel_proto/identity.py",
        "tunnel_proto/licence.py",
    }
    others = re.compile(r"Ed25519PublicKey|VerifyKey\b|nacl\.signing|\bcrypto_sign_ed25519ph")
    assert not [name for name, text in sources.items() if others.search(text)]


@pytest.mark.usefixtures("no_domain")
def test_ed25519_speccheck_pins_the_verdicts_of_libsodium() -> None:
    # Cofactorless, small-order keys and points refused, S below the group order, canonical encodings
    # only. Should a release change a verdict, nodes of mixed releases would disagree about certificates.
    accepted = [
        number
        for number, public, message, signature in load("ed25519_speccheck.json")
        if ed25519_accepts(public, message, signature)
    ]
    assert accepted == [3]
