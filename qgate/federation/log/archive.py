"""Archives: a piece of a log in a file, sealed to the pool that it is carried to. Pure.

    file    = "QGLOGA1\\n" | u32 length | head | frames
    head    = [body, signature]         the sender's online key, domain "log archive"
    body    = [format, id, sender, recipient, sealed, made, certificate, stream header]
    sealed  = libsodium sealed box of the content key, to the X25519 form of the recipient's online key
    frame   = u32 length | secretstream (XChaCha20-Poly1305) of one message of tunnel_proto.log_messages
    last    = the frame with tag FINAL: [entries, bytes]

The messages are those that a peer would get over the tunnel. The secretstream authenticates order and end: a
file that was cut, damaged or spliced is refused before anything of it is applied. The recipient answers with
a receipt, which tells the sender what need not be carried again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import nacl.bindings
import nacl.exceptions

from qgate.federation.log.entry import HASH_BYTES, INCARNATION_BYTES
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.vector import Head
from tunnel_proto.certificate import read_online
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

MAGIC: Final = b"QGLOGA1\n"
ID_BYTES: Final = 16
HEAD_MAX: Final = 4096
FRAME_MAX: Final = 8 * 1024 * 1024
RECEIPT_MAX: Final = 4096
_FORMAT: Final = 1
_DOMAIN: Final = "log archive"
_RECEIPT_DOMAIN: Final = "log archive receipt"
_LENGTH: Final = struct.Struct(">I")
_CUT: Final = "copy the file again, or export it again at the sending pool: meshctl pool export"


@dataclass(frozen=True, slots=True)
class ArchiveHead:
    """What an archive says in clear. ``made`` is unix seconds, ``certificate`` the sender's online one."""

    id: bytes
    sender: bytes
    recipient: bytes
    sealed: bytes = field(repr=False)
    made: int
    certificate: bytes = field(repr=False)
    stream: bytes = field(repr=False)


class ArchiveWriter:
    """Makes an archive piece by piece. ``entropy`` is 48 random bytes: the content key and the id."""

    def __init__(
        self,
        online: Identity,
        *,
        certificate: bytes,
        sender: bytes,
        recipient: bytes,
        recipient_online: bytes,
        made: int,
        entropy: bytes,
    ) -> None:
        key, self.id = entropy[:32], entropy[32 : 32 + ID_BYTES]
        self._state = nacl.bindings.crypto_secretstream_xchacha20poly1305_state()
        stream = nacl.bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        try:
            box = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(recipient_online)
        except (nacl.exceptions.CryptoError, RuntimeError, ValueError):
            raise LogProblem("archive-key", "nothing can be sealed to the recipient's key") from None
        sealed = nacl.bindings.crypto_box_seal(key, box)
        body = pack([_FORMAT, self.id, sender, recipient, sealed, made, certificate, stream])
        head = pack([body, online.sign(_DOMAIN, body)])
        self.opening = MAGIC + _LENGTH.pack(len(head)) + head
        self._entries = self._bytes = 0

    def message(self, frame: bytes, entries: int) -> bytes:
        """One frame of messages that holds so many entries."""
        self._entries += entries
        self._bytes += len(frame)
        return self._sealed(frame, nacl.bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE)

    def end(self) -> bytes:
        """The last frame."""
        final = nacl.bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
        return self._sealed(pack([self._entries, self._bytes]), final)

    def _sealed(self, data: bytes, tag: int) -> bytes:
        box = nacl.bindings.crypto_secretstream_xchacha20poly1305_push(self._state, data, None, tag)
        return _LENGTH.pack(len(box)) + bytes(box)


