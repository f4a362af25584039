"""Models with copies at other pools: ours, peers', who has what, and what is on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from qgate.federation.log.digest import record_digest
from qgate.federation.surplus import Taken
from qgate.store.database import Connection

LOCK: Final = 0x6D657368_626C6F62
"""Advisory lock of whoever compares what peers were told of files with what is."""

CLAIM_S: Final = 30.0
"""How long a gate's claim to fetch a file lasts without being renewed."""

ROOM: Final = b""
"""In place of a SHA-256: the row says how much more a pool would take."""

DECLINED: Final = -1
"""In place of the room, in a file's row: the pool cannot take the file."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One of our models, and where its copies shall be. ``manifest`` is packed, ``surplus`` are pools whose
    copies are too many.
    """

    sha256: bytes
    name: str
    size: int
    root: bytes
    copies: int
    placed: tuple[bytes, ...] = ()
    manifest: bytes = field(default=b"", repr=False)
    surplus: tuple[bytes, ...] = ()

    def payload(self) -> dict[str, Any]:
        """What peers are told."""
        said: dict[str, Any] = {
            "kind": "blob",
            "sha256": self.sha256,
            "name": self.name,
            "size": self.size,
            "root": self.root,
            "copies": self.copies,
            "placed": list(self.placed),
        }
        return {**said, "surplus": list(self.surplus)} if self.surplus else said


@dataclass(frozen=True, slots=True)
class PeerBlob:
    """A model of a peer."""

    origin: bytes
    sha256: bytes
    name: str
    size: int
    root: bytes
    copies: int
    placed: tuple[bytes, ...] = ()
    surplus: tuple[bytes, ...] = ()

    def payload(self) -> dict[str, Any]:
        """As the peer said it."""
        said = Blob(self.sha256, self.name, self.size, self.root, self.copies, self.placed)
        return replace(said, surplus=self.surplus).payload()


@dataclass(frozen=True, slots=True)
class FetchRow:
    """How far a fetch is, in chunks, and at which gate."""

    sha256: bytes
    gate: str
    state: str
    have: int
    chunks: int
    problem: str


async def own_blobs(connection: Connection) -> dict[bytes, Blob]:
    """Our models that are to have copies, by SHA-256, without their manifests."""
    rows = await connection.fetch("SELECT sha256, name, size, root, copies, placed FROM blobs ORDER BY name")
    return {
        bytes(row["sha256"]): Blob(
            bytes(row["sha256"]),
            row["name"],
            row["size"],
            bytes(row["root"]),
            row["copies"],
            tuple(bytes(one) for one in row["placed"]),
        )
        for row in rows
    }


async def manifest_of_root(connection: Connection, root: bytes) -> tuple[bytes, bytes] | None:
    """SHA-256 and packed manifest of one of our models."""
    row = await connection.fetchrow("SELECT sha256, manifest FROM blobs WHERE root = $1", root)
    return None if row is None else (bytes(row["sha256"]), bytes(row["manifest"]))


async def put_blob(connection: Connection, blob: Blob, *, by: str, at: datetime) -> None:
    """Want copies of a model, or another number of them."""
    await connection.execute(
        """
        INSERT INTO blobs (sha256, name, size, root, manifest, copies, placed, changed_by, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (sha256) DO UPDATE SET name = excluded.name, copies = excluded.copies,
            placed = excluded.placed, changed_by = excluded.changed_by, changed_at = excluded.changed_at
        """,
        blob.sha256,
        blob.name,
        blob.size,
        blob.root,
        blob.manifest,
        blob.copies,
        list(blob.placed),
        by,
        at,
    )


async def place_blob(connection: Connection, sha256: bytes, placed: Sequence[bytes]) -> None:
    """Note which pools shall hold a copy."""
    await connection.execute("UPDATE blobs SET placed = $2 WHERE sha256 = $1", sha256, list(placed))


async def peer_blobs(connection: Connection) -> list[PeerBlob]:
    """Every model of which a peer wants copies."""
    rows = await connection.fetch("SELECT * FROM peer_blobs ORDER BY name, origin")
    return [_peer_blob(row) for row in rows]


async def put_peer_blob(connection: Connection, blob: PeerBlob, record: bytes) -> None:
    """Keep what a peer says of one of its models."""
    await connection.execute(
        """
        INSERT INTO peer_blobs (origin, sha256, name, size, root, copies, placed, record, surplus)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (origin, sha256) DO UPDATE SET name = excluded.name, size = excluded.size,
            root = excluded.root, copies = excluded.copies, placed = excluded.placed,
            record = excluded.record, surplus = excluded.surplus
        """,
        blob.origin,
        blob.sha256,
        blob.name,
        blob.size,
        blob.root,
        blob.copies,
        list(blob.placed),
        record,
        list(blob.surplus),
    )


async def drop_peer_record(connection: Connection, pool: bytes, record: bytes) -> None:
    """Forget what one entry of a peer said."""
    await connection.execute("DELETE FROM peer_blobs WHERE origin = $1 AND record = $2", pool, record)
    await connection.execute("DELETE FROM blob_holdings WHERE pool = $1 AND record = $2", pool, record)


