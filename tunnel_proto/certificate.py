"""Certificates: a pool's offline key vouches for an online key, and that for each node's two keys.

The pool key signs one online key and goes back to the safe. The online key signs nodes day to day;
should it leak, the pool key names another and nobody has to compare fingerprints again. A chain is
the online certificate and one node certificate, in one opaque piece of msgpack that its bearer sends
whole. The bytes that were signed travel as they are, so that no verifier ever re-encodes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel_proto.constants import CERTIFICATE_CHAIN_MAX, CERTIFICATE_CLOCK_SKEW_S, NODE_NAME_MAX
from tunnel_proto.errors import AuthenticationFailed, ConfigError, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

EXPIRY_WARNING_S: Final = 30 * 86_400
"""The last part of a certificate's life, in which its holder says daily that it wants renewal."""

ROLES: Final = frozenset({"client", "gate", "daemon", "peer", "admin"})

_FORMAT = 1
_ONLINE_DOMAIN = "online certificate"
_NODE_DOMAIN = "node certificate"
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_NAME_MAX - 1}}}", re.ASCII)
_TIME_MAX = 2**53  # beyond any calendar, and exact in every language's numbers
_SERIAL_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What the pool says of one node.

    ``pool`` is the pool identity's Ed25519 key, ``verify_key`` and ``handshake_public`` are the
    node's own; times are unix seconds, the last one still valid.
    """

    pool: bytes
    role: str
    name: str
    verify_key: bytes
    handshake_public: bytes
    serial: int
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class OnlineCertificate:
    """What the pool key says of the online key that signs nodes; times are unix seconds."""

    pool: bytes
    verify_key: bytes
    serial: int
    not_before: int
    not_after: int


@dataclass(slots=True)
class OnlineKey:
    """The key that signs day to day, with its certificate: whoever signs holds this very object.

    ``certificate`` is replaced, for all of them at once, when the pool key has renewed it.
    """

    identity: Identity
    certificate: bytes = field(repr=False)


def nears_expiry(not_before: int, not_after: int, now: float) -> bool:
    """Whether a certificate should be renewed by now: in its last month, or last third where that is less."""
    return not_after - now < min(EXPIRY_WARNING_S, (not_after - not_before) / 3)


def issue_online(
    pool: Identity, online_verify_key: bytes, *, not_before: int, not_after: int, serial: int
) -> bytes:
    """Let the pool key vouch for an online key; returns the online certificate."""
    online = OnlineCertificate(pool.verify_key, online_verify_key, serial, not_before, not_after)
    if problem := _online_problem(online):
        raise ConfigError(f"the online certificate cannot be issued: {problem}")
    body = pack([_FORMAT, online.pool, online.verify_key, online.serial, online.not_before, online.not_after])
    return pack([body, pool.sign(_ONLINE_DOMAIN, body)])


def issue_node(online: Identity, online_certificate: bytes, node: NodeCertificate) -> bytes:
    """Sign a node's certificate with the online key; returns the whole chain.

    Raises ConfigError when the online certificate is not this key's, is of another pool, or would
    expire before the node's.
    """
    try:
        issuer = read_online(online_certificate)
    except AuthenticationFailed as error:
        raise ConfigError(f"the online certificate cannot be used: {error.message}") from None
    if problem := _node_problem(node):
        raise ConfigError(f"the node certificate cannot be issued: {problem}")
    if issuer.verify_key != online.verify_key:
        raise ConfigError("the online certificate belongs to another online key")
    if issuer.pool != node.pool:
        raise ConfigError("the online certificate belongs to another pool")
    if node.not_after > issuer.not_after:
        raise ConfigError(
            "the node certificate would outlive the online key's certificate",
            hint="choose fewer days, or renew the online key's certificate first",
        )
    body = pack(
        [
            _FORMAT,
            node.pool,
            node.role,
            node.name,
            node.verify_key,
            node.handshake_public,
            node.serial,
            node.not_before,
            node.not_after,
        ]
    )
    return pack([_FORMAT, online_certificate, body, online.sign(_NODE_DOMAIN, body)])


def read_online(certificate: bytes) -> OnlineCertificate:
    """Open an online certificate and check the pool key's signature, not the time."""
    body, signature = _array(certificate, 2, "online certificate")
    fields = _array(body, 6, "online certificate")
    online = OnlineCertificate(*fields[1:])
    if fields[0] != _FORMAT or (problem := _online_problem(online)):
        reason = problem if fields[0] == _FORMAT else "its format is unknown"
        raise AuthenticationFailed(f"the online certificate is malformed: {reason}")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed("the online certificate is malformed: its signature has the wrong size")
    verify(online.pool, _ONLINE_DOMAIN, body, signature)
    return online


