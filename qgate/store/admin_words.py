"""What pools said of the standing of their own administrators; our own words are kept beside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from qgate.store.database import Connection


@dataclass(frozen=True, slots=True)
class Word:
    """Whether an administrator is out, and when the account was made."""

    out: bool
    since: datetime


async def word_of(connection: Connection, pool: bytes, who: bytes) -> Word | None:
    """What a pool said last of one of its administrators."""
    row = await connection.fetchrow(
        "SELECT is_out, since FROM admin_words WHERE pool = $1 AND who = $2", pool, who
    )
    return None if row is None else Word(row["is_out"], row["since"])


async def all_out(connection: Connection) -> frozenset[tuple[bytes, bytes]]:
    """(pool, who) of everybody who is out, by their own pools' words."""
    rows = await connection.fetch("SELECT pool, who FROM admin_words WHERE is_out")
    return frozenset((bytes(row["pool"]), bytes(row["who"])) for row in rows)


async def put_word(connection: Connection, pool: bytes, who: bytes, *, out: bool, since: datetime) -> None:
    """Keep a pool's newest word."""
    await connection.execute(
        """
        INSERT INTO admin_words (pool, who, is_out, since) VALUES ($1, $2, $3, $4)
        ON CONFLICT (pool, who) DO UPDATE SET is_out = excluded.is_out, since = excluded.since
        """,
        pool,
        who,
        out,
        since,
    )


async def count_words(connection: Connection, pool: bytes) -> int:
    """Of how many administrators a pool has spoken."""
    return int(await connection.fetchval("SELECT count(*) FROM admin_words WHERE pool = $1", pool))


async def forget_words(connection: Connection, pool: bytes) -> None:
    """Forget all that a peer said of its administrators."""
    await connection.execute("DELETE FROM admin_words WHERE pool = $1", pool)
