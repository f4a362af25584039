"""The record layer of one link: lengths, nonces, sealing, and keys that change on the way.

A record is ``length u32 | AEAD(plaintext)``, ChaCha20-Poly1305 with Noise's nonce (32 zero bits, then the
record's number in its direction, little-endian u64) and no associated data: a changed length makes the tag
wrong. `docs/decisions/record-cipher.md` tells why this library.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tunnel_proto.constants import RECORD_LENGTH_BYTES, RECORD_PLAINTEXT_MAX, RECORD_TAG_BYTES, REKEY_NONCE
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError

_NONCE: Final = struct.Struct("<4xQ")
_CIPHERTEXT_MAX: Final = RECORD_PLAINTEXT_MAX + RECORD_TAG_BYTES
_CIPHERTEXT_MIN: Final = RECORD_TAG_BYTES + 1


def rekeyed(key: bytes) -> bytes:
    """The key after REKEY (Noise specification 11.3 and 4.2): 32 zero bytes sealed with the last nonce."""
    return ChaCha20Poly1305(key).encrypt(_NONCE.pack(REKEY_NONCE), bytes(32), None)[:32]


class RecordLayer:
    """Seals and opens the records of one link. Each direction has a key and a counter of its own."""

    __slots__ = (
        "_buffer",
        "_open",
        "_position",
        "_receive_key",
        "_receive_number",
        "_seal",
        "_send_key",
        "_send_number",
        "sealed_bytes",
    )

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_key = send_key
        self._receive_key = receive_key
        self._seal = ChaCha20Poly1305(send_key).encrypt
        self._open = ChaCha20Poly1305(receive_key).decrypt
        self._send_number = 0
        self._receive_number = 0
        self._buffer = b""
        self._position = 0
        self.sealed_bytes = 0  # under the present sending key

    def seal(self, plaintext: bytes) -> bytes:
        """The whole record. LocalProtocolError when its nonces are used up."""
        number = self._send_number
        if number >= REKEY_NONCE:
            raise LocalProtocolError("the link has used up its nonces")
        self._send_number = number + 1
        sealed = self._seal(_NONCE.pack(number), plaintext, None)
        size = len(sealed)
        self.sealed_bytes += size
        return size.to_bytes(4) + sealed

    def rekey_sending(self) -> None:
        """Change the sending key; the record just sealed told the peer."""
        self._send_key = rekeyed(self._send_key)
        self._seal = ChaCha20Poly1305(self._send_key).encrypt
        self.sealed_bytes = 0

    def rekey_receiving(self) -> None:
        """Change the receiving key for all records after the one just opened."""
        self._receive_key = rekeyed(self._receive_key)
        self._open = ChaCha20Poly1305(self._receive_key).decrypt

    @property
    def buffered(self) -> int:
        """Bytes fed but not opened: less than one record once `next_record` gave None."""
        return len(self._buffer) - self._position

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire."""
        if self._position < len(self._buffer):
            self._buffer = self._buffer[self._position :] + data
        else:
            self._buffer = data
        self._position = 0

    def next_record(self) -> bytes | None:
        """Plaintext of the next whole record, or None. AuthenticationFailed, RemoteProtocolError."""
        buffer = self._buffer
        start = self._position + RECORD_LENGTH_BYTES
        available = len(buffer)
        if start > available:
            if available == self._position:
                self._buffer = b""
                self._position = 0
            return None
        at = self._position
        length = buffer[at] << 24 | buffer[at + 1] << 16 | buffer[at + 2] << 8 | buffer[at + 3]
        if not _CIPHERTEXT_MIN <= length <= _CIPHERTEXT_MAX:
            raise RemoteProtocolError(f"a record of {length} bytes")
        end = start + length
        if end > available:
            return None
        number = self._receive_number
        try:
            plaintext = self._open(_NONCE.pack(number), buffer[start:end], None)
        except InvalidTag:
            raise AuthenticationFailed("a record was not sealed by the peer") from None
        self._receive_number = number + 1
        self._position = end
        return plaintext
