"""What this pool vouches for of its workers towards peers, and what peers' words are worth here."""

from __future__ import annotations

from typing import Any

from qgate.capability.workers import Workers
from qgate.federation.attested import (
    MEASURED_MIN,
    ROUTING,
    WORKERS,
    Attested,
    AttestedWorker,
    Speed,
    rounded,
)
from qgate.federation.trust import may
from qgate.governance.guest_list import guest_name
from qgate.governance.office import Office
from qgate.governance.problems import UnknownNameError
from qgate.store import attested as attested_table
from qgate.store import log as log_table
from qgate.store.database import Connection
from qgate.store.rotations import rotations_of
from tunnel_proto.identity import fingerprint


class Vouching:
    """The workers of one gate, as its pool attests them, and guests' workers as their homes do."""

    def __init__(self, office: Office, workers: Workers) -> None:
        self._office = office
        self._directory = office.directory
        self._workers = workers
        self._attested = Attested()

    async def tell(self, connection: Connection) -> int:
        """Publish what differs from what was told last; how many entries that were."""
        if not self._told_somebody():
            return 0
        return await self._attested.reconcile(
            connection,
            workers=self._attested_workers(),
            gone=self._revoked_workers(),
            speeds=self._speeds(),
        )

    def _told_somebody(self) -> bool:
        return any(may(peer, "failover", "send") for peer in self._directory.peers())

    def _attested_workers(self) -> list[AttestedWorker]:
        revoked = self._revoked_workers()
        return [
            AttestedWorker(
                view.name,
                view.hardware.cpu,
                view.hardware.cores,
                view.hardware.memory,
                tuple(gpu.name for gpu in view.hardware.gpus),
            )
            for view in self._workers.views.values()
            if "/" not in view.name and view.hardware is not None and view.name not in revoked
        ]

    def _revoked_workers(self) -> frozenset[str]:
        """Names that belonged to workers, and do not any more."""
        nodes = [one for one in self._directory.snapshot.nodes.values() if one.role == "daemon"]
        return frozenset(one.name for one in nodes if one.revoked) - {
            one.name for one in nodes if not one.revoked
        }

    def _speeds(self) -> list[Speed]:
        return [
            Speed(
                node.name,
                model,
                sha256,
                rounded(one.estimate.speed.value),
                rounded(one.estimate.prefill.value) if one.estimate.prefill.count else 0.0,
            )
            for node in self._workers.inventory.nodes.values()
            if node.kind == "worker" and "/" not in node.name
            for (model, sha256), one in node.deployments.items()
            if one.estimate.speed.count >= MEASURED_MIN and len(sha256) in {0, 64}
        ]

    async def learn(self, connection: Connection) -> None:
        """Let workers of other pools that serve here begin with what their homes measured of them."""
        guests = {
            node.name
            for node in self._workers.inventory.nodes.values()
            if node.kind == "worker" and "/" in node.name and node.live
        }
        if not guests:
            return
        for row in await attested_table.rows_of(connection, ROUTING):
            peer = self._directory.peer(row["pool"])
            name = guest_name(peer.name if peer is not None else "", row["worker"])
            if name in guests:
                self._workers.inventory.learned(
                    name, row["model"], row["sha256"], speed=row["speed"], prefill=row["prefill"]
                )

    async def keys_of(self, pool: str | None, own: bytes) -> list[dict[str, Any]]:
        """Online keys of a peer, or ours, newest first, and by whose word each came. UnknownNameError."""
        key = own
        if pool is not None:
            peer = self._directory.peer_named(pool)
            if peer is None:
                raise UnknownNameError(f"there is no peer {pool}", hint="meshctl pool list")
            key = peer.pool_key
        async with self._office.store.connection() as connection:
            certificates = await log_table.certificates(connection, key)
            both = {bytes(row["new_key"]): row for row in await rotations_of(connection, key)}
        known = sorted((terms for terms, _ in certificates.values()), key=lambda one: one.serial)
        return [
            {
                "fingerprint": fingerprint(terms.verify_key),
                "serial": terms.serial,
                "not_after": terms.not_after,
                "by": "the key before it, and the pool key"
                if terms.verify_key in both
                else "the pool key"
                if at == 0
                else "the pool key alone",
                "after": both[terms.verify_key]["after"] if terms.verify_key in both else None,
            }
            for at, terms in enumerate(known)
        ][::-1]

    async def attested_by(self, pool: str) -> dict[str, Any]:
        """What a peer vouches for: its workers, and what it measured of its models. UnknownNameError."""
        peer = self._directory.peer_named(pool)
        if peer is None:
            raise UnknownNameError(f"there is no peer {pool}", hint="meshctl pool list")
        async with self._office.store.connection() as connection:
            workers = await attested_table.rows_of(connection, WORKERS, peer.pool_key)
            speeds = await attested_table.rows_of(connection, ROUTING, peer.pool_key)
        return {
            "items": [{**row, "pool": pool} for row in workers],
            "speeds": [{**row, "pool": pool} for row in speeds],
        }
