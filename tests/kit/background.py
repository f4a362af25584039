"""A chaos proxy in a thread of its own, for tests that do not await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kit.proxy import Proxy, Tap


@contextmanager
def running_proxy(tap: Tap | None = None, *, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """Run a proxy at `host` without a target yet; set `target` before anything connects."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = Proxy(("127.0.0.1", 0), listen=(host, 0), tap=tap)
    asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def on_loop(proxy: Proxy, fault: Callable[[], None]) -> None:
    """Play a fault of a proxy that runs in the background, and wait until it has been played."""

    async def play() -> None:
        fault()

    asyncio.run_coroutine_threadsafe(play(), proxy.loop).result(10)
