"""Publishing what differs from what was published last, in the caller's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from qgate.store import guests as exports
from qgate.store.database import Connection
from qgate.store.outbox import publish
from tunnel_proto.packing import pack


async def publish_changed(
    connection: Connection,
    stream: str,
    record: bytes,
    payload: Mapping[str, Any],
    known: Mapping[bytes, bytes],
) -> int:
    """Publish a record unless ``known`` (as `exports.published` gives it) says the same; 1 if so, else 0.

    A payload with the key "gone" takes the record back.
    """
    gone = bool(payload.get("gone"))
    digest = hashlib.blake2b(pack(payload), digest_size=16).digest()
    if record not in known if gone else known.get(record) == digest:
        return 0
    await publish(connection, stream=stream, record=record, payload=payload)
    await exports.note_published(connection, stream, record, None if gone else digest)
    return 1
