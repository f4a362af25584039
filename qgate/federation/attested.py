"""What a pool attests of its workers, and what it learned of their speed: streams "workers" and "routing".

A peer that may be told (level 2; for "workers" also the flow of that name) knows then which machines a pool
vouches for, and what each model did there. Where such a worker comes over, because its home is dead or has
lent it, it is not measured from nothing: its home's figures count as one observation. Whether it may come is
for the peer's own admin: the flow "workers" lets it in (`guest_list.welcome`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from qgate.federation.guests import record_of
from qgate.federation.log.entry import Entry
from qgate.federation.log.streams import StreamRule
from qgate.federation.peer import Peer
from qgate.federation.publishing import publish_changed
from qgate.store import attested as table
from qgate.store import guests as exports
from qgate.store.database import Connection
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.messages import MODEL_NAME
from tunnel_proto.shapes import ShapeError, listed, real, text, whole

WORKERS: Final = "workers"
ROUTING: Final = "routing"
CHANGE: Final = 0.2
"""A speed is told again once it differs by so much of itself: logs are no place for every measurement."""

MEASURED_MIN: Final = 3
"""Observations of a deployment before its speed is told."""

_NODE: Final = text(63, r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MODEL: Final = text(200, MODEL_NAME)
_SHA: Final = text(64, r"([0-9a-f]{64})?")
_LINE: Final = text(256)
_RATE: Final = real(0.0, 1e6)


@dataclass(frozen=True, slots=True)
class AttestedWorker:
    """A machine that a pool vouches for. Memory in bytes."""

    name: str
    cpu: str = ""
    cores: int = 0
    memory: int = 0
    gpus: tuple[str, ...] = ()

    def payload(self) -> dict[str, Any]:
        """As peers are told."""
        return {**asdict(self), "gpus": list(self.gpus)}


@dataclass(frozen=True, slots=True)
class Speed:
    """What a model did at a worker, in tokens/s of one sequence; ``prefill`` 0 where it is not known."""

    worker: str
    model: str
    sha256: str
    speed: float
    prefill: float = 0.0

    @property
    def key(self) -> str:
        """Names the row."""
        return f"{self.worker}/{self.model}@{self.sha256}"


class Attested:
    """What this pool tells of its workers. Who calls holds the lock of what is published."""

    def __init__(self) -> None:
        self._told: dict[bytes, Speed] = {}

    async def reconcile(
        self,
        connection: Connection,
        *,
        workers: Iterable[AttestedWorker],
        gone: Iterable[str],
        speeds: Iterable[Speed],
    ) -> int:
        """Publish what differs; ``gone`` are workers that were revoked. How many entries that were."""
        known = await exports.published(connection, WORKERS)
        count = 0
        for worker in workers:
            record = record_of("worker", worker.name)
            count += await publish_changed(connection, WORKERS, record, worker.payload(), known)
        for name in gone:
            record = record_of("worker", name)
            count += await publish_changed(connection, WORKERS, record, {"name": name, "gone": True}, known)
        known = await exports.published(connection, ROUTING)
        for speed in speeds:
            record = record_of("routing", speed.key)
            if _alike(self._told.get(record), speed):
                continue
            self._told[record] = speed
            count += await publish_changed(connection, ROUTING, record, asdict(speed), known)
        return count


def rules() -> tuple[StreamRule, ...]:
    """How peers' entries are taken."""
    return (
        StreamRule(WORKERS, _take_worker, forget=_forget_workers, rows=_worker_rows),
        StreamRule(ROUTING, _take_speed, forget=_forget_speeds, rows=_speed_rows),
    )


def read_worker(payload: Mapping[str, Any]) -> AttestedWorker:
    """A worker from a peer's entry. RemoteProtocolError."""
    try:
        return AttestedWorker(
            _NODE(payload["name"]),
            _LINE(payload["cpu"]),
            whole(0, 100_000)(payload["cores"]),
            whole()(payload["memory"]),
            tuple(listed(_LINE, 64)(payload["gpus"])),
        )
    except (ShapeError, KeyError) as error:
        raise RemoteProtocolError(f"an entry about a worker is malformed: {error}") from None


def read_speed(payload: Mapping[str, Any]) -> Speed:
    """A speed from a peer's entry. RemoteProtocolError."""
    try:
        return Speed(
            _NODE(payload["worker"]),
            _MODEL(payload["model"]),
            _SHA(payload["sha256"]),
            _RATE(payload["speed"]),
            _RATE(payload["prefill"]),
        )
    except (ShapeError, KeyError) as error:
        raise RemoteProtocolError(f"an entry about a model's speed is malformed: {error}") from None


def rounded(value: float) -> float:
    """Two digits: what is told of a speed."""
    return float(f"{value:.2g}")


def _alike(before: Speed | None, now: Speed) -> bool:
    return before is not None and all(
        abs(new - old) <= CHANGE * max(old, 1e-9)
        for old, new in ((before.speed, now.speed), (before.prefill, now.prefill))
    )


async def _take_worker(connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
    if payload.get("gone"):
        await table.drop_row(connection, WORKERS, peer.pool_key, entry.record)
        return
    worker = read_worker(payload)
    await table.put_row(connection, WORKERS, peer.pool_key, worker.name, worker.payload(), entry.record)


async def _take_speed(connection: Connection, peer: Peer, entry: Entry, payload: dict[str, Any]) -> None:
    speed = read_speed(payload)
    await table.put_row(connection, ROUTING, peer.pool_key, speed.key, asdict(speed), entry.record)


async def _forget_workers(connection: Connection, peer: Peer) -> None:
    await table.forget(connection, WORKERS, peer.pool_key)


async def _forget_speeds(connection: Connection, peer: Peer) -> None:
    await table.forget(connection, ROUTING, peer.pool_key)


async def _worker_rows(connection: Connection, peer: Peer) -> Mapping[bytes, bytes]:
    return await table.digests(connection, WORKERS, peer.pool_key)


async def _speed_rows(connection: Connection, peer: Peer) -> Mapping[bytes, bytes]:
    return await table.digests(connection, ROUTING, peer.pool_key)
