"""What peers hear of our pairings, and what we do with what we hear of theirs.

Two streams of the log. "pairings" (level 2) says with whom a pool is paired, so that any pool can show the
whole cluster and a pairing that only one side has is seen. "revocations" (everybody) says whose key a pool
has revoked, and how far that pool's log had been accepted; and which of its own nodes (sidecars, daemons,
administrators' devices) it no longer vouches for, that its online key was replaced (`rotation`), and which of
its administrators and their sessions are out (`admin_words`).

A peer's word takes its own nodes away, everywhere and at once. Nothing that it says of others changes what is
trusted here: trust is not passed on. What we said ourselves does, when it comes back after our store was
restored from a backup: it takes trust away, and never gives any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.federation import admin_words, rotation
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import KINDS, Peer, Permissions
from qgate.store.admin_words import forget_words
from qgate.store.database import Connection
from qgate.store.guests import revoke_reclaimed
from qgate.store.outbox import publish
from qgate.store.peer_revocations import drop_node_revocations, put_node_revocation
from qgate.store.peers import (
    drop_foreign_pairings,
    foreign_pairing_digests,
    peer_of,
    peer_row,
    put_foreign_pairing,
    put_peer,
)
from qgate.store.rotations import forget_rotations
from tunnel_proto.certificate import name_problem
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, fingerprint

if TYPE_CHECKING:
    from qgate.federation.log.entry import Entry

PAIRINGS: Final = "pairings"
REVOCATIONS: Final = "revocations"

_TOLD: Final = ("paired", "unpaired", "revoked")
_SUBJECT: Final = "pool"
_NODE: Final = "node"

log = structlog.get_logger(__name__)


async def announce(connection: Connection, peer: Peer) -> None:
    """Let our peers hear, with the caller's transaction, what our pairing with ``peer`` has become."""
    if peer.state not in _TOLD:
        return
    payload = {"pool": peer.pool_key, "name": peer.name, "kind": peer.kind, "state": peer.state}
    await publish(connection, stream=PAIRINGS, record=_record(peer.pool_key), payload=payload)


async def announce_revocation(
    connection: Connection, pool_key: bytes, accepted: Mapping[str, Any] | None
) -> None:
    """Let everybody hear that a pool's key was revoked; ``accepted`` is what was accepted last of its log."""
    payload = {"subject": _SUBJECT, "pool": pool_key, "accepted": dict(accepted) if accepted else None}
    await publish(connection, stream=REVOCATIONS, record=_record(pool_key), payload=payload)


async def announce_node_revocation(
    connection: Connection, handshake_public: bytes, serial: int, role: str
) -> None:
    """Let everybody hear that a node of ours is revoked: certificates for its key up to ``serial``."""
    payload = {"subject": _NODE, "handshake": handshake_public, "serial": serial, "role": role}
    await publish(connection, stream=REVOCATIONS, record=_record(handshake_public), payload=payload)


def rules() -> tuple[StreamRule, ...]:
    """What these streams' entries do here."""
    return (
        StreamRule(PAIRINGS, _hear, forget=_forget, reclaim=_reclaim, rows=_rows),
        StreamRule(REVOCATIONS, _hear_revocation, forget=_forget_revocations, reclaim=_reclaim_revocation),
    )


async def _hear(connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
    key, name, kind, state = (
        payload.get("pool"),
        payload.get("name"),
        payload.get("kind"),
        payload.get("state"),
    )
    if not isinstance(key, bytes) or len(key) != KEY_BYTES or state not in _TOLD or kind not in KINDS:
        raise RemoteProtocolError("an entry about a pairing is malformed")
    if name_problem(name):
        raise RemoteProtocolError("an entry about a pairing has no name that can be used")
    await put_foreign_pairing(
        connection, peer.pool_key, key, name=str(name), kind=str(kind), state=str(state), record=entry.record
    )


async def _forget(connection: Connection, peer: Peer) -> None:
    await drop_foreign_pairings(connection, peer.pool_key)


async def _rows(connection: Connection, peer: Peer) -> Mapping[bytes, bytes]:
    return await foreign_pairing_digests(connection, peer.pool_key)


async def _reclaim(connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
    del entry
    if payload.get("state") in {"unpaired", "revoked"}:
        await _lower(connection, payload.get("pool"), str(payload["state"]))


async def _hear_revocation(connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
    if payload.get("subject") == _NODE:
        key, serial = payload.get("handshake"), payload.get("serial")
        if not isinstance(key, bytes) or len(key) != KEY_BYTES or type(serial) is not int or serial < 0:
            raise RemoteProtocolError("an entry about a revoked node is malformed")
        await put_node_revocation(connection, peer.pool_key, key, serial, entry.record)
        log.info("a peer has revoked a node of its own", pool=peer.name, role=str(payload.get("role"))[:16])
        return
    if payload.get("subject") == rotation.SUBJECT:
        await rotation.hear(connection, peer, entry, payload)
        return
    if await admin_words.hear(connection, peer, payload):
        return
    key = payload.get("pool")
    if payload.get("subject") == _SUBJECT and isinstance(key, bytes) and len(key) == KEY_BYTES:
        log.warning("a peer has revoked a pool", pool=peer.name, revoked=fingerprint(key))


async def _forget_revocations(connection: Connection, peer: Peer) -> None:
    await drop_node_revocations(connection, peer.pool_key)
    await forget_rotations(connection, peer.pool_key)
    await forget_words(connection, peer.pool_key)


async def _reclaim_revocation(connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
    await admin_words.reclaim(connection, entry.pool, payload)
    if payload.get("subject") == _NODE and isinstance(payload.get("handshake"), bytes):
        await revoke_reclaimed(connection, payload["handshake"])
    if payload.get("subject") == _SUBJECT:
        await _lower(connection, payload.get("pool"), "revoked")


async def _lower(connection: Connection, key: object, state: str) -> None:
    """Take from a peer what our own log says was taken from it; never the other way."""
    if not isinstance(key, bytes):
        return
    row = await peer_row(connection, key)
    if row is None or row["state"] in {state, "revoked"}:
        return
    lowered = replace(peer_of(row), state=state, level=0, permissions=Permissions())
    await put_peer(connection, lowered, datetime.now(UTC))
    log.warning("a pairing was taken back after a restore", pool=lowered.name, state=state)


def _record(pool_key: bytes) -> bytes:
    """Names the record; it tells nothing once the payload is erased."""
    return hashlib.blake2b(pool_key, digest_size=16, person=b"qgate-mesh/pairs").digest()
