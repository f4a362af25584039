"""Peers that are gone for good: those that no gate of the pool has seen for long are unpaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from qgate.federation.peer import Peer
from qgate.governance.office import Office
from qgate.governance.pools import Pools
from qgate.governance.problems import AdministrationError
from qgate.store.automations import note_seen, seen

DAY_S: Final = 86_400


class InactivePeers:
    """Remembers when peers were seen, and ends pairings with those that were not for too long.

    ``up(pool key)`` says whether a link to a peer is up at this gate.
    """

    def __init__(self, office: Office, pools: Pools, *, up: Callable[[bytes], bool]) -> None:
        self._office = office
        self._pools = pools
        self._up = up

    async def look(self) -> None:
        """Note which peers are there now."""
        there = [peer.pool_key for peer in self._paired() if self._up(peer.pool_key)]
        if there:
            async with self._office.store.transaction() as connection:
                await note_seen(connection, there, self._office.now())

    async def gone(self) -> list[str]:
        """Whom `purge` would unpair now, by name."""
        async with self._office.store.connection() as connection:
            known = await seen(connection)
        return [peer.name for peer in self._paired() if self._is_gone(peer, known)]

    async def purge(self) -> str:
        """Unpair whoever is gone; who that was."""
        days = int(self._office.directory.setting("automation.purge_peers_days"))
        done = []
        for name in await self.gone():
            try:
                await self._pools.unpair(name, by=f"automation: not seen for {days} days")
            except AdministrationError:  # another gate was faster, or an administrator
                continue
            done.append(name)
        return f"unpaired {', '.join(done)}" if done else ""

    def _is_gone(self, peer: Peer, known: Mapping[bytes, datetime]) -> bool:
        """A peer without addresses is carried to by hand, and is never seen."""
        if not peer.gates or self._up(peer.pool_key):
            return False
        paired = None if peer.paired_at is None else datetime.fromtimestamp(peer.paired_at, UTC)
        last = max((at for at in (known.get(peer.pool_key), paired) if at is not None), default=None)
        if last is None:
            return False
        days = int(self._office.directory.setting("automation.purge_peers_days"))
        return (self._office.now() - last).total_seconds() > days * DAY_S

    def _paired(self) -> list[Peer]:
        return [peer for peer in self._office.directory.peers() if peer.paired]
