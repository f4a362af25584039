"""What every administrative operation works with: the store, the vault, the directory, the audit log and
the keys.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from qgate.governance.audit import AuditEvent, AuditLog
from qgate.governance.directory import Directory
from qgate.governance.versions import FIELDS, difference
from qgate.governance.watch import DirectoryWatch
from qgate.store import Store, StoreUnavailableError
from qgate.store.control import note_change
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import Vault
from tunnel_proto.certificate import OnlineKey
from tunnel_proto.enrolment import GateAddress


class Live(Protocol):
    """What only the running gate knows; rows for people mention it."""

    def app_sessions(self, app: str) -> int:
        """How many of an app's connections are open here."""

    def route_sessions(self, route: str) -> int:
        """How many connections to a route are open here."""

    def node_addresses(self) -> Mapping[str, str]:
        """Where the nodes are connected from that are connected here, by name."""


BESIDE: Final = frozenset(
    {
        *("people", "signup", "smtp", "notification", "admin", "session"),
        *("branding", "licence", "onboarding", "order", "automation"),
    }
)
"""Kinds that are in the store and not in the directory: whoever watches hears of a change at this gate."""


class Nobody:
    """A gate that serves no one: before it listens, and in tests."""

    def app_sessions(self, app: str) -> int:
        """None are open."""
        del app
        return 0

    def route_sessions(self, route: str) -> int:
        """None are open."""
        del route
        return 0

    def node_addresses(self) -> Mapping[str, str]:
        """None are connected."""
        return {}


@dataclass(frozen=True, slots=True)
class Office:
    """The parts of a gate that administration needs.

    `gates()` are the addresses that go into a sidecar's bundle. `embedded` is the store's own server, None
    with an external store. `clock` gives unix seconds.
    """

    store: Store
    vault: Vault
    watch: DirectoryWatch
    audit: AuditLog
    online: OnlineKey
    gates: Callable[[], tuple[GateAddress, ...]]
    embedded: EmbeddedPostgres | None = None
    live: Live = field(default_factory=Nobody)
    clock: Callable[[], float] = time.time

    @property
    def directory(self) -> Directory:
        """What the relay sees."""
        return self.watch.directory

    def now(self) -> datetime:
        """The time, as the store wants it."""
        return datetime.fromtimestamp(self.clock(), UTC)

    async def changed(
        self,
        what: str,
        name: str,
        by: str,
        detail: Mapping[str, Any] | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a change in the audit log and let this gate serve it at once; the others hear of it by
        themselves.

        `before` and `after` are the object as its list shows it, None where it was not or is no more; of a
        kind that `versions.FIELDS` knows. Nothing of it may hold a secret.
        """
        kind = what.partition(".")[0]
        differs = difference(kind, before, after) if before is not None or after is not None else {}
        fields = _fields(differs or detail or {})
        request = structlog.contextvars.get_contextvars().get("request")
        self.audit.record(
            AuditEvent(
                "admin",
                started_at=self.clock(),
                detail={
                    "what": what,
                    "name": name,
                    "by": by,
                    **({"request": request} if request else {}),
                    **differs,
                    **(detail or {}),
                },
            )
        )
        if kind in FIELDS:
            with contextlib.suppress(StoreUnavailableError):  # the change itself is made
                async with self.store.connection() as connection:
                    await note_change(connection, kind, name, what=what, by=by, at=self.now(), fields=fields)
        await self.watch.refresh()
        if kind in BESIDE:
            self.directory.announce(frozenset({f"{kind}:{name}"}))


def _fields(change: Mapping[str, Any]) -> list[str]:
    """Which fields a change names in its `before` and `after`, where those are objects."""
    sides = (change.get("before"), change.get("after"))
    return sorted({name for side in sides if isinstance(side, Mapping) for name in side})


def iso(at: datetime | None) -> str | None:
    """A stored time for replies."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