async def forget_peer(connection: Connection, pool: bytes) -> None:
    """Forget all that a peer said of files."""
    await connection.execute("DELETE FROM peer_blobs WHERE origin = $1", pool)
    await connection.execute("DELETE FROM blob_holdings WHERE pool = $1", pool)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What peers say: by file who has it and who cannot take it, by pool how many bytes it would take."""

    having: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    declining: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    room: Mapping[bytes, int] = field(default_factory=dict)

    def has(self, sha256: bytes) -> frozenset[bytes]:
        """Who has the file."""
        return self.having.get(sha256, frozenset())


async def holdings(connection: Connection) -> Holdings:
    """All that peers said of what they have."""
    having: dict[bytes, set[bytes]] = {}
    declining: dict[bytes, set[bytes]] = {}
    room: dict[bytes, int] = {}
    for row in await connection.fetch("SELECT pool, sha256, room FROM blob_holdings"):
        pool, sha256 = bytes(row["pool"]), bytes(row["sha256"])
        if sha256 == ROOM:
            room[pool] = row["room"]
        else:
            (declining if row["room"] == DECLINED else having).setdefault(sha256, set()).add(pool)
    return Holdings(
        {sha256: frozenset(pools) for sha256, pools in having.items()},
        {sha256: frozenset(pools) for sha256, pools in declining.items()},
        room,
    )


async def put_holding(
    connection: Connection, pool: bytes, sha256: bytes, record: bytes, *, room: int = 0
) -> None:
    """Keep that a peer has a file or has `DECLINED` it; with `ROOM`, how much more it would take."""
    await connection.execute(
        """
        INSERT INTO blob_holdings (pool, sha256, room, record) VALUES ($1, $2, $3, $4)
        ON CONFLICT (pool, sha256) DO UPDATE SET room = excluded.room, record = excluded.record
        """,
        pool,
        sha256,
        room,
        record,
    )


async def digests(connection: Connection, pool: bytes) -> dict[bytes, bytes]:
    """A digest of each record of a peer by the record's id, for anti-entropy."""
    found = {
        bytes(row["record"]): record_digest(_peer_blob(row).payload())
        for row in await connection.fetch("SELECT * FROM peer_blobs WHERE origin = $1", pool)
    }
    for row in await connection.fetch("SELECT * FROM blob_holdings WHERE pool = $1", pool):
        sha256 = bytes(row["sha256"])
        declined = row["room"] == DECLINED
        said = room_payload(row["room"]) if sha256 == ROOM else holding_payload(sha256, declined=declined)
        found[bytes(row["record"])] = record_digest(said)
    return found


def holding_payload(sha256: bytes, *, declined: bool = False) -> dict[str, Any]:
    """What a pool says of a file that it has, or that it cannot take."""
    return {"kind": "declined" if declined else "holding", "sha256": sha256}


def room_payload(room: int) -> dict[str, Any]:
    """What a pool says of the room that it has for others' files."""
    return {"kind": "room", "room": room}


# --- what is on its way


async def claim(connection: Connection, sha256: bytes, gate: str) -> bool:
    """Whether this gate may fetch a file now: of a pool's gates one does."""
    row = await connection.fetchrow(
        """
        INSERT INTO blob_fetches (sha256, gate, until, state)
            VALUES ($1, $2, now() + make_interval(secs => $3), 'waiting')
        ON CONFLICT (sha256) DO UPDATE SET gate = excluded.gate, until = excluded.until
            WHERE blob_fetches.gate = excluded.gate OR blob_fetches.until < now()
        RETURNING gate
        """,
        sha256,
        gate,
        CLAIM_S,
    )
    return row is not None


async def note_fetch(connection: Connection, row: FetchRow) -> None:
    """Say how far a fetch is."""
    await connection.execute(
        """
        UPDATE blob_fetches SET state = $3, have = $4, chunks = $5, problem = $6
        WHERE sha256 = $1 AND gate = $2
        """,
        row.sha256,
        row.gate,
        row.state,
        row.have,
        row.chunks,
        row.problem,
    )


async def fetches(connection: Connection) -> dict[bytes, FetchRow]:
    """Every fetch that is not over, or failed."""
    return {
        bytes(row["sha256"]): FetchRow(
            bytes(row["sha256"]), row["gate"], row["state"], row["have"], row["chunks"], row["problem"]
        )
        for row in await connection.fetch("SELECT * FROM blob_fetches")
    }


async def drop_fetch(connection: Connection, sha256: bytes) -> None:
    """A fetch is over."""
    await connection.execute("DELETE FROM blob_fetches WHERE sha256 = $1", sha256)


# --- what came here as a copy


async def note_taken(connection: Connection, taken: Taken, origin: bytes, at: datetime) -> None:
    """A worker has a copy now."""
    await connection.execute(
        """
        INSERT INTO blobs_taken (sha256, worker, name, origin, at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (sha256, worker) DO UPDATE SET name = excluded.name, origin = excluded.origin,
            at = excluded.at
        """,
        taken.sha256,
        taken.worker,
        taken.name,
        origin,
        at,
    )


async def all_taken(connection: Connection) -> list[Taken]:
    """Every copy that was handed to a worker."""
    rows = await connection.fetch("SELECT sha256, worker, name FROM blobs_taken ORDER BY sha256, worker")
    return [Taken(bytes(row["sha256"]), row["worker"], row["name"]) for row in rows]


async def drop_taken(connection: Connection, taken: Taken) -> None:
    """The copy is gone, or is somebody's own now."""
    await connection.execute(
        "DELETE FROM blobs_taken WHERE sha256 = $1 AND worker = $2", taken.sha256, taken.worker
    )


def _peer_blob(row: Any) -> PeerBlob:
    return PeerBlob(
        bytes(row["origin"]),
        bytes(row["sha256"]),
        row["name"],
        row["size"],
        bytes(row["root"]),
        row["copies"],
        tuple(bytes(one) for one in row["placed"]),
        tuple(bytes(one) for one in row["surplus"]),
    )
