"""A daemon's contract with its operating system: signals, systemd, file descriptors, exit codes.

SIGTERM, SIGINT   drain: take no new work, let what runs finish, exit 0
the same again    stop now: cut what still runs, exit 0
SIGHUP            read configuration and certificates again
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import enum
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.memory import keep_trimmed

log = structlog.get_logger()

_PR_SET_DUMPABLE: Final = 4


class ExitCode(enum.IntEnum):
    """What a daemon's exit status tells; the numbers above 2 are those of sysexits.h."""

    OK = 0
    FAILED = 1  # a defect, or something that no other code names
    USAGE = 2  # the command line is wrong
    UNAVAILABLE = 69  # a port is taken, or the store stayed unreachable for the whole patience
    SOFTWARE = 70  # the event loop or a task of ours died
    CONFIG = 78  # a file (TOML, key, certificate, bundle) cannot be used as it is


class UnavailableError(MeshError):
    """Something outside this program that it cannot start without: a free port, a store that answers."""


def print_error(program: str, error: MeshError) -> None:
    """Say on standard error, in one line each, what is wrong and what to do next."""
    sys.stderr.write(f"{program}: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"{program}: next: {error.hint}\n")
    sys.stderr.flush()


# --- file descriptors ---------------------------------------------------------------------------------------


def raise_open_files(needed: int) -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    Raises `ConfigError` where the hard limit is below ``needed``: a daemon that will run out of descriptors
    at its busiest hour should not start quietly.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    target = hard if hard != unlimited else max(soft, needed, 1 << 20)
    if soft not in {target, unlimited}:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != unlimited and soft < needed:
        raise ConfigError(
            f"only {soft} open files are allowed, {needed} are needed",
            hint=f"LimitNOFILE={needed} in the systemd unit, or ulimit -Hn {needed} before the start",
        )
    return soft if soft != unlimited else target


# --- core dumps ---------------------------------------------------------------------------------------------


def forbid_core_dumps() -> None:
    """Leave no core dump if this process crashes: its memory holds what clients said.

    A limit of zero keeps the kernel from writing a file; not being dumpable (prctl(2)) keeps it from piping
    one to a collector too, and other processes of the same user from reading this one's memory.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


# --- systemd ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Notifier:
    """systemd's notification socket (sd_notify(3)); without an address every call does nothing."""

    address: str = ""
    watchdog_s: float = 0.0  # how often systemd wants to hear from us; 0: never

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """Read what systemd put there (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID); for `__main__` only."""
        watchdog = environment.get("WATCHDOG_USEC", "")
        meant_for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        seconds = int(watchdog) / 1e6 if watchdog.isdigit() and meant_for_us else 0.0
        return cls(environment.get("NOTIFY_SOCKET", ""), seconds)

    def ready(self, status: str = "") -> None:
        self._send("READY=1", f"STATUS={status}" if status else "")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", f"STATUS={status}" if status else "")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def extend(self, seconds: float) -> None:
        """Ask for more time before systemd gives a start or a stop up."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    async def keep_watchdog(self, healthy: Callable[[], bool] = lambda: True) -> None:
        """Tell the watchdog, at half its period, that this loop still turns; end only by cancellation."""
        if not self.watchdog_s:
            return
        while True:
            if healthy():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(address)
            notify.sendall("\n".join(line for line in lines if line).encode())


# --- signals ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Signals:
    """What the operator asks of this process, as events that a program awaits."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    stop_now: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    def uninstall(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)

    def request_stop(self) -> None:
        """First call: drain. Second call: stop now."""
        if self.drain.is_set():
            self.stop_now.set()
        self.drain.set()

    async def reload_on_request(self, reload: Callable[[], Awaitable[None]], notifier: Notifier) -> None:
        """Call ``reload`` for each SIGHUP, one at a time; end only by cancellation."""
        while True:
            await self.reload.wait()
            self.reload.clear()
            notifier.reloading()
            try:
                await reload()
            finally:
                notifier.ready()

    async def wait_or_stop_now(self, work: Awaitable[None]) -> None:
        """Await ``work`` (a drain), but cancel it as soon as a second signal asks to stop now."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self.stop_now.wait())
        try:
            await asyncio.wait({task, forced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forced.cancel()
            if not task.done():
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def attended(
    signals: Signals, notifier: Notifier, reload: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Obey SIGHUP and keep the watchdog fed while the body runs.

    A ``reload`` that raises a `MeshError` is refused in the log; the program goes on as before.
    """

    async def reload_or_refuse() -> None:
        try:
            await reload()
        except MeshError as error:
            log.error("reload refused, going on as before", cause=error.message, next=error.hint or None)

    tasks = [
        asyncio.create_task(signals.reload_on_request(reload_or_refuse, notifier)),
        asyncio.create_task(notifier.keep_watchdog()),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(program: str, main: Callable[[], Awaitable[int]]) -> int:
    """Run a daemon's ``main`` on uvloop and return its exit code; a `MeshError` is printed, not traced.

    No core dump is left whatever happens.
    """
    import uvloop

    forbid_core_dumps()

    async def call() -> int:
        trimming = asyncio.create_task(keep_trimmed())
        try:
            return await main()
        finally:
            trimming.cancel()
            await asyncio.gather(trimming, return_exceptions=True)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(call())
    except ConfigError as error:
        print_error(program, error)
        return ExitCode.CONFIG
    except UnavailableError as error:
        print_error(program, error)
        return ExitCode.UNAVAILABLE
    except MeshError as error:
        print_error(program, error)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
