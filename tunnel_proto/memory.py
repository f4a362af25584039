"""Memory of a long-running daemon: given back to the system after a burst, and not searched for nothing.

After large results glibc raises its own trim threshold to tens of MiB and keeps what was freed, and a daemon
with thousands of idle connections looks as if each held more than it does. `malloc_trim(3)` hands the free
pages back. It is called when the resident size has grown since the last time, so an idle daemon does nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from pathlib import Path
from typing import Final

TRIM_EVERY_S: Final = 10.0
GROWTH: Final = 4 * 1024 * 1024
"""Bytes of growth since the last trim that make another worth its milliseconds."""

YOUNG: Final = 10_000
"""Objects made, less those freed, between two searches for garbage in cycles; Python's own 700 means one for
every three or four requests, each through all that is under way: a sixth of a gate's time under load."""

_STATM: Final = Path("/proc/self/statm")


def resident() -> int:
    """Resident bytes of this process; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def settle() -> None:
    """Call once when a daemon is ready: what start-up made stays to the end and is never searched again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


async def keep_trimmed(every_s: float = TRIM_EVERY_S) -> None:
    """Trim until cancelled; returns at once where the C library has no `malloc_trim`."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    after = resident()
    while True:
        await asyncio.sleep(every_s)
        if resident() > after + GROWTH:
            await asyncio.to_thread(trim, 0)  # ctypes releases the GIL: the loop goes on meanwhile
            after = resident()
