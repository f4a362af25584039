"""Who asks a gate's administration for something, and what a role covers. Pure.

viewer     sees everything that is no secret
operator   also moves work about: workers, models, failover, incidents
admin      also makes and removes: databases, apps, sidecars, settings, other admins' sessions
owner      also decides over the pool itself: its admins, keys, licence, pairings' end, erasure
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Final, Literal

from tunnel_proto.errors import MeshError


class Role(StrEnum):
    """From least to most; each covers those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    OWNER = "owner"

    def covers(self, other: Role) -> bool:
        """Whether whoever has this role may do what needs ``other``."""
        return _RANK[self] >= _RANK[other]


_RANK: Final = {role: rank for rank, role in enumerate(Role)}

CEILINGS: Final = {"auditor": Role.VIEWER, "operator": Role.OPERATOR, "admin": Role.ADMIN}
"""What a peer's `permissions.admin_role` lets its admins be here at most; never owner."""


def least(*roles: Role) -> Role:
    """The one that covers the fewest."""
    return min(roles, key=_RANK.__getitem__)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``pool`` is the name of the admin's own pool, "" for this one; ``session`` the session's id
    in hexadecimal, "" for a local caller; ``read_only`` refuses every change, whatever the role. ``until`` is
    when a paired pool's session ends, in unix seconds; of the others the gate knows it itself. ``proof``
    shows that pool that the caller has the session's grant.
    """

    name: str
    role: Role
    pool: str = ""
    kind: Literal["local", "session"] = "session"
    session: str = ""
    read_only: bool = False
    until: float = math.inf
    proof: bytes = field(default=b"", repr=False)

    @property
    def label(self) -> str:
        """For the audit: "uid=0", "alice", or "alice@hq" for an admin of a paired pool."""
        return f"{self.name}@{self.pool}" if self.pool else self.name

    def is_admin(self, name: str) -> bool:
        """Whether this is that admin of this pool, logged in."""
        return self.kind == "session" and not self.pool and self.name == name


class AccessError(MeshError):
    """Somebody may not do what was asked. ``retry_after_s``: when to try again, None where it is no help.
    ``audited`` is set by whoever has told the audit.
    """

    def __init__(
        self, status: int, code: str, message: str, *, hint: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.audited = False


def unauthenticated(message: str) -> AccessError:
    """Nobody who is known asks."""
    return AccessError(HTTPStatus.UNAUTHORIZED, "unauthenticated", message, hint="meshctl login")
