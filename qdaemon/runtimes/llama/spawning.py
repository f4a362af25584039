"""Starting a process of our own that has nothing but one socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from typing import Final

_ENVIRONMENT: Final = {
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All that such a process finds in its environment: the C library overwrites memory as it is freed, Python's
objects included, so that a client's words do not linger in the heap; and numpy starts no threads."""


class Spawned:
    """A process that was started. `wait` is to be called in the end."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is known to have ended."""
        return self._process.returncode is not None

    def kill(self) -> None:
        """End it, if it has not ended.

        By its descriptor: Popen's own kill would first collect a process that asyncio waits for.
        """
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def spawn(module: str, theirs: socket.socket) -> Spawned:
    """Run ``module`` with ``theirs`` as its only open file: no environment, no input, no output, no traces.

    It is told the socket's number and our process id. llama.cpp prints rejected grammars on stderr, so that
    goes nowhere.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-s",
        "-P",
        "-B",
        "-m",
        module,
        str(theirs.fileno()),
        str(os.getpid()),
        pass_fds=[theirs.fileno()],
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    return Spawned(process)
