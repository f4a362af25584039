"""Scheduled orders: what an administrator wants done at a time, once, by one gate of the pool.

    waiting ──▶ running ──▶ done | failed
       │ └────▶ missed          begun by nobody within order.late_s of its time: an incident
       └──────▶ cancelled

A gate that may carry an order out takes a lock that lives as long as its connection to the store, looks once
more, and begins. Where it ends in the middle, the lock is free and the order still "running": whoever sees
that notes it as failed, for what it did nobody knows; nothing is carried out twice. An order that no gate
could carry out in time is not carried out late: what was meant for the night must not happen at noon. Nor is
one of somebody who may not have it done any more by then (`qgate.governance.authors`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import structlog

from qgate.governance.authors import author_problem
from qgate.governance.office import Office, iso
from qgate.governance.principal import Role
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.store import StoreUnavailableError
from qgate.store.orders import (
    add_order,
    advance_order,
    find_order,
    forget_orders,
    hold_order,
    list_orders,
    pressing_orders,
    release_order,
)
from tunnel_proto.errors import MeshError

Rows: TypeAlias = list[dict[str, Any]]
Numbers: TypeAlias = list[int]

LOOK_S: Final = 1.0
FORGET_S: Final = 3600.0
AHEAD_MAX_DAYS: Final = 366
"""How far ahead an order may be given."""

INCIDENT: Final = "order_missed"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be ordered.

    ``check`` gives the arguments back as they are kept, or refuses them; ``able`` says why this gate cannot
    do it now, empty where it can; ``do`` does it in the name of ``by`` and says what came of it.
    """

    what: str
    description: str
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    able: Callable[[Mapping[str, Any]], str]
    do: Callable[[Mapping[str, Any], str], Awaitable[str]]
    role: Role = Role.OPERATOR


