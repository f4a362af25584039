"""Licences: claims that a vendor signs offline and anybody verifies offline, with one algorithm only.

A licence is a JSON Web Token (RFC 7519) in the compact form of a signature (RFC 7515), which is
`header.claims.signature` in base64url, signed with Ed25519 (RFC 8037, "EdDSA"). The verifier is strict where
tokens of this kind have been attacked: the header may hold `alg`, `typ` and `kid` and nothing else; `alg`
must be "EdDSA", and the key is one of those trusted, found by its thumbprint (RFC 7638), never one that the
token brings; JSON with a key twice, with other numbers than whole ones, or beyond 8 KiB is refused.

Own code over libsodium, and not a general library: what a library adds is the choice of algorithms.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import nacl.bindings
import nacl.exceptions

from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES

TOKEN_MAX: Final = 8192
"""Characters of a token."""

ALGORITHM: Final = "EdDSA"
AUDIENCE: Final = "qgate-mesh"
NAME_MAX: Final = 200
FEATURES_MAX: Final = 64
SEATS_MAX: Final = 10_000_000
TIME_MAX: Final = 253_402_300_799
"""The last second of the year 9999, in unix time."""

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_FEATURE: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


class LicenceError(ConfigError):
    """A token that is no licence for us; ``code`` says why in one word, the message in a sentence."""

    def __init__(self, message: str, code: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Claims:
    """What a vendor says. Times are unix seconds; ``seats`` None means any number.

    ``pool`` is the fingerprint of the one pool that it is for, empty for any.
    """

    issuer: str
    licensee: str
    id: str
    issued_at: int
    not_before: int
    expires_at: int
    seats: int | None = None
    features: tuple[str, ...] = ()
    pool: str = ""

    def as_json(self) -> dict[str, Any]:
        """The claims by their names in the token."""
        document: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.licensee,
            "aud": AUDIENCE,
            "jti": self.id,
            "iat": self.issued_at,
            "nbf": self.not_before,
            "exp": self.expires_at,
            "features": list(self.features),
        }
        if self.seats is not None:
            document["seats"] = self.seats
        if self.pool:
            document["pool"] = self.pool
        return document


@dataclass(frozen=True, slots=True)
class Licence:
    """A token whose signature holds. ``vendor`` is what its key is called here, ``kid`` its thumbprint."""

    claims: Claims
    kid: str
    vendor: str


def thumbprint(key: bytes) -> str:
    """The name of an Ed25519 public key: its JWK thumbprint (RFC 7638, RFC 8037 A.3), in base64url."""
    jwk = '{"crv":"Ed25519","kty":"OKP","x":"' + encode(key) + '"}'
    return encode(hashlib.sha256(jwk.encode("ascii")).digest())


def vendors_of(text: str) -> dict[str, bytes]:
    """Keys by name from "acme=KEY, KEY": those without a name are called by the start of their thumbprint.

    ConfigError for what is no key, and for a name or a key given twice.
    """
    found: dict[str, bytes] = {}
    for part in re.split(r"[,\s]+", text.strip()):
        if not part:
            continue
        name, equals, coded = part.rpartition("=") if "=" in part else ("", "", part)
        try:
            key = decode(coded)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or (equals and not _NAME.fullmatch(name)):
            raise ConfigError(
                f"{part[:80]!r} is no vendor's key: NAME=KEY, with the {KEY_BYTES} bytes of an Ed25519 key "
                "in base64url",
                hint="meshctl license issue prints the key of your own",
            )
        name = name or thumbprint(key)[:12]
        if name in found or key in found.values():
            raise ConfigError(f"the vendor {name} is named twice")
        found[name] = key
    return found


def issue(claims: Claims, seed: bytes) -> str:
    """Sign claims with a vendor's 32-byte Ed25519 seed; the token. LicenceError for claims out of form."""
    checked = _claims(claims.as_json())
    public, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    header = {"alg": ALGORITHM, "kid": thumbprint(public), "typ": "JWT"}
    signed = f"{_json(header)}.{_json(checked.as_json())}".encode("ascii")
    token = f"{signed.decode()}.{encode(nacl.bindings.crypto_sign(signed, secret)[:SIGNATURE_BYTES])}"
    if len(token) > TOKEN_MAX:
        raise LicenceError(f"a licence has at most {TOKEN_MAX} characters", "huge")
    return token


