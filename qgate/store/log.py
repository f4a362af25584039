"""The tables of the log: our own, and the replicas of others'. Entries are kept as the bytes they came in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qgate.federation.log.entry import Contents, Entry, read_entry
from qgate.federation.log.replica import Known, ReplicaState
from qgate.federation.log.snapshot import Snapshot
from qgate.federation.log.vector import EMPTY, Head
from qgate.store.database import Connection
from tunnel_proto.certificate import OnlineCertificate, read_online

SEQUENCER_LOCK: Final = 0x71_67_6C_6F_67
"""Any number will do, as long as every gate takes the same one: "qglog" in ASCII."""

LEASE_S: Final = 10
"""How long a gate alone fetches a pool's log after each of its questions."""


@dataclass(frozen=True, slots=True)
class OwnHead:
    """Where our own log ends. ``server`` is what the last batch was written on; ``life`` the life of the
    store that may be signed in (`qgate.store.log_life`).
    """

    head: Head
    hlc: int
    server: str
    life: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A stored entry. ``contents`` None: erased, or never given to us."""

    entry: Entry
    contents: Contents | None = field(repr=False)
    state: str
    reason: str = ""
    wake_at: float | None = None


async def own_head(connection: Connection, *, lock: bool = False) -> OwnHead:
    """Where our own log ends; with ``lock`` nobody else moves it before this transaction ends."""
    row = await connection.fetchrow(f"SELECT * FROM log_head {'FOR UPDATE' if lock else ''}")  # noqa: S608
    assert row is not None
    return OwnHead(Head(row["incarnation"], row["seq"], row["hash"]), row["hlc"], row["server"], row["life"])


async def elected(connection: Connection) -> bool:
    """Whether this transaction is the pool's one sequencer, until it ends."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", SEQUENCER_LOCK))


async def move_head(
    connection: Connection, before: Head, after: Head, *, hlc: int, server: str, life: str, sequencer: str
) -> bool:
    """Set the end of our own log; False where it is not ``before`` any more."""
    done = await connection.execute(
        """
        UPDATE log_head SET incarnation = $1, seq = $2, hash = $3, hlc = $4, server = $5, life = $6,
            sequencer = $7
        WHERE seq = $8 AND hash = $9
        """,
        after.incarnation,
        after.seq,
        after.hash,
        hlc,
        server,
        life,
        sequencer,
        before.seq,
        before.hash,
    )
    return done == "UPDATE 1"


async def tell(connection: Connection, what: str) -> None:
    """Have every gate hear of it once this transaction is committed."""
    await connection.execute("SELECT pg_notify('qgate_log', $1)", what)


# --- entries


async def append(connection: Connection, rows: Sequence[Row]) -> None:
    """Add entries; one that is there already stays."""
    if not rows:
        return
    await connection.execute(
        """
        INSERT INTO log_entries (origin, seq, incarnation, hash, entry, salt, payload, stream, record, state,
                                 reason, wake_at)
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[],
                             $7::bytea[], $8::text[], $9::bytea[], $10::text[], $11::text[],
                             $12::double precision[])
        ON CONFLICT (origin, seq) DO NOTHING
        """,
        [row.entry.pool for row in rows],
        [row.entry.seq for row in rows],
        [row.entry.incarnation for row in rows],
        [row.entry.hash for row in rows],
        [row.entry.raw for row in rows],
        [row.contents.salt if row.contents else None for row in rows],
        [row.contents.payload if row.contents else None for row in rows],
        [row.entry.stream for row in rows],
        [row.entry.record for row in rows],
        [row.state for row in rows],
        [row.reason for row in rows],
        [row.wake_at for row in rows],
    )


async def entries_after(
    connection: Connection, origin: bytes, after: int, *, count: int, size: int, stream: str | None = None
) -> list[Row]:
    """Entries beyond ``after`` in order: at most ``count``, and of about ``size`` bytes (one at least)."""
    rows = await connection.fetch(
        """
        SELECT entry, salt, payload, state, reason, wake_at FROM (
            SELECT *, sum(octet_length(entry) + coalesce(octet_length(payload), 0)) OVER (ORDER BY seq) AS
            size FROM (SELECT * FROM log_entries WHERE origin = $1 AND seq > $2 AND ($5::text IS NULL OR
            stream = $5)
                  ORDER BY seq LIMIT $3) AS next
        ) AS sized
        WHERE size <= $4 OR seq = (SELECT min(seq) FROM log_entries
                                   WHERE origin = $1 AND seq > $2 AND ($5::text IS NULL OR stream = $5))
        ORDER BY seq
        """,
        origin,
        after,
        count,
        size,
        stream,
    )
    return [row_of(row) for row in rows]


