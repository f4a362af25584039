"""Guests: nodes and apps of a paired pool that may come here while their own pool is dead. Pure.

A home pool tells its peers, on streams of the log, which nodes it has certified and which of its apps may
fail over, with a SCRAM verifier for each peer and digests of the apps' keys that are good at that peer alone.
Here is how those payloads are made and read; what arrives is checked field by field.

A guest app is known here as POOL/APP and a guest node as POOL/NODE: neither can be taken for one of our own,
because a name of our own holds no slash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qgate.governance.policy import CapabilityPolicy
from tunnel_proto.certificate import name_problem
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.scram import parse_verifier
from tunnel_proto.shapes import ShapeError, flag, listed, maybe, one_of, pair, raw, real, text, whole

DATABASES_MAX: Final = 1000
KEYS_MAX: Final = 100
VERIFIERS_MAX: Final = 4
POOLS_MAX: Final = 64
_NAME = text(63, r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEY = raw(32)
_HEX = text(64, r"[0-9a-f]{64}")
_UNTIL = maybe(real(0.0, 1e11))
_VERIFIER = pair(text(300), _UNTIL)
_POLICY: Final = frozenset(one.name for one in fields(CapabilityPolicy))
_LIMITS: Final = frozenset(
    {
        "max_connections",
        "queue",
        "queue_timeout_s",
        "idle_timeout_s",
        "idle_in_transaction_s",
        "statement_timeout_s",
    }
)


@dataclass(frozen=True, slots=True)
class GuestNode:
    """A node that its home pool has certified. `pool` is the home pool's key."""

    pool: bytes
    handshake_public: bytes
    verify_key: bytes
    name: str
    role: str
    serial: int
    revoked: bool = False

    def payload(self) -> dict[str, Any]:
        """What peers are told."""
        return {
            "handshake": self.handshake_public,
            "verify": self.verify_key,
            "name": self.name,
            "role": self.role,
            "serial": self.serial,
            "revoked": self.revoked,
        }


@dataclass(frozen=True, slots=True)
class GuestApp:
    """An app of another pool, as that pool lets it come to this one.

    `verifiers` and `keys` are those for this pool alone; a key is (digest, id, prefix, valid until). `limits`
    holds only what its home set.
    """

    pool: bytes
    name: str
    databases: frozenset[str] = frozenset()
    verifiers: tuple[tuple[str, float | None], ...] = field(default=(), repr=False)
    keys: tuple[tuple[bytes, str, str, float | None], ...] = field(default=(), repr=False)
    expires_at: float | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    sidecars: frozenset[str] | None = None
    read_only: bool = False
    statement_classes: frozenset[str] | None = None
    replication: bool = False
    policy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Spare:
    """One verifier of an app's password that was given to a pool."""

    pool: bytes
    verifier: str = field(repr=False)
    valid_until: float | None = None


@dataclass(frozen=True, slots=True)
class HomeKey:
    """One live API key of an app, as its home knows it."""

    digest: bytes = field(repr=False)
    id: str
    prefix: str
    valid_until: float | None = None


def record_of(*parts: str | bytes) -> bytes:
    """The log's id of a record: sixteen bytes that tell nothing of what they were made of."""
    digest = hashlib.blake2b(digest_size=16, person=b"qgate-mesh/rec")
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.digest()


def guest_digest(digest: bytes, *, home: bytes, at: bytes) -> bytes:
    """What stands for an app's key at another pool: pools that compare notes find nothing in common."""
    return hashlib.blake2b(digest + home, key=at, digest_size=32, person=b"qgate-mesh/gkey").digest()


def app_payload(
    app: GuestApp, *, spares: tuple[Spare, ...], keys: tuple[HomeKey, ...], pools: tuple[bytes, ...]
) -> dict[str, Any]:
    """What a home pool tells the peers in ``pools`` of one of its apps."""
    verifiers: dict[str, list[list[Any]]] = {}
    for spare in spares:
        if spare.pool in pools:
            verifiers.setdefault(spare.pool.hex(), []).append([spare.verifier, spare.valid_until])
    digests = {
        pool.hex(): [
            [guest_digest(key.digest, home=app.pool, at=pool), key.id, key.prefix, key.valid_until]
            for key in keys
        ]
        for pool in pools
        if keys
    }
    return {
        "app": app.name,
        "databases": sorted(app.databases),
        "expires": app.expires_at,
        "limits": dict(app.limits),
        "sidecars": None if app.sidecars is None else sorted(app.sidecars),
        "read_only": app.read_only,
        "classes": None if app.statement_classes is None else sorted(app.statement_classes),
        "replication": app.replication,
        "policy": None if app.policy is None else dict(app.policy),
        "verifiers": verifiers,
        "keys": digests,
    }


