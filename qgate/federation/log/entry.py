"""One entry of a pool's log: what is signed, what is hashed, and what may be erased later. No I/O, no clock.

    entry     = [body, signature]                         msgpack, canonical (tunnel_proto.packing)
    body      = [format, pool, incarnation, seq, previous, hlc, stream, version, record, epoch,
                 commitment, size, signer]                 msgpack; later formats append, never change
    hash      = BLAKE2b-256(body)                          personalised "qgate-log-entry"
    signature = Ed25519(signer, domain "log entry", body)
    commitment= BLAKE2b-256(payload), keyed with the salt  personalised "qgate-log-data"

The body is kept and verified as the bytes that were received. The payload and its 32-byte salt travel beside
the entry: both can be erased, or withheld from a pool that may not read them, and the chain still verifies.
An erased payload cannot be guessed and confirmed, for the salt went with it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.federation.log.hlc import TIMESTAMP_MAX
from qgate.federation.log.problems import LogProblem
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

FORMAT: Final = 1
HASH_BYTES: Final = 32
SALT_BYTES: Final = 32
INCARNATION_BYTES: Final = 16
GENESIS: Final = bytes(HASH_BYTES)
RECORD_MAX: Final = 64  # bytes of a record's id
ENTRY_MAX: Final = 4096  # bytes of an entry without its payload; ours have about 350
PAYLOAD_MAX: Final = 512 * 1024
"""Bytes of one payload. What is larger is a blob and replicates in chunks."""

PAYLOAD_ITEMS_MAX: Final = 10_000  # of each array and map in a payload

_DOMAIN: Final = "log entry"
_ENTRY_PERSON: Final = b"qgate-log-entry"
_DATA_PERSON: Final = b"qgate-log-data"
_STREAM: Final = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_FIELDS: Final = 13
_NUMBER_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it was received. ``hlc`` is a `hlc.timestamp`, ``size`` the payload's bytes.

    ``pool`` is the origin's Ed25519 identity key, ``signer`` the online key that signed.
    """

    raw: bytes = field(repr=False)
    hash: bytes
    format: int
    pool: bytes
    incarnation: bytes
    seq: int
    previous: bytes
    hlc: int
    stream: str
    version: int
    record: bytes
    epoch: int
    commitment: bytes
    size: int
    signer: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """An entry's payload, packed, with the salt of its commitment."""

    salt: bytes = field(repr=False)
    payload: bytes = field(repr=False)

    @classmethod
    def of(cls, payload: Mapping[str, Any], salt: bytes) -> Contents:
        """Pack a payload. LogProblem ``payload-too-large`` beyond `PAYLOAD_MAX`."""
        packed = pack(dict(payload))
        if len(packed) > PAYLOAD_MAX:
            raise LogProblem(
                "payload-too-large",
                f"the payload has {len(packed)} bytes and {PAYLOAD_MAX} are allowed",
                hint="split the record; a file replicates as a blob (meshctl model replicate)",
            )
        return cls(salt, packed)

    def value(self) -> dict[str, Any]:
        """The payload's map. LogProblem ``payload-malformed`` where it is none."""
        try:
            value = unpack(self.payload, max_bytes=PAYLOAD_MAX, max_items=PAYLOAD_ITEMS_MAX)
        except RemoteProtocolError as error:
            raise LogProblem("payload-malformed", f"a payload is malformed: {error.message}") from None
        if not isinstance(value, dict):
            raise LogProblem("payload-malformed", "a payload is malformed: a map was expected")
        return value


def commitment(contents: Contents) -> bytes:
    """What an entry says of its payload without saying the payload."""
    return hashlib.blake2b(
        contents.payload, digest_size=HASH_BYTES, key=contents.salt, person=_DATA_PERSON
    ).digest()


