"""The automations of a gate: which there are, and where each of them does its work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from qgate.governance.automations import Automation
from qgate.governance.inactive import InactivePeers
from qgate.governance.orders import LOOK_S as ORDERS_EVERY_S
from qgate.governance.orders import Orders
from qgate.governance.standing_offers import StandingOffers

if TYPE_CHECKING:
    from qgate.gate import Gate
    from qgate.governance.office import Office

OFFERS_EVERY_S: Final = 60.0
PURGE_EVERY_S: Final = 600.0
BALANCE_EVERY_S: Final = 5.0
FAILSAFE_EVERY_S: Final = 5.0


class Automated:
    """What the automations of one gate do."""

    def __init__(self, gate: Gate, office: Office, orders: Orders) -> None:
        self._gate = gate
        self._office = office
        self._orders = orders
        self._offers = StandingOffers(office, gate.administration.pools.pairing)
        self._peers = InactivePeers(office, gate.administration.pools, up=gate.peering.links.up)

    def each(self) -> Mapping[str, Automation]:
        """All automations by name."""
        made = (
            Automation(
                "balancer",
                "failover.rebalance",
                "lends an idle worker to a paired pool where work waits, and calls it back",
                BALANCE_EVERY_S,
                self._would_balance,
                looked=lambda: self._gate.movement.balanced,
            ),
            Automation(
                "migrations",
                "automation.orders",
                "carries out scheduled orders at their time",
                ORDERS_EVERY_S,
                self._would_order,
                looked=lambda: (self._orders.last.at, self._orders.last.outcome),
            ),
            Automation(
                "replication",
                "automation.replication",
                "fetches the logs of paired pools and keeps them",
                0.0,
                self._would_replicate,
            ),
            Automation(
                "failsafe",
                "automation.failsafe",
                "escalates incidents that nobody answers",
                FAILSAFE_EVERY_S,
                self._would_escalate,
            ),
            Automation(
                "pairing-offers",
                "automation.pairing_offers",
                "keeps an offer to pair open over the network",
                OFFERS_EVERY_S,
                self._would_offer,
                run=self._offers.renew,
            ),
            Automation(
                "purge-peers",
                "automation.purge_peers",
                "unpairs pools that were not seen for long",
                PURGE_EVERY_S,
                self._would_purge,
                run=self._peers.purge,
            ),
            Automation(
                "fan-out",
                "automation.fanout",
                "puts questions to the documents of paired pools too",
                0.0,
                self._would_fan_out,
            ),
            Automation(
                "smart-routing",
                "automation.smart_routing",
                "sends requests to paired pools' workers, and to local models while a budget burns too fast",
                0.0,
                self._would_route,
            ),
        )
        return {one.name: one for one in made}

    async def look(self) -> None:
        """Note which peers are there, whether anything is purged or not."""
        await self._peers.look()

    async def _would_balance(self) -> list[str]:
        found = self._gate.movement.balance_preview()
        return [found] if found else []

    async def _would_order(self) -> list[str]:
        rows = await self._orders.list()
        return [f"order {row['number']} at {row['at']}: {row['what']} {_words(row)}" for row in rows]

    async def _would_replicate(self) -> list[str]:
        rows = []
        for key, puller in self._gate.replication.pullers.items():
            peer = self._office.directory.peer(key)
            rows.append(f"{peer.name if peer else key.hex()[:8]}: {puller.progress.state}")
        return sorted(rows)

    async def _would_escalate(self) -> list[str]:
        count = await self._gate.movement.journal.overdue()
        return [f"{count} incidents would be escalated"] if count else []

    async def _would_offer(self) -> list[str]:
        why = await self._offers.lacking()
        return [f"an offer would be made: {why}"] if why else []

    async def _would_purge(self) -> list[str]:
        return [f"{name} would be unpaired" for name in await self._peers.gone()]

    async def _would_fan_out(self) -> list[str]:
        return []

    async def _would_route(self) -> list[str]:
        return [f"requests may go to {row['pool']}" for row in self._gate.compute.rows() if row["connected"]]


def _words(row: Mapping[str, object]) -> str:
    arguments = row["arguments"]
    assert isinstance(arguments, Mapping)
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value)
