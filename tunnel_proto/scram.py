"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS as PostgreSQL speaks them: client half, server half, verifiers.

Sans-I/O: nonces and salts are arguments, and the one expensive step (PBKDF2) is a function of its own, so
that the caller decides whether it runs on the event loop, in a thread, or comes out of a cache.

Sources: RFC 5802, RFC 7677, RFC 5929 (tls-server-end-point); PostgreSQL 18 documentation, "SASL
Authentication". What a peer may make us hold or compute is capped by the constants below.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.saslprep import saslprep

DEFAULT_ITERATIONS: Final = 4096
"""PostgreSQL's default, and RFC 7677's minimum."""
MAX_ITERATIONS: Final = 1_000_000
"""About half a second of one core; a server asking for more is refused rather than obeyed."""
NONCE_BYTES: Final = 18
"""PostgreSQL's SCRAM_RAW_NONCE_LEN."""
SALT_BYTES: Final = 16
MAX_SALT: Final = 256
MAX_NONCE: Final = 512
"""Characters of a combined nonce."""
MAX_MESSAGE: Final = 2048
"""Bytes of any one SCRAM message; a legitimate one has fewer than 300."""
KEY_BYTES: Final = 32

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,10}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_NONCE = re.compile(rb"[\x21-\x2b\x2d-\x7e]+")


@dataclass(frozen=True, slots=True)
class Keys:
    """What a password becomes under one salt and iteration count: ClientKey and ServerKey, 32 bytes each."""

    client_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "Keys(...)"


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server stores instead of a password: StoredKey and ServerKey, with how they were made."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __str__(self) -> str:
        keys = f"{_b64(self.stored_key)}:{_b64(self.server_key)}"
        return f"SCRAM-SHA-256${self.iterations}:{_b64(self.salt)}${keys}"

    def __repr__(self) -> str:
        return "Verifier(...)"


def derive_keys(password: bytes, salt: bytes, iterations: int) -> Keys:
    """PBKDF2 over the SASLprep form of ``password`` (about 0.4 µs an iteration; releases the GIL)."""
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password), salt, iterations)
    return Keys(_hmac(salted, b"Client Key"), _hmac(salted, b"Server Key"))


def make_verifier(password: bytes, *, salt: bytes, iterations: int = DEFAULT_ITERATIONS) -> str:
    """PostgreSQL's text form of a verifier: ``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``.

    Two verifiers that must be accepted side by side (rotation with an overlap) need the same salt and
    iterations, because a server names them before it knows which password the client holds.
    """
    keys = derive_keys(password, salt, iterations)
    return str(Verifier(iterations, salt, hashlib.sha256(keys.client_key).digest(), keys.server_key))


def parse_verifier(text: str) -> Verifier:
    """Read PostgreSQL's text form; ``ValueError`` where it is damaged."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    salt, stored, server = (base64.b64decode(match[i], validate=True) for i in (2, 3, 4))
    iterations = int(match[1])
    if not (1 <= iterations <= MAX_ITERATIONS and 1 <= len(salt) <= MAX_SALT):
        raise ValueError("a SCRAM-SHA-256 verifier with an impossible salt or iteration count")
    if len(stored) != KEY_BYTES or len(server) != KEY_BYTES:
        raise ValueError("a SCRAM-SHA-256 verifier with keys of a wrong length")
    return Verifier(iterations, salt, stored, server)


def mock_verifier(secret: bytes, user: str, *, iterations: int = DEFAULT_ITERATIONS) -> Verifier:
    """A verifier no password fits, the same for ``user`` every time, so that a stranger cannot tell it apart.

    ``secret`` should be shared by the gates of a pool and survive restarts.
    """
    name = user.encode("utf-8", "surrogateescape")
    salt = hmac.digest(secret, b"mock salt\0" + name, "sha256")[:SALT_BYTES]
    stored = hmac.digest(secret, b"mock stored\0" + name, "sha256")
    server = hmac.digest(secret, b"mock server\0" + name, "sha256")
    return Verifier(iterations, salt, stored, server)


def tls_server_end_point(certificate: bytes) -> bytes | None:
    """Channel binding data of a DER certificate (RFC 5929), or None where its signature names no one hash."""
    try:
        algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        return hashlib.sha256(certificate).digest()
    return hashlib.new(algorithm.name, certificate).digest()


# --- the client half


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server-first message asks the client to derive."""

    salt: bytes
    iterations: int


