"""The outbox: what a transaction wants peers to hear, committed together with the change itself.

    async with store.transaction() as connection:
        await revoke_node(connection, name, at)
        await publish(connection, stream="revocations", record=..., payload={...})

Change first, then publish: two transactions that change one row then reach the outbox in the order of their
changes, because the second one waits for the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.federation.log.entry import RECORD_MAX, SALT_BYTES, Contents
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.streams import published_stream
from qgate.store.database import Connection

CHANNEL: Final = "qgate_log"
"""Heard by every gate: "outbox" for something to sign, "head N" after a batch, "replica" after foreign
entries."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row that is not signed yet."""

    id: int
    stream: str
    version: int
    record: bytes
    payload: bytes = field(repr=False)
    epoch: int


async def publish(
    connection: Connection,
    *,
    stream: str,
    record: bytes,
    payload: Mapping[str, Any],
    epoch: int = 0,
) -> None:
    """Let the peers hear of ``payload`` once the caller's transaction is committed.

    ``record`` (1 to 64 bytes) names what the payload is about and should tell nothing: it stays when the
    payload is erased. A later entry of the same stream and record takes an earlier one's place.

    Raises StreamRefused for a stream that does not exist, LogProblem for a payload or record that does not
    fit.
    """
    declared = published_stream(stream)
    if not 0 < len(record) <= RECORD_MAX:
        raise LogProblem("record", f"a record's id has 1 to {RECORD_MAX} bytes, not {len(record)}")
    contents = Contents.of(payload, bytes(SALT_BYTES))
    await connection.execute(
        "INSERT INTO outbox (stream, version, record, payload, epoch) VALUES ($1, $2, $3, $4, $5)",
        stream,
        declared.version,
        record,
        contents.payload,
        epoch,
    )


async def take(connection: Connection, limit: int) -> list[Waiting]:
    """Remove the oldest rows, to be signed in this transaction."""
    rows = await connection.fetch(
        """
        WITH oldest AS (SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE)
        DELETE FROM outbox USING oldest WHERE outbox.id = oldest.id
        RETURNING outbox.id, stream, version, record, payload, epoch
        """,
        limit,
    )
    return sorted((Waiting(*row) for row in rows), key=lambda row: row.id)


async def waiting(connection: Connection) -> int:
    """How many rows are not signed yet."""
    return int(await connection.fetchval("SELECT count(*) FROM outbox"))
