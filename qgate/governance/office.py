"""What every administrative operation works with: the store, the vault, the directory, the audit log and
the keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from qgate.governance.audit import AuditEvent, AuditLog
from qgate.governance.directory import Directory
from qgate.governance.watch import DirectoryWatch
from qgate.store import Store
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

    def node_address(self, name: str) -> str | None:
        """Where a node is connected from, None where it is not connected here."""


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

    def node_address(self, name: str) -> str | None:
        """Not connected."""
        del name
        return None


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

    async def changed(self, what: str, name: str, by: str, detail: Mapping[str, Any] | None = None) -> None:
        """Note a change in the audit log and let this gate serve it at once; the others hear of it by
        themselves.

        `detail` must hold no secret.
        """
        self.audit.record(
            AuditEvent(
                "admin",
                started_at=self.clock(),
                detail={"what": what, "name": name, "by": by, **(detail or {})},
            )
        )
        await self.watch.refresh()


def iso(at: datetime | None) -> str | None:
    """A stored time for replies."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
