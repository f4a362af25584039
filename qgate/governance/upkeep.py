"""What a gate does unasked: mends what a crash left, forgets what has had its time."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from qgate.governance.office import Office
from qgate.governance.sample import Sample
from qgate.governance.trail import AuditTrail
from qgate.postgres.rotation import Rotation
from qgate.store import StoreUnavailableError
from tunnel_proto.errors import MeshError

EVERY_S: Final = 60.0
RETIRE_EVERY_S: Final = 3600.0

log = structlog.get_logger(__name__)


class Upkeep:
    """Housekeeping of the store. Every gate of a pool does it; locks in the store keep them out of each
    other's way.
    """

    def __init__(self, office: Office, *, rotation: Rotation, trail: AuditTrail, sample: Sample) -> None:
        self._office = office
        self._rotation = rotation
        self._trail = trail
        self._sample = sample

    async def prepare(self) -> None:
        """Once, before the gate listens: the embedded server may have another port than yesterday."""
        await self._sample.follow_server()

    async def run(self) -> None:
        """Until cancelled: finish what crashed gates left of rotations, and apply the audit's retention."""
        loop = asyncio.get_running_loop()
        retire_at = loop.time()
        while True:
            try:
                for problem in await self._rotation.heal():
                    log.warning("a password rotation is unfinished", problem=problem)
                days: int = self._office.directory.setting("audit.retention_days")
                if days and loop.time() >= retire_at:
                    retire_at = loop.time() + RETIRE_EVERY_S
                    await self._trail.retire(days)
            except StoreUnavailableError:
                pass  # the directory's watch has said so already
            except MeshError as error:
                log.warning("upkeep failed", reason=error.message)
            await asyncio.sleep(EVERY_S)