class ScramClient:
    """One exchange as the client: ``first()``, ``challenge(server_first)``, ``final(keys)``, ``verify(...)``.

    ``nonce`` is fresh printable ASCII without a comma. ``binding`` is the tls-server-end-point data when the
    PLUS mechanism is used; ``binding_possible`` says that we could have bound but the server offered no PLUS
    (then ``y`` tells it, so that a stripped offer is noticed). AuthenticationFailed on anything wrong.
    """

    def __init__(self, *, nonce: str, binding: bytes | None = None, binding_possible: bool = False) -> None:
        if _NONCE.fullmatch(nonce.encode()) is None:
            raise ValueError("a nonce is printable ASCII without a comma")
        self._nonce = nonce
        self._binding = binding
        self._gs2 = (
            b"p=tls-server-end-point,," if binding is not None else b"y,," if binding_possible else b"n,,"
        )
        self._first_bare = f"n=,r={nonce}".encode()
        self._server_first = b""
        self._combined = b""
        self._server_signature: bytes | None = None
        self.verified = False

    def first(self) -> bytes:
        """The client-first message. PostgreSQL ignores its user name, so it is empty."""
        return self._gs2 + self._first_bare

    def challenge(self, server_first: bytes) -> Challenge:
        """Read the server-first message."""
        fields = _attributes(server_first, (b"r", b"s", b"i"))
        nonce = fields[b"r"]
        if len(nonce) > MAX_NONCE or _NONCE.fullmatch(nonce) is None:
            raise AuthenticationFailed("the server's SCRAM nonce is malformed")
        if not nonce.startswith(self._nonce.encode()) or len(nonce) == len(self._nonce):
            raise AuthenticationFailed("the server's SCRAM nonce does not continue ours")
        salt = _unb64(fields[b"s"])
        if not 1 <= len(salt) <= MAX_SALT:
            raise AuthenticationFailed("the server's SCRAM salt has an impossible length")
        if not fields[b"i"].isdigit() or len(fields[b"i"]) > 10:
            raise AuthenticationFailed("the server's SCRAM iteration count is malformed")
        iterations = int(fields[b"i"])
        if not 1 <= iterations <= MAX_ITERATIONS:
            raise AuthenticationFailed(f"the server asks for {iterations} SCRAM iterations")
        self._server_first = server_first
        self._combined = nonce
        return Challenge(salt, iterations)

    def final(self, keys: Keys) -> bytes:
        """The client-final message with the proof."""
        if not self._combined:
            raise AuthenticationFailed("SCRAM messages out of order")
        bound = base64.b64encode(self._gs2 + (self._binding or b""))
        without_proof = b"c=" + bound + b",r=" + self._combined
        signed = self._first_bare + b"," + self._server_first + b"," + without_proof
        signature = _hmac(hashlib.sha256(keys.client_key).digest(), signed)
        self._server_signature = _hmac(keys.server_key, signed)
        return without_proof + b",p=" + base64.b64encode(_xor(keys.client_key, signature))

    def verify(self, server_final: bytes) -> None:
        """Check that the server knows the verifier; only then is ``verified`` true."""
        if self._server_signature is None:
            raise AuthenticationFailed("SCRAM messages out of order")
        if server_final.startswith(b"e="):
            raise AuthenticationFailed("the server refused the SCRAM exchange")
        fields = _attributes(server_final, (b"v",))
        if not hmac.compare_digest(_unb64(fields[b"v"]), self._server_signature):
            raise AuthenticationFailed("the server does not know the password it asked for")
        self.verified = True


# --- the server half


