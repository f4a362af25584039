"""Copies of models at other pools, at one gate: who shall have what, what comes, and what peers are told.

    origin                                       a pool that was chosen
    -------------------------------------------  ---------------------------------------------------------
    an admin wants N copies of a model           room: so many bytes it would take
    blob: SHA-256, root, N, who was chosen   ──▶ fetches it in verified chunks, hands it to a worker
    counts copies by who says to have it     ◀── holding, or declined (no room after all)

A pool that has been away for `LOST_AFTER_S` counts no more, and another one is chosen; when it is back its
copy is one too many (`surplus`). One gate of a pool compares what peers were told with what is; the gate that
claimed a file fetches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from qgate.federation.blobs import LOST_AFTER_S, Holder, placement
from qgate.federation.guests import record_of
from qgate.federation.log.entry import Entry
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import Peer
from qgate.federation.publishing import publish_changed
from qgate.federation.surplus import Copied, ripen, too_many
from qgate.federation.trust import may
from qgate.store import blobs as table
from qgate.store import guests as exports
from qgate.store.blobs import DECLINED, ROOM, Blob, Holdings, PeerBlob
from qgate.store.database import Connection
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.messages import MODEL_NAME
from tunnel_proto.shapes import ShapeError, listed, raw, text, whole

STREAM: Final = "redundancy"
ROOM_STEP: Final = 64 * 1024 * 1024
"""Room is told in steps, so that peers do not hear of every file that anybody writes."""

COPIES_MAX: Final = 50
DECLINE_S: Final = 3600.0
"""How long a file that could not be kept is not tried again."""

_KEY: Final = raw(32)
_NAME: Final = text(200, MODEL_NAME)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one gate sees of its own pool. Times are monotonic.

    ``held`` are files that a worker has or that lie whole at a gate, ``declined`` those that could not be
    kept, ``room`` is in bytes.
    """

    held: frozenset[bytes]
    declined: frozenset[bytes]
    room: int