async def entries_at(connection: Connection, origin: bytes, places: Iterable[int]) -> list[Row]:
    """The entries with these numbers, in order."""
    rows = await connection.fetch(
        """
        SELECT entry, salt, payload, state, reason, wake_at FROM log_entries
        WHERE origin = $1 AND seq = ANY($2::bigint[]) ORDER BY seq
        """,
        origin,
        list(places),
    )
    return [row_of(row) for row in rows]


async def waiting_entries(connection: Connection, origin: bytes) -> list[Row]:
    """Held and failed entries of an origin, in order."""
    rows = await connection.fetch(
        """
        SELECT entry, salt, payload, state, reason, wake_at FROM log_entries
        WHERE origin = $1 AND state IN ('held', 'failed') ORDER BY seq
        """,
        origin,
    )
    return [row_of(row) for row in rows]


async def origins_waiting(connection: Connection) -> set[bytes]:
    """The origins of which something is held or failed."""
    rows = await connection.fetch("SELECT DISTINCT origin FROM log_entries WHERE state IN ('held', 'failed')")
    return {row["origin"] for row in rows}


async def known_at(connection: Connection, origin: bytes, places: Iterable[int]) -> dict[int, Known]:
    """What we hold at these numbers."""
    rows = await connection.fetch(
        "SELECT seq, incarnation, hash FROM log_entries WHERE origin = $1 AND seq = ANY($2::bigint[])",
        origin,
        list(places),
    )
    return {row["seq"]: Known(row["incarnation"], row["hash"]) for row in rows}


async def closed(connection: Connection, origin: bytes, incarnation: bytes) -> bool:
    """Whether a log holds entries of an incarnation and went on with another."""
    return bool(
        await connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM log_entries WHERE origin = $1 AND incarnation = $2) AND $2 <> (
                SELECT incarnation FROM log_entries WHERE origin = $1 ORDER BY seq DESC LIMIT 1
            )
            """,
            origin,
            incarnation,
        )
    )


async def newest_of(connection: Connection, entry: Entry) -> int:
    """The number of the newest entry of an entry's record in its log."""
    return int(
        await connection.fetchval(
            "SELECT max(seq) FROM log_entries WHERE origin = $1 AND stream = $2 AND record = $3",
            entry.pool,
            entry.stream,
            entry.record,
        )
        or 0
    )


async def is_past(connection: Connection, origin: bytes, incarnation: bytes) -> bool:
    """Whether a log had that incarnation, and has another one now."""
    newest = await connection.fetchval(
        "SELECT incarnation FROM log_entries WHERE origin = $1 ORDER BY seq DESC LIMIT 1", origin
    )
    return newest != incarnation and bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM log_entries WHERE origin = $1 AND incarnation = $2"
            " AND stream = 'incarnation')",
            origin,
            incarnation,
        )
    )


async def set_states(connection: Connection, origin: bytes, rows: Sequence[Row]) -> None:
    """Write states, reasons and contents of entries that are there."""
    await connection.execute(
        """
        UPDATE log_entries AS e SET state = n.state, reason = n.reason, wake_at = n.wake_at,
            salt = coalesce(n.salt, e.salt), payload = coalesce(n.payload, e.payload)
        FROM unnest($2::bigint[], $3::text[], $4::text[], $5::double precision[], $6::bytea[], $7::bytea[])
            AS n (seq, state, reason, wake_at, salt, payload)
        WHERE e.origin = $1 AND e.seq = n.seq
        """,
        origin,
        [row.entry.seq for row in rows],
        [row.state for row in rows],
        [row.reason for row in rows],
        [row.wake_at for row in rows],
        [row.contents.salt if row.contents else None for row in rows],
        [row.contents.payload if row.contents else None for row in rows],
    )


async def erase(connection: Connection, origin: bytes, places: Sequence[int]) -> int:
    """Delete payloads and salts; a foreign entry's state says so. Returns how many had one."""
    done = await connection.execute(
        """
        UPDATE log_entries SET salt = NULL, payload = NULL, reason = 'erased',
            state = CASE state WHEN 'mine' THEN 'mine' ELSE 'erased' END
        WHERE origin = $1 AND seq = ANY($2::bigint[]) AND payload IS NOT NULL
        """,
        origin,
        list(places),
    )
    await connection.execute(
        "UPDATE log_entries SET reason = 'erased' WHERE origin = $1 AND seq = ANY($2::bigint[])",
        origin,
        list(places),
    )
    return int(done.split()[-1])