@dataclass(slots=True)
class LastLook:
    """When a gate looked last, and what it found: for the list of automations."""

    at: float = 0.0
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Orders:
    """The scheduled orders of the pool, at one gate. ``raise_incident(kind, subject, evidence)``."""

    office: Office
    gate: str
    kinds: Mapping[str, Kind]
    raise_incident: Callable[[str, str, Mapping[str, Any]], Awaitable[Any]]
    last: LastLook = field(default_factory=LastLook)

    # --- for people

    def role(self, what: str) -> Role:
        """The least role for ordering that, and for calling it off."""
        kind = self.kinds.get(what)
        return Role.OPERATOR if kind is None else kind.role

    async def list(self, *, all_: bool = False, limit: int = 100, before: int | None = None) -> Rows:
        """Orders that are to come; all of them with ``all_``."""
        states = () if all_ else ("waiting", "running")
        async with self.office.store.connection() as connection:
            rows = await list_orders(connection, states=states, limit=limit, before=before)
        return [self._shown(row) for row in rows]

    async def show(self, number: int) -> dict[str, Any]:
        """One order. UnknownNameError."""
        async with self.office.store.transaction() as connection:
            row = await find_order(connection, number)
        if row is None:
            raise _unknown(number)
        return self._shown(row)

    async def add(
        self,
        what: str,
        arguments: Mapping[str, Any],
        *,
        at: float,
        reason: str = "",
        dry_run: bool = False,
        by: str,
    ) -> dict[str, Any]:
        """Have something done at unix time ``at``. InvalidRequestError, and whatever the kind refuses with.

        With ``dry_run`` it is only checked, as it would be done now.
        """
        kind = self.kinds.get(what)
        if kind is None:
            raise InvalidRequestError(
                f"there is nothing called {what[:40]!r} to be ordered",
                hint=f"choose from {', '.join(self.kinds)}",
            )
        now = self.office.clock()
        if at < now - LOOK_S:
            raise InvalidRequestError(f"{_when(at)} is past", hint="--at takes a time to come, --in a span")
        if at > now + AHEAD_MAX_DAYS * 86_400:
            raise InvalidRequestError(f"an order is given at most {AHEAD_MAX_DAYS} days ahead")
        kept = kind.check(arguments)
        if dry_run:
            return {
                "what": what,
                "arguments": kept,
                "at": _when(at),
                "able_now": not (problem := kind.able(kept)),
                "problem": problem,
                "dry_run": True,
            }
        async with self.office.store.transaction() as connection:
            number = await add_order(
                connection,
                at=datetime.fromtimestamp(at, UTC),
                what=what,
                arguments=kept,
                reason=reason,
                by=by,
                now=self.office.now(),
            )
        after = {"what": what, "arguments": kept, "at": _when(at)}
        await self.office.changed("order.add", str(number), by, {"after": after, "reason": reason})
        return await self.show(number)

    async def cancel(self, number: int, *, by: str) -> dict[str, Any]:
        """Let it not be done. ConflictError for one that has begun or is over."""
        async with self.office.store.transaction() as connection:
            row = await find_order(connection, number)
            if row is None:
                raise _unknown(number)
            if row["state"] != "waiting":
                raise ConflictError(
                    f"order {number} is {row['state']} already", hint=f"meshctl order show {number}"
                )
            await advance_order(
                connection,
                number,
                was="waiting",
                state="cancelled",
                at=self.office.now(),
                outcome=f"cancelled by {by}",
            )
        detail = {"before": {"state": "waiting"}, "after": {"state": "cancelled"}}
        await self.office.changed("order.cancel", str(number), by, detail)
        return await self.show(number)

    # --- time

    async def run(self) -> None:
        """Carry out what is due, until cancelled."""
        forget_at = 0.0
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await self.look()
                if self.office.clock() >= forget_at:
                    forget_at = self.office.clock() + FORGET_S
                    days = timedelta(days=int(self.office.directory.setting("order.keep_days")))
                    async with self.office.store.transaction() as connection:
                        await forget_orders(connection, self.office.now() - days)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> Numbers:
        """Carry out what is due and can be done here; the numbers of those that this gate began."""
        office = self.office
        self.last.at = office.clock()
        async with office.store.connection() as connection:
            pressing = await pressing_orders(connection, office.now())
            for row in pressing:
                if row["state"] == "running":
                    await self._note_abandoned(connection, row)
        on = office.directory.setting("automation.orders")
        begun: Numbers = []
        for row in (row for row in pressing if row["state"] == "waiting"):
            if office.clock() > row["at"].timestamp() + office.directory.setting("order.late_s"):
                await self._miss(row, "" if on else "automation.orders is off")
            elif on and not self._problem(row) and await self._carry_out(row):
                begun.append(int(row["number"]))
        return begun

    def coming(self) -> str:
        """What would happen now, in words: for the list of automations."""
        return self.last.outcome or "nothing was due yet"

    def _problem(self, row: Mapping[str, Any]) -> str:
        kind = self.kinds.get(row["what"])
        if kind is None:
            return f"this version knows no order {row['what']!r}"
        try:
            return kind.able(row["arguments"])
        except MeshError as error:
            return error.message

    async def _carry_out(self, due: Mapping[str, Any]) -> bool:
        office, number = self.office, int(due["number"])
        async with office.store.connection() as connection:
            if not await hold_order(connection, number):
                return False
            try:
                if why := await self._author_problem(connection, due):
                    await self._miss(due, why)
                    return False
                begun = await advance_order(
                    connection, number, was="waiting", state="running", at=office.now(), gate=self.gate
                )
                if not begun:
                    return False
                async with connection.transaction():
                    row = await find_order(connection, number)
                assert row is not None
                by = f"order {number} of {row['ordered_by']}"
                try:
                    state, outcome = "done", await self.kinds[row["what"]].do(row["arguments"], by)
                except MeshError as error:
                    state, outcome = "failed", error.message
                await advance_order(
                    connection, number, was="running", state=state, at=office.now(), outcome=outcome
                )
            finally:
                await release_order(connection, number)
        self.last.outcome = f"order {number}: {outcome}"
        log.info("a scheduled order was carried out", order=number, what=row["what"], outcome=outcome)
        await office.changed("order.run", str(number), by, {"state": state, "outcome": outcome})
        if state == "failed":
            await self.raise_incident("order_failed", f"order {number}", {"saw": outcome})
        return True

    async def _author_problem(self, connection: Any, row: Mapping[str, Any]) -> str:
        return await author_problem(
            self.office, connection, row["ordered_by"], since=row["ordered_at"], need=self.role(row["what"])
        )

    async def _note_abandoned(self, connection: Any, row: Mapping[str, Any]) -> None:
        """A gate that ended in the middle holds no lock any more."""
        number = int(row["number"])
        if not await hold_order(connection, number):
            return
        try:
            text = f"{row['gate']} ended in the middle of it; look whether it was done"
            failed = await advance_order(
                connection, number, was="running", state="failed", at=self.office.now(), outcome=text
            )
        finally:
            await release_order(connection, number)
        if failed:
            await self.raise_incident("order_failed", f"order {number}", {"saw": text})

    async def _miss(self, row: Mapping[str, Any], why: str) -> None:
        number = int(row["number"])
        why = why or self._problem(row) or "no gate was there at its time"
        async with self.office.store.transaction() as connection:
            missed = await advance_order(
                connection, number, was="waiting", state="missed", at=self.office.now(), outcome=why
            )
        if missed:
            log.warning("a scheduled order was missed", order=number, what=row["what"], why=why)
            await self.office.changed("order.miss", str(number), "gate", {"outcome": why})
            evidence = {"saw": why, "what": row["what"], "arguments": row["arguments"]}
            await self.raise_incident(INCIDENT, f"order {number}", evidence)

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "number": row["number"],
            "at": iso(row["at"]),
            "what": row["what"],
            "arguments": row["arguments"],
            "state": row["state"],
            "reason": row["reason"],
            "by": row["ordered_by"],
            "ordered_at": iso(row["ordered_at"]),
            "gate": row["gate"] or None,
            "outcome": row["outcome"] or None,
            "changed_at": iso(row["changed_at"]),
        }


def _unknown(number: int) -> UnknownNameError:
    return UnknownNameError(f"there is no order {number}", hint="meshctl order list --all")


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
