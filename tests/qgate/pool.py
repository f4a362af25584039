"""A gate's administration over a real store, without the gate: what the governance tests talk to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgate.governance.apps import Apps
from qgate.governance.audit import AuditLog
from qgate.governance.backup import Backups
from qgate.governance.databases import Databases, NewDatabase
from qgate.governance.directory import Directory
from qgate.governance.office import Office
from qgate.governance.preferences import Preferences
from qgate.governance.rekeying import Rekeying
from qgate.governance.sample import Sample
from qgate.governance.sidecars import Sidecars
from qgate.governance.trail import AuditTrail
from qgate.governance.watch import DirectoryWatch
from qgate.postgres.rotation import Rotation
from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import Vault
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.identity import Identity

GATE = GateAddress("gate-1", "gate.example", 11437, bytes(range(32)))
DAY = 86_400
BY = "uid=1000"


class Busy:
    """A running gate that serves a few connections."""

    def __init__(self) -> None:
        self.apps: dict[str, int] = {}
        self.routes: dict[str, int] = {}
        self.nodes: dict[str, str] = {}

    def app_sessions(self, app: str) -> int:
        return self.apps.get(app, 0)

    def route_sessions(self, route: str) -> int:
        return self.routes.get(route, 0)

    def node_addresses(self) -> dict[str, str]:
        return self.nodes


@dataclass
class Clock:
    """Unix time that tests move."""

    now: float

    def __call__(self) -> float:
        return self.now


class Pool:
    """The nouns of administration, over `store`."""

    def __init__(self, store: Store, vault: Vault, embedded: EmbeddedPostgres | None = None) -> None:
        self.identity, self.online = Identity.generate(), Identity.generate()
        self.clock = Clock(float(int(time.time())))
        now = int(self.clock.now)
        # Some tests sign what they made when they were collected, which may be long before they run.
        self.certificate = issue_online(
            self.identity, self.online.verify_key, not_before=now - DAY, not_after=now + 400 * DAY, serial=1
        )
        self.signing = OnlineKey(self.online, self.certificate)
        self.store = store
        self.vault = vault
        self.live = Busy()
        self.directory = Directory(unseal=vault.unseal)
        self.watch = DirectoryWatch(self.directory, store, vault, clock=self.clock)
        self.log = AuditLog(
            store,
            gate="gate-1",
            online=self.signing,
            setting=self.directory.setting,
            clock=self.clock,
        )
        self.trail = AuditTrail(
            store,
            self.log,
            pool_key=self.identity.verify_key,
            online=self.signing,
            clock=self.clock,
        )
        self.office = Office(
            store=store,
            vault=vault,
            watch=self.watch,
            audit=self.log,
            online=self.signing,
            gates=lambda: (GATE,),
            embedded=embedded,
            live=self.live,
            clock=self.clock,
        )
        self.rotation = Rotation(store=store, vault=vault, routes=self.directory, settle_s=0.0)
        self.databases = Databases(self.office, self.rotation)
        self.apps = Apps(self.office)
        self.sidecars = Sidecars(self.office)
        self.settings = Preferences(self.office)
        self.rekeying = Rekeying(self.office)
        self.sample = Sample(self.office, self.databases)

    def backups(self, files: dict[str, Path] | None = None) -> Backups:
        """Backups that take `files` along."""
        return Backups(self.office, gate="gate-1", files=files or {})

    async def told(self) -> list[tuple[str, str]]:
        """What the audit log says administrators did: (what, name)."""
        await self.log.flush()
        rows = await self.trail.entries(kind="admin", after=0)
        return [(row["detail"]["what"], row["detail"]["name"]) for row in rows]


def unchecked(name: str = "shop", **fields: Any) -> NewDatabase:
    made = NewDatabase(name, "postgresql://owner:db-secret@db.example:6432/real", check=False)
    return NewDatabase(**({f: getattr(made, f) for f in made.__dataclass_fields__} | fields))


async def everything_stored(pool: Pool) -> str:
    async with pool.store.connection() as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'qgate'")
        rows = [
            str(row)
            for table in tables
            for row in await connection.fetch(f"SELECT * FROM {table['tablename']}")
        ]
    return "\n".join(rows)
