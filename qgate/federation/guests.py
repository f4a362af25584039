"""Guests: nodes and apps of a paired pool that may come here while their own pool is dead. Pure.

A home pool tells its peers, on streams of the log, which nodes it has certified and which of its apps may
fail over, with a SCRAM verifier for each peer and digests of the apps' keys that are good at that peer alone.
Here is how those payloads are made and read; what arrives is checked field by field.

A guest app is known here as POOL/APP and a guest node as POOL/NODE: neither can be taken for one of our own,
because a name of our own holds no slash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qgate.capability.finops.budgets import PERIODS
from qgate.federation.sealing import seal_to
from qgate.governance.policy import CapabilityPolicy
from tunnel_proto.certificate import name_problem
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.packing import pack, unpack
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
SEALED_MAX: Final = 64 * 1024
_SEALED: Final = ("verifiers", "keys", "budgets")
"""Parts of an app's payload that are for one pool each."""

Unseal = Callable[[bytes], bytes | None]
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


def _never(box: bytes) -> bytes | None:
    del box
    return None


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
    holds only what its home set. `slices` are the parts of its home's budgets that it may spend here:
    (period, amount, currency).
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
    slices: tuple[tuple[str, str, str], ...] = ()


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
    """What a home pool tells the peers in ``pools`` of one of its apps; `sealed` before it goes anywhere."""
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
        "budgets": {pool.hex(): [list(one) for one in app.slices] for pool in pools if app.slices},
    }


def sealed(payload: Mapping[str, Any], online_keys: Mapping[bytes, bytes]) -> dict[str, Any]:
    """An app's payload as it is published: what is for one pool is sealed to that pool's online key.

    A pool whose key is not among ``online_keys`` (by pool) gets nothing of its own.
    """
    boxes: dict[str, bytes] = {}
    for pool, key in online_keys.items():
        own = {name: payload[name].get(pool.hex(), []) for name in _SEALED}
        box = seal_to(key, pack(own)) if any(own.values()) else None
        if box is not None:
            boxes[pool.hex()] = box
    return {**{name: value for name, value in payload.items() if name not in _SEALED}, "sealed": boxes}


def unsealed(payload: Mapping[str, Any], own: bytes, unseal: Unseal) -> dict[str, Any]:
    """A published payload with what is for the pool ``own`` in the open.

    What cannot be opened is not there: it was sealed to an online key that this pool has replaced, and comes
    again once the sender has heard of the new one. RemoteProtocolError.
    """
    boxes = payload["sealed"]
    if type(boxes) is not dict or len(boxes) > POOLS_MAX:
        raise RemoteProtocolError("an app's entry is malformed: sealed must be a map by pool")
    box = boxes.get(own.hex())
    data = unseal(box) if isinstance(box, bytes) and len(box) <= SEALED_MAX else None
    parts = unpack(data, max_bytes=SEALED_MAX, max_items=KEYS_MAX) if data is not None else {}
    if type(parts) is not dict:
        raise RemoteProtocolError("an app's entry is malformed: what was sealed is no map")
    opened = {name: {own.hex(): parts[name]} if name in parts else {} for name in _SEALED}
    return {**payload, **opened}


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


def read_app(
    pool: bytes, payload: Mapping[str, Any], *, own: bytes, unseal: Unseal = _never
) -> GuestApp | str:
    """An app from a peer's entry, with what is for the pool ``own``; its name alone where it is gone.

    ``unseal`` opens what was sealed to us, or gives None. Raises RemoteProtocolError.
    """
    try:
        name = str(_NAME(payload["app"]))
        if payload.get("gone"):
            return name
        if "sealed" in payload:
            payload = unsealed(payload, own, unseal)
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
            slices=_own(payload.get("budgets", {}), own, listed(_read_slice, len(PERIODS))),
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


def _read_slice(value: Any) -> tuple[str, str, str]:
    if type(value) not in {list, tuple} or len(value) != 3:
        raise ShapeError("a slice of a budget has three parts")
    amount = text(24, r"[0-9]{1,12}(\.[0-9]{1,9})?")(value[1])
    return one_of(*PERIODS)(value[0]), amount, text(8, r"[A-Z]{3,8}")(value[2])


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
