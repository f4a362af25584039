"""What a gate does unasked: mends what a crash left, forgets what has had its time."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Final

import structlog

from qgate.governance.office import Office
from qgate.governance.sample import Sample
from qgate.governance.trail import AuditTrail
from qgate.postgres.rotation import Rotation
from qgate.store import StoreUnavailableError
from qgate.store.budgets import forget_before
from qgate.store.gates import announce_gate
from qgate.store.peers import drop_old_pairings
from qgate.store.receipts import drop_receipts, read_documents
from tunnel_proto.errors import MeshError

EVERY_S: Final = 60.0
READ_MAX: Final = 2_000
"""Receipts whose documents are read in one transaction."""

PAIRINGS_KEPT_DAYS: Final = 30
"""How long it can be seen why a pairing came to nothing."""

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
        # A log-in that took a pending password tells of a rotation that somebody left unfinished.
        self._stir = asyncio.Event()

    async def prepare(self) -> None:
        """Once, before the gate listens: say where it is reached, and find where its own store is."""
        await self._announce()
        await self._sample.follow_server()

    async def run(self) -> None:
        """Until cancelled: keep the embedded server alive, finish crashed rotations, apply the audit's
        retention.
        """
        async with asyncio.TaskGroup() as tasks:
            if self._office.embedded is not None:
                tasks.create_task(self._office.embedded.keep(), name="embedded store")
            tasks.create_task(self._look_after_the_store(), name="store")

    async def _look_after_the_store(self) -> None:
        loop = asyncio.get_running_loop()
        retire_at = forget_at = loop.time()
        self._office.directory.on_promotion(lambda _route, _read_only: self._stir.set())
        while True:
            self._stir.clear()
            try:
                await self._announce()
                for problem in await self._rotation.heal():
                    log.warning("a password rotation is unfinished", problem=problem)
                await self._read()
                days: int = self._office.directory.setting("audit.retention_days")
                if loop.time() >= forget_at:
                    forget_at = loop.time() + RETIRE_EVERY_S
                    await self._forget()
                if days and loop.time() >= retire_at:
                    retire_at = loop.time() + RETIRE_EVERY_S
                    await self._trail.retire(days)
            except StoreUnavailableError:
                pass  # the directory's watch has said so already
            except MeshError as error:
                log.warning("upkeep failed", reason=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._stir.wait()

    async def _forget(self) -> None:
        """Drop receipts, past periods of budgets and journal entries that have had their time."""
        before = self._office.now() - timedelta(days=self._office.directory.setting("finops.keep_days"))
        async with self._office.store.transaction() as connection:
            await drop_receipts(connection, before)
            await drop_old_pairings(connection, self._office.now() - timedelta(days=PAIRINGS_KEPT_DAYS))
            await forget_before(connection, before)

    async def _read(self) -> None:
        """Read receipts that an earlier version wrote, some at a time, until none is left."""
        count = READ_MAX
        while count == READ_MAX:
            async with self._office.store.transaction() as connection:
                count = await read_documents(connection, READ_MAX)

    async def _announce(self) -> None:
        if addresses := self._office.gates():
            async with self._office.store.connection() as connection:
                await announce_gate(connection, addresses, self._office.now())