async def strand(connection: Connection, origin: bytes, after: int, why: str) -> int:
    """Take everything beyond ``after`` out of a log's line and keep it aside; returns how many."""
    done = await connection.execute(
        """
        WITH gone AS (DELETE FROM log_entries WHERE origin = $1 AND seq > $2 RETURNING *)
        INSERT INTO log_stranded (origin, incarnation, seq, hash, entry, salt, payload, stream, why)
        SELECT origin, incarnation, seq, hash, entry, salt, payload, stream, $3 FROM gone ON CONFLICT DO
        NOTHING
        """,
        origin,
        after,
        why,
    )
    return int(done.split()[-1])


async def put_aside(connection: Connection, entry: Entry, contents: Contents | None, why: str) -> None:
    """Keep an entry that is not of its log's line: the other half of a fork."""
    await connection.execute(
        """
        INSERT INTO log_stranded (origin, incarnation, seq, hash, entry, salt, payload, stream, why)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING
        """,
        entry.pool,
        entry.incarnation,
        entry.seq,
        entry.hash,
        entry.raw,
        contents.salt if contents else None,
        contents.payload if contents else None,
        entry.stream,
        why,
    )


async def stranded(connection: Connection, origin: bytes | None = None) -> list[dict[str, Any]]:
    """What is kept aside, the newest first, without payloads."""
    rows = await connection.fetch(
        """
        SELECT origin, incarnation, seq, hash, stream, why, at FROM log_stranded
        WHERE $1::bytea IS NULL OR origin = $1 ORDER BY at DESC, seq DESC LIMIT 1000
        """,
        origin,
    )
    return [dict(row) for row in rows]


# --- snapshots


async def put_snapshot(connection: Connection, snapshot: Snapshot) -> None:
    """Keep the newest snapshot of a log."""
    await connection.execute(
        """
        INSERT INTO log_snapshots (origin, seq, snapshot) VALUES ($1, $2, $3)
        ON CONFLICT (origin) DO UPDATE SET seq = excluded.seq, snapshot = excluded.snapshot, at = now()
        """,
        snapshot.pool,
        snapshot.head.seq,
        snapshot.raw,
    )


async def truncate(connection: Connection, snapshot: Snapshot, kept: Sequence[int]) -> int:
    """Keep a snapshot and delete the entries that it makes superfluous; returns how many went."""
    await put_snapshot(connection, snapshot)
    done = await connection.execute(
        "DELETE FROM log_entries WHERE origin = $1 AND seq <= $2 AND NOT seq = ANY($3::bigint[])",
        snapshot.pool,
        snapshot.head.seq,
        list(kept),
    )
    return int(done.split()[-1])


async def snapshot_of(connection: Connection, origin: bytes) -> bytes | None:
    """The newest snapshot of a log, as it was signed."""
    found: bytes | None = await connection.fetchval(
        "SELECT snapshot FROM log_snapshots WHERE origin = $1", origin
    )
    return found


async def snapshot_seq(connection: Connection, origin: bytes) -> int:
    """The entry up to which a log may be truncated; 0 where it is whole."""
    return int(await connection.fetchval("SELECT seq FROM log_snapshots WHERE origin = $1", origin) or 0)


# --- replicas


async def replica(connection: Connection, origin: bytes, *, lock: bool = False) -> ReplicaState:
    """How far an origin's log was accepted; with ``lock`` nobody else takes of it before this one ends."""
    if lock:
        await connection.execute(
            """
            INSERT INTO log_replicas (origin, incarnation, seq, hash, hlc, serial, blocked, quarantine)
            VALUES ($1, $2, 0, $3, 0, 0, '{}', '') ON CONFLICT (origin) DO NOTHING
            """,
            origin,
            EMPTY.incarnation,
            EMPTY.hash,
        )
    row = await connection.fetchrow(
        f"SELECT * FROM log_replicas WHERE origin = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608
        origin,
    )
    return ReplicaState(origin) if row is None else _replica(row)


async def replicas(connection: Connection) -> dict[bytes, ReplicaState]:
    """All replicas by origin."""
    return {row["origin"]: _replica(row) for row in await connection.fetch("SELECT * FROM log_replicas")}


async def put_replica(connection: Connection, state: ReplicaState) -> None:
    """Write what `replica` locked."""
    await connection.execute(
        """
        UPDATE log_replicas SET incarnation = $2, seq = $3, hash = $4, hlc = $5, serial = $6, blocked = $7,
            quarantine = $8, changed_at = now()
        WHERE origin = $1
        """,
        state.origin,
        state.head.incarnation,
        state.head.seq,
        state.head.hash,
        state.hlc,
        state.serial,
        sorted(state.blocked),
        state.quarantine,
    )


