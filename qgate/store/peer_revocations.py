"""Keys of peers' nodes that their own pools no longer vouch for."""

from __future__ import annotations

from qgate.store.database import Connection


async def node_revocations(connection: Connection) -> dict[tuple[bytes, bytes], int]:
    """By pool and X25519 key: certificates up to this serial count no more."""
    rows = await connection.fetch("SELECT pool, handshake_public, serial FROM peer_node_revocations")
    return {(bytes(row["pool"]), bytes(row["handshake_public"])): row["serial"] for row in rows}


async def put_node_revocation(
    connection: Connection, pool: bytes, handshake_public: bytes, serial: int, record: bytes
) -> None:
    """Keep a peer's word on one of its nodes; an older word changes nothing."""
    await connection.execute(
        """
        INSERT INTO peer_node_revocations (pool, handshake_public, serial, record) VALUES ($1, $2, $3, $4)
        ON CONFLICT (pool, handshake_public) DO UPDATE SET serial = excluded.serial, record = excluded.record
            WHERE excluded.serial > peer_node_revocations.serial
        """,
        pool,
        handshake_public,
        serial,
        record,
    )


async def drop_node_revocations(connection: Connection, pool: bytes) -> None:
    """Forget all that a peer said of its nodes."""
    await connection.execute("DELETE FROM peer_node_revocations WHERE pool = $1", pool)
