"""Which nodes and apps of paired pools are welcome now, in memory: part of the directory's snapshot.

A guest is on the list only while its pool is paired and may fail over to here (`trust.may`, flow "failover"),
a worker only where the flow "workers" may come as well, and a guest app sees only databases that are here
under the same name and that the setting `failover.guest_databases` opens to guests. So lowering a peer's
level or closing a database takes effect like any other change of the directory: live sessions are looked at
again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from qgate.federation.guests import GuestApp, GuestNode
from qgate.federation.peer import Peer
from qgate.federation.trust import may
from qgate.governance.policy import ApiKey

GUEST_DATABASES: Final = "failover.guest_databases"
"""The setting: patterns of database names, separated by commas; empty opens none."""


@dataclass(frozen=True, slots=True)
class GuestList:
    """`apps` are GuestApps by "POOL/APP", `keys` by pool and the digest that is good here, `nodes` by pool
    and X25519 key: what one pool says never counts for another's.

    `rosters` are the sealed rosters of the pools whose nodes may come, by pool. `revoked` are nodes, in any
    role, that their own pools have taken back: certificates up to that serial, by pool and X25519 key.
    """

    apps: Mapping[str, GuestApp] = field(default_factory=dict)
    keys: Mapping[tuple[bytes, bytes], ApiKey] = field(default_factory=dict, repr=False)
    nodes: Mapping[tuple[bytes, bytes], GuestNode] = field(default_factory=dict)
    rosters: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    revoked: Mapping[tuple[bytes, bytes], int] = field(default_factory=dict)


def guest_name(pool: str, name: str) -> str:
    """What a node or app of another pool is called here."""
    return f"{pool}/{name}"


def welcome(
    peers: Mapping[bytes, Peer],
    *,
    apps: Iterable[GuestApp],
    nodes: Iterable[GuestNode],
    rosters: Mapping[bytes, bytes],
    revoked: Mapping[tuple[bytes, bytes], int] | None = None,
) -> GuestList:
    """The guests of those peers that may fail over to here."""
    names = {key: peer.name for key, peer in peers.items() if may(peer, "failover", "receive")}
    lenders = {key for key, peer in peers.items() if may(peer, "workers", "receive")}
    listed = {guest_name(names[app.pool], app.name): app for app in apps if app.pool in names}
    return GuestList(
        apps=listed,
        keys={
            (app.pool, digest): ApiKey(identifier, name, prefix, digest, until)
            for name, app in listed.items()
            for digest, identifier, prefix, until in app.keys
        },
        nodes={
            (node.pool, node.handshake_public): node
            for node in nodes
            if node.pool in names and (node.role != "daemon" or node.pool in lenders)
        },
        rosters={pool: sealed for pool, sealed in rosters.items() if pool in names},
        revoked=revoked or {},
    )


def opened(databases: Iterable[str], patterns: str) -> frozenset[str]:
    """The databases that guests may see."""
    allowed = [one.strip() for one in patterns.split(",") if one.strip()]
    return frozenset(
        name for name in databases if any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)
    )
