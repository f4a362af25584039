"""Keeps a gate's `Directory` true to the store: notifications, reconnects, and times that pass by
themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from qgate.governance.directory import Directory
from qgate.store import Listener, Store, StoreUnavailableError
from qgate.store.snapshot import read_snapshot
from qgate.vault import Vault

CHANNEL = "qgate_directory"

# A notification lost with a half-open connection must not leave a revoked app welcome for long.
_CHECK_EVERY_S = 10.0
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 5.0

log = structlog.get_logger(__name__)


class DirectoryWatch:
    """Reads snapshots into `directory` whenever the store changes, for as long as `run` runs.

    While the store is away the directory keeps serving what it has; `fresh` says whether it is being kept
    up to date. `clock` gives unix time in seconds; apps and passwords that expire are announced to the
    directory's subscribers at their time, although nothing in the store changes then.
    """

    def __init__(
        self, directory: Directory, store: Store, vault: Vault, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.directory = directory
        self.fresh = False
        self._store = store
        self._vault = vault
        self._clock = clock
        self._stir = asyncio.Event()
        self._reading = asyncio.Lock()
        self._told: float = clock()

    async def refresh(self) -> None:
        """Read the store now. StoreUnavailableError where it is away."""
        async with self._reading:
            snapshot = await read_snapshot(self._store)
            boxes = [*snapshot.secrets.values(), *(box for row in snapshot.passwords.values() for box in row)]
            boxes += [one.sealed_key for one in snapshot.providers.values() if one.sealed_key is not None]
            self._vault.settle(frozenset(self._vault.key_of(box) for box in boxes))
            self.directory.replace(snapshot)

    def look(self) -> None:
        """Look at the clock and the store now rather than at the next turn."""
        self._stir.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        wait = _RETRY_FIRST_S
        while True:
            try:
                self._stir.clear()
                listener = await self._store.listen(CHANNEL, self._heard, lost=self._stir.set)
                try:
                    await self.refresh()
                    self._note(fresh=True)
                    wait = _RETRY_FIRST_S
                    await self._follow(listener)
                finally:
                    await listener.close()
            except StoreUnavailableError as error:
                self._note(fresh=False, reason=error.message)
            await self._pause(wait)
            wait = min(2 * wait, _RETRY_MOST_S)

    async def _follow(self, listener: Listener) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_wake()):
                    await self._stir.wait()
            stirred = self._stir.is_set()
            self._stir.clear()
            self._tell_expired()
            await listener.check()
            if stirred:
                await self.refresh()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, still announcing what expires meanwhile."""
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, self._next_wake()))
            self._tell_expired()

    def _heard(self, _table: str) -> None:
        self.look()

    def _next_wake(self) -> float:
        now = self._clock()
        ahead = (at - now for at, _ in self._expiries() if at > self._told)
        return max(0.0, min((*ahead, _CHECK_EVERY_S)))

    def _tell_expired(self) -> None:
        now = self._clock()
        passed = frozenset(name for at, name in self._expiries() if self._told < at <= now)
        self._told = now
        if passed:
            self.directory.announce(passed)

    def _expiries(self) -> list[tuple[float, str]]:
        found = []
        snapshot = self.directory.snapshot
        for app in (*snapshot.apps.values(), *snapshot.guests.values()):
            if app.expires_at is not None:
                found.append((app.expires_at, f"app:{app.name}"))
            found += [(until, f"app:{app.name}") for _, until in app.verifiers if until is not None]
        for key in (*snapshot.keys.values(), *snapshot.guest_list.keys.values()):
            if key.valid_until is not None:
                found.append((key.valid_until, f"key:{key.app}"))
        return found

    def _note(self, *, fresh: bool, reason: str = "") -> None:
        if fresh != self.fresh:
            self.fresh = fresh
            if fresh:
                log.info("directory is up to date", apps=len(self.directory.snapshot.apps))
            else:
                log.warning("store is away; serving the last known directory", reason=reason)
