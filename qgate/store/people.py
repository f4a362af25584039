"""People: sealed rows, their keys, whose app is whose, the codes that were mailed, and who was erased."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from qgate.store.database import Connection, Store

ERASED_TABLES: Final = ("people", "person_keys", "person_codes", "mail_outbox")
"""Tables that are written anew after an erasure, so that no page of them holds what was deleted."""


@dataclass(frozen=True, slots=True)
class PersonRow:
    """A person as stored; ``key`` is the sealed key, None where it is not in this store."""

    id: str
    state: str
    source: str
    sealed: bytes = field(repr=False)
    confirmed: bool
    version: int
    changed_by: str
    created_at: datetime
    changed_at: datetime
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CodeRow:
    """The code that was mailed last; ``digest`` is None once it is used up."""

    digest: bytes | None = field(repr=False)
    expires_at: datetime
    attempts: int
    sends: int
    sent_at: datetime


_SELECT: Final = """
    SELECT p.id, p.state, p.source, p.sealed, p.confirmed, p.version, p.changed_by, p.created_at,
    p.changed_at, k.sealed AS key FROM people p LEFT JOIN person_keys k ON k.person = p.id
"""


async def all_people(connection: Connection) -> list[PersonRow]:
    """Everybody, oldest first."""
    return [
        PersonRow(**dict(row)) for row in await connection.fetch(_SELECT + " ORDER BY p.created_at, p.id")
    ]


async def count_people(connection: Connection, states: tuple[str, ...]) -> int:
    """How many people are in one of ``states``."""
    return int(
        await connection.fetchval("SELECT count(*) FROM people WHERE state = ANY($1::text[])", list(states))
    )


async def people_state(connection: Connection) -> tuple[int, int, str]:
    """A short reading that changes whenever keys or erasures do: (people with keys, erasures, newest key)."""
    row = await connection.fetchrow(
        """
        SELECT (SELECT count(*) FROM person_keys) AS keys, (SELECT count(*) FROM erasures) AS erased,
               (SELECT coalesce(max(created_at), 'epoch')::text FROM people) AS newest
        """
    )
    assert row is not None
    return int(row["keys"]), int(row["erased"]), str(row["newest"])


async def find_person(connection: Connection, person: str) -> PersonRow | None:
    """One person, locked for this transaction."""
    row = await connection.fetchrow(_SELECT + " WHERE p.id = $1 FOR UPDATE OF p", person)
    return None if row is None else PersonRow(**dict(row))


async def lock_people(connection: Connection) -> None:
    """Let nobody else add people until this transaction ends: an address belongs to one person."""
    await connection.execute("LOCK TABLE people IN SHARE ROW EXCLUSIVE MODE")


async def add_person(
    connection: Connection,
    person: str,
    *,
    state: str,
    source: str,
    sealed: bytes,
    key: bytes,
    by: str,
    at: datetime,
) -> None:
    """Add a person with their sealed key."""
    await connection.execute(
        """
        INSERT INTO people (id, state, source, sealed, changed_by, created_at, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $6)
        """,
        person,
        state,
        source,
        sealed,
        by,
        at,
    )
    await put_key(connection, person, key)


async def put_key(connection: Connection, person: str, sealed: bytes) -> None:
    """Keep a person's sealed key; one that is there stays."""
    await connection.execute(
        "INSERT INTO person_keys (person, sealed) VALUES ($1, $2) ON CONFLICT (person) DO NOTHING",
        person,
        sealed,
    )


async def change_person(
    connection: Connection,
    person: str,
    *,
    by: str,
    at: datetime,
    state: str | None = None,
    confirmed: bool | None = None,
    sealed: bytes | None = None,
) -> None:
    """Change what is named; the version grows by one."""
    await connection.execute(
        """
        UPDATE people SET state = coalesce($2, state), confirmed = coalesce($3, confirmed),
            sealed = coalesce($4, sealed), changed_by = $5, changed_at = $6, version = version + 1
        WHERE id = $1
        """,
        person,
        state,
        confirmed,
        sealed,
        by,
        at,
    )


async def drop_person(connection: Connection, person: str) -> bool:
    """Remove a person with key, code and mail; whether there was one."""
    return await connection.execute("DELETE FROM people WHERE id = $1", person) != "DELETE 0"


async def unconfirmed_before(connection: Connection, at: datetime) -> list[str]:
    """Who asked to be let in, and never confirmed their address in time."""
    rows = await connection.fetch(
        """
        SELECT p.id FROM people p JOIN person_codes c ON c.person = p.id
        WHERE p.state = 'pending' AND NOT p.confirmed AND c.expires_at < $1
        """,
        at,
    )
    return [row["id"] for row in rows]