async def lease(connection: Connection, origin: bytes, gate: str) -> bool:
    """Whether this gate is the one that fetches an origin's log for the next `LEASE_S` seconds."""
    done = await connection.execute(
        """
        INSERT INTO log_replicas AS r (origin, incarnation, seq, hash, hlc, serial, blocked, quarantine,
        puller,
                                       puller_until)
        VALUES ($1, $2, 0, $3, 0, 0, '{}', '', $4, now() + $5 * interval '1 second')
        ON CONFLICT (origin) DO UPDATE SET puller = $4, puller_until = excluded.puller_until
            WHERE r.puller IS NULL OR r.puller = $4 OR r.puller_until < now()
        """,
        origin,
        EMPTY.incarnation,
        EMPTY.hash,
        gate,
        float(LEASE_S),
    )
    return done != "INSERT 0 0"


async def give_up_leases(connection: Connection, gate: str) -> None:
    """Let the pool's other gates fetch at once what this one did."""
    await connection.execute("UPDATE log_replicas SET puller = NULL WHERE puller = $1", gate)


async def put_certificates(
    connection: Connection, origin: bytes, certificates: Iterable[tuple[OnlineCertificate, bytes]]
) -> None:
    """Keep online certificates, which the caller has checked."""
    for online, raw in certificates:
        await connection.execute(
            """
            INSERT INTO log_certificates (origin, verify_key, certificate) VALUES ($1, $2, $3)
            ON CONFLICT (origin, verify_key) DO UPDATE SET certificate = excluded.certificate
            """,
            origin,
            online.verify_key,
            raw,
        )


async def certificates(connection: Connection, origin: bytes) -> dict[bytes, tuple[OnlineCertificate, bytes]]:
    """An origin's online certificates by the key they are for, also as they were signed."""
    rows = await connection.fetch(
        "SELECT verify_key, certificate FROM log_certificates WHERE origin = $1", origin
    )
    return {row["verify_key"]: (read_online(row["certificate"]), row["certificate"]) for row in rows}


# --- copies of our own log elsewhere


async def put_copy(connection: Connection, pool: bytes, head: Head, *, ours: bool, how: str, at: Any) -> None:
    """A pool said that it has our log up to ``head``; ``ours``: our log has that very entry."""
    await connection.execute(
        """
        INSERT INTO log_copies (pool, incarnation, seq, hash, ours, how, at) VALUES ($1, $2, $3, $4, $5, $6,
        $7) ON CONFLICT (pool) DO UPDATE SET incarnation = excluded.incarnation, seq = excluded.seq,
            hash = excluded.hash, ours = excluded.ours, how = excluded.how, at = excluded.at
        """,
        pool,
        head.incarnation,
        head.seq,
        head.hash,
        ours,
        how,
        at,
    )


async def contradicted(connection: Connection) -> bool:
    """Whether a pool has entries of our log that the log has not."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM log_copies WHERE NOT ours)"))


async def clear_claims(connection: Connection, origin: bytes, pools: Iterable[bytes] = ()) -> None:
    """Look again at what pools said to have of our log ``origin``; believe nothing more of ``pools``."""
    await connection.execute("DELETE FROM log_copies WHERE NOT ours AND pool = ANY($1::bytea[])", list(pools))
    await connection.execute(
        """
        UPDATE log_copies AS c SET ours = true FROM log_entries AS e
        WHERE NOT c.ours AND e.origin = $1 AND e.seq = c.seq AND e.hash = c.hash
        """,
        origin,
    )


async def drop_claims(connection: Connection) -> None:
    """An incarnation is open: who has more of an earlier one contradicts nothing any more."""
    await connection.execute("DELETE FROM log_copies WHERE NOT ours")


async def copies(connection: Connection) -> dict[bytes, dict[str, Any]]:
    """What each pool said that it has of our log."""
    return {row["pool"]: dict(row) for row in await connection.fetch("SELECT * FROM log_copies")}


async def counts(connection: Connection) -> dict[bytes, Mapping[str, int]]:
    """Entries by origin and state."""
    found: dict[bytes, dict[str, int]] = {}
    rows = await connection.fetch(
        "SELECT origin, state, count(*) AS n FROM log_entries GROUP BY origin, state"
    )
    for row in rows:
        found.setdefault(row["origin"], {})[row["state"]] = row["n"]
    return dict(found)


def _replica(row: Any) -> ReplicaState:
    return ReplicaState(
        row["origin"],
        Head(row["incarnation"], row["seq"], row["hash"]),
        row["hlc"],
        row["serial"],
        frozenset(row["blocked"]),
        row["quarantine"],
    )


def row_of(row: Any) -> Row:
    """A row of `log_entries` as it was fetched."""
    contents = None if row["payload"] is None else Contents(row["salt"], row["payload"])
    return Row(read_entry(row["entry"]), contents, row["state"], row["reason"], row["wake_at"])


def judged(row: Row, **changes: Any) -> Row:
    """The row with some fields replaced."""
    return replace(row, **changes)