def read_chain(chain: bytes) -> tuple[OnlineCertificate, NodeCertificate]:
    """Open a chain and check its signatures from its own pool key down; not the time, not which pool."""
    fields = _array(chain, 4, "certificate chain")
    if fields[0] != _FORMAT:
        raise AuthenticationFailed("the certificate chain is malformed: its format is unknown")
    _, online_certificate, body, signature = fields
    online = read_online(online_certificate)
    values = _array(body, 9, "node certificate")
    node = NodeCertificate(*values[1:])
    if values[0] != _FORMAT or (problem := _node_problem(node)):
        reason = problem if values[0] == _FORMAT else "its format is unknown"
        raise AuthenticationFailed(f"the node certificate is malformed: {reason}")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise AuthenticationFailed("the node certificate is malformed: its signature has the wrong size")
    verify(online.verify_key, _NODE_DOMAIN, body, signature)
    if node.pool != online.pool:
        raise AuthenticationFailed("the node certificate names another pool than its online certificate")
    return online, node


def claimed_pool(chain: bytes) -> bytes:
    """The pool key that a chain claims to descend from, nothing verified: it says by which key to verify.

    Raises AuthenticationFailed for what is no chain.
    """
    _, online_certificate, _, _ = _array(chain, 4, "certificate chain")
    body, _ = _array(online_certificate, 2, "online certificate")
    pool = _array(body, 6, "online certificate")[1]
    if not _is_key(pool):
        raise AuthenticationFailed("the online certificate is malformed: a key has the wrong size")
    return bytes(pool)


def verify_chain(chain: bytes, *, pool_key: bytes, now: float) -> NodeCertificate:
    """Check a chain against the pool key at ``now`` (unix seconds) and return the node's certificate.

    Raises AuthenticationFailed with a reason for the log. Role and serial are for the caller to judge.
    """
    online, node = read_chain(chain)
    if online.pool != pool_key:
        raise AuthenticationFailed("the certificate belongs to another pool")
    for what, certificate in (("online", online), ("node", node)):
        # Only the start is lenient: a sibling whose clock runs ahead may have signed a moment ago.
        if now < certificate.not_before - CERTIFICATE_CLOCK_SKEW_S:
            raise AuthenticationFailed(f"the {what} certificate is not valid yet")
        if now > certificate.not_after:
            raise AuthenticationFailed(f"the {what} certificate has expired")
    return node


def name_problem(name: object) -> str:
    """Why ``name`` cannot name a node, or the empty string.

    A name has 1 to 63 of A-Z a-z 0-9 . _ - and starts with a letter or digit; it is shown to the
    databases' administrators and in logs.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ""
    return f"a name is 1 to {NODE_NAME_MAX} letters, digits, '.', '_' or '-', the first a letter or digit"


def _array(data: Any, length: int, what: str) -> list[Any]:
    if not isinstance(data, bytes):
        raise AuthenticationFailed(f"the {what} is malformed: bytes were expected")
    try:
        value = unpack(data, max_bytes=CERTIFICATE_CHAIN_MAX)
    except RemoteProtocolError as error:
        raise AuthenticationFailed(f"the {what} is malformed: {error.message}") from None
    if not isinstance(value, list) or len(value) != length:
        raise AuthenticationFailed(f"the {what} is malformed: {length} fields were expected")
    return value


def _online_problem(online: OnlineCertificate) -> str:
    if not (_is_key(online.pool) and _is_key(online.verify_key)):
        return "a key has the wrong size"
    return _validity_problem(online.serial, online.not_before, online.not_after)


def _node_problem(node: NodeCertificate) -> str:
    if not (_is_key(node.pool) and _is_key(node.verify_key) and _is_key(node.handshake_public)):
        return "a key has the wrong size"
    if not isinstance(node.role, str) or node.role not in ROLES:
        return "its role is unknown"
    return name_problem(node.name) or _validity_problem(node.serial, node.not_before, node.not_after)


def _validity_problem(serial: int, not_before: int, not_after: int) -> str:
    if not _is_integer(serial, _SERIAL_MAX):
        return "its serial is no number from 0 to 2^63-1"
    if not (_is_integer(not_before, _TIME_MAX) and _is_integer(not_after, _TIME_MAX)):
        return "a time is no whole number of unix seconds"
    if not_after < not_before:
        return "it ends before it begins"
    return ""


def _is_key(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_integer(value: object, maximum: int) -> bool:
    return type(value) is int and 0 <= value <= maximum