# --- apps ---------------------------------------------------------------------------------------------------


async def owners(connection: Connection) -> dict[str, str]:
    """Whose app is whose: person by app."""
    return {
        row["app"]: row["person"] for row in await connection.fetch("SELECT app, person FROM person_apps")
    }


async def apps_of(connection: Connection, person: str) -> list[str]:
    """A person's apps, by name."""
    rows = await connection.fetch("SELECT app FROM person_apps WHERE person = $1 ORDER BY app", person)
    return [row["app"] for row in rows]


async def own_app(connection: Connection, app: str, person: str) -> None:
    """Let an app be a person's, whosever it was."""
    await connection.execute(
        """
        INSERT INTO person_apps (app, person) VALUES ($1, $2)
        ON CONFLICT (app) DO UPDATE SET person = excluded.person
        """,
        app,
        person,
    )


async def disown_app(connection: Connection, app: str, person: str) -> bool:
    """Let an app be nobody's; whether it was that person's."""
    done = await connection.execute("DELETE FROM person_apps WHERE app = $1 AND person = $2", app, person)
    return done != "DELETE 0"


async def hold_apps(connection: Connection, person: str, at: datetime) -> list[str]:
    """End a person's live apps now, remembering when they would have ended; their names."""
    rows = await connection.fetch(
        """
        UPDATE person_apps o SET held = true, held_expires_at = a.expires_at FROM apps a
        WHERE a.name = o.app AND o.person = $1 AND NOT o.held AND a.revoked_at IS NULL RETURNING o.app
        """,
        person,
    )
    await connection.execute(
        """
        UPDATE apps SET expires_at = least(expires_at, $2)
        WHERE revoked_at IS NULL AND name IN (SELECT app FROM person_apps WHERE person = $1 AND held)
        """,
        person,
        at,
    )
    return sorted(row["app"] for row in rows)


async def release_apps(connection: Connection, person: str) -> list[str]:
    """Undo `hold_apps`; the names."""
    await connection.execute(
        """
        UPDATE apps a SET expires_at = o.held_expires_at FROM person_apps o
        WHERE o.app = a.name AND o.person = $1 AND o.held
        """,
        person,
    )
    rows = await connection.fetch(
        "UPDATE person_apps SET held = false, held_expires_at = NULL WHERE person = $1 AND held "
        "RETURNING app",
        person,
    )
    return sorted(row["app"] for row in rows)


# --- codes --------------------------------------------------------------------------------------------------


async def find_code(connection: Connection, person: str) -> CodeRow | None:
    """The code that was mailed last, locked for this transaction."""
    row = await connection.fetchrow(
        """
        SELECT digest, expires_at, attempts, sends, sent_at FROM person_codes WHERE person = $1 FOR UPDATE
        """,
        person,
    )
    return None if row is None else CodeRow(**dict(row))


async def put_code(
    connection: Connection, person: str, digest: bytes, *, at: datetime, expires_at: datetime, sends: int
) -> None:
    """Let this be the code; the one before is none any more."""
    await connection.execute(
        """
        INSERT INTO person_codes (person, digest, expires_at, sends, sent_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (person) DO UPDATE SET digest = excluded.digest, expires_at = excluded.expires_at,
            attempts = 0, sends = excluded.sends, sent_at = excluded.sent_at
        """,
        person,
        digest,
        expires_at,
        sends,
        at,
    )


async def count_attempt(connection: Connection, person: str, *, used_up: bool) -> None:
    """Note one more try; with ``used_up`` no further one can succeed."""
    await connection.execute(
        """
        UPDATE person_codes SET attempts = attempts + 1, digest = CASE WHEN $2 THEN NULL ELSE digest END
        WHERE person = $1
        """,
        person,
        used_up,
    )


# --- erasures -----------------------------------------------------------------------------------------------


async def add_erasure(connection: Connection, person: str, certificate: str, at: datetime) -> None:
    """Remember that a person was erased; the first certificate stays."""
    await connection.execute(
        "INSERT INTO erasures (person, erased_at, certificate) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        person,
        at,
        certificate,
    )


async def put_erasure(connection: Connection, person: str, certificate: str, at: datetime) -> None:
    """Remember that a person was erased, with this certificate."""
    await connection.execute(
        """
        INSERT INTO erasures (person, erased_at, certificate) VALUES ($1, $2, $3)
        ON CONFLICT (person) DO UPDATE SET certificate = excluded.certificate
        """,
        person,
        at,
        certificate,
    )


