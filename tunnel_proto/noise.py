"""The Noise Protocol Framework (revision 34) for 25519, ChaChaPoly and BLAKE2b, named as it names its parts.

No I/O and no entropy in here: the ephemeral key is an argument, and whoever calls must never give the
same one twice. Elliptic-curve and AEAD operations are libsodium's, BLAKE2b is the standard library's.

The tunnel uses IK. The other patterns are rows of a table; they are here because the published test
vectors then exercise every token in every position, which IK alone does not. There are no pre-shared
keys.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

import nacl.bindings
import nacl.exceptions

from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError

DH_LEN: Final = 32
KEY_LEN: Final = 32
HASH_LEN: Final = 64
TAG_LEN: Final = 16
MESSAGE_MAX: Final = 65535  # Noise section 3: no message is longer
MAX_NONCE: Final = 2**64 - 1  # reserved for REKEY, Noise section 5.1

_SUITE: Final = "25519_ChaChaPoly_BLAKE2b"
_ZERO_POINT: Final = bytes(DH_LEN)
_BLAKE2B: Final = "blake2b"

T = TypeVar("T")


class Token(enum.Enum):
    """The tokens of a message pattern, Noise section 7.1."""

    E = "e"
    S = "s"
    EE = "ee"
    ES = "es"
    SE = "se"
    SS = "ss"


@dataclass(frozen=True, slots=True)
class HandshakePattern:
    """One handshake pattern: what each side knows before, and the tokens of each message in turn."""

    name: str
    initiator_pre: bool
    responder_pre: bool
    messages: tuple[tuple[Token, ...], ...]

    @property
    def one_way(self) -> bool:
        """Whether only the initiator may send transport messages."""
        return len(self.messages) == 1


def _pattern(name: str, pre: str, messages: str) -> HandshakePattern:
    return HandshakePattern(
        name,
        initiator_pre="i" in pre,
        responder_pre="r" in pre,
        messages=tuple(tuple(Token(token) for token in message.split()) for message in messages.split(",")),
    )


# Noise sections 7.4 (one-way), 7.5 (fundamental) and 18.1 (deferred). Columns: name; whose static key
# the other side knows beforehand (i, r); the messages, the initiator's first.
PATTERNS: Final = MappingProxyType(
    {
        pattern.name: pattern
        for pattern in (
            _pattern("N", "r", "e es"),
            _pattern("K", "ir", "e es ss"),
            _pattern("X", "r", "e es s ss"),
            _pattern("NN", "", "e, e ee"),
            _pattern("NK", "r", "e es, e ee"),
            _pattern("NX", "", "e, e ee s es"),
            _pattern("KN", "i", "e, e ee se"),
            _pattern("KK", "ir", "e es ss, e ee se"),
            _pattern("KX", "i", "e, e ee se s es"),
            _pattern("XN", "", "e, e ee, s se"),
            _pattern("XK", "r", "e es, e ee, s se"),
            _pattern("XX", "", "e, e ee s es, s se"),
            _pattern("IN", "", "e s, e ee se"),
            _pattern("IK", "r", "e es s ss, e ee se"),
            _pattern("IX", "", "e s, e ee se s es"),
            _pattern("NK1", "r", "e, e ee es"),
            _pattern("NX1", "", "e, e ee s, es"),
            _pattern("X1N", "", "e, e ee, s, se"),
            _pattern("X1K", "r", "e es, e ee, s, se"),
            _pattern("XK1", "r", "e, e ee es, s se"),
            _pattern("X1K1", "r", "e, e ee es, s, se"),
            _pattern("X1X", "", "e, e ee s es, s, se"),
            _pattern("XX1", "", "e, e ee s, es s se"),
            _pattern("X1X1", "", "e, e ee s, es s, se"),
            _pattern("K1N", "i", "e, e ee, se"),
            _pattern("K1K", "ir", "e es, e ee, se"),
            _pattern("KK1", "ir", "e, e ee se es"),
            _pattern("K1K1", "ir", "e, e ee es, se"),
            _pattern("K1X", "i", "e, e ee s es, se"),
            _pattern("KX1", "i", "e, e ee se s, es"),
            _pattern("K1X1", "i", "e, e ee s, se es"),
            _pattern("I1N", "", "e s, e ee, se"),
            _pattern("I1K", "r", "e es s, e ee, se"),
            _pattern("IK1", "r", "e s, e ee se es"),
            _pattern("I1K1", "r", "e s, e ee es, se"),
            _pattern("I1X", "", "e s, e ee s es, se"),
            _pattern("IX1", "", "e s, e ee se s, es"),
            _pattern("I1X1", "", "e s, e ee s, se es"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair; its repr shows the public half only."""

    private: bytes = field(repr=False)
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.private) != DH_LEN:
            raise LocalProtocolError("an X25519 private key has 32 bytes")
        object.__setattr__(self, "public", nacl.bindings.crypto_scalarmult_base(self.private))


