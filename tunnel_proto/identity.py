"""Who a node is: an Ed25519 key that signs and a separate X25519 key that shakes hands.

The two are independent on purpose. A scalar shared between them would let a leaked handshake key
forge certificates. Whoever compares keys by eye compares the Ed25519 fingerprint; a certificate
binds the X25519 key to it.

Signatures are verified with libsodium (PyNaCl) only, everywhere. Ed25519 libraries disagree about
small-order and non-canonical keys, and two nodes that disagree about one signature disagree about
who belongs to the pool.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import nacl.bindings
import nacl.exceptions

from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.secret_file import read_secret_file

KEY_BYTES = 32
SIGNATURE_BYTES = 64

# Every signature covers this, the domain's length and the domain before the message, so that no
# signature made for one purpose can be presented for another.
_SIGNATURE_CONTEXT = b"qgate-mesh/signature/1\x00"
_DOMAIN_MAX = 64

_FINGERPRINT_PERSON = b"qgate-mesh/fp/1"
_FINGERPRINT_BYTES = 20  # 160 bits: 32 base32 characters, no padding, out of reach of a second preimage
_FINGERPRINT_GROUP = 4

_FILE_TAG = "qgate-mesh-identity-1"
_FILE_CHECK_BYTES = 8  # finds a damaged file; it authenticates nothing
_FILE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's private keys. Its repr shows the fingerprint and nothing secret.

    ``signing_seed`` is the 32-byte Ed25519 seed (RFC 8032), ``handshake_key`` the 32-byte X25519
    scalar (RFC 7748). The public halves are derived once, here.
    """

    signing_seed: bytes = field(repr=False)
    handshake_key: bytes = field(repr=False)
    verify_key: bytes = field(init=False, repr=False, compare=False)
    handshake_public: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.signing_seed) != KEY_BYTES or len(self.handshake_key) != KEY_BYTES:
            raise ConfigError("an identity is two keys of 32 bytes each")
        verify_key, _ = nacl.bindings.crypto_sign_seed_keypair(self.signing_seed)
        object.__setattr__(self, "verify_key", verify_key)
        object.__setattr__(self, "handshake_public", nacl.bindings.crypto_scalarmult_base(self.handshake_key))

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint})"

    @classmethod
    def generate(cls) -> Identity:
        """Make a fresh identity from the operating system's entropy."""
        return cls(os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))

    @property
    def fingerprint(self) -> str:
        """The Ed25519 key's fingerprint, as a person compares it."""
        return fingerprint(self.verify_key)

    def sign(self, domain: str, message: bytes) -> bytes:
        """Sign ``message`` for one purpose; returns the 64-byte Ed25519 signature."""
        # libsodium's secret key is the seed followed by the public key, which was derived already.
        secret_key = self.signing_seed + self.verify_key
        return nacl.bindings.crypto_sign(_signed_bytes(domain, message), secret_key)[:SIGNATURE_BYTES]


def fingerprint(verify_key: bytes) -> str:
    """Eight groups of four base32 characters naming an Ed25519 public key.

    The lower-case base32 (RFC 4648) of its BLAKE2b-160, personalised so that it equals no other hash.
    """
    digest = hashlib.blake2b(verify_key, digest_size=_FINGERPRINT_BYTES, person=_FINGERPRINT_PERSON).digest()
    text = base64.b32encode(digest).decode("ascii").lower()
    return "-".join(
        text[start : start + _FINGERPRINT_GROUP] for start in range(0, len(text), _FINGERPRINT_GROUP)
    )


def verify(verify_key: bytes, domain: str, message: bytes, signature: bytes) -> None:
    """Check a signature made by :meth:`Identity.sign`; raises AuthenticationFailed if it is not one."""
    if len(verify_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed(f"the {domain} signature has the wrong size")
    try:
        nacl.bindings.crypto_sign_open(signature + _signed_bytes(domain, message), verify_key)
    except (nacl.exceptions.CryptoError, ValueError):
        raise AuthenticationFailed(f"the {domain} signature does not verify") from None


def _signed_bytes(domain: str, message: bytes) -> bytes:
    name = domain.encode("ascii")
    if not 0 < len(name) <= _DOMAIN_MAX:
        raise ValueError("a signature domain has 1 to 64 ASCII characters")
    return _SIGNATURE_CONTEXT + bytes((len(name),)) + name + message


def load_identity(path: Path, *, credentials: Path | None = None) -> Identity:
    """Read an identity file; raises ConfigError when it is missing, readable by others or damaged.

    ``credentials`` is the folder of systemd's credentials, if this process was given one.
    """
    text = _read_private(path, credentials)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    parts = lines[0].split(" ") if len(lines) == 1 else []
    if len(parts) != 2 or parts[0] != _FILE_TAG:
        raise ConfigError(f"{path} is not an identity file", hint=_REPLACE_HINT)
    try:
        secret = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{path} is damaged", hint=_REPLACE_HINT) from None
    keys, check = secret[: 2 * KEY_BYTES], secret[2 * KEY_BYTES :]
    if len(keys) != 2 * KEY_BYTES or check != _file_check(keys):
        raise ConfigError(f"{path} is damaged", hint=_REPLACE_HINT)
    return Identity(keys[:KEY_BYTES], keys[KEY_BYTES:])


def save_identity(path: Path, identity: Identity) -> None:
    """Write a new identity file of mode 0600 and wait for the disk; never replaces a file.

    Raises ConfigError when the file exists or cannot be written.
    """
    keys = identity.signing_seed + identity.handshake_key
    encoded = base64.b64encode(keys + _file_check(keys)).decode("ascii")
    text = (
        "# A node's private keys: whoever can read this file is the node.\n"
        f"# fingerprint {identity.fingerprint}\n"
        f"{_FILE_TAG} {encoded}\n"
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists and an identity is never overwritten") from None
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    _sync_directory(path.parent)


_REPLACE_HINT = "restore it from a backup, or remove it and enrol the node again"


def _file_check(keys: bytes) -> bytes:
    return hashlib.blake2b(keys, digest_size=_FILE_CHECK_BYTES, person=b"qgate-mesh/file").digest()


def _read_private(path: Path, credentials: Path | None) -> str:
    content = read_secret_file(path, limit=_FILE_MAX, credentials=credentials)
    try:
        if len(content) > _FILE_MAX:
            raise ValueError
        return content.decode("ascii")
    except ValueError:
        raise ConfigError(f"{path} is not an identity file", hint=_REPLACE_HINT) from None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
