"""Sockets: what is there, what is taken, what a killed process left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minigate import listener as listener_module
from minigate.listener import Listener, UnixListenError
from minigate.settings import ListenSettings
from tunnel_proto.errors import ConfigError
from tunnel_proto.monitor import ListenError


@contextmanager
def _taken(host: str, port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, port))
        other.listen()
        yield other.getsockname()[1]


def _lacks(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    real = listener_module._bind

    def bind(host: str, port: int) -> socket.socket:
        if host in hosts:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(host, port)

    monkeypatch.setattr(listener_module, "_bind", bind)


async def test_both_address_families_share_a_port() -> None:
    listener = Listener()
    await listener.start(ListenSettings(port=0), asyncio.Protocol)
    for host in ("127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection(host, listener.port)
        writer.close()
    assert listener.addresses == [f"127.0.0.1:{listener.port}", f"[::1]:{listener.port}"]
    listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_port_taken_on_either_address_is_an_error_with_the_next_step(host: str) -> None:
    with _taken(host) as port:
        listener = Listener()
        with pytest.raises(ListenError) as info:
            await listener.start(ListenSettings(port=port), asyncio.Protocol)
        assert f"{host}:{port}" in info.value.message
        assert "address already in use" in info.value.message
        assert f"ss -ltnp 'sport = :{port}'" in info.value.hint
        assert listener.addresses == []


async def test_one_absent_address_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _lacks(monkeypatch, "::1")
    listener = Listener()
    await listener.start(ListenSettings(port=0), asyncio.Protocol)
    assert listener.addresses == [f"127.0.0.1:{listener.port}"]
    listener.close()


async def test_no_address_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _lacks(monkeypatch, "::1", "127.0.0.1")
    with pytest.raises(ListenError, match=r"127\.0\.0\.1 and ::1:11438"):
        await Listener().start(ListenSettings(), asyncio.Protocol)


async def test_the_unix_socket_has_its_name_and_mode_and_goes_with_us(tmp_path: Path) -> None:
    listener = Listener()
    settings = ListenSettings(hosts=("127.0.0.1",), port=0, unix_socket=tmp_path, unix_socket_mode="0770")
    await listener.start(settings, asyncio.Protocol)
    path = tmp_path / f".s.PGSQL.{listener.port}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    assert str(path) in listener.addresses
    listener.close()
    assert not path.exists()


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    with _taken("127.0.0.1") as port:
        pass
    path = tmp_path / f".s.PGSQL.{port}"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    listener = Listener()
    await listener.start(
        ListenSettings(hosts=("127.0.0.1",), port=port, unix_socket=tmp_path), asyncio.Protocol
    )
    _, writer = await asyncio.open_unix_connection(path)
    writer.close()
    listener.close()


async def test_a_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    with _taken("127.0.0.1") as port:
        pass
    path = tmp_path / f".s.PGSQL.{port}"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(os.fspath(path))
        alive.listen()
        listener = Listener()
        settings = ListenSettings(hosts=("127.0.0.1",), port=port, unix_socket=tmp_path)
        with pytest.raises(UnixListenError, match="another program does") as info:
            await listener.start(settings, asyncio.Protocol)
        assert str(path) in info.value.hint
        assert path.exists()


async def test_a_missing_folder_and_a_long_path_are_named(tmp_path: Path) -> None:
    settings = ListenSettings(hosts=("127.0.0.1",), port=0, unix_socket=tmp_path / "no")
    with pytest.raises(UnixListenError, match="no such file"):
        await Listener().start(settings, asyncio.Protocol)
    settings = ListenSettings(hosts=("127.0.0.1",), port=0, unix_socket=tmp_path / ("x" * 120))
    with pytest.raises(ConfigError, match="too long"):
        await Listener().start(settings, asyncio.Protocol)