def dh(key_pair: KeyPair, public_key: bytes) -> bytes:
    """X25519 (RFC 7748), 32 bytes; raises AuthenticationFailed when the result is all zeros.

    All zeros come from the few points of small order, whose result an outsider can foretell.
    """
    if len(public_key) != DH_LEN:
        raise AuthenticationFailed("a public key has the wrong size")
    try:
        shared = nacl.bindings.crypto_scalarmult(key_pair.private, public_key)
    except nacl.exceptions.CryptoError:
        raise AuthenticationFailed("a public key of small order") from None
    # libsodium refuses these points itself; the protocol does not rest on that staying so.
    if hmac.compare_digest(shared, _ZERO_POINT):
        raise AuthenticationFailed("a public key of small order")
    return shared


def hkdf(chaining_key: bytes, input_key_material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs of HASH_LEN bytes (section 4.3)."""
    temp_key = hmac.digest(chaining_key, input_key_material, _BLAKE2B)
    first = hmac.digest(temp_key, b"\x01", _BLAKE2B)
    return first, hmac.digest(temp_key, first + b"\x02", _BLAKE2B)


class CipherState:
    """A key and its nonce, Noise section 5.1."""

    __slots__ = ("_k", "_n")

    def __init__(self, k: bytes | None = None) -> None:
        self._k = k
        self._n = 0

    @property
    def key(self) -> bytes | None:
        """The 32-byte key, for the record cipher that takes over after Split; None before any DH."""
        return self._k

    @property
    def n(self) -> int:
        """The next nonce."""
        return self._n

    def has_key(self) -> bool:
        """Whether messages are encrypted yet."""
        return self._k is not None

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Seal ``plaintext``; without a key return it as it is."""
        if self._k is None:
            return plaintext
        nonce = self._nonce()
        ciphertext = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, ad, nonce, self._k)
        self._n += 1
        return ciphertext

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Open ``ciphertext``; a failure raises AuthenticationFailed and does not move the nonce."""
        if self._k is None:
            return ciphertext
        nonce = self._nonce()
        try:
            plaintext = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
                ciphertext, ad, nonce, self._k
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise AuthenticationFailed("a ciphertext does not open") from None
        self._n += 1
        return plaintext

    def rekey(self) -> None:
        """Replace the key by a one-way function of itself, Noise section 4.2."""
        if self._k is None:
            raise LocalProtocolError("there is no key to replace")
        nonce = _nonce_bytes(MAX_NONCE)
        sealed = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(bytes(KEY_LEN), b"", nonce, self._k)
        self._k = sealed[:KEY_LEN]

    def _nonce(self) -> bytes:
        if self._n >= MAX_NONCE:
            raise LocalProtocolError("the nonces of this key are used up")
        return _nonce_bytes(self._n)


def _nonce_bytes(n: int) -> bytes:
    return b"\x00\x00\x00\x00" + n.to_bytes(8, "little")


class SymmetricState:
    """Chaining key, handshake hash and cipher, Noise section 5.2."""

    __slots__ = ("_ck", "cipher_state", "h")

    def __init__(self, protocol_name: bytes) -> None:
        padded = protocol_name.ljust(HASH_LEN, b"\x00")
        self.h = padded if len(padded) == HASH_LEN else hashlib.blake2b(protocol_name).digest()
        self._ck = self.h
        self.cipher_state = CipherState()

    def mix_key(self, input_key_material: bytes) -> None:
        """Fold a shared secret into the chaining key and start a new cipher key."""
        self._ck, temp_k = hkdf(self._ck, input_key_material)
        self.cipher_state = CipherState(temp_k[:KEY_LEN])

    def mix_hash(self, data: bytes) -> None:
        """Fold public data into the handshake hash."""
        self.h = hashlib.blake2b(self.h + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Seal under the handshake hash, then fold the ciphertext into it."""
        ciphertext = self.cipher_state.encrypt_with_ad(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Open under the handshake hash, then fold the ciphertext into it."""
        plaintext = self.cipher_state.decrypt_with_ad(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """The two transport ciphers: the initiator's sending one first."""
        first, second = hkdf(self._ck, b"")
        return CipherState(first[:KEY_LEN]), CipherState(second[:KEY_LEN])


class HandshakeState:
    """One handshake in progress, Noise section 5.3.

    ``s`` is the static and ``e`` the fresh ephemeral key pair, ``rs`` the peer's static key where the
    pattern has it known beforehand. Any failure ends the handshake: later calls raise LocalProtocolError.
    """

    __slots__ = ("_e", "_failed", "_message_index", "_re", "_s", "_symmetric", "initiator", "pattern", "rs")

    def __init__(
        self,
        pattern: HandshakePattern,
        *,
        initiator: bool,
        prologue: bytes = b"",
        s: KeyPair | None = None,
        e: KeyPair | None = None,
        rs: bytes | None = None,
    ) -> None:
        self.pattern = pattern
        self.initiator = initiator
        self.rs = rs
        self._s = s
        self._e = e
        self._re: bytes | None = None
        self._message_index = 0
        self._failed = False
        self._symmetric = SymmetricState(f"Noise_{pattern.name}_{_SUITE}".encode("ascii"))
        self._symmetric.mix_hash(prologue)
        for known, initiators in ((pattern.initiator_pre, True), (pattern.responder_pre, False)):
            if known:
                key = _need(s, "static key").public if initiators == initiator else _need(rs, "peer's key")
                self._symmetric.mix_hash(key)

    @property
    def finished(self) -> bool:
        """Whether every message of the pattern has passed."""
        return self._message_index == len(self.pattern.messages)

    @property
    def handshake_hash(self) -> bytes:
        """The channel binding of the finished handshake, 64 bytes (Noise section 11.2)."""
        if not self.finished or self._failed:
            raise LocalProtocolError("the handshake is not finished")
        return self._symmetric.h

    def write_message(self, payload: bytes) -> bytes:
        """The next message, carrying ``payload``."""
        tokens = self._begin(writing=True)
        parts = []
        for token in tokens:
            if token is Token.E:
                public = _need(self._e, "ephemeral key").public
                self._symmetric.mix_hash(public)
                parts.append(public)
            elif token is Token.S:
                parts.append(self._symmetric.encrypt_and_hash(_need(self._s, "static key").public))
            else:
                self._mix_dh(token)
        parts.append(self._symmetric.encrypt_and_hash(payload))
        message = b"".join(parts)
        if len(message) > MESSAGE_MAX:
            raise LocalProtocolError("a Noise message has at most 65,535 bytes")
        self._end()
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message.

        Raises AuthenticationFailed when it does not authenticate, RemoteProtocolError when it is too
        short or too long to be one.
        """
        tokens = self._begin(writing=False)
        if len(message) > MESSAGE_MAX:
            raise RemoteProtocolError("a Noise message has at most 65,535 bytes")
        offset = 0
        for token in tokens:
            if token is Token.E:
                self._re = _take(message, offset, DH_LEN)
                self._symmetric.mix_hash(self._re)
                offset += DH_LEN
            elif token is Token.S:
                length = DH_LEN + (TAG_LEN if self._symmetric.cipher_state.has_key() else 0)
                self.rs = self._symmetric.decrypt_and_hash(_take(message, offset, length))
                offset += length
            else:
                self._mix_dh(token)
        payload = self._symmetric.decrypt_and_hash(message[offset:])
        self._end()
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The transport ciphers of the finished handshake: ours for sending, ours for receiving."""
        if not self.finished or self._failed:
            raise LocalProtocolError("the handshake is not finished")
        first, second = self._symmetric.split()
        return (first, second) if self.initiator else (second, first)

    def _begin(self, *, writing: bool) -> tuple[Token, ...]:
        if self._failed or self.finished:
            raise LocalProtocolError("the handshake is over")
        ours = (self._message_index % 2 == 0) == self.initiator
        if writing != ours:
            raise LocalProtocolError("it is the other side's turn to send")
        self._failed = True  # until _end, so that an exception in between leaves it so
        return self.pattern.messages[self._message_index]

    def _end(self) -> None:
        self._failed = False
        self._message_index += 1

    def _mix_dh(self, token: Token) -> None:
        # The first letter names the initiator's key, the second the responder's.
        names = token.value if self.initiator else token.value[::-1]
        key_pair = _need(self._e if names[0] == "e" else self._s, "key")
        public_key = _need(self._re if names[1] == "e" else self.rs, "peer's key")
        self._symmetric.mix_key(dh(key_pair, public_key))


def _need(value: T | None, what: str) -> T:
    if value is None:
        raise LocalProtocolError(f"this handshake pattern needs the {what}")
    return value


def _take(message: bytes, offset: int, length: int) -> bytes:
    part = message[offset : offset + length]
    if len(part) != length:
        raise RemoteProtocolError("a Noise message is too short")
    return part
