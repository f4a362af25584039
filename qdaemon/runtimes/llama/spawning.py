"""Starting a process of our own that has nothing but one socket."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process


async def spawn(module: str, theirs: socket.socket) -> Process:
    """Run ``module`` with ``theirs`` as its only open file: no environment, no input, no output, no traces.

    It is told the socket's number and our process id. llama.cpp prints rejected grammars on stderr, so that
    goes nowhere.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-B",
        "-m",
        module,
        str(theirs.fileno()),
        str(os.getpid()),
        pass_fds=[theirs.fileno()],
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        env={},
        start_new_session=True,
    )
