"""The audit chain by itself: what is hashed, what is signed, and how a tampered chain is told from a whole
one.

Entry n is one line of canonical JSON that holds its own sequence number. Its hash is

    hash(n) = BLAKE2b-256(hash(n - 1) | entry(n)),    hash(0) = 32 zero bytes

personalised with "qgate-audit-1". A hash alone protects against accidents only, for whoever can rewrite an
entry can rewrite the hashes after it; therefore the pool's online key signs the newest hash from time to
time (a *signed head*). Where retention removes the oldest entries, a *marker* signed by the same key takes
the place of the last one removed. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunnel_proto.certificate import read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import Identity, fingerprint, verify

HASH_BYTES = 32
GENESIS = bytes(HASH_BYTES)

_PERSON = b"qgate-audit-1"
_HEAD_DOMAIN = "audit head"
_MARKER_DOMAIN = "audit marker"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def canonical(entry: Mapping[str, Any]) -> str:
    """The one spelling of an entry: sorted keys, no spaces, ASCII. ValueError for NaN and infinities."""
    return _encode(entry)


def link(previous: bytes, entry: str) -> bytes:
    """The hash of `entry` when `previous` is the hash before it."""
    return hashlib.blake2b(previous + entry.encode("ascii"), digest_size=HASH_BYTES, person=_PERSON).digest()


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A position of the chain, vouched for by the pool's online key at `signed_at` (unix seconds)."""

    seq: int
    hash: bytes
    signed_at: int
    signature: bytes
    certificate: bytes

    def as_json(self) -> dict[str, Any]:
        """For files and replies; bytes in hexadecimal."""
        return {
            "seq": self.seq,
            "hash": self.hash.hex(),
            "signed_at": self.signed_at,
            "signature": self.signature.hex(),
            "certificate": self.certificate.hex(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SignedHead:
        """Read back what `as_json` wrote; ValueError where it is damaged."""
        try:
            return cls(
                int(value["seq"]),
                bytes.fromhex(value["hash"]),
                int(value["signed_at"]),
                bytes.fromhex(value["signature"]),
                bytes.fromhex(value["certificate"]),
            )
        except (KeyError, TypeError, ValueError):
            raise ValueError("this is no signed audit head") from None


def sign_head(online: Identity, certificate: bytes, *, seq: int, hash: bytes, at: int) -> SignedHead:  # noqa: A002 - the field's name
    """Vouch for a position; `certificate` is the pool key's for `online`."""
    return SignedHead(seq, hash, at, online.sign(_HEAD_DOMAIN, _signed(seq, hash, at)), certificate)


def sign_marker(online: Identity, certificate: bytes, *, seq: int, hash: bytes, at: int) -> SignedHead:  # noqa: A002 - the field's name
    """Vouch that the entries up to and including `seq` were removed on purpose; `hash` is that entry's."""
    return SignedHead(seq, hash, at, online.sign(_MARKER_DOMAIN, _signed(seq, hash, at)), certificate)


def check_head(head: SignedHead, pool_key: bytes) -> None:
    """Raise AuthenticationFailed unless an online key of this pool signed `head`."""
    _check(head, pool_key, _HEAD_DOMAIN)


def check_marker(marker: SignedHead, pool_key: bytes) -> None:
    """Raise AuthenticationFailed unless an online key of this pool signed `marker`."""
    _check(marker, pool_key, _MARKER_DOMAIN)


def _check(head: SignedHead, pool_key: bytes, domain: str) -> None:
    online = read_online(head.certificate)
    if not hmac.compare_digest(online.pool, pool_key):
        raise AuthenticationFailed("it was signed for another pool")
    if not online.not_before <= head.signed_at <= online.not_after:
        raise AuthenticationFailed("it was signed at a time when its key was not valid")
    verify(online.verify_key, domain, _signed(head.seq, head.hash, head.signed_at), head.signature)


def _signed(seq: int, digest: bytes, at: int) -> bytes:
    return canonical({"seq": seq, "hash": digest.hex(), "signed_at": at}).encode("ascii")


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong with a chain."""

    seq: int
    problem: str


class ChainCheck:
    """Walks a chain in order of `seq` and stops at the first thing that is wrong.

    `pool_key` is the pool's Ed25519 key. `heads` are all signed heads to be found, those kept outside the
    store included; `marker` is the newest retention marker, if there is one.
    """

    def __init__(self, pool_key: bytes, heads: Iterable[SignedHead], marker: SignedHead | None) -> None:
        self.entries = 0
        self.finding: Finding | None = None
        self._heads: dict[int, list[SignedHead]] = {}
        self._last_signed = 0
        self._seq, self._hash = 0, GENESIS
        if marker is not None:
            try:
                check_marker(marker, pool_key)
                self._seq, self._hash = marker.seq, marker.hash
            except AuthenticationFailed as error:
                self._found(
                    marker.seq, f"the retention marker at {marker.seq} is not genuine: {error.message}"
                )
        self._start = self._seq
        for head in heads:
            try:
                check_head(head, pool_key)
            except AuthenticationFailed as error:
                self._found(head.seq, f"the signed head at {head.seq} is not genuine: {error.message}")
                continue
            self._heads.setdefault(head.seq, []).append(head)
            self._last_signed = max(self._last_signed, head.seq)

    @property
    def seq(self) -> int:
        """The last entry that was found good."""
        return self._seq

    @property
    def hash(self) -> bytes:
        """That entry's hash."""
        return self._hash

    def entry(self, seq: int, entry: str, digest: bytes) -> bool:
        """Check the next row; False once something was found wrong."""
        if self.finding is not None:
            return False
        expected = self._seq + 1
        if seq != expected:
            gap = f"entries {expected} to {seq - 1} are" if seq > expected + 1 else f"entry {expected} is"
            return self._found(expected, f"{gap} missing" if seq > expected else f"entry {seq} appears again")
        inner = _inner_seq(entry)
        if inner is not None and inner != seq:
            return self._found(seq, f"entry {inner} stands where entry {seq} was: the order was changed")
        if not entry.isascii() or not hmac.compare_digest(link(self._hash, entry), digest):
            return self._found(seq, f"entry {seq} was changed: its hash does not follow from the one before")
        for head in self._heads.get(seq, ()):
            if not hmac.compare_digest(head.hash, digest):
                return self._found(
                    seq,
                    f"the chain up to entry {seq} was written anew: the signed head there names another hash",
                )
        self._seq, self._hash = seq, digest
        self.entries += 1
        return True

    def end(self, head_seq: int, head_hash: bytes) -> Finding | None:
        """Close the walk with what the store holds as its head; the finding, or None for a whole chain."""
        if self.finding is None:
            last = max(self._last_signed, head_seq)
            if last > self._seq:
                self._found(
                    self._seq + 1,
                    f"entries {self._seq + 1} to {last} were removed from the end"
                    + (" (a signed head names them)" if self._last_signed > self._seq else ""),
                )
            elif head_seq != self._seq or not hmac.compare_digest(head_hash, self._hash):
                self._found(self._seq, "the chain's head does not name its last entry")
        return self.finding

    def _found(self, seq: int, problem: str) -> bool:
        if self.finding is None:
            self.finding = Finding(seq, problem)
        return False


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """What an export says when it is checked by itself; `head` is its signed head."""

    entries: int
    finding: Finding | None
    head: SignedHead | None


def check_export(lines: Iterable[str], again: Iterable[str], *, pool: str) -> ExportCheck:
    """Check an exported trail against nothing but the pool's fingerprint.

    ``lines`` and ``again`` are the export's lines, twice: the heads are read first, then the entries are
    walked. Raises ValueError for what is no export, AuthenticationFailed for one of another pool.
    """
    marker: SignedHead | None = None
    heads: list[SignedHead] = []
    for number, line in enumerate(lines, 1):
        document = _exported(line, number)
        if "head" in document:
            heads.append(SignedHead.from_json(document["head"]))
        elif "marker" in document:
            marker = SignedHead.from_json(document["marker"])
    if not heads:
        raise ValueError("it ends without a signed head, so it was cut short")
    key = read_online(heads[-1].certificate).pool
    if not hmac.compare_digest(fingerprint(key), pool.strip().lower()):
        raise AuthenticationFailed(f"it is of another pool: {fingerprint(key)}")
    check = ChainCheck(key, heads, marker)
    for number, line in enumerate(again, 1):
        document = _exported(line, number)
        if "entry" not in document:
            continue
        try:
            seq, digest = int(document["seq"]), bytes.fromhex(document["hash"])
            entry = canonical(document["entry"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"line {number} is no entry") from None
        if not check.entry(seq, entry, digest):
            break
    finding = check.end(heads[-1].seq, heads[-1].hash)
    return ExportCheck(check.entries, finding, heads[-1])


def _exported(line: str, number: int) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return document


def _inner_seq(entry: str) -> int | None:
    try:
        seq = json.loads(entry)["seq"]
    except (ValueError, KeyError, TypeError):
        return None
    return seq if isinstance(seq, int) else None
