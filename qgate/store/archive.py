"""The store's tables as COPY text, out and in: what a backup is made of. No pg_dump is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from qgate.store.database import SCHEMA, Connection, Store
from tunnel_proto.errors import ConfigError

# In an order that foreign keys allow. Columns that the server computes are not copied.
TABLES: Final = (
    "nodes",
    "admins",
    "pool",
    "peers",
    "pairings",
    "foreign_pairings",
    "routes",
    "passwords",
    "secrets",
    "apps",
    "app_databases",
    "app_verifiers",
    "app_spares",
    "settings",
    "setting_changes",
    "licence",
    "branding",
    "config_revisions",
    "scheduled_orders",
    "onboarding",
    "automation_runs",
    "peers_seen",
    "api_keys",
    "aliases",
    "providers",
    "prices",
    "budgets",
    "budget_periods",
    "budget_slices",
    "budget_shifts",
    "receipts",
    "results",
    "people",
    "person_apps",
    "erasures",
    "mail_recipients",
    "notifications",
    "notification_reads",
    "roster",
    "exports",
    "failover_orders",
    "guest_nodes",
    "guest_apps",
    "guest_rosters",
    "movements",
    "incidents",
    "marks",
    "outbox",
    "log_head",
    "log_replicas",
    "log_entries",
    "log_stranded",
    "log_certificates",
    "log_snapshots",
    "log_copies",
    "log_archives",
    "catalogue",
    "catalogue_authority",
    "catalogue_ballots",
    "catalogue_review",
    "blobs",
    "peer_blobs",
    "blob_holdings",
    "blobs_taken",
    "peer_node_revocations",
    "admin_words",
    "peer_workers",
    "peer_routing",
    "rotations",
    "last_changes",
    "audit_entries",
    "audit_signed_heads",
    "audit_markers",
    "audit_head",
)
# Keys of people outlive an erasure in no backup, codes and mail that were sent are not sent again, no
# administrator's session comes back to life, no reply is repeated for what a restore has undone, and what a
# gate was fetching it looks for anew.
LEFT_OUT: Final = (
    "person_keys",
    "person_codes",
    "mail_outbox",
    "admin_sessions",
    "admin_sessions_over",
    "admin_strikes",
    "idempotency_keys",
    "blob_fetches",
)
_IDENTITIES: Final = (
    ("app_verifiers", "number"),
    ("app_spares", "number"),
    ("incidents", "id"),
    ("outbox", "id"),
    ("notifications", "id"),
    ("setting_changes", "number"),
    ("scheduled_orders", "number"),
)
_HEADS: Final = ("audit_head", "log_head")  # have their one row from the start
_COMPUTED: Final = {"audit_entries": frozenset({"app", "database", "kind"})}
_TIMEOUT_S: Final = 3600.0


async def columns(connection: Connection, table: str) -> list[str]:
    """The columns of a table that a backup holds."""
    rows = await connection.fetch(
        """
        SELECT attname FROM pg_attribute
        WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
        ORDER BY attnum
        """,
        f"{SCHEMA}.{table}",
    )
    return [row["attname"] for row in rows if row["attname"] not in _COMPUTED.get(table, frozenset())]


async def newest_migration(connection: Connection) -> int:
    """The schema's number: a backup goes into the same one only."""
    return int(await connection.fetchval("SELECT max(number) FROM migrations"))


async def dump(
    connection: Connection, table: str, write: Callable[[bytes], Coroutine[Any, Any, None]]
) -> None:
    """Give a table's rows to `write` as COPY text."""
    await connection.copy_from_table(
        table,
        schema_name=SCHEMA,
        columns=await columns(connection, table),
        output=write,
        timeout=_TIMEOUT_S,
    )


async def is_empty(store: Store) -> bool:
    """Whether nothing has been done in this store yet."""
    async with store.connection() as connection:
        for table in TABLES:
            if table in _HEADS:
                continue
            if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):  # noqa: S608 - our own names
                return False
    return True


async def load(
    store: Store, migration: int, tables: AsyncIterator[tuple[str, AsyncIterator[bytes]]]
) -> dict[str, int]:
    """Fill an empty store from a backup, all or nothing; returns the rows of each table."""
    counts: dict[str, int] = {}
    async with store.transaction() as connection:
        own = await newest_migration(connection)
        if own != migration:
            raise ConfigError(
                f"the backup is of schema {migration}, this version has schema {own}",
                hint="restore it with the version that made it, then upgrade",
            )
        for table in _HEADS:
            await connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        async for table, rows in tables:
            if table not in TABLES:
                raise ConfigError(f"the backup holds an unknown table {table!r}")
            await connection.copy_to_table(
                table,
                schema_name=SCHEMA,
                columns=await columns(connection, table),
                source=rows,
                timeout=_TIMEOUT_S,
            )
            counts[table] = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - checked above
        await connection.execute(
            "SELECT setval('node_serial', greatest(1, (SELECT coalesce(max(serial), 0) FROM nodes)) + $1)",
            _SERIAL_GAP,
        )
        for table, column in _IDENTITIES:
            await connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"  # noqa: S608 - our own names
                f" greatest(1, (SELECT coalesce(max({column}), 0) FROM {table})))"
            )
    return counts


# Serials that were given out after the backup must not be given out again to other keys.
_SERIAL_GAP: Final = 1_000_000
