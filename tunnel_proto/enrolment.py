"""Enrolment files: the offer that a new node carries to the gate, and the bundle that comes back.

Both are JSON that a person can read and mail. Nothing in them is secret. An offer is signed by the key
it offers, which shows possession; that the key is the right person's is shown by comparing the
fingerprint. A bundle is signed by the pool's online key and good for one node only.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tunnel_proto.certificate import (
    ROLES,
    NodeCertificate,
    issue_node,
    name_problem,
    read_chain,
    read_online,
    verify_chain,
)
from tunnel_proto.constants import BUNDLE_GATES_MAX, BUNDLE_ROSTER_MAX, ENROLMENT_FILE_MAX
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import KEY_BYTES, Identity, fingerprint, verify

_OFFER_TYPE: Final = "qgate-mesh-offer"
_BUNDLE_TYPE: Final = "qgate-mesh-bundle"
_FORMAT: Final = 1
_OFFER_DOMAIN: Final = "offer"
_BUNDLE_DOMAIN: Final = "bundle"
_OFFER_FIELDS: Final = frozenset(
    {
        "type",
        "version",
        "role",
        "name",
        "verify_key",
        "handshake_public",
        "fingerprint",
        "created",
        "signature",
    }
)
_BUNDLE_FIELDS: Final = frozenset(
    {"type", "version", "pool_key", "chain", "gates", "name", "issued", "signature"}
)
_OPTIONAL_FIELDS: Final = {_BUNDLE_TYPE: frozenset({"roster"})}
_GATE_FIELDS: Final = frozenset({"name", "host", "port", "handshake_public"})
_HOST_MAX: Final = 253  # RFC 1035: the longest domain name in text
_PORT_MAX: Final = 65535
_TIME_MAX: Final = 2**53

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offer:
    """A node's request to be enrolled, already checked; ``created`` is in unix seconds."""

    role: str
    name: str
    verify_key: bytes
    handshake_public: bytes
    fingerprint: str
    created: float


