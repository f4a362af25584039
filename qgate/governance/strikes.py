"""Wrong passwords of administrators: after five in fifteen minutes nobody may try for fifteen minutes. Pure.

What is counted is a subject, "name:alice" or "key:FINGERPRINT": guessing one admin's password from many keys
and many admins' from one key are stopped alike.

    | a wrong password          | the times of those within WINDOW_S are kept; the fifth locks for LOCK_S
    | a right password          | forgotten
    | a try while it is locked  | refused without a look at the password, and not counted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST: Final = 5
WINDOW_S: Final = 15 * 60.0
LOCK_S: Final = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Strikes:
    """Of one subject. ``times`` are unix seconds of wrong passwords, ``locked_until`` is 0 where open."""

    times: tuple[float, ...] = ()
    locked_until: float = 0.0

    def locked_s(self, now: float) -> float:
        """Seconds until the next try is allowed; 0 for now."""
        return max(0.0, self.locked_until - now)

    def struck(self, now: float) -> Strikes:
        """After one more wrong password. A clock that went back counts what it saw in the future as well."""
        times = (*(at for at in self.times if at > now - WINDOW_S), now)[-MOST:]
        if len(times) < MOST:
            return Strikes(times, self.locked_until)
        return Strikes((), now + LOCK_S)


def subjects(name: str, client: str) -> tuple[str, ...]:
    """What a try is counted against: the name, and the client's key where it has one."""
    return (f"name:{name}", f"key:{client}") if client else (f"name:{name}",)
