"""The journal of moves and incidents of one pool: what was seen, by whom, by which rule, with what outcome.

It stays in the pool; people of other pools read it live, through their own gate. One trouble is one incident
however many nodes see it, and what each saw is kept as its evidence. An incident that nobody answers is
escalated once: logged, and handed to the program of the setting `incident.hook`.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.store import Store, StoreUnavailableError
from qgate.store import movement as table
from qgate.store.database import Connection
from tunnel_proto.identity import fingerprint
from tunnel_proto.movement import Record

LOOK_S: Final = 5.0
"""How often open incidents are looked at."""

PRUNE_S: Final = 3600.0
HOOK_S: Final = 30.0
"""How long the hook may run."""

EVIDENCE_MAX: Final = 50
"""Sightings kept of one incident; further ones are counted."""

SEVERITIES: Final = {
    "target_dead": "critical",
    "nowhere_to_go": "critical",
    "order_refused": "warning",
    "authority_moved": "warning",
    "catalogue_frozen": "critical",
}

log = structlog.get_logger(__name__)


class Journal:
    """Moves and incidents of this pool. ``name(pool)`` says what a pool is called."""

    def __init__(
        self,
        store: Store,
        *,
        gate: str,
        name: Callable[[bytes], str],
        setting: Callable[[str], Any],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._gate = gate
        self._name = name
        self._setting = setting
        self._clock = clock

    # --- what nodes tell

    async def take(self, records: Sequence[Record], *, node: str, role: str, home: bytes) -> None:
        """Keep what a node tells, its incidents among it. StoreUnavailableError where the store is away."""
        now = self._now()
        moves = [
            table.Movement(
                one.id,
                datetime.fromtimestamp(one.at, UTC),
                now,
                self._gate,
                home,
                node,
                role,
                one.rule if one.kind == "move" else f"incident:{one.rule}",
                one.source,
                one.to,
                one.cause,
                one.by,
            )
            for one in records
        ]
        async with self._store.transaction() as connection:
            known = await table.known_movements(connection, [one.id for one in moves])
            await table.add_movements(connection, moves)
            for one in records:
                if one.id in known:
                    continue
                if one.kind == "incident":
                    await table.open_incident(
                        connection,
                        kind=one.rule,
                        subject=self._name(one.source),
                        severity=SEVERITIES.get(one.rule, "warning"),
                        evidence={"node": node, "role": role, "at": one.at, "saw": one.cause},
                        at=now,
                        evidence_max=EVIDENCE_MAX,
                    )
                elif one.rule == "return":
                    for kind in ("target_dead", "nowhere_to_go"):
                        await table.resolve_incidents(
                            connection,
                            kind=kind,
                            subject=self._name(one.to),
                            note=f"{node} returned there",
                            at=now,
                        )
        for one in records:
            log.info("heard", node=node, what=one.kind, rule=one.rule, source=self._name(one.source))

    async def raise_incident(self, kind: str, subject: str, evidence: Mapping[str, Any]) -> int:
        """Note a trouble that this gate saw itself; the incident's number."""
        async with self._store.transaction() as connection:
            number, _ = await table.open_incident(
                connection,
                kind=kind,
                subject=subject,
                severity=SEVERITIES.get(kind, "warning"),
                evidence={"gate": self._gate, "at": self._clock(), **evidence},
                at=self._now(),
                evidence_max=EVIDENCE_MAX,
            )
            return number

    async def settle(self, kind: str, subject: str, note: str) -> None:
        """A trouble is over by itself; nothing happens where there is none."""
        async with self._store.transaction() as connection:
            await table.resolve_incidents(connection, kind=kind, subject=subject, note=note, at=self._now())

    # --- for people

    async def history(self, *, limit: int = 100, node: str | None = None) -> list[dict[str, Any]]:
        """Moves, newest first, with pools by name."""
        async with self._store.connection() as connection:
            rows = await table.list_movements(connection, limit=limit, node=node)
        return [
            {
                "at": row["at"].timestamp(),
                "heard_at": row["heard_at"].timestamp(),
                "gate": row["gate"],
                "home": self._name(row["home"]),
                "node": row["node"],
                "role": row["role"],
                "rule": row["rule"],
                "from": self._name(row["source"]),
                "to": self._name(row["target"]),
                "cause": row["cause"],
                "by": row["ordered"] or None,
            }
            for row in rows
        ]

    async def last_targets(self, home: bytes, role: str) -> dict[str, bytes]:
        """The pool that each node of a home pool in a role went to last, by the node's name."""
        async with self._store.connection() as connection:
            return await table.last_targets(connection, home, role)

    async def incidents(self, *, limit: int = 100, all_: bool = False) -> list[dict[str, Any]]:
        """Incidents, newest first; resolved ones with ``all_`` only."""
        async with self._store.connection() as connection:
            return [_shown(row) for row in await table.list_incidents(connection, limit=limit, all_=all_)]

    async def show(self, number: int) -> dict[str, Any]:
        """One incident with its evidence. UnknownNameError."""
        async with self._store.transaction() as connection:
            row = await self._found(connection, number)
        return {**_shown(row), "evidence": row["evidence"]}

    async def acknowledge(self, number: int, *, by: str, note: str = "") -> dict[str, Any]:
        """Somebody looks after it: it will not be escalated. ConflictError for one that is over."""
        async with self._store.transaction() as connection:
            row = await self._found(connection, number)
            if row["state"] == "resolved":
                raise ConflictError(
                    f"incident {number} is resolved already", hint=f"meshctl incident show {number}"
                )
            await table.acknowledge_incident(connection, number, by=by, note=note, at=self._now())
        return await self.show(number)

    async def resolve(self, number: int, *, by: str, note: str = "") -> dict[str, Any]:
        """It is over; doing it twice changes nothing."""
        async with self._store.transaction() as connection:
            row = await self._found(connection, number)
            if row["state"] != "resolved":
                await table.resolve_incident(connection, number, by=by, note=note, at=self._now())
        return await self.show(number)

    # --- the failsafe

    async def run(self) -> None:
        """Escalate what nobody answers, and forget what is old, until cancelled."""
        prune_at = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.escalate()
                if self._clock() >= prune_at:
                    prune_at = self._clock() + PRUNE_S
                    keep = timedelta(days=int(self._setting("incident.keep_days")))
                    async with self._store.transaction() as connection:
                        await table.prune_movements(connection, self._now() - keep)
            except StoreUnavailableError:
                continue

    async def escalate(self) -> list[int]:
        """Escalate every incident that is overdue, each once in the whole pool; their numbers."""
        after_s = float(self._setting("incident.escalate_s"))
        if not after_s or not self._setting("automation.failsafe"):
            return []
        async with self._store.transaction() as connection:
            overdue = await table.take_overdue(connection, at=self._now(), after_s=after_s)
        hook = str(self._setting("incident.hook"))
        for row in overdue:
            document = _shown(row)
            log.error("an incident was not answered", incident=document["id"], kind=document["kind"])
            if hook:
                await self._run_hook(hook, document)
        return [int(row["id"]) for row in overdue]

    def now(self) -> float:
        """Unix time, as this journal writes it."""
        return self._clock()

    async def overdue(self) -> int:
        """How many open incidents would be escalated now."""
        after_s = float(self._setting("incident.escalate_s"))
        if not after_s:
            return 0
        async with self._store.connection() as connection:
            return await table.count_overdue(connection, at=self._now(), after_s=after_s)

    async def _run_hook(self, hook: str, document: Mapping[str, Any]) -> None:
        try:
            words = shlex.split(hook)
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except (OSError, ValueError, IndexError) as error:
            log.error("the incident hook cannot be run", hook=hook, cause=str(error))
            return
        try:
            async with asyncio.timeout(HOOK_S):
                _, said = await process.communicate(json.dumps(document).encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            log.error("the incident hook did not end", hook=hook, within_s=HOOK_S)
            return
        if process.returncode:
            tail = said.decode("utf-8", "replace")[-300:]
            log.error("the incident hook failed", hook=hook, status=process.returncode, said=tail)

    # --- parts

    async def _found(self, connection: Connection, number: int) -> dict[str, Any]:
        row = await table.find_incident(connection, number)
        if row is None:
            raise UnknownNameError(f"there is no incident {number}", hint="meshctl incident list --all")
        return row

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    def at(name: str) -> float | None:
        return None if row[name] is None else row[name].timestamp()

    return {
        "id": row["id"],
        "kind": row["kind"],
        "subject": row["subject"],
        "state": row["state"],
        "severity": row["severity"],
        "seen": row["seen"],
        "opened_at": at("opened_at"),
        "seen_at": at("seen_at"),
        "escalated_at": at("escalated_at"),
        "answered_by": row["answered_by"],
        "answered_at": at("answered_at"),
        "resolved_at": at("resolved_at"),
        "note": row["note"],
    }


def short(pool_key: bytes) -> str:
    """A pool that has no name here: the beginning of its fingerprint."""
    return fingerprint(pool_key).split("-")[0] if len(pool_key) == 32 else "unknown"