@dataclass(frozen=True, slots=True)
class GateAddress:
    """Where one gate listens and the X25519 key it must prove."""

    name: str
    host: str
    port: int
    handshake_public: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an enrolled node starts from; ``issued`` is in unix seconds.

    ``roster`` is the pool's sealed roster of that day (`tunnel_proto.roster`), or empty: a node whose home is
    gone before it was ever there can go elsewhere all the same.
    """

    pool_key: bytes
    chain: bytes
    gates: tuple[GateAddress, ...]
    name: str
    issued: float
    roster: bytes = b""


def make_offer(identity: Identity, *, role: str, name: str, now: float) -> str:
    """Write the offer file of a node; raises ConfigError for an unknown role or unusable name."""
    if role not in ROLES:
        raise ConfigError(f"{role!r} is no role; choose one of {', '.join(sorted(ROLES))}")
    if problem := name_problem(name):
        raise ConfigError(f"{name!r} cannot name a node: {problem}")
    return _seal(
        {
            "type": _OFFER_TYPE,
            "version": _FORMAT,
            "role": role,
            "name": name,
            "verify_key": _encode(identity.verify_key),
            "handshake_public": _encode(identity.handshake_public),
            "fingerprint": identity.fingerprint,
            "created": math.floor(now),
        },
        identity,
        _OFFER_DOMAIN,
    )


def read_offer(text: str) -> Offer:
    """Check an offer file; raises ConfigError when it is damaged or its own key did not sign it."""
    document = _open(text, _OFFER_TYPE, _OFFER_FIELDS, "offer")
    verify_key = _key(document, "verify_key", "offer")
    _check_signature(document, verify_key, _OFFER_DOMAIN, "offer")
    offer = Offer(
        role=_field(document, "role", str, "offer"),
        name=_field(document, "name", str, "offer"),
        verify_key=verify_key,
        handshake_public=_key(document, "handshake_public", "offer"),
        fingerprint=_field(document, "fingerprint", str, "offer"),
        created=float(_time(document, "created", "offer")),
    )
    if offer.role not in ROLES:
        raise ConfigError("the offer asks for an unknown role")
    if problem := name_problem(offer.name):
        raise ConfigError(f"the offer's name cannot be used: {problem}")
    if offer.fingerprint != fingerprint(verify_key):
        raise ConfigError("the offer's fingerprint is not that of its key")
    return offer


def make_bundle(
    online: Identity,
    online_certificate: bytes,
    offer: Offer,
    *,
    gates: Iterable[GateAddress],
    serial: int,
    not_before: int,
    not_after: int,
    roster: bytes = b"",
) -> str:
    """Certify an offer's keys and write the bundle file that takes the certificate to its node.

    ``not_before`` is also the bundle's date of issue. Raises ConfigError as issue_node does.
    """
    try:
        pool_key = read_online(online_certificate).pool
    except AuthenticationFailed as error:
        raise ConfigError(f"the online certificate cannot be used: {error.message}") from None
    node = NodeCertificate(
        pool=pool_key,
        role=offer.role,
        name=offer.name,
        verify_key=offer.verify_key,
        handshake_public=offer.handshake_public,
        serial=serial,
        not_before=not_before,
        not_after=not_after,
    )
    return seal_bundle(
        online,
        Bundle(
            pool_key=pool_key,
            chain=issue_node(online, online_certificate, node),
            gates=tuple(gates),
            name=offer.name,
            issued=float(not_before),
            roster=roster if len(roster) <= BUNDLE_ROSTER_MAX else b"",
        ),
    )


def seal_bundle(online: Identity, bundle: Bundle) -> str:
    """Write and sign a bundle file around a chain that exists already, as when gates have moved."""
    if not 0 < len(bundle.gates) <= BUNDLE_GATES_MAX:
        raise ConfigError(f"a bundle names 1 to {BUNDLE_GATES_MAX} gates")
    for gate in bundle.gates:
        if problem := gate_problem(gate):
            raise ConfigError(f"the gate {gate.name!r} cannot go into a bundle: {problem}")
    return _seal(
        {
            "type": _BUNDLE_TYPE,
            "version": _FORMAT,
            "pool_key": _encode(bundle.pool_key),
            "chain": _encode(bundle.chain),
            "gates": [
                {
                    "name": gate.name,
                    "host": gate.host,
                    "port": gate.port,
                    "handshake_public": _encode(gate.handshake_public),
                }
                for gate in bundle.gates
            ],
            "name": bundle.name,
            "issued": math.floor(bundle.issued),
            **({"roster": _encode(bundle.roster)} if bundle.roster else {}),
        },
        online,
        _BUNDLE_DOMAIN,
    )


def read_bundle(
    text: str, identity: Identity, *, pool_key: bytes | None = None, now: float | None = None
) -> Bundle:
    """Check a bundle file and that it is for ``identity``; raises ConfigError.

    With ``pool_key`` a bundle of any other pool is refused. With ``now`` (unix seconds) the chain must
    be valid then, without it at the time the bundle was issued.
    """
    document = _open(text, _BUNDLE_TYPE, _BUNDLE_FIELDS, "bundle")
    gates = _field(document, "gates", list, "bundle")
    bundle = Bundle(
        pool_key=_key(document, "pool_key", "bundle"),
        chain=_bytes(document, "chain", "bundle"),
        gates=tuple(_read_gate(gate) for gate in gates),
        name=_field(document, "name", str, "bundle"),
        issued=float(_time(document, "issued", "bundle")),
        roster=_bytes(document, "roster", "bundle") if "roster" in document else b"",
    )
    if pool_key is not None and bundle.pool_key != pool_key:
        raise ConfigError("the bundle belongs to another pool than this node does")
    if not 0 < len(bundle.gates) <= BUNDLE_GATES_MAX:
        raise ConfigError(f"the bundle is damaged: it must name 1 to {BUNDLE_GATES_MAX} gates")
    try:
        online, _ = read_chain(bundle.chain)
        verify(
            online.verify_key, _BUNDLE_DOMAIN, _signed_text(document), _bytes(document, "signature", "bundle")
        )
        node = verify_chain(bundle.chain, pool_key=bundle.pool_key, now=bundle.issued if now is None else now)
    except AuthenticationFailed as error:
        hint = "set this machine's clock: it is behind the gate's" if "not valid yet" in error.message else ""
        raise ConfigError(f"the bundle cannot be used: {error.message}", hint=hint) from None
    if (node.verify_key, node.handshake_public) != (identity.verify_key, identity.handshake_public):
        raise ConfigError(
            f"the bundle is for the node {fingerprint(node.verify_key)}, this one is {identity.fingerprint}",
            hint="install the bundle that was made from this node's offer",
        )
    if node.name != bundle.name:
        raise ConfigError("the bundle is damaged: its name is not the certificate's")
    return bundle


def _read_gate(value: object) -> GateAddress:
    if not isinstance(value, dict) or value.keys() != _GATE_FIELDS:
        raise ConfigError("the bundle is damaged: a gate has missing or unknown fields")
    gate = GateAddress(
        name=_field(value, "name", str, "bundle"),
        host=_field(value, "host", str, "bundle"),
        port=_field(value, "port", int, "bundle"),
        handshake_public=_key(value, "handshake_public", "bundle"),
    )
    if problem := gate_problem(gate):
        raise ConfigError(f"the bundle is damaged: {problem}")
    return gate


def gate_problem(gate: GateAddress) -> str:
    """Why nothing can be dialled there, or the empty string."""
    host = gate.host
    if not (0 < len(host) <= _HOST_MAX and host.isascii() and host.isprintable() and " " not in host):
        return "a gate's host must be a name or an address"
    if not 0 < gate.port <= _PORT_MAX:
        return "a gate's port must lie between 1 and 65535"
    if len(gate.handshake_public) != KEY_BYTES:
        return "a gate's handshake key must have 32 bytes"
    return name_problem(gate.name)


def _seal(document: dict[str, Any], identity: Identity, domain: str) -> str:
    signature = identity.sign(domain, _signed_text(document))
    return json.dumps({**document, "signature": _encode(signature)}, indent=2) + "\n"


def _signed_text(document: Mapping[str, Any]) -> bytes:
    """What is signed: the JSON without its signature, keys sorted, no spaces, all ASCII."""
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    return json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _open(text: str, kind: str, fields: frozenset[str], what: str) -> dict[str, Any]:
    if len(text) > ENROLMENT_FILE_MAX:
        raise ConfigError(f"the {what} is longer than {ENROLMENT_FILE_MAX} characters")
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise ConfigError(
            f"the {what} is damaged: it is not JSON", hint="copy the file again, whole"
        ) from None
    if not isinstance(document, dict) or document.get("type") != kind:
        raise ConfigError(f"this file is no {what}")
    if document.get("version") != _FORMAT:
        raise ConfigError(f"the {what} was written by another version of this program")
    if document.keys() - _OPTIONAL_FIELDS.get(kind, frozenset()) != fields:
        raise ConfigError(f"the {what} is damaged: it has missing or unknown fields")
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a repeated field")
    return document


def _check_signature(document: Mapping[str, Any], verify_key: bytes, domain: str, what: str) -> None:
    try:
        verify(verify_key, domain, _signed_text(document), _bytes(document, "signature", what))
    except AuthenticationFailed:
        raise ConfigError(
            f"the {what} is damaged: its signature does not verify", hint="copy the file again, whole"
        ) from None


def _field(document: Mapping[str, Any], name: str, kind: type[T], what: str) -> T:
    value = document[name]
    if type(value) is not kind:
        raise ConfigError(f"the {what} is damaged: {name} has the wrong type")
    return value


def _time(document: Mapping[str, Any], name: str, what: str) -> int:
    value = _field(document, name, int, what)
    if not 0 <= value <= _TIME_MAX:
        raise ConfigError(f"the {what} is damaged: {name} is no time")
    return value


def _key(document: Mapping[str, Any], name: str, what: str) -> bytes:
    key = _bytes(document, name, what)
    if len(key) != KEY_BYTES:
        raise ConfigError(f"the {what} is damaged: {name} must have {KEY_BYTES} bytes")
    return key


def _bytes(document: Mapping[str, Any], name: str, what: str) -> bytes:
    text = _field(document, name, str, what)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"the {what} is damaged: {name} is not base64") from None
    if _encode(value) != text:
        raise ConfigError(f"the {what} is damaged: {name} is not base64 in its one spelling")
    return value


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
