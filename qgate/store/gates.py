"""Gates: the processes of the pool, as they announce themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from qgate.store.database import Connection
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError

# A running gate announces itself every minute; one that has been silent for longer has given its name up.
NAME_HELD_S: Final = 150


async def announce_gate(connection: Connection, addresses: Sequence[GateAddress], at: datetime) -> None:
    """Say where a gate is reached now; all of `addresses` are of one gate.

    ConfigError where a gate with another key has announced itself under this name of late.
    """
    first = addresses[0]
    done = await connection.execute(
        """
        INSERT INTO gates (name, handshake_public, addresses, seen_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO UPDATE SET handshake_public = excluded.handshake_public,
            addresses = excluded.addresses, seen_at = excluded.seen_at
            WHERE gates.handshake_public = excluded.handshake_public OR gates.seen_at < $5
        """,
        first.name,
        first.handshake_public,
        [[one.host, one.port] for one in addresses],
        at,
        at - timedelta(seconds=NAME_HELD_S),
    )
    if done == "INSERT 0 0":
        raise ConfigError(
            f"another gate of this pool runs under the name {first.name}",
            hint="make this one under a name of its own: meshctl init --join DIR --name NAME; "
            f"or, if it stands in for a lost one, wait {NAME_HELD_S} s",
        )


async def list_gates(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name."""
    return [dict(row) for row in await connection.fetch("SELECT * FROM gates ORDER BY name")]


async def gates_since(connection: Connection, since: datetime) -> list[GateAddress]:
    """Every address of the gates that announced themselves after `since`, by the gates' names."""
    rows = await connection.fetch("SELECT * FROM gates WHERE seen_at > $1 ORDER BY name", since)
    return [
        GateAddress(row["name"], host, port, row["handshake_public"])
        for row in rows
        for host, port in row["addresses"]
    ]
