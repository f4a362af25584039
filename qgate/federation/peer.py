"""A peer: another pool as this one knows it, with what its admin has allowed it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel_proto.enrolment import GateAddress

KINDS: Final = ("headquarters", "satellite", "branch", "pool")
"""What a pool is to its owner; shown to people, decides nothing."""

STATES: Final = ("offered", "answered", "confirmed", "paired", "unpaired", "revoked")
"""Of a pairing; tunnels are held in state "paired" only. A revoked key never comes back."""

ADMIN_ROLES: Final = ("auditor", "operator", "admin")
"""From least to most: the most that an admin of a peer may be here, whoever they are at home."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What differs from the level's preset, by direction, each a set of names in `trust.FLOWS`.

    "send" is from us to the peer, "receive" from the peer to us. A refusal is stronger than an allowance.
    """

    allow_send: frozenset[str] = frozenset()
    allow_receive: frozenset[str] = frozenset()
    deny_send: frozenset[str] = frozenset()
    deny_receive: frozenset[str] = frozenset()
    admin_role: str = "operator"

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it; empty sets are left out."""
        sets = {
            "allow_send": self.allow_send,
            "allow_receive": self.allow_receive,
            "deny_send": self.deny_send,
            "deny_receive": self.deny_receive,
        }
        return {"admin_role": self.admin_role, **{name: sorted(one) for name, one in sets.items() if one}}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Permissions:
        """What `to_json` wrote."""
        return cls(
            allow_send=frozenset(document.get("allow_send", ())),
            allow_receive=frozenset(document.get("allow_receive", ())),
            deny_send=frozenset(document.get("deny_send", ())),
            deny_receive=frozenset(document.get("deny_receive", ())),
            admin_role=str(document.get("admin_role", "operator")),
        )


@dataclass(frozen=True, slots=True)
class OwnPool:
    """What this pool calls itself towards others. ``named`` is false until `meshctl pool init`."""

    name: str = "pool"
    kind: str = "pool"
    named: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """Another pool.

    ``pool_key`` is its offline Ed25519 key, which is who it is. ``gates`` are where its gates are dialled, in
    order. ``online_certificate`` is the newest one that we have seen of it. ``position`` orders peers for
    failover, 0 first. ``paired_at`` is unix time.
    """

    pool_key: bytes
    name: str
    kind: str = "pool"
    state: str = "paired"
    level: int = 0
    gates: tuple[GateAddress, ...] = ()
    online_certificate: bytes = field(default=b"", repr=False)
    position: int = 0
    permissions: Permissions = Permissions()
    paired_at: float | None = None

    @property
    def paired(self) -> bool:
        """Whether tunnels with it are held."""
        return self.state == "paired"
