"""What the pool is set to and shows, put together: settings, licence, branding, and what goes on beside."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qgate.control import branding, licence, settings
from qgate.governance.licence import Licences
from qgate.governance.showing import Showing

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.gate import Gate
    from qgate.governance.office import Office


class Configuring:
    """The parts of one gate; ``routers`` are their routes, ``run`` what goes on unasked."""

    def __init__(self, gate: Gate, office: Office) -> None:
        self._gate = gate
        self.licences = Licences(office, pool=gate.parts.keys.pool_key)
        self.showing = Showing(office, self.licences)

    def routers(self) -> tuple[APIRouter, ...]:
        """All routes."""
        return (
            *settings.routers(self._gate.administration),
            *licence.routers(self.licences),
            *branding.routers(self.showing),
        )

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.licences.run(), name="licence")