class ScramServer:
    """One exchange as the server: ``first(client_first)`` → message; ``final(client_final)`` → message.

    ``verifiers`` are tried in order; all that share the first one's salt and iterations can be proven.
    ``plus`` says that SCRAM-SHA-256-PLUS was offered, ``binding`` is our certificate's binding data, and
    ``mechanism`` what the client chose. The caller's policy is not known here: a mock verifier costs the
    same.
    """

    def __init__(
        self, verifiers: Sequence[Verifier], *, nonce: str, mechanism: str, plus: bool, binding: bytes | None
    ) -> None:
        self._verifiers = verifiers
        self._nonce = nonce
        self._bound = mechanism.endswith("-PLUS")
        self._plus = plus
        self._binding = binding
        self._gs2 = b""
        self._client_first_bare = b""
        self._server_first = b""
        self._combined = b""
        self.proven: int | None = None

    def first(self, client_first: bytes) -> bytes:
        """Read client-first, give server-first. AuthenticationFailed on a malformed or downgraded one."""
        if len(client_first) > MAX_MESSAGE:
            raise AuthenticationFailed("SCRAM message too long")
        parts = client_first.split(b",", 2)
        if len(parts) != 3:
            raise AuthenticationFailed("malformed SCRAM message")
        flag, authzid, bare = parts
        if authzid:
            raise AuthenticationFailed("SCRAM authorization identities are not supported")
        if self._bound:
            if flag != b"p=tls-server-end-point" or self._binding is None:
                raise AuthenticationFailed("unsupported SCRAM channel-binding type")
        elif flag == b"y":
            if self._plus:
                raise AuthenticationFailed("the client was not shown the offer of channel binding")
        elif flag != b"n":
            raise AuthenticationFailed("malformed SCRAM message")
        fields = _attributes(bare, (b"n", b"r"))
        nonce = fields[b"r"]
        if len(nonce) > MAX_NONCE // 2 or _NONCE.fullmatch(nonce) is None:
            raise AuthenticationFailed("non-printable or overlong SCRAM nonce")
        self._gs2 = flag + b",,"
        self._client_first_bare = bare
        self._combined = nonce + self._nonce.encode()
        shown = self._verifiers[0]
        salt = base64.b64encode(shown.salt)
        self._server_first = b"r=%s,s=%s,i=%d" % (self._combined, salt, shown.iterations)
        return self._server_first

    def final(self, client_final: bytes) -> bytes:
        """Check the proof, give server-final and set ``proven``; AuthenticationFailed if no verifier fits."""
        if not self._server_first or len(client_final) > MAX_MESSAGE:
            raise AuthenticationFailed("malformed SCRAM message")
        without_proof, mark, proof_text = client_final.rpartition(b",p=")
        if not mark:
            raise AuthenticationFailed("malformed SCRAM message")
        fields = _attributes(without_proof, (b"c", b"r"))
        if not hmac.compare_digest(fields[b"r"], self._combined):
            raise AuthenticationFailed("SCRAM nonce does not match")
        expected = self._gs2 + ((self._binding or b"") if self._bound else b"")
        if not hmac.compare_digest(_unb64(fields[b"c"]), expected):
            raise AuthenticationFailed("SCRAM channel binding check failed")
        proof = _unb64(proof_text)
        if len(proof) != KEY_BYTES:
            raise AuthenticationFailed("malformed SCRAM proof")
        signed = self._client_first_bare + b"," + self._server_first + b"," + without_proof
        shown = self._verifiers[0]
        for index, verifier in enumerate(self._verifiers):
            if (verifier.salt, verifier.iterations) != (shown.salt, shown.iterations):
                continue
            client_key = _xor(proof, _hmac(verifier.stored_key, signed))
            fits = hmac.compare_digest(hashlib.sha256(client_key).digest(), verifier.stored_key)
            if fits and self.proven is None:
                self.proven = index
        if self.proven is None:
            raise AuthenticationFailed("SCRAM proof does not fit")
        return b"v=" + base64.b64encode(_hmac(self._verifiers[self.proven].server_key, signed))


# --- pieces of both


def make_nonce(entropy: bytes) -> str:
    """A nonce in SCRAM's alphabet out of NONCE_BYTES random bytes."""
    if len(entropy) < NONCE_BYTES:
        raise ValueError("a nonce needs more entropy")
    return _b64(entropy)


def _attributes(data: bytes, names: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """``a=value`` fields in the given order; further fields (extensions) are allowed after them."""
    if len(data) > MAX_MESSAGE:
        raise AuthenticationFailed("SCRAM message too long")
    fields = data.split(b",")
    if len(fields) < len(names):
        raise AuthenticationFailed("malformed SCRAM message")
    found: dict[bytes, bytes] = {}
    for name, field in zip(names, fields, strict=False):
        if field[:2] != name + b"=":
            raise AuthenticationFailed("malformed SCRAM message")
        found[name] = field[2:]
    return found


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise AuthenticationFailed("malformed base64 in a SCRAM message") from None
