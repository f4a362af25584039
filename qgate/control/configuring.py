"""What the pool is set to and shows, put together: settings, licence, branding, and what goes on beside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from qgate.control import automations, branding, configuration, licence, machine, onboarding, orders, settings
from qgate.control.automated import Automated
from qgate.governance.automations import Automations
from qgate.governance.configuration import Configuration
from qgate.governance.licence import Licences
from qgate.governance.onboarding import Facts, Onboarding
from qgate.governance.order_kinds import kinds
from qgate.governance.orders import Orders
from qgate.governance.showing import Showing
from qgate.store import StoreUnavailableError
from tunnel_proto.logs import set_level

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.gate import Gate
    from qgate.governance.office import Office

LOG_LEVEL: Final = "debug.log_level"
FROM_FILE: Final = "file"

SEEN_EVERY_S: Final = 600.0
"""How often it is noted which peers are there."""


class Configuring:
    """The parts of one gate; ``routers`` are their routes, ``run`` what goes on unasked."""

    def __init__(self, gate: Gate, office: Office) -> None:
        self._gate = gate
        self._office = office
        preferences = gate.administration.preferences
        self.licences = Licences(office, pool=gate.parts.keys.pool_key)
        self.showing = Showing(office, self.licences)
        self.configuration = Configuration(office)
        self.orders = Orders(
            office,
            gate=gate.settings.name,
            kinds=kinds(office, gate.movement, gate.capabilities.workers, preferences),
            raise_incident=self._raise_incident,
        )
        self.onboarding = Onboarding(office, Facts(self._store, self._models, self._machine))
        self._automated = Automated(gate, office, self.orders)
        self.automations = Automations(office, gate.settings.name, preferences, self._automated.each())

    def routers(self) -> tuple[APIRouter, ...]:
        """All routes."""
        return (
            *settings.routers(self._gate.administration),
            *licence.routers(self.licences),
            *branding.routers(self.showing),
            *configuration.routers(self.configuration),
            *orders.routers(self.orders),
            *automations.routers(self.automations),
            *onboarding.routers(self.onboarding),
        )

    async def run(self) -> None:
        """Go on until cancelled."""
        self._office.directory.subscribe(self._directory_changed)
        if self._wanted_level() != FROM_FILE:
            self.set_log_level()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.licences.run(), name="licence")
            tasks.create_task(self.orders.run(), name="orders")
            tasks.create_task(self.automations.run(), name="automations")
            tasks.create_task(self._see_peers(), name="peers seen")

    def _store(self) -> str:
        opened = self._gate.parts.store
        return f"{opened.kind}, PostgreSQL {opened.server_version}"

    def _models(self) -> int:
        """Models that can be asked for, of workers and providers; not the gate's own engine."""
        providers = [one for one in self._gate.parts.directory.providers().values() if one.enabled]
        workers = self._gate.capabilities.workers.views.values()
        return sum(len(one.models) for one in providers) + sum(len(one.models) for one in workers)

    def _machine(self) -> list[Mapping[str, Any]]:
        settings = self._gate.settings
        return machine.checks(self._gate.files.state_dir, settings.listen.advertise)

    def _directory_changed(self, names: frozenset[str]) -> None:
        if f"setting:{LOG_LEVEL}" in names:
            self.set_log_level()

    def set_log_level(self) -> None:
        """Log at the level that is set for all gates, at the file's where none is."""
        wanted = self._wanted_level()
        set_level(self._gate.settings.log.level if wanted == FROM_FILE else wanted)

    def _wanted_level(self) -> str:
        return str(self._office.directory.setting(LOG_LEVEL))

    async def _see_peers(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            with contextlib.suppress(StoreUnavailableError):
                await self._automated.look()

    async def _raise_incident(self, kind: str, subject: str, evidence: Mapping[str, Any]) -> None:
        await self._gate.movement.journal.raise_incident(kind, subject, evidence)
