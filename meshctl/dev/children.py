"""The daemons of a dev stack as child processes: started, watched, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshctl.errors import CommandError

POLL_S = 0.02
LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 12
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(slots=True)
class Child:
    """One running daemon and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def require_alive(self) -> None:
        """Raise CommandError with the end of its log when it is gone."""
        code = self.process.poll()
        if code is None:
            return
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"stopped with exit code {code}"
        raise CommandError(f"{self.name} {how}. Its last words:\n{tail(self.log)}", hint=f"less {self.log}")

    def end(self, signum: signal.Signals) -> None:
        """Send a signal to the daemon (SIGKILL: to its whole group)."""
        with contextlib.suppress(ProcessLookupError):
            if signum is signal.SIGKILL:
                os.killpg(self.pid, signum)
            else:
                self.process.send_signal(signum)


def start(name: str, arguments: Sequence[str], *, log: Path) -> Child:
    """Start ``python -m name`` with this interpreter in a process group of its own.

    Its output is appended to ``log``. Should meshctl be killed, the kernel sends the child SIGTERM.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def follow_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=follow_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one thread here
        )
    return Child(name, process, log)


def wait_for(
    ready: Callable[[], bool], *, what: str, timeout: float, children: Sequence[Child], poll: float = POLL_S
) -> None:
    """Wait until ``ready()``. Raises CommandError when a child ends first or ``timeout`` seconds pass."""
    deadline = time.monotonic() + timeout
    while not ready():
        for child in children:
            child.require_alive()
        if time.monotonic() > deadline:
            raise CommandError(
                f"{what} took longer than {timeout:.0f} s. The end of {children[-1].log.name}:\n"
                + tail(children[-1].log),
                hint=f"less {children[-1].log}; where the machine was busy, try again: it goes on from there",
            )
        time.sleep(poll)


def wait_gone(child: Child, *, timeout: float, hurry: Callable[[], bool]) -> bool:
    """Wait until a child ended; False when ``timeout`` seconds pass or ``hurry()`` says to give up."""
    deadline = time.monotonic() + timeout
    while child.alive:
        if time.monotonic() > deadline or hurry():
            return False
        time.sleep(POLL_S)
    return True


def end_process(pid: int, *, module: str, timeout: float) -> bool:
    """End a daemon that an earlier, killed supervisor left behind; False where ``pid`` is none (any more).

    A process id may have been given to another program since, so its command line must name ``module``.
    """
    if not runs_module(pid, module):
        return False
    deadline = time.monotonic() + timeout
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)
        while runs_module(pid, module) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not runs_module(pid, module):
            break
        deadline = time.monotonic() + timeout
    return True


def runs_module(pid: int, module: str) -> bool:
    """Whether process ``pid`` is alive (no zombie) and was started as ``python -m module``."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-m" in words and module.encode() in words


def end_postmaster(data_directory: Path) -> None:
    """Stop a PostgreSQL whose gate was killed, by its own postmaster.pid (PostgreSQL manual, 66.1)."""
    try:
        lines = (data_directory / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return
    if b"postgres" not in command:
        return
    for signum in (signal.SIGINT, signal.SIGQUIT):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)
        deadline = time.monotonic() + 3
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not Path(f"/proc/{pid}").exists():
            return


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return "\n".join("  " + line for line in lines[-LOG_TAIL_LINES:]) or "  (nothing)"
