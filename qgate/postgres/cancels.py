"""Cancel requests on their way: whose key asks for what, and the courier that carries it to the server.

A cancel stops whatever a server process does when it arrives. So it is sent only while that is still what
was meant, and until the server has taken it nothing new is sent for the process to do.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from qgate.postgres.back import send_cancel
from qgate.postgres.slots import Slots
from tunnel_proto.pgwire import PostgresError

if TYPE_CHECKING:
    from qgate.postgres.session import FrontSession

CANCEL_TIMEOUT_S: Final = 10.0
MAX_CANCELS: Final = 64
"""Cancels on their way at one time; more wait, and give up after the timeout."""


class Cancels:
    """The cancel keys of a gate's sessions, and the couriers under way."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[int, bytes], FrontSession] = {}
        self._couriers = Slots("cancel requests", MAX_CANCELS, queue=1000)

    def register(self, pid: int, session: FrontSession) -> None:
        """Let ``session`` be cancelled by its key."""
        self._by_key[pid, session.cancel_key] = session

    def forget(self, pid: int, session: FrontSession) -> None:
        """Its key opens nothing any more."""
        self._by_key.pop((pid, session.cancel_key), None)

    def target(self, pid: object, key: object, sidecar: str) -> FrontSession | None:
        """Whom a request means. Only the sidecar that the session came through may ask, however the key
        became known.
        """
        if not isinstance(pid, int) or not isinstance(key, bytes):
            return None
        found = self._by_key.get((pid, key))
        if found is None or found.sidecar != sidecar or not hmac.compare_digest(found.cancel_key, key):
            return None
        return found

    async def send(self, session: FrontSession, still: Callable[[], bool]) -> None:
        """Cancel what ``session`` runs if ``still`` says so when all is ready; waits until it was taken."""
        lease = session.lease
        if lease is None:
            return
        held = False

        def go() -> bool:
            nonlocal held
            held = not lease.over and still()
            if held:
                session.hold()
            return held

        try:
            await self._couriers.take(CANCEL_TIMEOUT_S)
        except PostgresError:
            return
        try:
            await send_cancel(lease.upstream, CANCEL_TIMEOUT_S, go)
        finally:
            self._couriers.give()
            if held:
                session.unhold()
