"""Grants and access tokens of administrators: what is signed, and what is checked of it. Pure.

    grant   "qgs1."  signed once, at log-in, by the admin's own pool, with its chain; at most 12 h; names the
                     pools it is for and the one client key that may use it
    token   "qgt1."  signed by the pool that it opens, from a grant; at most 300 s; for the same key only

A grant is never made anew by another pool: a pool takes grants of pools that it trusts itself, and of no
pool that those trust. Both are useless to whoever lacks the client key, because they come over a tunnel whose
handshake proved it; one of an empty key is good on the control socket alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.governance.principal import Role
from tunnel_proto.certificate import OnlineCertificate, OnlineKey, name_problem, read_online
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

SESSION_MOST_S: Final = 12 * 3600
"""A session's longest life: a working day."""

TOKEN_S: Final = 300
"""A token's life, which is also how long a log-out may go unheard by a pool that is cut off."""

CLOCK_SKEW_S: Final = 120
"""How far a pool's clock may be ahead of ours: what it signed a moment ago is good here."""

SID_BYTES: Final = 16
PROOF_BYTES: Final = 16
OVER_MOST: Final = 4096
"""Ended sessions of one paired pool that are remembered until they would have ended by themselves."""

POOLS_MAX: Final = 50
GRANT_MAX: Final = 8192
"""Characters; the longest grant has about 3,300."""
TOKEN_MAX: Final = 2048

_GRANT_TAG: Final = "qgs1."
_TOKEN_TAG: Final = "qgt1."  # noqa: S105 - how every token begins
_GRANT_DOMAIN: Final = "admin grant"
_TOKEN_DOMAIN: Final = "admin token"  # noqa: S105 - what is signed
_FORMAT: Final = 1
_FINGERPRINT_MAX: Final = 64
_TIME_MAX: Final = 2**53


@dataclass(frozen=True, slots=True)
class Grant:
    """A log-in, as the pool says where it happened. Times are unix seconds, the last one no longer valid.

    ``pool`` is that pool's key, ``pools`` are the keys of the others that it is for. ``client`` is the
    fingerprint of the client's key, "" for the control socket.
    """

    sid: bytes
    name: str
    role: Role
    pool: bytes
    client: str
    issued_at: int
    expires_at: int
    second_factor: bool = False
    read_only: bool = False
    pools: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """Access for a moment. ``pool`` is the admin's own, ``at`` the one that made it and where it is good.
    ``session_ends`` is when the session is over, for answers that go on for longer than the token lives.
    ``proof`` is `proof_of` the grant that it was made from, without which the admin's own pool ends nothing.
    """

    sid: bytes
    name: str
    role: Role
    pool: bytes
    at: bytes
    client: str
    issued_at: int
    expires_at: int
    session_ends: int
    read_only: bool = False
    proof: bytes = field(default=b"", repr=False)


def seal_grant(online: OnlineKey, grant: Grant) -> str:
    """A grant's text, signed."""
    body = pack(
        [
            _FORMAT,
            grant.sid,
            grant.name,
            str(grant.role),
            grant.pool,
            grant.client,
            grant.issued_at,
            grant.expires_at,
            grant.second_factor,
            grant.read_only,
            list(grant.pools),
        ]
    )
    signature = online.identity.sign(_GRANT_DOMAIN, body)
    return _GRANT_TAG + _encode(pack([_FORMAT, online.certificate, body, signature]))


def read_grant(text: str, *, now: float) -> tuple[Grant, OnlineCertificate]:
    """Open a grant and check its signatures and its time, not whether its pool counts for anything here.

    Returns it with the certificate of the online key that signed. Raises AuthenticationFailed.
    """
    parts = _parts(text, _GRANT_TAG, GRANT_MAX, 4, "grant")
    _, certificate, body, signature = parts
    if not isinstance(certificate, bytes):
        raise AuthenticationFailed("the grant is malformed: it names no key")
    online = read_online(certificate)
    fields = _signed(online.verify_key, _GRANT_DOMAIN, body, signature, 11, "grant")
    sid, name, role, pool, client, issued, expires, second, read_only, pools = fields
    if (
        _common_problem(sid, name, pool, client, issued, expires, read_only)
        or type(second) is not bool
        or not _is_keys(pools)
    ):
        raise AuthenticationFailed("the grant is malformed: a field has the wrong type or size")
    if pool != online.pool:
        raise AuthenticationFailed("the grant names another pool than the one that signed it")
    _check_time(issued, expires, SESSION_MOST_S, now, "grant")
    if now > online.not_after:
        raise AuthenticationFailed("the key that signed the grant has expired")
    grant = Grant(sid, name, _role(role), pool, client, issued, expires, second, read_only, tuple(pools))
    return grant, online


