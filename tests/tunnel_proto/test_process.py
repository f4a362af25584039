"""Signals, systemd, descriptors: what the operating system and a daemon tell each other."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.process import ExitCode, Notifier, Signals, attended, raise_open_files, run


async def test_first_signal_drains_and_the_second_forces() -> None:
    signals = Signals()
    loop = asyncio.get_running_loop()
    signals.install(loop)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(signals.drain.wait(), 60)
        assert not signals.stop_now.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(signals.stop_now.wait(), 60)
    finally:
        signals.uninstall(loop)


async def test_hang_up_reloads_and_tells_systemd(tmp_path: Path) -> None:
    heard, address = _notify_socket(tmp_path)
    signals = Signals()
    reloaded = asyncio.Event()

    async def reload() -> None:
        reloaded.set()

    loop = asyncio.get_running_loop()
    signals.install(loop)
    task = asyncio.create_task(signals.reload_on_request(reload, Notifier(address)))
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(reloaded.wait(), 60)
        assert (await loop.sock_recv(heard, 1024)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert await loop.sock_recv(heard, 1024) == b"READY=1"
    finally:
        task.cancel()
        signals.uninstall(loop)
        heard.close()


async def test_a_reload_that_is_refused_ends_nothing() -> None:
    signals, tried = Signals(), asyncio.Event()

    async def reload() -> None:
        tried.set()
        raise ConfigError("no such port", hint="write another")

    async with attended(signals, Notifier(), reload):
        for _ in range(2):
            signals.reload.set()
            await asyncio.wait_for(tried.wait(), 30)
            tried.clear()


async def test_a_drain_ends_at_once_when_forced() -> None:
    signals = Signals()
    ended = asyncio.Event()

    async def drain() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(signals.wait_or_stop_now(drain()))
    signals.request_stop()
    signals.request_stop()
    await asyncio.wait_for(waiting, 60)
    assert ended.is_set()


async def test_a_drain_that_fails_says_so() -> None:
    async def drain() -> None:
        raise MeshError("no")

    with pytest.raises(MeshError):
        await Signals().wait_or_stop_now(drain())


async def test_the_watchdog_is_fed_while_healthy(tmp_path: Path) -> None:
    heard, address = _notify_socket(tmp_path)
    notifier = Notifier.from_environment(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "7"}, 7
    )
    assert notifier.watchdog_s == 0.02
    task = asyncio.create_task(notifier.keep_watchdog())
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.sock_recv(heard, 100), 60) == b"WATCHDOG=1"
    assert await asyncio.wait_for(loop.sock_recv(heard, 100), 60) == b"WATCHDOG=1"
    task.cancel()
    heard.close()


def test_a_watchdog_meant_for_another_process_is_ignored() -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "8"}, 7).watchdog_s == 0
    Notifier().ready("nobody listens")  # and without systemd nothing happens
    Notifier("/nonexistent/socket").ready()


def test_open_files_are_raised_and_checked() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        assert raise_open_files(100) >= 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 100
        with pytest.raises(ConfigError) as caught:
            raise_open_files(1 << 40)
        assert "LimitNOFILE=" in caught.value.hint
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_errors_become_exit_codes_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    async def misconfigured() -> int:
        raise ConfigError("key.pem has mode 0644", hint="chmod 600 key.pem")

    async def unlucky() -> int:
        raise MeshError("the moon is wrong")

    async def fine() -> int:
        return ExitCode.OK

    assert run("qgate", misconfigured) == ExitCode.CONFIG
    assert capsys.readouterr().err == "qgate: key.pem has mode 0644\nqgate: next: chmod 600 key.pem\n"
    assert run("qgate", unlucky) == ExitCode.FAILED
    assert run("qgate", fine) == ExitCode.OK


def _notify_socket(folder: Path) -> tuple[socket.socket, str]:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = str(folder / "notify")
    heard.bind(address)
    heard.setblocking(False)
    return heard, address


CRASHING = """
import ctypes, os, resource
from tunnel_proto.process import forbid_core_dumps
_, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
os.abort()
"""


def test_a_crash_leaves_no_core_dump(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("(0, 0) 0\n", -signal.SIGABRT)
    assert not list(tmp_path.iterdir())
