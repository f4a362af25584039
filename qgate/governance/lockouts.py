"""Wrong passwords count against names and keys; who has had too many tries is locked out for a while."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from qgate.governance.audit import AuditEvent
from qgate.governance.office import Office
from qgate.governance.principal import AccessError, unauthenticated
from qgate.governance.strikes import Strikes
from qgate.store import admins as table
from qgate.store.database import Connection

WRONG: Final = "the name, the password or the code is wrong"


class Lockouts:
    """Of one pool, in its store. ``heard`` are called with subject ("name:alice") and seconds."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.heard: list[Callable[[str, float], object]] = []

    async def check(self, connection: Connection, whom: tuple[str, ...]) -> None:
        """AccessError 429 "locked-out" where one of them may not try now."""
        strikes = await table.read_strikes(connection, whom)
        now = self._office.clock()
        if locked := max((one.locked_s(now) for one in strikes.values()), default=0.0):
            raise locked_out(locked)

    async def struck(self, whom: tuple[str, ...]) -> AccessError:
        """Count a wrong try; the error to raise."""
        office = self._office
        now = office.clock()
        locked: dict[str, float] = {}
        async with office.store.transaction() as connection:
            held = await table.read_strikes(connection, whom)
            for subject in sorted(whom):
                after = held.get(subject, Strikes()).struck(now)
                await table.put_strikes(connection, subject, after)
                if seconds := after.locked_s(now):
                    locked[subject] = seconds
        for subject, seconds in locked.items():
            office.audit.record(
                AuditEvent(
                    "admin.locked-out",
                    outcome="locked-out",
                    started_at=now,
                    detail={"subject": subject, "seconds": seconds},
                )
            )
            for hear in self.heard:
                hear(subject, seconds)
        return locked_out(max(locked.values())) if locked else unauthenticated(WRONG)

    async def forgive(self, whom: tuple[str, ...]) -> None:
        """Hold nothing against them any more."""
        async with self._office.store.transaction() as connection:
            await table.forget_strikes(connection, whom)


def locked_out(seconds: float) -> AccessError:
    """Too many wrong tries."""
    return AccessError(
        HTTPStatus.TOO_MANY_REQUESTS,
        "locked-out",
        f"too many wrong passwords: nobody may try for {seconds / 60:.0f} minutes",
        hint="an owner can end that: meshctl admin unlock NAME",
        retry_after_s=seconds,
    )