def gone_payload(name: str) -> dict[str, Any]:
    """What peers are told of an app that may not come any more."""
    return {"app": name, "gone": True}


def read_node(pool: bytes, payload: Mapping[str, Any]) -> GuestNode:
    """A node from a peer's entry. Raises RemoteProtocolError."""
    try:
        node = GuestNode(
            pool=pool,
            handshake_public=_key(payload["handshake"]),
            verify_key=_key(payload["verify"]),
            name=_NAME(payload["name"]),
            role=one_of("client", "daemon", "gate", "peer", "admin")(payload["role"]),
            serial=whole()(payload["serial"]),
            revoked=flag(payload["revoked"]),
        )
    except (ShapeError, KeyError) as error:
        raise RemoteProtocolError(f"a node's entry is malformed: {error}") from None
    if problem := name_problem(node.name):
        raise RemoteProtocolError(f"a node's entry is malformed: {problem}")
    return node


def read_app(pool: bytes, payload: Mapping[str, Any], *, own: bytes) -> GuestApp | str:
    """An app from a peer's entry, with what is for the pool ``own``; its name alone where it is gone.

    Raises RemoteProtocolError.
    """
    try:
        name = str(_NAME(payload["app"]))
        if payload.get("gone"):
            return name
        verifiers = _own(payload["verifiers"], own, listed(_VERIFIER, VERIFIERS_MAX))
        for verifier, _ in verifiers:
            parse_verifier(verifier)
        keys = _own(payload["keys"], own, listed(_read_key, KEYS_MAX))
        policy = payload["policy"]
        if policy is not None:
            if not _map(policy).keys() <= _POLICY:
                raise ShapeError("policy restricts by something that this version does not know")
            CapabilityPolicy.from_json(policy)
        limits = _map(payload["limits"])
        if not limits.keys() <= _LIMITS:
            raise ShapeError("limits has an unknown key")
        for value in limits.values():
            maybe(real(0.0, 1e10))(value)
        return GuestApp(
            pool=pool,
            name=name,
            databases=frozenset(listed(_NAME, DATABASES_MAX)(payload["databases"])),
            verifiers=verifiers,
            keys=keys,
            expires_at=_UNTIL(payload["expires"]),
            limits=limits,
            sidecars=_set(payload["sidecars"], 10_000),
            read_only=flag(payload["read_only"]),
            statement_classes=_set(payload["classes"], 32),
            replication=flag(payload["replication"]),
            policy=policy,
        )
    except (ShapeError, KeyError, ValueError, TypeError) as error:
        raise RemoteProtocolError(f"an app's entry is malformed: {error}") from None


def _own(value: Any, own: bytes, check: Any) -> tuple[Any, ...]:
    """What a map by pool holds for us."""
    found = _map(value)
    if len(found) > POOLS_MAX:
        raise ShapeError(f"names more than {POOLS_MAX} pools")
    for key in found:
        _HEX(key)
    taken: tuple[Any, ...] = check(found.get(own.hex(), []))
    return taken


def _read_key(value: Any) -> tuple[bytes, str, str, float | None]:
    if type(value) not in {list, tuple} or len(value) != 4:
        raise ShapeError("a key has four parts")
    return _key(value[0]), text(64)(value[1]), text(32)(value[2]), _UNTIL(value[3])


def _key(value: Any) -> bytes:
    found: bytes = _KEY(value)
    if len(found) != 32:
        raise ShapeError("a key must have 32 bytes")
    return found


def _map(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise ShapeError("must be a map")
    return value


def _set(value: Any, most: int) -> frozenset[str] | None:
    return None if value is None else frozenset(listed(_NAME, most)(value))
