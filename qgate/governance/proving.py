"""Long proofs at a gate that serves: one at a time, in short turns of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from qgate.governance.principal import AccessError

TURN_S: Final = 0.005
"""How long a proof holds the event loop; a step between two looks at the clock takes well below 1 ms."""

AGAIN_S: Final = 5.0


class Turns:
    """A computation's turns: ``pause`` after each small step lets others go on once a turn is over."""

    def __init__(self, turn_s: float = TURN_S, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._turn_s = turn_s
        self._clock = clock
        self._began = clock()

    async def pause(self) -> None:
        """Let others go on, where this turn has lasted for long enough."""
        if self._clock() - self._began >= self._turn_s:
            await asyncio.sleep(0)
            self._began = self._clock()


class Proving:
    """The right to have a whole log or the audit proved: one at a time at a gate."""

    def __init__(self) -> None:
        self._going = ""

    @contextlib.contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """Prove ``what``. AccessError "busy" where another proof goes on."""
        if self._going:
            raise AccessError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "busy",
                f"this gate proves {self._going} now, and does one at a time",
                hint="try again when it is done",
                retry_after_s=AGAIN_S,
            )
        self._going = what
        try:
            yield
        finally:
            self._going = ""
