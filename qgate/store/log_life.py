"""Which PostgreSQL holds the log, and in which life: what shows that another store came in its place."""

from __future__ import annotations

from qgate.store.database import Connection


async def note_server(connection: Connection, server: str, life: str) -> None:
    """The log goes on in this life of the store without a new incarnation: nothing was lost."""
    await connection.execute("UPDATE log_head SET server = $1, life = $2", server, life)


async def server_of(connection: Connection) -> str:
    """Which PostgreSQL this is, and on which timeline: another text after a restore or a promotion."""
    row = await connection.fetchrow(
        """
        SELECT system_identifier::text AS system, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
        FROM pg_control_system()
        """
    )
    assert row is not None
    return f"{row['system']}/{row['timeline']}"


async def life_of(connection: Connection) -> str:
    """Which life of the store this is: another text as well after PostgreSQL started anew, or the database or
    its tables were made anew. Whoever looked at one life knows nothing of another.
    """
    row = await connection.fetchrow(
        """
        SELECT extract(epoch FROM pg_postmaster_start_time())::text AS started,
               (SELECT oid FROM pg_database WHERE datname = current_database())::text AS database,
               'log_head'::regclass::oid::text AS head
        """
    )
    assert row is not None
    return "/".join((await server_of(connection), row["started"], row["database"], row["head"]))
