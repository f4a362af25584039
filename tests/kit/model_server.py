"""A model API of `tests.qgate.model_api` in a thread of its own, for tests that do not await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.qgate.model_api import ModelApi


@contextmanager
def running_apis(*apis: ModelApi) -> Iterator[None]:
    """Serve them until the end of ``with``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="model APIs", daemon=True)
    thread.start()

    async def begin() -> None:
        for api in apis:
            await api.__aenter__()

    async def end() -> None:
        for api in apis:
            await api.__aexit__(None, None, None)

    asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
