"""What an administrator can do to a pool, behind the control API: one object a noun, all over the same
`Office`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from qgate.governance.apps import Apps
from qgate.governance.backup import Backups
from qgate.governance.databases import Databases
from qgate.governance.office import Office
from qgate.governance.preferences import Preferences
from qgate.governance.rekeying import Rekeying
from qgate.governance.sample import Sample
from qgate.governance.sidecars import Sidecars
from qgate.governance.trail import AuditTrail
from qgate.postgres.rotation import Rotation
from qgate.store import StoreUnavailableError

HEAL_EVERY_S: Final = 60.0
RETIRE_EVERY_S: Final = 3600.0

log = structlog.get_logger(__name__)


class Administration:
    """The nouns. `gate` is this gate's name, `backup_files` what a backup takes along beside the store.

    Every operation that changes something takes `by`, who asked for it, writes an "admin" audit event and
    lets this gate serve the change before it returns. Refusals are `AdministrationError`s (with an HTTP
    status and a code), `ConfigError`s and, where the store is away, `StoreUnavailableError`.
    """

    def __init__(
        self,
        office: Office,
        trail: AuditTrail,
        *,
        gate: str,
        backup_files: Mapping[str, Path],
        scram_iterations: int = 4096,
    ) -> None:
        self.office = office
        self.audit = trail
        self.rotation = Rotation(
            store=office.store,
            vault=office.vault,
            routes=office.directory,
            client_key=lambda route: (
                None if route.sslkey_secret is None else office.directory.secret(route.sslkey_secret)
            ),
        )
        self.databases = Databases(office, self.rotation)
        self.apps = Apps(office, iterations=scram_iterations)
        self.sidecars = Sidecars(office)
        self.settings = Preferences(office)
        self.vault = Rekeying(office)
        self.backups = Backups(office, gate=gate, files=backup_files)
        self.sample = Sample(office, self.databases)

    async def prepare(self) -> None:
        """Once, before the gate listens: what a new port of the embedded server or an old crash left to
        mend.
        """
        await self.sample.follow_server()

    async def run(self) -> None:
        """Finish what crashed gates left of rotations, and apply the audit's retention, until cancelled."""
        loop = asyncio.get_running_loop()
        retire_at = loop.time()
        while True:
            try:
                for problem in await self.rotation.heal():
                    log.warning("a password rotation is unfinished", problem=problem)
                days: int = self.office.directory.setting("audit.retention_days")
                if days and loop.time() >= retire_at:
                    await self.audit.retire(days)
                    retire_at = loop.time() + RETIRE_EVERY_S
            except StoreUnavailableError:
                pass  # the watch has said so already
            await asyncio.sleep(HEAL_EVERY_S)
