"""Where this pool's workers are that do not serve here: at the paired pool that each told it went to last.

A worker that was ordered to another pool, or that went there because this one was dead, is neither gone nor
away: it works elsewhere. Every gate of the pool says so, for nodes tell their moves to the pool, and the
journal keeps them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from qgate.capability.workers import WorkerView
from qgate.store import StoreUnavailableError

if TYPE_CHECKING:
    from qgate.gate import Gate

READ_S: Final = 1.0
"""How old what was read of the journal may be."""

HERE: Final = frozenset({"present", "away"})
"""States of a worker whose session is with this gate, whatever it told before."""


class Whereabouts:
    """The workers that one gate knows of, those at other pools among them."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._pools: Mapping[str, str] = {}
        self._read_at = -READ_S

    async def read(self) -> None:
        """Read from the journal what is older than `READ_S`; a store that is away leaves what was known."""
        if time.monotonic() - self._read_at < READ_S:
            return
        with contextlib.suppress(StoreUnavailableError, TimeoutError):  # the overview says that
            self._pools = await self._gate.movement.elsewhere("daemon")
        self._read_at = time.monotonic()

    def at(self, name: str) -> str | None:
        """The pool that a worker of ours works at, None where it is here or nobody knows."""
        view = self._gate.capabilities.workers.views.get(name)
        return None if view is not None and view.state in HERE else self._pools.get(name)

    def views(self) -> Mapping[str, WorkerView]:
        """Every worker as it described itself here last; the state of one at another pool is "at POOL"."""
        views = self._gate.capabilities.workers.views
        moved = {name: pool for name in self._pools if (pool := self.at(name)) is not None}
        if not moved:
            return views
        return {
            **views,
            **{
                name: replace(views.get(name) or WorkerView(name), state=state_at(pool))
                for name, pool in moved.items()
            },
        }


def state_at(pool: str) -> str:
    """The state of a worker that works at another pool."""
    return f"at {pool}"


def is_elsewhere(state: str) -> bool:
    """Whether a state is that of a worker at another pool."""
    return state.startswith("at ")
