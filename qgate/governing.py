"""What governs a gate, put together: who administers it, who its people are, what it is set to and shows.

open     what has to be there before the control surface answers
run      what goes on beside the traffic
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from qgate.control import copies
from qgate.control.access import Access
from qgate.control.administering import Administering
from qgate.control.configuring import Configuring
from qgate.control.idempotency import Requests
from qgate.control.staff import Staff
from qgate.control.watching import Watching
from qgate.federation import rotation
from qgate.governance.elections import Elections
from qgate.http.application import Beside
from qgate.replicating import Replicating

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.gate import Gate
    from qgate.governance.office import Office
    from qgate.governance.principal import Principal


class Governing:
    """Made with the gate; each noun has its part here and its routes in `routers`."""

    def __init__(self, gate: Gate, office: Office) -> None:
        self._gate = gate
        self._office = office
        # --- what screens look at
        self.watching = Watching(gate)
        # --- people
        self.staff = Staff(gate, office)
        # --- administrators
        self.administering = Administering(office, gate.administration.sidecars, gate.peering.asks)
        # --- what the pool is set to and shows
        self.configuring = Configuring(gate, office)
        self.staff.under(self.configuring.licences)
        self.administering.under(self.configuring.licences)
        gate.authorisation.on_revoked = self.administering.logins.knocked

        # --- models' copies at other pools
        self.replicating = Replicating(
            office,
            folder=gate.files.state_dir / "models",
            gate=gate.settings.name,
            pool_key=gate.parts.keys.pool_key,
            links=gate.peering.links,
            replication=gate.replication,
            workers=gate.capabilities.workers,
        )

        # --- who is master of the catalogue
        self.elections = Elections(
            office,
            gate.catalogue,
            gate.peering.asks,
            gate.movement.journal,
            pool_key=gate.parts.keys.pool_key,
            verdict=gate.peering.vitals.standing,
            settled=lambda: gate.replication.ready.publish,
        )

    def guarded(self, application: Callable[..., Any]) -> Access:
        """The control surface behind its door, and beside it what an administrator asks the mesh itself."""
        keys = self._gate.parts.keys
        digest_key = hashlib.blake2b(keys.online.sign("idempotency keys", keys.pool_key), digest_size=32)
        requests = Requests(
            application, self._office, gate=self._gate.settings.name, digest_key=digest_key.digest()
        )
        return self.administering.guarded(Beside(self._asked, requests))

    async def _asked(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """An administrator asks the mesh itself, at no app's expense: over a session the audit says who."""
        principal: Principal = scope["state"]["principal"]
        if principal.kind == "session" and scope["method"] == "POST":
            await self._office.changed("ask", scope["path"], principal.label, {})
        await self._gate.capabilities.administrator(scope, receive, send)

    def routers(self) -> tuple[APIRouter, ...]:
        """The routers of all nouns, for the control surface."""
        return (
            *self.administering.routers(),
            *self.staff.routers(),
            *self.watching.routers(),
            *self.configuring.routers(),
            *copies.routers(self.replicating),
        )

    async def open(self, stack: AsyncExitStack) -> None:
        """Make ready; ``stack`` ends it."""
        await self.staff.open()
        await self.administering.open(stack)
        await self.watching.open(stack)
        await self.replicating.open(stack)
        keys = self._gate.parts.keys
        await rotation.announce(
            self._office.store, self._office.online, pool=keys.pool_key, key_file=self._gate.files.online_key
        )

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.administering.run(), name="administering")
            tasks.create_task(self.watching.run(), name="watching")
            tasks.create_task(self.configuring.run(), name="configuring")
            tasks.create_task(self.staff.run(), name="people")
            tasks.create_task(self.replicating.run(), name="copies of models")
            tasks.create_task(self.elections.run(), name="elections")
