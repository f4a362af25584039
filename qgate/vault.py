"""Secrets at rest: sealed boxes under a master key that lives in a file (or a systemd credential), never in
the store.

A box is `"QV1" | key id (8) | nonce (24) | ciphertext`, XChaCha20-Poly1305 (libsodium's construction). What
the secret is for is authenticated with it: a box that somebody moves to another row of the store, or whose
row they point at another host, does not open. Re-keying stages the next key in a second file, so that a
crash at any point leaves the vault able to open every box.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
from pathlib import Path

import nacl.bindings
import nacl.exceptions

from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.secret_file import read_secret_file

KEY_BYTES = 32
KEY_ID_BYTES = 8
NONCE_BYTES = 24

_MAGIC = b"QV1"
_HEADER = len(_MAGIC) + KEY_ID_BYTES
_PERSON = b"qgate-vault-id"
_DERIVE = b"qgate-vault/derive/1\0"
_FILE_MAX = 4096


class VaultError(MeshError):
    """A box cannot be opened: its key is not here, it was moved, or it was damaged."""


def key_id(key: bytes) -> bytes:
    """Eight bytes that name a key without telling anything about it."""
    return hashlib.blake2b(key, digest_size=KEY_ID_BYTES, person=_PERSON).digest()


class Vault:
    """Seals and opens secrets. Its repr names the current key by its id only.

    `keys` are 32-byte keys, the one to seal with first. `path` is where they were read from; None for a
    vault that lives in memory.
    """

    def __init__(
        self, keys: tuple[bytes, ...], path: Path | None = None, *, credentials: Path | None = None
    ) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigError(f"a vault key has {KEY_BYTES} bytes")
        self.path = path
        self._credentials = credentials
        self._adopt(keys)

    def __repr__(self) -> str:
        return f"Vault({self.current_key_id})"

    @classmethod
    def load(cls, path: Path, *, credentials: Path | None = None) -> Vault:
        """Read the key file, and the staged next key beside it if a re-keying was interrupted.

        ``credentials`` is the folder of systemd's credentials, if this process was given one.

        Raises ConfigError when the file is missing, readable by others or damaged.
        """
        return cls(_read_ring(path, credentials), path, credentials=credentials)

    @classmethod
    def create(cls, path: Path) -> Vault:
        """Write a new key file of mode 0600; an existing one is never replaced."""
        _write_key(path, os.urandom(KEY_BYTES))
        return cls.load(path)

    @property
    def current_key_id(self) -> str:
        """The id of the key that seals, in hexadecimal."""
        return self._current.hex()

    @property
    def staged(self) -> bool:
        """Whether a next key lies beside the current one."""
        return len(self._keys) > 1

    def seal(self, secret: bytes, purpose: str) -> bytes:
        """A box that opens only with the same `purpose`."""
        return self._seal_with(self._current, secret, purpose)

    def unseal(self, box: bytes, purpose: str) -> bytes:
        """The secret in `box`; VaultError when it does not open for this `purpose`."""
        if len(box) < _HEADER + NONCE_BYTES or not box.startswith(_MAGIC):
            raise VaultError("a sealed secret is damaged")
        name = box[len(_MAGIC) : _HEADER]
        if name not in self._keys:
            self._look_again()
        if name not in self._keys:
            raise VaultError(
                f"a secret is sealed with the vault key {name.hex()}, which this gate does not have",
                hint="copy the vault key file that belongs to this store",
            )
        nonce, body = box[_HEADER : _HEADER + NONCE_BYTES], box[_HEADER + NONCE_BYTES :]
        try:
            return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                body, _bound(name, purpose), nonce, self._keys[name]
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise VaultError(
                f"the secret for {_subject(purpose)} does not open: it was damaged, or what it belongs to "
                "was changed behind the gate's back"
            ) from None

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose, from the current key; re-keying changes them."""
        return hmac.digest(self._keys[self._current], _DERIVE + purpose.encode(), "sha256")

    def key_of(self, box: bytes) -> str:
        """The id of the key that `box` was sealed with, in hexadecimal."""
        return box[len(_MAGIC) : _HEADER].hex()

    # -- re-keying -----------------------------------------------------------------------------------------

    def stage(self) -> None:
        """Put a new key beside the current one (or use the one that lies there already)."""
        if self.path is None:
            raise ConfigError("this vault's key is not in a file, so it cannot be changed from here")
        if not self.staged:
            try:
                _write_key(_next(self.path), os.urandom(KEY_BYTES))
            except ConfigError as error:
                raise ConfigError(
                    f"the vault key cannot be replaced from here: {error.message}",
                    hint=f"put the new key into {_next(self.path)} by hand, or make its folder writable",
                ) from None
            self._adopt(_read_ring(self.path, self._credentials))

    def reseal(self, box: bytes, purpose: str) -> bytes:
        """`box` sealed anew with the staged key."""
        return self._seal_with(self._newest, self.unseal(box, purpose), purpose)

    def finish(self) -> None:
        """Make the staged key the current one: every box is resealed. The old key is gone afterwards."""
        assert self.path is not None
        if self.staged:
            _next(self.path).replace(self.path)
            _sync_directory(self.path.parent)
        self._adopt(_read_ring(self.path, self._credentials))

    def settle(self, used: frozenset[str]) -> None:
        """Finish or drop an interrupted re-keying, by the ids of the keys that the store's boxes name
        (hexadecimal).

        Resealing happens in one transaction, so they name either that or the current one.
        """
        if self.path is None or not self.staged or not used:
            return
        if used == {self._newest.hex()}:
            self.finish()

    def _seal_with(self, name: bytes, secret: bytes, purpose: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        body = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            secret, _bound(name, purpose), nonce, self._keys[name]
        )
        return _MAGIC + name + nonce + body

    def _adopt(self, keys: tuple[bytes, ...]) -> None:
        self._keys = {key_id(key): key for key in keys}
        self._current = key_id(keys[0])
        self._newest = key_id(keys[-1])

    def _look_again(self) -> None:
        """A sibling gate may have re-keyed the store and the operator brought the new file."""
        if self.path is not None:
            with contextlib.suppress(ConfigError):
                self._adopt(_read_ring(self.path, self._credentials))


def _bound(name: bytes, purpose: str) -> bytes:
    return _MAGIC + name + purpose.encode()


def _subject(purpose: str) -> str:
    return purpose.split("\n", 1)[0]


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _read_ring(path: Path, credentials: Path | None) -> tuple[bytes, ...]:
    keys = (_read_key(path, credentials),)
    return (*keys, _read_key(_next(path), credentials)) if _next(path).exists() else keys


def _read_key(path: Path, credentials: Path | None) -> bytes:
    try:
        content = read_secret_file(path, limit=_FILE_MAX, credentials=credentials)
    except ConfigError as error:
        raise ConfigError(
            f"the vault key cannot be used: {error.message}",
            hint=error.hint or "restore it; nothing replaces it",
        ) from None
    try:
        key = base64.b64decode(content.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} is not a vault key: it must hold {KEY_BYTES} bytes in base64")
    return key


def _write_key(path: Path, key: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists and a vault key is never overwritten") from None
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(key) + b"\n")
        file.flush()
        os.fsync(descriptor)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
