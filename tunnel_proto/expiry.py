"""A node's certificate that nears its end: said at once, and daily from then on."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from tunnel_proto.certificate import nears_expiry, read_chain

log = structlog.get_logger()

LOOK_S: Final = 86_400.0


class ExpiryWatch:
    """Logs when a node's certificate wants to be renewed; ``renew`` is what to do about it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, renew: str) -> None:
        self._loop = loop
        self._renew = renew
        self._chain = b""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, chain: bytes) -> None:
        """Look at this chain's certificate now and from now on, in place of an earlier one."""
        self._chain = chain
        self._look()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.close()
        _, node = read_chain(self._chain)
        now = time.time()
        if nears_expiry(node.not_before, node.not_after, now):
            log.warning(
                "this node's certificate expires soon"
                if node.not_after > now
                else "this node's certificate has expired",
                days_left=int((node.not_after - now) // 86_400),
                next=self._renew,
            )
        self._timer = self._loop.call_later(LOOK_S, self._look)
