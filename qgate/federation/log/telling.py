"""What of a log may be told to whom. Pure.

A pool tells its own log to the pools that it is paired with, and a pool's own log back to it; never a third
pool's: trust is not passed on. Every entry's header is told, so that the chain verifies; its contents only
where the peer's level reaches the stream's and, for a stream that is a flow of its own, the admin lets that
flow out.
"""

from __future__ import annotations

from qgate.federation.log.streams import STREAMS
from qgate.federation.peer import Peer
from qgate.federation.trust import FLOWS, Direction, may


def may_ask(peer: Peer, origin: bytes, own: bytes) -> bool:
    """Whether a peer may have anything of that origin's log from us."""
    return peer.state == "paired" and origin in {own, peer.pool_key}


def told(peer: Peer, stream: str, *, origin: bytes) -> bool:
    """Whether a peer may have the contents of entries on that stream."""
    if origin == peer.pool_key:
        return True
    return reaches(peer, stream, "send")


def reaches(peer: Peer, stream: str, direction: Direction) -> bool:
    """Whether what is on that stream may pass between us and the peer in that direction."""
    declared = STREAMS.get(stream)
    if declared is None or peer.state != "paired" or peer.level < declared.level:
        return False
    return stream not in FLOWS or may(peer, stream, direction)