class Copies:
    """What a pool tells of its models' copies, and how it takes what others tell."""

    def __init__(
        self,
        *,
        pool_key: bytes,
        peers: Callable[[], Sequence[Peer]],
        linked: Callable[[bytes], bool],
        calm_s: Callable[[], float] = lambda: 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool_key = pool_key
        self._peers = peers
        self._linked = linked
        self._calm_s = calm_s
        self._monotonic = monotonic
        self._seen_up: dict[bytes, float] = {}
        self._surplus_since: Mapping[tuple[bytes, bytes], float] = {}
        self._told_room: int | None = None

    # --- ours

    async def reconcile(self, connection: Connection, sight: Sight) -> int:
        """Choose pools and publish what differs from what was told last; how many entries that were.

        The caller's transaction holds `table.LOCK`.
        """
        known = await exports.published(connection, STREAM)
        said = await table.holdings(connection)
        wanted: dict[bytes, dict[str, Any]] = {}
        blobs = []
        for blob in (await table.own_blobs(connection)).values():
            placed = self._place(blob, said)
            if placed != blob.placed:
                await table.place_blob(connection, blob.sha256, placed)
            blobs.append(replace(blob, placed=placed))
        ripe = self._ripe(blobs, said, sight)
        for blob in blobs:
            surplus = ripe.get(blob.sha256, ())
            wanted[record_of("blob", blob.sha256)] = replace(blob, surplus=surplus).payload()
        for sha256 in {one.sha256 for one in await table.peer_blobs(connection)}:
            record = record_of("holding", sha256)
            if sha256 in sight.held:
                wanted[record] = table.holding_payload(sha256)
            elif sha256 in sight.declined:
                wanted[record] = table.holding_payload(sha256, declined=True)
        if known or wanted or any(may(peer, "models", "receive") for peer in self._peers()):
            wanted[record_of("room")] = table.room_payload(self._room(sight.room))
        count = 0
        for record, payload in wanted.items():
            count += await publish_changed(connection, STREAM, record, payload, known)
        for record in known.keys() - wanted.keys():
            count += await publish_changed(connection, STREAM, record, {"gone": True}, known)
        return count

    def _room(self, room: int) -> int:
        room -= room % ROOM_STEP
        told = self._told_room
        if told is None or room == 0 or abs(room - told) >= max(ROOM_STEP, told // 10):
            self._told_room = room
        return self._told_room or 0

    def _place(self, blob: Blob, said: Holdings) -> tuple[bytes, ...]:
        """The pools that shall hold a copy: those that were chosen and are not lost, then new ones."""
        away = self.away()
        declined = said.declining.get(blob.sha256, frozenset())
        has = said.has(blob.sha256)
        able = [peer.pool_key for peer in self._peers() if may(peer, "models", "send")]
        chosen = [one for one in blob.placed if one in able and one not in declined]
        chosen = [one for one in chosen if away.get(one, 0.0) < LOST_AFTER_S]
        chosen.sort(key=lambda one: one not in has)  # where there are too many, those that have it stay
        del chosen[blob.copies :]
        holders = [
            Holder(one, one in chosen or one in has, said.room.get(one, 0), away.get(one, 0.0))
            for one in able
            if one not in declined
        ]
        fresh = placement(blob.sha256, blob.size, blob.copies, holders)
        spare = [one for one in able if one in has and one not in chosen and one not in declined]
        already = [one for one in spare if away.get(one, 0.0) < LOST_AFTER_S]
        room = max(0, blob.copies - len(chosen))
        return (*chosen, *[*already, *fresh][:room])

    def _ripe(self, blobs: Sequence[Blob], said: Holdings, sight: Sight) -> Mapping[bytes, tuple[bytes, ...]]:
        """By file the pools whose copies have been too many for long enough."""
        there = frozenset(pool for pool, away in self.away().items() if not away)
        found = {
            blob.sha256: too_many(
                Copied(blob.copies, blob.placed, said.has(blob.sha256), there, blob.sha256 in sight.held)
            )
            for blob in blobs
        }
        self._surplus_since, ripe = ripen(
            self._surplus_since, found, self._monotonic(), calm_s=self._calm_s()
        )
        return ripe

    def away(self) -> Mapping[bytes, float]:
        """For how long each peer has not been linked to this gate; 0 where it is."""
        now = self._monotonic()
        for peer in self._peers():
            if self._linked(peer.pool_key) or peer.pool_key not in self._seen_up:
                self._seen_up[peer.pool_key] = now
        return {
            peer.pool_key: 0.0
            if self._linked(peer.pool_key)
            else max(0.001, now - self._seen_up[peer.pool_key])
            for peer in self._peers()
        }

    # --- theirs

    def rule(self) -> StreamRule:
        """How entries of the stream are taken."""
        return StreamRule(STREAM, _take, forget=_forget, reclaim=self._reclaim, erased=_erased, rows=_rows)

    async def _reclaim(self, connection: Connection, entry: Entry, payload: dict[str, Any]) -> None:
        """Our store was restored: what we wanted of copies is wanted again."""
        if payload.get("kind") != "blob" or payload.get("gone"):
            return
        blob = read_blob(self._pool_key, payload)
        if blob.sha256 not in await table.own_blobs(connection):
            await connection.execute(
                """
                INSERT INTO blobs (sha256, name, size, root, manifest, copies, placed, changed_by, changed_at)
                VALUES ($1, $2, $3, $4, '', $5, $6, 'restored', now())
                """,
                blob.sha256,
                blob.name,
                blob.size,
                blob.root,
                blob.copies,
                list(blob.placed),
            )
        del entry


def verdict(blob: Blob, said: Holdings, away: Mapping[bytes, float], pools: int) -> str:
    """How a model's copies are, as a RAID tells it: alone, healthy, rebuilding, degraded, lost."""
    wanted = min(blob.copies, pools)
    good = [one for one in said.has(blob.sha256) if away.get(one, LOST_AFTER_S) < LOST_AFTER_S]
    coming = [one for one in blob.placed if one not in good and away.get(one, 1.0) == 0.0]
    if not wanted:
        return "healthy" if good else "alone"
    if len(good) >= wanted:
        return "healthy" if blob.copies <= pools else "degraded"
    if len(good) + len(coming) >= wanted:
        return "rebuilding"
    return "degraded" if good or said.has(blob.sha256) else "lost"


def read_blob(origin: bytes, payload: Mapping[str, Any]) -> PeerBlob:
    """What a peer says of one of its models. RemoteProtocolError."""
    try:
        return PeerBlob(
            origin,
            _key(payload["sha256"]),
            _NAME(payload["name"]),
            whole(1, 1 << 46)(payload["size"]),
            _key(payload["root"]),
            whole(0, COPIES_MAX)(payload["copies"]),
            tuple(_key(one) for one in listed(_KEY, COPIES_MAX)(payload["placed"])),
            tuple(_key(one) for one in listed(_KEY, COPIES_MAX)(payload.get("surplus", []))),
        )
    except (ShapeError, KeyError) as error:
        raise RemoteProtocolError(f"an entry about a model's copies is malformed: {error}") from None


async def _take(connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
    if payload.get("gone"):
        await table.drop_peer_record(connection, peer.pool_key, entry.record)
        return
    try:
        match payload.get("kind"):
            case "blob":
                await table.put_peer_blob(connection, read_blob(peer.pool_key, payload), entry.record)
            case "holding":
                await table.put_holding(connection, peer.pool_key, _key(payload["sha256"]), entry.record)
            case "declined":
                sha256 = _key(payload["sha256"])
                await table.put_holding(connection, peer.pool_key, sha256, entry.record, room=DECLINED)
            case "room":
                room = whole(0, 1 << 60)(payload["room"])
                await table.put_holding(connection, peer.pool_key, ROOM, entry.record, room=room)
            case _:
                raise RemoteProtocolError("an entry about copies is of a kind that is not known here")
    except (ShapeError, KeyError) as error:
        raise RemoteProtocolError(f"an entry about copies is malformed: {error}") from None


async def _forget(connection: Connection, peer: Peer) -> None:
    await table.forget_peer(connection, peer.pool_key)


async def _erased(connection: Connection, peer: Peer, entry: Entry) -> None:
    await table.drop_peer_record(connection, peer.pool_key, entry.record)


async def _rows(connection: Connection, peer: Peer) -> Mapping[bytes, bytes]:
    return await table.digests(connection, peer.pool_key)


def _key(value: Any) -> bytes:
    found: bytes = _KEY(value)
    if len(found) != 32:
        raise ShapeError("must have 32 bytes")
    return found
