"""The worker process: reads jobs from the socket it was given, does them in order, writes the results.

``python -m qgate.capability.nlp.worker FD MEMORY_MIB``. It is one thread, opens no file after its start,
writes no core dump, and ends when the gate closes the socket or dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import signal
import socket
import sys
import time
from typing import Any, Final

from qgate.capability.nlp import jobs
from qgate.capability.nlp.unsuited import Unsuited

READ_SIZE: Final = 256 * 1024
FLUSH_S: Final = 0.002  # a result waits no longer than this for others of its batch
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_DUMPABLE: Final = 4

_WARMING: Final = (
    "Dr. Ellis wrote to the U.S. office on 12 March 2024. It was a good letter, and the reply came quickly. "
    "Call +44 20 7946 0958 or write to someone@example.com about it."
)


def main(arguments: list[str]) -> int:
    """Serve until the other end closes; returns the exit status."""
    channel = socket.socket(fileno=int(arguments[0]))
    channel.setblocking(True)
    _confine(int(arguments[1]) if len(arguments) > 1 else 0)
    try:
        warm()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            channel.sendall(jobs.pack([[0, jobs.FAILED, reason]]))
        return 1
    try:
        channel.sendall(jobs.pack([[0, jobs.READY, jobs.ENGINE_VERSION]]))
        serve(channel)
    except (BrokenPipeError, ConnectionError):
        pass
    return 0


def serve(channel: socket.socket) -> None:
    """Read batches and answer them, until end of file."""
    unpacker = jobs.Unpacker()
    while data := channel.recv(READ_SIZE):
        for batch in unpacker.feed(data):
            replies: list[list[Any]] = []
            since = time.monotonic()
            for number, task, options, texts in batch:
                replies.append([number, *done(task, options, texts)])
                now = time.monotonic()
                if now - since > FLUSH_S:
                    channel.sendall(jobs.pack(replies))
                    replies, since = [], now
            if replies:
                channel.sendall(jobs.pack(replies))


def done(task: str, options: dict[str, Any], texts: list[str]) -> tuple[str, Any]:
    """The outcome and value of one job. An exception is named by its class: its text may hold content."""
    try:
        return jobs.OK, jobs.perform(task, options, texts)
    except Unsuited as error:
        return jobs.UNSUITED, [error.message, error.hint]
    except Exception as error:
        return jobs.FAILED, type(error).__name__


def warm() -> None:
    """Import and load all that a task needs, so that no first request pays for it."""
    for task in sorted(jobs.TASK_NAMES):
        texts = [_WARMING, _WARMING] if task == "similarity" else [_WARMING]
        jobs.perform(task, {"labels": ["one", "two"]}, texts)
    gc.collect()
    gc.freeze()


def _confine(memory_mib: int) -> None:
    for name in (signal.SIGINT, signal.SIGHUP):  # a terminal's signals are the gate's to answer
        signal.signal(name, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mib:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
