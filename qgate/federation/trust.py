"""What a peer may do here: five levels, each a preset of flows, refined by direction.

A flow needs both sides: the sender's admin must let it out and the receiver's must let it in, each by the
level that they gave the other pool. So headquarters can administer a branch without the reverse, and nothing
that one side decides can widen what the other gave. Trust is never passed on: a peer's peer is a stranger.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from qgate.federation.peer import Peer

Direction = Literal["send", "receive"]

LEVELS: Final = ("none", "observe", "compute", "knowledge", "full")
"""Names of levels 0 to 4."""

FLOWS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "log": 0,  # the stream that carries it; each log stream has a level of its own
        "heartbeat": 1,
        "inventory": 1,
        "jobs": 2,
        "workers": 2,
        "failover": 2,
        "models": 2,
        "catalogue": 3,
        "fanout": 3,
        "memories": 4,
        "admin": 4,
    }
)
"""Least level at which a flow is allowed without an admin's further word."""


def may(peer: Peer, flow: str, direction: Direction) -> bool:
    """Whether ``flow`` may go to the peer ("send") or come from it ("receive"). KeyError for no flow of ours.

    At level 0 only what holds for every paired pool is allowed, whatever was refined.
    """
    least = FLOWS[flow]
    if not peer.paired:
        return False
    permissions = peer.permissions
    sending = direction == "send"
    if flow in (permissions.deny_send if sending else permissions.deny_receive):
        return False
    if peer.level >= least:
        return True
    return peer.level > 0 and flow in (permissions.allow_send if sending else permissions.allow_receive)


def allowed(peer: Peer, direction: Direction) -> tuple[str, ...]:
    """All flows that may go in that direction, in the order of `FLOWS`."""
    return tuple(flow for flow in FLOWS if may(peer, flow, direction))
