"""Admins and sessions that stand, in memory: what every request of a session is checked against. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qgate.governance.principal import Role


@dataclass(frozen=True, slots=True)
class KnownAdmin:
    """An account of this pool."""

    name: str
    role: Role
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A session that was opened here and has not been ended; ``expires_at`` is unix time."""

    admin: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class AdminList:
    """``admins`` by name, ``sessions`` by id. Of paired pools: ``over`` are the sessions that were ended, as
    (pool, id), ``out`` the admins that their own pool has disabled, as (pool, `admin_words.who_of`).
    """

    admins: Mapping[str, KnownAdmin] = field(default_factory=dict)
    sessions: Mapping[bytes, KnownSession] = field(default_factory=dict)
    over: frozenset[tuple[bytes, bytes]] = frozenset()
    out: frozenset[tuple[bytes, bytes]] = frozenset()

    def admin_of(self, sid: bytes, now: float) -> KnownAdmin | None:
        """Whose session this is, where it stands at unix time ``now``."""
        session = self.sessions.get(sid)
        if session is None or now >= session.expires_at:
            return None
        admin = self.admins.get(session.admin)
        return None if admin is None or admin.disabled else admin
