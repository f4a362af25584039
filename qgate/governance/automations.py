"""What a pool does unasked: each automation with its switch, what it did last and what it would do now.

Some run by themselves at their own place and are only shown here; those that have a `run` run here, on one
gate of the pool at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import structlog

from qgate.governance.office import Office, iso
from qgate.governance.preferences import Preferences
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.store import StoreUnavailableError
from qgate.store.automations import note_run, runs
from tunnel_proto.errors import MeshError

Rows: TypeAlias = list[dict[str, Any]]

LOCK: Final = 0x71_67_61_75
"""First half of the advisory lock of an automation that runs: "qgau" in ASCII."""

log = structlog.get_logger(__name__)


def _never() -> tuple[float, str]:
    return 0.0, ""


@dataclass(frozen=True, slots=True)
class Automation:
    """One automation.

    ``setting`` is its switch. ``preview()`` says what it would do now, a line each. ``run()`` does it and
    says what was done, empty where there was nothing to do; None for one that runs at a place of its own.
    ``every_s`` is how often it looks. ``looked()`` is when it looked last here (unix seconds) and what for.
    """

    name: str
    setting: str
    description: str
    every_s: float
    preview: Callable[[], Awaitable[list[str]]]
    run: Callable[[], Awaitable[str]] | None = None
    looked: Callable[[], tuple[float, str]] = _never


@dataclass(frozen=True, slots=True)
class Automations:
    """The automations of one gate, by name."""

    office: Office
    gate: str
    preferences: Preferences
    each: Mapping[str, Automation]
    last: dict[str, tuple[float, str]] = field(default_factory=dict)

    async def list(self) -> Rows:
        """All of them, with what each did last in the whole pool and looked at last here."""
        async with self.office.store.connection() as connection:
            done = await runs(connection)
        return [self._shown(one, done.get(one.name)) for one in self.each.values()]

    async def show(self, name: str) -> dict[str, Any]:
        """One, with what it would do now. UnknownNameError."""
        one = self.named(name)
        async with self.office.store.connection() as connection:
            done = await runs(connection)
        return {**self._shown(one, done.get(name)), "would": await one.preview()}

    async def switch(self, name: str, *, on: bool, expected: int | None = None, by: str) -> dict[str, Any]:
        """Turn it on or off, for every gate of the pool."""
        one = self.named(name)
        await self.preferences.set(one.setting, on, by=by, expected=expected)
        return await self.show(name)

    async def run_now(self, name: str, *, by: str) -> dict[str, Any]:
        """Do it once, now, whether it is on or off. ConflictError for one that cannot be done by hand."""
        one = self.named(name)
        if one.run is None:
            raise ConflictError(
                f"{name} runs by itself at every gate, and has nothing that is done by hand",
                hint=f"meshctl automation run {name} --dry-run",
            )
        outcome = await self._once(one)
        if outcome is None:
            raise ConflictError(f"{name} is under way at another gate", hint="meshctl automation list")
        await self.office.changed("automation.run", name, by, {"outcome": outcome or "nothing to do"})
        return {"name": name, "outcome": outcome or "nothing to do"}

    async def run(self) -> None:
        """Run those that run here, each at its time, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for one in self.each.values():
                if one.run is not None:
                    tasks.create_task(self._keep(one), name=f"automation {one.name}")

    async def _keep(self, one: Automation) -> None:
        while True:
            await asyncio.sleep(one.every_s)
            if not self.office.directory.setting(one.setting):
                continue
            try:
                await self._once(one)
            except StoreUnavailableError:
                continue
            except MeshError as error:
                log.warning("an automation failed", automation=one.name, reason=error.message)

    async def _once(self, one: Automation) -> str | None:
        """What was done; None where another gate is at it."""
        assert one.run is not None
        async with self.office.store.connection() as connection:
            key = list(self.each).index(one.name)
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK, key):
                return None
            ok, outcome = False, ""
            try:
                ok, outcome = True, await one.run()
            except MeshError as error:
                ok, outcome = False, error.message
                raise
            finally:
                self.last[one.name] = (self.office.clock(), outcome)
                if outcome:
                    await note_run(
                        connection,
                        one.name,
                        gate=self.gate,
                        at=self.office.now(),
                        ok=ok,
                        outcome=outcome,
                    )
                with contextlib.suppress(StoreUnavailableError):
                    await connection.execute("SELECT pg_advisory_unlock($1, $2)", LOCK, key)
        return outcome

    def named(self, name: str) -> Automation:
        """The automation of that name. UnknownNameError."""
        one = self.each.get(name)
        if one is None:
            raise UnknownNameError(
                f"there is no automation {name}", hint=f"choose from {', '.join(self.each)}"
            )
        return one

    def _shown(self, one: Automation, done: Mapping[str, Any] | None) -> dict[str, Any]:
        looked_at, seen = self.last.get(one.name, one.looked())
        on = bool(self.office.directory.setting(one.setting))
        return {
            "name": one.name,
            "on": on,
            "setting": one.setting,
            "description": one.description,
            "every_s": one.every_s or None,
            "by_hand": one.run is not None,
            "looked_at": _moment(looked_at),
            "saw": seen or None,
            "next_at": _moment(looked_at + one.every_s) if on and looked_at and one.every_s else None,
            "last_run_at": None if done is None else iso(done["at"]),
            "last_gate": None if done is None else done["gate"],
            "last_ok": None if done is None else done["ok"],
            "last_outcome": None if done is None else done["outcome"],
        }


def _moment(at: float) -> str | None:
    return iso(datetime.fromtimestamp(at, UTC)) if at else None
