"""What peers attest of their workers and of their models' speed, as the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from qgate.federation.log.digest import record_digest
from qgate.store.database import Connection

_TABLES: Final = MappingProxyType({"workers": ("peer_workers", "name"), "routing": ("peer_routing", "model")})
"""Table and name of its key, by stream."""


async def rows_of(connection: Connection, stream: str, pool: bytes | None = None) -> list[dict[str, Any]]:
    """Documents with the pool that said them (key "pool"), of one pool or of all."""
    name, key = _TABLES[stream]
    found = await connection.fetch(
        f"SELECT pool, document FROM {name} WHERE $1::bytea IS NULL OR pool = $1 ORDER BY pool, {key}",  # noqa: S608
        pool,
    )
    return [{"pool": bytes(row["pool"]), **row["document"]} for row in found]


async def put_row(
    connection: Connection, stream: str, pool: bytes, key: str, document: Mapping[str, Any], record: bytes
) -> None:
    """Keep what a peer says of one thing."""
    name, column = _TABLES[stream]
    await connection.execute(
        f"""
        INSERT INTO {name} (pool, {column}, document, record) VALUES ($1, $2, $3, $4)
        ON CONFLICT (pool, {column}) DO UPDATE SET document = excluded.document, record = excluded.record
        """,  # noqa: S608
        pool,
        key,
        dict(document),
        record,
    )


async def drop_row(connection: Connection, stream: str, pool: bytes, record: bytes) -> None:
    """A peer took back what it said."""
    name, _ = _TABLES[stream]
    await connection.execute(f"DELETE FROM {name} WHERE pool = $1 AND record = $2", pool, record)  # noqa: S608


async def forget(connection: Connection, stream: str, pool: bytes) -> None:
    """Forget all that a peer said."""
    name, _ = _TABLES[stream]
    await connection.execute(f"DELETE FROM {name} WHERE pool = $1", pool)  # noqa: S608


async def digests(connection: Connection, stream: str, pool: bytes) -> dict[bytes, bytes]:
    """A digest of each record by its id, for anti-entropy."""
    name, _ = _TABLES[stream]
    found = await connection.fetch(f"SELECT record, document FROM {name} WHERE pool = $1", pool)  # noqa: S608
    return {bytes(row["record"]): record_digest(row["document"]) for row in found}