def make_entry(
    online: Identity,
    *,
    pool: bytes,
    incarnation: bytes,
    seq: int,
    previous: bytes,
    hlc: int,
    stream: str,
    record: bytes,
    contents: Contents,
    version: int = 1,
    epoch: int = 0,
    entry_format: int = FORMAT,
    extra: tuple[Any, ...] = (),
) -> Entry:
    """Sign an entry with the pool's online key. ``entry_format`` and ``extra`` are for later formats."""
    body = pack(
        [
            entry_format,
            pool,
            incarnation,
            seq,
            previous,
            hlc,
            stream,
            version,
            record,
            epoch,
            commitment(contents),
            len(contents.payload),
            online.verify_key,
            *extra,
        ]
    )
    return read_entry(pack([body, online.sign(_DOMAIN, body)]))


def read_entry(raw: bytes) -> Entry:
    """Take an entry apart; its signature is checked by `check_signature`. LogProblem ``malformed``."""
    try:
        parts = unpack(raw, max_bytes=ENTRY_MAX)
        if not isinstance(parts, list) or len(parts) != 2:
            raise RemoteProtocolError("two fields were expected")
        body, signature = parts
        if not isinstance(body, bytes) or not _is_bytes(signature, SIGNATURE_BYTES):
            raise RemoteProtocolError("a body and a signature were expected")
        fields = unpack(body, max_bytes=ENTRY_MAX)
    except RemoteProtocolError as error:
        raise LogProblem("malformed", f"a log entry is malformed: {error.message}") from None
    if not isinstance(fields, list) or len(fields) < _FIELDS:
        raise LogProblem("malformed", f"a log entry is malformed: {_FIELDS} fields were expected")
    entry = Entry(raw, _hash(body), *fields[:_FIELDS])
    problem = _problem(entry)
    if not problem and entry.format == FORMAT and len(fields) != _FIELDS:
        problem = "it has more fields than its format"
    if problem:
        raise LogProblem("malformed", f"a log entry is malformed: {problem}")
    return entry


def check_signature(entry: Entry) -> None:
    """Raise LogProblem ``signature`` unless the key that the entry names signed it."""
    body, signature = unpack(entry.raw, max_bytes=ENTRY_MAX)
    try:
        verify(entry.signer, _DOMAIN, body, signature)
    except AuthenticationFailed as error:
        raise LogProblem("signature", f"entry {entry.seq}: {error.message}") from None


def check_contents(entry: Entry, contents: Contents) -> None:
    """Raise LogProblem ``payload`` unless these are what the entry commits to."""
    if (
        len(contents.salt) != SALT_BYTES
        or len(contents.payload) != entry.size
        or not hmac.compare_digest(commitment(contents), entry.commitment)
    ):
        raise LogProblem("payload", f"the payload of entry {entry.seq} is not what the entry commits to")


def stream_problem(name: object) -> str:
    """Why ``name`` cannot name a stream, or the empty string."""
    if isinstance(name, str) and _STREAM.fullmatch(name):
        return ""
    return "a stream's name is 1 to 32 lower-case letters, digits and hyphens"


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=HASH_BYTES, person=_ENTRY_PERSON).digest()


def _problem(entry: Entry) -> str:
    if not _is_number(entry.format, least=1):
        return "its format is no number"
    if not (_is_bytes(entry.pool, KEY_BYTES) and _is_bytes(entry.signer, KEY_BYTES)):
        return "a key has the wrong size"
    if not _is_bytes(entry.incarnation, INCARNATION_BYTES):
        return "its incarnation has the wrong size"
    if not (_is_bytes(entry.previous, HASH_BYTES) and _is_bytes(entry.commitment, HASH_BYTES)):
        return "a hash has the wrong size"
    if not (
        _is_number(entry.seq, least=1) and _is_number(entry.epoch) and _is_number(entry.version, least=1)
    ):
        return "a number is out of range"
    if type(entry.hlc) is not int or not 0 <= entry.hlc <= TIMESTAMP_MAX:
        return "its time is out of range"
    if type(entry.size) is not int or not 0 <= entry.size <= PAYLOAD_MAX:
        return f"its payload has more than {PAYLOAD_MAX} bytes"
    if not isinstance(entry.record, bytes) or not 0 < len(entry.record) <= RECORD_MAX:
        return "its record id has the wrong size"
    return stream_problem(entry.stream)


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def _is_number(value: object, *, least: int = 0) -> bool:
    return type(value) is int and least <= value <= _NUMBER_MAX
