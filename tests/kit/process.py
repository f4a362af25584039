"""Child processes of the tests: started, measured through /proc, and stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class NotReadyError(RuntimeError):
    """A program did not reach the state it was waited for; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU a set of processes has used so far."""

    user_s: float
    system_s: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.user_s - earlier.user_s, self.system_s - earlier.system_s)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of `host` that was free a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Say whether something accepts TCP connections at the address."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, every_s: float = 0.02) -> None:
    """Return once `condition()` holds; `NotReadyError` naming `what` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise NotReadyError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


class Program:
    """One child process in a session of its own, its output in a log file."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.log = log

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
    ) -> Program:
        """Start `argv`; its stdout and stderr are appended to `log`. `user` needs root."""
        with log.open("ab") as sink:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                user=user,
                group="nogroup" if user == "nobody" else None,
                extra_groups=[] if user else None,
                start_new_session=True,
            )
        return cls(process, name, log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_ready(
        self, condition: Callable[[], bool], *, timeout_s: float = 60.0, what: str = "ready"
    ) -> None:
        """Wait until `condition()`; fails at once, with the log, when the program ends first."""

        def ready_or_dead() -> bool:
            if self.process.poll() is not None:
                raise NotReadyError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            return condition()

        try:
            wait_until(ready_or_dead, timeout_s=timeout_s, what=f"{self.name} {what}")
        except NotReadyError as error:
            raise NotReadyError(f"{error}\n{self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL this process alone and reap it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(timeout=10)

    def stop(self, *, timeout_s: float = 10.0, sig: int = signal.SIGTERM) -> int:
        """Ask the process to end, kill its whole session if it does not; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(timeout=10)
        return self.process.returncode


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command name, or None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def descendants(pid: int) -> Iterator[int]:
    """Yield `pid` and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(children.get(current, ()))


def cpu(pids: Sequence[int]) -> Cpu:
    """Return the CPU used so far by these processes (all threads, not their children)."""
    user = system = 0
    for pid in pids:
        if (fields := _stat(pid)) is not None:
            user += int(fields[11])
            system += int(fields[12])
    return Cpu(user / _TICKS_PER_SECOND, system / _TICKS_PER_SECOND)


def rss(pid: int) -> int:
    """Return the resident memory of one process in bytes (0 when it is gone)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0
