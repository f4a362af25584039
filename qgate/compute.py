"""Compute across pools: what this gate's workers do for peers, and what peers do for this gate's apps.

    our apps ──▶ Engine ──▶ PoolExecutor ══ stream "jobs" ══▶ OffloadedJobs ──▶ Desk ──▶ the peer's Engine
                   ▲                                                                         │
               Inventory ◀── Compute ◀══ stream "inventory" ═══════════════ Offers ◀── its Inventory

A flow goes where both admins allow it: "inventory" from level 1, "jobs" from level 2. What a peer offers is
a candidate here while a link to it is up, the offer is fresh, it takes our jobs, and we may send it some.
"""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import Any

from qgate.capabilities import Capabilities
from qgate.capability.finops.prices import QUANTUM
from qgate.capability.pools import PoolExecutor
from qgate.federation.offers import Offers, Tariff, price_of
from qgate.federation.peer import Peer
from qgate.federation.result_streams import Results
from qgate.federation.trust import may
from qgate.governance.audit import AuditLog
from qgate.governance.directory import Directory
from qgate.governance.docket_keys import DocketKeys
from qgate.http.offloaded import OffloadedJobs
from qgate.peering import Peering
from qgate.store import Store
from qgate.vault import Vault
from tunnel_proto.messages import KIND_JOBS, Report


class Compute:
    """Made over a gate's capabilities and peering; `run` keeps offers going, `close` ends jobs of others."""

    def __init__(
        self,
        capabilities: Capabilities,
        peering: Peering,
        directory: Directory,
        *,
        store: Store,
        vault: Vault,
        audit: AuditLog,
        pool_key: bytes,
    ) -> None:
        self._directory = directory
        self._links = peering.links
        self._inventory = capabilities.inventory
        self._names: dict[bytes, str] = {}  # of pools that are in the inventory
        self.results = Results(
            links=peering.links,
            peers=directory,
            store=store,
            dockets=DocketKeys(vault, directory),
            receipts=capabilities.receipts,
            gate=capabilities.settings.name,
            pool_key=pool_key,
            underway=capabilities.engine.underway,
            audit=audit.record,
        )
        capabilities.receipts.on_issue(self.results.issued)
        self.jobs = OffloadedJobs(capabilities.desk, directory, time.monotonic, self.results)
        peering.links.serve(KIND_JOBS, "jobs", self.jobs.accept)
        self.offers = Offers(
            links=peering.links,
            peers=directory,
            inventory=self._inventory,
            takes=self._takes,
            changed=self._changed,
            tariff=self._tariff,
        )
        capabilities.executors["pool"] = PoolExecutor(
            peering.links, self._named, directory.setting, self.results.docket
        )
        directory.subscribe(self._directory_changed)
        self._name_own()

    async def run(self) -> None:
        """Keep offers fresh and results told, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.offers.run(), name="offers")
            tasks.create_task(self.results.run(), name="results")

    async def close(self) -> None:
        """Cancel the jobs of others, and keep what came of them."""
        self.offers.close()
        await self.jobs.close()
        await self.results.close()

    def rows(self) -> list[dict[str, Any]]:
        """A row a peer that offers something, for the list of workers."""
        shown = []
        for peer in self._directory.peers():
            heard = self.offers.heard.get(peer.pool_key)
            if heard is None or not peer.paired:
                continue
            offer, used = heard.offer, self._names.get(peer.pool_key)
            shown.append(
                {
                    "name": f"{peer.name}/*",
                    "pool": peer.name,
                    "state": "offered" if used else "seen",
                    "connected": self._links.up(peer.pool_key),
                    "draining": offer.draining,
                    "jobs_running": offer.jobs_running,
                    "jobs_queued": offer.jobs_queued,
                    "slots": offer.slots,
                    "workers": offer.workers,
                    "model_count": len(offer.models),
                    "price_input": offer.price_input,
                    "price_output": offer.price_output,
                    "currency": offer.currency,
                    "resident": sorted(one.name for one in offer.models if one.state == "resident"),
                }
            )
        return shown

    # --- its own

    def _named(self, name: str) -> Peer | None:
        return next((one for one in self._directory.peers() if one.paired and one.name == name), None)

    def _takes(self, peer: Peer) -> bool:
        return may(peer, "jobs", "receive") and self._directory.setting("federation.jobs") > 0

    def _tariff(self) -> Tariff:
        setting = self._directory.setting
        return Tariff(
            input=Decimal(str(setting("federation.price_input"))).quantize(QUANTUM),
            output=Decimal(str(setting("federation.price_output"))).quantize(QUANTUM),
            currency=setting("finops.currency"),
        )

    def _directory_changed(self, names: frozenset[str]) -> None:
        if "pool" in names:
            self._name_own()
        if "setting:automation.smart_routing" in names:
            for pool_key in list(self.offers.heard):
                self._changed(pool_key)

    def _name_own(self) -> None:
        own = self._directory.own_pool()
        self._inventory.pool = own.name if own.named else ""

    def _changed(self, pool_key: bytes) -> None:
        """A peer's offer, its link, or what is thought of it changed: its candidates follow."""
        peer, heard = self._directory.peer(pool_key), self.offers.heard.get(pool_key)
        now = asyncio.get_running_loop().time()
        known = self._names.get(pool_key)
        refused = (
            peer is None
            or not may(peer, "jobs", "send")
            or (heard is not None and not heard.offer.jobs)
            or not self._directory.setting("automation.smart_routing")
        )
        if known is not None and (refused or peer is None or peer.name != known):
            self._inventory.worker_gone(self._names.pop(pool_key), "pool")
        if refused or peer is None:
            return
        if heard is None or not self._links.up(pool_key):
            # Its models are still known of, so that a request hears that they cannot be reached.
            self._inventory.worker_away(peer.name, "pool")
            return
        offer = heard.offer
        self._names[pool_key] = peer.name
        self._inventory.workers_changed(
            peer.name,
            Report(
                worker=peer.name,
                seq=offer.seq,
                full=True,
                models=offer.models,
                draining=offer.draining,
                jobs_running=offer.jobs_running,
                jobs_queued=offer.jobs_queued,
                slots=offer.slots,
            ),
            now,
            kind="pool",
            distance_s=self._links.rtt_s(pool_key) or 0.0,
            price=price_of(offer, peer.name),
        )