async def all_erasures(connection: Connection) -> dict[str, tuple[datetime, str]]:
    """Everybody who was erased: (when, certificate) by pseudonym."""
    rows = await connection.fetch("SELECT * FROM erasures ORDER BY erased_at, person")
    return {row["person"]: (row["erased_at"], row["certificate"]) for row in rows}


async def erase_apps(connection: Connection, apps: list[str]) -> dict[str, int]:
    """Remove apps with all that names them but the audit; how many rows of each table went."""
    removed: dict[str, int] = {}
    for table, condition in (
        ("last_changes", "kind = 'app' AND name = ANY($1::text[])"),
        ("receipts", "app = ANY($1::text[])"),
        ("budget_shifts", "app = ANY($1::text[])"),
        ("budgets", "scope = 'app' AND subject = ANY($1::text[])"),
        ("apps", "name = ANY($1::text[])"),
    ):
        done = await connection.execute(f"DELETE FROM {table} WHERE {condition}", apps)  # noqa: S608 - our own names
        removed[table] = int(done.split()[-1])
    return removed


async def rewrite(store: Store, *, checkpoint: bool) -> None:
    """Write the tables that held a person anew: deleted rows would stay in their pages.

    ``checkpoint`` writes it out at once, where we may: on a server of our own.
    """
    async with store.connection() as connection:
        for table in ERASED_TABLES:
            await connection.execute(f"VACUUM (FULL) {table}")
        if checkpoint:
            await connection.execute("CHECKPOINT")


async def published_records(connection: Connection, pool: bytes) -> list[bytes]:
    """The records of apps of which our own log says more than one thing that is not erased."""
    rows = await connection.fetch(
        """
        SELECT record FROM log_entries WHERE origin = $1 AND stream = 'guests' AND payload IS NOT NULL
        GROUP BY record HAVING count(*) > 1
        """,
        pool,
    )
    return [row["record"] for row in rows]


async def published_places(connection: Connection, pool: bytes, records: list[bytes]) -> list[int]:
    """Where our own log told peers of apps that could fail over to them, by record; not the last word on
    each, which is that it is gone.
    """
    rows = await connection.fetch(
        """
        SELECT l.seq FROM log_entries l
        WHERE l.origin = $1 AND l.stream = 'guests' AND l.record = ANY($2::bytea[]) AND l.payload IS NOT NULL
          AND l.seq < (SELECT max(n.seq) FROM log_entries n
                       WHERE n.origin = l.origin AND n.stream = l.stream AND n.record = l.record)
        ORDER BY l.seq
        """,
        pool,
        records,
    )
    return [int(row["seq"]) for row in rows]


async def mentions(connection: Connection, words: Iterable[str]) -> dict[str, int]:
    """Rows in which one of ``words`` can be read, by table; tables without any are left out. Bytes count
    too.
    """
    patterns = [
        f"%{spelt}%"
        for word in words
        for spelt in {_escaped(word), word.encode().hex(), word.lower().encode().hex()}
    ]
    if not patterns:
        return {}
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'qgate'")
    found: dict[str, int] = {}
    for table in sorted(row["tablename"] for row in tables):
        count = await connection.fetchval(
            f'SELECT count(*) FROM "{table}" t WHERE t::text ILIKE ANY($1::text[])',  # noqa: S608 - the server's own names
            patterns,
        )
        if count:
            found[table] = int(count)
    return found


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


async def reseal_people(connection: Connection, reseal: Callable[[bytes, str], bytes]) -> int:
    """Replace each box here that the vault's own key sealed; how many."""
    await connection.execute("LOCK TABLE people, person_keys, mail_outbox, mail_recipients IN EXCLUSIVE MODE")
    count = 0
    boxes: tuple[tuple[str, str, Callable[[str], str]], ...] = (
        ("person_keys", "person", key_purpose),
        ("mail_recipients", "id", recipient_purpose),
        ("mail_outbox", "id", mail_purpose),
    )
    for table, column, purpose in boxes:
        rows: Iterable[Any] = await connection.fetch(
            f"SELECT {column} AS name, sealed FROM {table} WHERE sealed IS NOT NULL"  # noqa: S608 - our own names
        )
        for row in rows:
            await connection.execute(
                f"UPDATE {table} SET sealed = $2 WHERE {column} = $1",  # noqa: S608 - our own names
                row["name"],
                reseal(row["sealed"], purpose(row["name"])),
            )
            count += 1
    return count


def key_purpose(person: str) -> str:
    """What a person's key is sealed for."""
    return f"the key of a person\n{person}"


def mail_purpose(mail: str) -> str:
    """What a waiting mail is sealed for."""
    return f"a mail\n{mail}"


def recipient_purpose(recipient: str) -> str:
    """What a recipient's address is sealed for."""
    return f"a recipient of mail\n{recipient}"
