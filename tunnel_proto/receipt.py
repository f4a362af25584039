"""Receipts: what a pool certifies about one request, in a form that anybody can check. No I/O, no clock.

A receipt is one JSON object. What is signed is its canonical spelling (keys sorted, no spaces, everything
beyond ASCII as \\uXXXX) without the member `signature`. The pool's online key signs it, under a domain of its
own; `certificate`, within what is signed, is the pool key's for that online key. Whoever knows the pool's
fingerprint needs nothing else. It says who asked for what, when, where it ran and what it cost, and holds
nothing of what was asked or answered. docs/finops.md has every member.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel_proto.certificate import OnlineCertificate, read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import Identity, fingerprint, verify

VERSION: Final = 1
DOCUMENT_MAX: Final = 64 << 10
_DOMAIN: Final = "receipt"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_encode: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
).encode


@dataclass(frozen=True, slots=True)
class Genuine:
    """A receipt that holds: its id, and the online certificate under which it was signed."""

    id: str
    online: OnlineCertificate


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one spelling of a receipt. ValueError for NaN and infinities."""
    return _encode(document).encode("ascii")


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A whole receipt: its members, and the same as JSON text, ready to be kept and handed out."""

    document: dict[str, Any]
    text: str = field(repr=False)


def sign_receipt(
    fields: Mapping[str, Any], *, online: Identity, certificate: bytes, pool_key: bytes
) -> dict[str, Any]:
    """The whole receipt around `fields`, which have at least `id` and `ended_at`."""
    return ReceiptSigner(pool_key).sign(fields, online=online, certificate=certificate).document


class ReceiptSigner:
    """Signs many receipts of one pool: what is the same in all of them is spelt once."""

    __slots__ = ("_certificate", "_pool", "_spelt")

    def __init__(self, pool_key: bytes) -> None:
        self._pool = fingerprint(pool_key)
        self._certificate = b""
        self._spelt = ""

    def sign(self, fields: Mapping[str, Any], *, online: Identity, certificate: bytes) -> SignedReceipt:
        """The whole receipt around `fields`, which have at least `id` and `ended_at`."""
        if certificate != self._certificate:
            self._certificate = certificate
            self._spelt = base64.b64encode(certificate).decode("ascii")
        document = {"v": VERSION, **fields, "pool": self._pool, "certificate": self._spelt}
        unsigned = canonical(document)
        signature = base64.b64encode(online.sign(_DOMAIN, unsigned)).decode("ascii")
        document["signature"] = signature
        return SignedReceipt(document, f'{unsigned[:-1].decode("ascii")},"signature":"{signature}"}}')


def check_receipt(document: Mapping[str, Any], *, pool: str) -> Genuine:
    """The receipt's id, where the pool of that fingerprint signed every word of it.

    Raises ValueError for what is no receipt, AuthenticationFailed for one that was changed or is another's.
    """
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    try:
        signature = base64.b64decode(document["signature"], validate=True)
        certificate = base64.b64decode(document["certificate"], validate=True)
        identifier, version = document["id"], document["v"]
        ended = _seconds(document["ended_at"])
        message = canonical(unsigned)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error):
        raise ValueError("it lacks what a receipt has") from None
    if version != VERSION:
        raise ValueError(f"it is of version {version!r}, and this program knows version {VERSION}")
    if not isinstance(identifier, str):
        raise ValueError("it has no id")
    online = read_online(certificate)
    wanted = _plain(pool)
    if not hmac.compare_digest(_plain(fingerprint(online.pool)), wanted):
        raise AuthenticationFailed("it was signed for another pool")
    if not isinstance(document.get("pool"), str) or _plain(document["pool"]) != wanted:
        raise AuthenticationFailed("it names another pool than the one that signed it")
    if not online.not_before <= ended <= online.not_after:
        raise AuthenticationFailed("it was signed at a time when its key was not valid")
    verify(online.verify_key, _DOMAIN, message, signature)
    return Genuine(identifier, online)


def spell(at: float) -> str:
    """Unix seconds as receipts spell them: UTC, to the second."""
    return time.strftime(_TIME, time.gmtime(at))


def read_receipt(text: str) -> dict[str, Any]:
    """A receipt from a file: the object itself, or the answer of an API that holds it, streamed or not.

    Of a stream (server-sent events, or one object a line) the last line that has a receipt counts. Raises
    ValueError.
    """
    if len(text) > 64 * DOCUMENT_MAX:
        raise ValueError("it is larger than any receipt")
    document = _read(text)
    if document is None:
        lines = (
            _read(line.removeprefix("data:")) for line in reversed(text.splitlines()) if "receipt" in line
        )
        document = next((one for one in lines if isinstance(one, dict) and "qgate" in one), None)
    if document is None:
        raise ValueError("it is not JSON, nor a stream with a receipt at its end")
    for name in ("qgate", "receipt"):
        if isinstance(document, dict) and isinstance(document.get(name), dict):
            document = document[name]
    if not isinstance(document, dict) or "signature" not in document:
        raise ValueError("it has no object with a signature")
    return document


def _read(text: str) -> Any:
    """JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _seconds(text: Any) -> int:
    return calendar.timegm(time.strptime(text, _TIME))


def _plain(text: str) -> str:
    return text.strip().replace("-", "").lower()
