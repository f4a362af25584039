"""What a gate has to do with other pools, put together: links, and all that goes over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from qgate.federation.ask import Asks
from qgate.federation.introduction import KIND_PAIRING, Introduction
from qgate.federation.links import PeerLinks, peer_chain
from qgate.federation.suspicion import Patience
from qgate.federation.vitals import Own as OwnVitals
from qgate.federation.vitals import Tempo, Vitals
from qgate.governance.directory import Directory
from qgate.governance.office import Office
from qgate.governance.pools import Pools
from qgate.keys import GateKeys
from qgate.settings import GateFiles, GateSettings
from tunnel_proto.constants import StreamCode
from tunnel_proto.link import PeerSession, Stream
from tunnel_proto.marks import TimestampMark

STRANGERS_MAX = 8
"""Sessions of pools that are not known yet; such come only while an offer may be answered over the tunnel."""


class Peering:
    """The federation's parts of one gate. ``keys()`` are the gate's as they are now."""

    def __init__(
        self,
        settings: GateSettings,
        files: GateFiles,
        *,
        keys: Callable[[], GateKeys],
        office: Office,
        pools: Pools,
        own: OwnVitals,
    ) -> None:
        self._directory = directory = office.directory
        self._keys = keys
        self._strangers: set[PeerSession] = set()
        self._mark = TimestampMark(files.peer_mark, time.time_ns)
        self.links = PeerLinks(
            identity=keys().node,
            chain=self.chain,
            peers=directory,
            settings=settings.tunnel,
            next_timestamp=self._mark.next,
        )
        self.asks = Asks(self.links, directory.peer)
        self.vitals = Vitals(
            links=self.links,
            peers=directory,
            online=office.online,
            pool_key=keys().pool_key,
            gate=settings.name,
            own=own,
            tempo=lambda: tempo_of(directory),
            learn=pools.learn,
            clock=office.clock,
        )
        pools.liveness = self.liveness
        self.introduction = Introduction(
            self.links, confirm=pools.pairing.confirm_online, finish=pools.pairing.finish_online
        )
        pools.pairing.introduce = self.introduction.answer

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin to dial; ``stack`` ends it."""
        stack.push_async_callback(self.links.close)
        stack.push_async_callback(self.introduction.close)
        stack.push_async_callback(self.asks.close)
        self.links.start()

    async def run(self) -> None:
        """What goes on beside the links, until cancelled."""
        await self.vitals.run()

    def directory_changed(self, names: frozenset[str]) -> None:
        """Something about pools may have changed."""
        if any(name.startswith("peer:") for name in names):
            self.links.look()

    def session_opened(self, session: PeerSession) -> None:
        """A node began a session; peers' gates matter here."""
        if session.peer.role != "peer":
            return
        if self._directory.peer(session.peer.pool) is None:
            self._strangers.add(session)
            if len(self._strangers) > STRANGERS_MAX:
                session.close(StreamCode.LIMIT, "too many pools are knocking")
                return
        self.links.session_opened(session)

    def session_closed(self, session: PeerSession) -> None:
        """A session ended."""
        self._strangers.discard(session)
        if session.peer.role == "peer":
            self.links.session_closed(session)

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """A peer's gate opened a stream."""
        if stream.kind == KIND_PAIRING:
            self.introduction.accept(session, stream)
        else:
            self.links.accept(session.peer.pool, session, stream)

    def renewed(self) -> None:
        """This gate's certificate was replaced."""
        self.links.renew()

    def state(self) -> list[dict[str, Any]]:
        """A row a paired pool, for status."""
        return self.links.state()

    def figures(self) -> dict[str, tuple[bool, int]]:
        """By paired pool: whether a link is up, and how many heartbeats were taken."""
        paired = [peer for peer in self._directory.peers() if peer.paired]
        heard = self.vitals.heard
        return {
            peer.name: (
                self.links.up(peer.pool_key),
                heard[peer.pool_key].beats if peer.pool_key in heard else 0,
            )
            for peer in paired
        }

    def liveness(self, pool_key: bytes) -> dict[str, Any]:
        """What is known of a peer beside what the store says, for the list of pools."""
        return {
            "link": "up" if self.links.up(pool_key) else "down",
            "rtt_s": self.links.rtt_s(pool_key),
            **self.vitals.shown(pool_key),
            "problem": self.links.problem(pool_key) or self.vitals.problem(pool_key),
        }

    def chain(self) -> bytes:
        """This gate's certificate chain in the role "peer", of now."""
        keys = self._keys()
        return peer_chain(keys.node, keys.certificate, keys.online, keys.online_certificate)


def tempo_of(directory: Directory) -> Tempo:
    """How often to beat and how long to be patient, from the settings of now."""
    return Tempo(
        directory.setting("federation.heartbeat_s"),
        Patience(
            suspect_s=directory.setting("federation.suspect_s"),
            dead_s=directory.setting("federation.dead_s"),
        ),
    )