def read(token: str, vendors: Mapping[str, bytes]) -> Licence:
    """Verify a token against the vendors that are trusted, by name.

    Its times are not looked at: `Claims` says them, and the caller knows the time. LicenceError with the code
    huge, malformed, algorithm, no-vendors, unknown-key, signature or claims.
    """
    token = token.strip()
    if len(token) > TOKEN_MAX:
        raise LicenceError(f"that is no licence: it has more than {TOKEN_MAX} characters", "huge")
    parts = token.split(".")
    if len(parts) != 3:
        raise LicenceError("that is no licence: it is not three parts with a dot between", "malformed")
    header = _object(parts[0], "header")
    if header.get("alg") != ALGORITHM:
        raise LicenceError(
            f'that licence is not signed with "{ALGORITHM}", and nothing else is taken', "algorithm"
        )
    if unknown := header.keys() - {"alg", "kid", "typ"}:
        raise LicenceError(f"the licence's header has {min(unknown)[:40]!r}, which none has", "malformed")
    if not isinstance(kid := header.get("kid"), str) or header.get("typ", "JWT") != "JWT":
        raise LicenceError("the licence's header does not name its key", "malformed")
    if not vendors:
        raise LicenceError(
            "no vendor's key is trusted here",
            "no-vendors",
            hint="meshctl settings set licence.vendors NAME=KEY",
        )
    vendor = next((name for name, key in vendors.items() if thumbprint(key) == kid), None)
    if vendor is None:
        raise LicenceError(
            f"the licence is signed by a key that is not trusted here ({kid[:43]})",
            "unknown-key",
            hint="meshctl settings get licence.vendors",
        )
    try:
        signature = decode(parts[2])
        if len(signature) != SIGNATURE_BYTES:
            raise ValueError
        signed = f"{parts[0]}.{parts[1]}".encode("ascii")
        nacl.bindings.crypto_sign_open(signature + signed, vendors[vendor])
    except (ValueError, nacl.exceptions.CryptoError):
        raise LicenceError(
            "the licence was changed after it was signed, or is not whole",
            "signature",
            hint="take the file again as the vendor sent it",
        ) from None
    return Licence(_claims(_object(parts[1], "claims")), kid, vendor)


def encode(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """What `encode` wrote; ValueError for any other spelling, also of the same bytes."""
    if _BASE64URL.fullmatch(text) is None:
        raise ValueError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data


def _json(document: Mapping[str, Any]) -> str:
    return encode(json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode())


def _object(part: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(
            decode(part).decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        raise LicenceError(f"the licence's {what} cannot be read", "malformed") from None
    if not isinstance(found, dict):
        raise LicenceError(f"the licence's {what} is no object", "malformed")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _no_number(_text: str) -> Any:
    raise ValueError("only whole numbers")


def _claims(document: Mapping[str, Any]) -> Claims:
    def text(name: str, *, optional: bool = False) -> str:
        value = document.get(name, "" if optional else None)
        if not isinstance(value, str) or not (optional or value) or len(value) > NAME_MAX:
            raise _bad(name)
        if not value.isprintable():
            raise _bad(name)
        return value

    def whole(name: str, most: int) -> int:
        value = document.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise _bad(name)
        return value

    if document.get("aud") != AUDIENCE:
        raise LicenceError("that licence is for another product", "claims")
    features = document.get("features", [])
    if not isinstance(features, list) or len(features) > FEATURES_MAX:
        raise _bad("features")
    if not all(isinstance(one, str) and _FEATURE.fullmatch(one) for one in features):
        raise _bad("features")
    claims = Claims(
        issuer=text("iss"),
        licensee=text("sub"),
        id=text("jti"),
        issued_at=whole("iat", TIME_MAX),
        not_before=whole("nbf", TIME_MAX),
        expires_at=whole("exp", TIME_MAX),
        seats=whole("seats", SEATS_MAX) if document.get("seats") is not None else None,
        features=tuple(dict.fromkeys(features)),
        pool=text("pool", optional=True),
    )
    if claims.expires_at <= claims.not_before:
        raise LicenceError("that licence ends before it begins", "claims")
    return claims


def _bad(name: str) -> LicenceError:
    return LicenceError(f"the licence's claim {name!r} is missing or not of its kind", "claims")