def seal_token(online: Identity, token: Token) -> str:
    """A token's text, signed by the online key of the pool where it is good."""
    body = pack(
        [
            _FORMAT,
            token.sid,
            token.name,
            str(token.role),
            token.pool,
            token.at,
            token.client,
            token.issued_at,
            token.expires_at,
            token.session_ends,
            token.read_only,
            token.proof,
        ]
    )
    return _TOKEN_TAG + _encode(pack([_FORMAT, body, online.sign(_TOKEN_DOMAIN, body)]))


def read_token(text: str, *, online: bytes, at: bytes, now: float) -> Token:
    """Open a token that this pool made: ``online`` is its online key, ``at`` the pool's own.

    Raises AuthenticationFailed for any other, and for one whose time is over.
    """
    _, body, signature = _parts(text, _TOKEN_TAG, TOKEN_MAX, 3, "token")
    fields = _signed(online, _TOKEN_DOMAIN, body, signature, 12, "token")
    sid, name, role, pool, made_at, client, issued, expires, ends, read_only, proof = fields
    if (
        _common_problem(sid, name, pool, client, issued, expires, read_only)
        or not _is_key(made_at)
        or not (type(ends) is int and 0 <= ends <= _TIME_MAX)
        or not (isinstance(proof, bytes) and len(proof) <= PROOF_BYTES)
    ):
        raise AuthenticationFailed("the token is malformed: a field has the wrong type or size")
    if made_at != at:
        raise AuthenticationFailed("the token was made by another pool")
    _check_time(issued, expires, TOKEN_S, now, "token")
    return Token(sid, name, _role(role), pool, made_at, client, issued, expires, ends, read_only, proof)


def proof_of(text: str) -> bytes:
    """What a grant hashes to: whoever can tell it has seen the grant, which is shown to its holder alone."""
    return hashlib.blake2b(text.encode(), digest_size=PROOF_BYTES, person=b"qgate-mesh/grant").digest()


def token_from(
    grant: Grant, *, at: bytes, role: Role, read_only: bool, now: float, proof: bytes = b""
) -> Token:
    """The token of a grant that counts at pool ``at`` with ``role``; ``proof`` is that of its text."""
    issued = int(now)
    return Token(
        sid=grant.sid,
        name=grant.name,
        role=role,
        pool=grant.pool,
        at=at,
        client=grant.client,
        issued_at=issued,
        expires_at=min(issued + TOKEN_S, grant.expires_at),
        session_ends=grant.expires_at,
        read_only=grant.read_only or read_only,
        proof=proof,
    )


def _check_time(issued: int, expires: int, most: int, now: float, what: str) -> None:
    if issued - CLOCK_SKEW_S > now:
        raise AuthenticationFailed(f"the {what} is not valid yet")
    if expires - issued > most or expires <= issued:
        raise AuthenticationFailed(f"the {what} is malformed: it would live for too long")
    if now >= expires:
        raise AuthenticationFailed(f"the {what} has expired")


def _common_problem(
    sid: Any, name: Any, pool: Any, client: Any, issued: Any, expires: Any, read_only: Any
) -> bool:
    return (
        not (isinstance(sid, bytes) and len(sid) == SID_BYTES)
        or bool(name_problem(name))
        or not _is_key(pool)
        or not (isinstance(client, str) and len(client) <= _FINGERPRINT_MAX)
        or not all(type(one) is int and 0 <= one <= _TIME_MAX for one in (issued, expires))
        or type(read_only) is not bool
    )


def _parts(text: str, tag: str, most: int, count: int, what: str) -> list[Any]:
    if not text.startswith(tag) or len(text) > most:
        raise AuthenticationFailed(f"this is no {what}")
    body = text[len(tag) :]
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise AuthenticationFailed(f"the {what} is malformed: it is not base64url") from None
    if _encode(data) != body:
        raise AuthenticationFailed(f"the {what} is malformed: base64url has one spelling")
    return _array(data, count, what)


def _signed(key: bytes, domain: str, body: Any, signature: Any, count: int, what: str) -> list[Any]:
    if not isinstance(body, bytes) or not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed(f"the {what} is malformed: it is not signed")
    verify(key, domain, body, signature)
    return _array(body, count, what)[1:]


def _array(data: bytes, count: int, what: str) -> list[Any]:
    try:
        value = unpack(data, max_bytes=GRANT_MAX)
    except RemoteProtocolError as error:
        raise AuthenticationFailed(f"the {what} is malformed: {error.message}") from None
    if not isinstance(value, list) or len(value) != count or value[0] != _FORMAT:
        raise AuthenticationFailed(f"the {what} is malformed or of another version")
    return value


def _role(value: Any) -> Role:
    try:
        return Role(value)
    except ValueError:
        raise AuthenticationFailed("it names a role that is not known here") from None


def _is_key(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_keys(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= POOLS_MAX and all(_is_key(one) for one in value)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