class ArchiveReader:
    """Opens an archive as its bytes come; `feed` returns messages, `end` says whether it was whole."""

    def __init__(self, online: Identity, *, recipient: bytes) -> None:
        self.head: ArchiveHead | None = None
        self.entries = 0
        self._online = online
        self._recipient = recipient
        self._buffer = bytearray()
        self._started = self._ended = False
        self._state = nacl.bindings.crypto_secretstream_xchacha20poly1305_state()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and give the messages they complete. LogProblem."""
        self._buffer += data
        if not self._started:
            if len(self._buffer) >= len(MAGIC) and not self._buffer.startswith(MAGIC):
                raise LogProblem("archive-format", "this is no archive of a log")
            if len(self._buffer) < len(MAGIC) + _LENGTH.size:
                return
            if (head := self._take(len(MAGIC), HEAD_MAX)) is None:
                return
            self._open(head)
        while (box := self._take(0, FRAME_MAX)) is not None:
            if self._ended:
                raise LogProblem("archive-damaged", "the archive goes on after its end", hint=_CUT)
            yield from self._message(box)

    def end(self) -> ArchiveHead:
        """The head of an archive that was read to its end. LogProblem ``archive-cut`` for part of one."""
        if self.head is None:
            raise LogProblem("archive-cut", "the archive ends before it begins", hint=_CUT)
        if not self._ended or self._buffer:
            raise LogProblem(
                "archive-cut",
                f"the archive ends in the middle, after {self.entries} entries; nothing of it was taken",
                hint=_CUT,
            )
        return self.head

    def counted(self, entries: int) -> None:
        """The caller found so many entries in the last messages."""
        self.entries += entries

    def _take(self, start: int, most: int) -> bytes | None:
        if len(self._buffer) < start + _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, start)
        if length > most:
            raise LogProblem("archive-damaged", f"the archive has a part of {length} bytes", hint=_CUT)
        first = start + _LENGTH.size
        if len(self._buffer) < first + length:
            return None
        part = bytes(self._buffer[first : first + length])
        del self._buffer[: first + length]
        return part

    def _open(self, raw: bytes) -> None:
        self._started = True
        self.head = head = read_head(raw)
        if head.recipient != self._recipient:
            raise LogProblem(
                "archive-recipient",
                "the archive is sealed to another pool",
                hint="export one for this pool: meshctl pool export --to NAME, at the sender",
            )
        seed = self._online.signing_seed
        _, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(self._online.verify_key)
        private = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(secret)
        try:
            key = nacl.bindings.crypto_box_seal_open(head.sealed, public, private)
            nacl.bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, head.stream, key)
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise LogProblem(
                "archive-key",
                "the archive was sealed to a key that this pool does not use (any more)",
                hint="carry this pool's present certificate to the sender, then export again",
            ) from None

    def _message(self, box: bytes) -> Iterator[bytes]:
        try:
            data, tag = nacl.bindings.crypto_secretstream_xchacha20poly1305_pull(self._state, box, None)
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise LogProblem("archive-damaged", "the archive is damaged", hint=_CUT) from None
        if tag == nacl.bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL:
            self._ended = True
        else:
            yield bytes(data)


def read_head(raw: bytes) -> ArchiveHead:
    """The clear part of an archive, its signature checked from the sender's own pool key down. LogProblem."""
    try:
        body, signature = unpack(raw, max_bytes=HEAD_MAX)
        version, *fields = unpack(body, max_bytes=HEAD_MAX)
        head = ArchiveHead(*fields)
        online = read_online(head.certificate)
        sound = (
            version == _FORMAT
            and isinstance(head.id, bytes)
            and len(head.id) == ID_BYTES
            and online.pool == head.sender
            and isinstance(head.recipient, bytes)
            and len(head.recipient) == KEY_BYTES
            and type(head.made) is int
            and online.not_before <= head.made <= online.not_after
        )
        if not sound:
            raise LogProblem("archive-format", "the archive's head is malformed or of a newer format")
        verify(online.verify_key, _DOMAIN, body, signature)
    except (RemoteProtocolError, AuthenticationFailed, ValueError, TypeError) as error:
        what = getattr(error, "message", "it is malformed")
        raise LogProblem("archive-format", f"the archive's head cannot be trusted: {what}") from None
    return head


@dataclass(frozen=True, slots=True)
class ArchiveReceipt:
    """A recipient's word that it took an archive and has ``head`` of the sender's log since ``taken``."""

    archive: bytes
    sender: bytes
    recipient: bytes
    head: Head
    taken: int


def make_receipt(online: Identity, certificate: bytes, receipt: ArchiveReceipt) -> bytes:
    """Sign a receipt with the recipient's online key."""
    head = receipt.head
    body = pack(
        [
            _FORMAT,
            receipt.archive,
            receipt.sender,
            receipt.recipient,
            head.incarnation,
            head.seq,
            head.hash,
            receipt.taken,
            certificate,
        ]
    )
    return pack([body, online.sign(_RECEIPT_DOMAIN, body)])


def read_receipt(raw: bytes) -> ArchiveReceipt:
    """A receipt whose signature holds from the recipient's pool key down. LogProblem ``receipt``."""
    try:
        body, signature = unpack(raw, max_bytes=RECEIPT_MAX)
        fields: list[Any] = unpack(body, max_bytes=RECEIPT_MAX)
        version, archive, sender, recipient, incarnation, seq, digest, taken, certificate = fields
        online = read_online(certificate)
        sound = (
            version == _FORMAT
            and online.pool == recipient
            and len(incarnation) == INCARNATION_BYTES
            and len(digest) == HASH_BYTES
            and type(seq) is int
            and type(taken) is int
            and online.not_before <= taken <= online.not_after
        )
        if not sound:
            raise LogProblem("receipt", "the receipt is malformed or of a newer format")
        verify(online.verify_key, _RECEIPT_DOMAIN, body, signature)
    except (RemoteProtocolError, AuthenticationFailed, ValueError, TypeError) as error:
        what = getattr(error, "message", "it is malformed")
        raise LogProblem("receipt", f"the receipt cannot be trusted: {what}") from None
    return ArchiveReceipt(archive, sender, recipient, Head(incarnation, seq, digest), taken)
