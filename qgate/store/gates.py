"""Gates: the processes of the pool, as they announce themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from qgate.store.database import Connection
from tunnel_proto.enrolment import GateAddress


async def announce_gate(connection: Connection, addresses: Sequence[GateAddress], at: datetime) -> None:
    """Say where a gate is reached now; all of `addresses` are of one gate."""
    first = addresses[0]
    await connection.execute(
        """
        INSERT INTO gates (name, handshake_public, addresses, seen_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO UPDATE SET handshake_public = excluded.handshake_public,
            addresses = excluded.addresses, seen_at = excluded.seen_at
        """,
        first.name,
        first.handshake_public,
        [[one.host, one.port] for one in addresses],
        at,
    )


async def gates_since(connection: Connection, since: datetime) -> list[GateAddress]:
    """Every address of the gates that announced themselves after `since`, by the gates' names."""
    rows = await connection.fetch("SELECT * FROM gates WHERE seen_at > $1 ORDER BY name", since)
    return [
        GateAddress(row["name"], host, port, row["handshake_public"])
        for row in rows
        for host, port in row["addresses"]
    ]
