"""Replay marks on their way to the disk: a second after a handshake, without holding the event loop up."""

from __future__ import annotations

import asyncio

import structlog

from tunnel_proto.constants import MARKS_SYNC_S
from tunnel_proto.marks import ReplayMarks

log = structlog.get_logger()


class Durability:
    """Syncs ``marks`` at most once in MARKS_SYNC_S and says in the log when the disk takes none."""

    def __init__(self, marks: ReplayMarks) -> None:
        self._marks = marks
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._problem = ""

    def due(self) -> None:
        """A mark was accepted."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MARKS_SYNC_S, self._sync)

    async def close(self) -> None:
        """Sync what is left."""
        if self._waiting is not None:
            await asyncio.wait([self._waiting])
        self._sync()
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting is not None:
            await asyncio.wait([self._waiting])

    def _sync(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is not None:
            self.due()
            return
        try:
            wait = self._marks.sync_later()
        except OSError as error:
            self._tell(f"cannot sync the replay marks: {error.strerror}")
            self.due()
            return
        self._tell(self._marks.problem)
        if self._marks.problem:  # try again, though no handshake may come meanwhile
            self.due()
        self._waiting = asyncio.get_running_loop().run_in_executor(None, wait)
        self._waiting.add_done_callback(self._synced)

    def _synced(self, waiting: asyncio.Future[None]) -> None:
        self._waiting = None
        error = None if waiting.cancelled() else waiting.exception()
        if isinstance(error, OSError):
            self._tell(f"cannot sync the replay marks: {error.strerror}")

    def _tell(self, problem: str) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        if problem:
            log.warning(
                "replay marks are kept in memory only",
                cause=problem,
                next="make room on that disk; until then a restart forgets which handshakes were used",
            )
        else:
            log.info("replay marks are on the disk again")
