"""The sockets that apps connect to: loopback addresses and a unix socket, one port number for all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from minigate.settings import ListenSettings
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.monitor import ListenError

log = structlog.get_logger()

RECEIVE_BUFFER = 256 * 1024
"""Bytes the kernel holds for an app that is not being read (it doubles this for its own records).

Left to itself it grows to tens of MB while a pipelining app is held back. libpq_pipeline, which writes far
ahead in small segments, has been seen to stall then, its window updates dropped by the kernel (Linux 6.18).
"""

BACKLOG = 1024
"""Connections that may wait to be accepted: a pool that starts opens hundreds at once."""

_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_SUN_PATH_MAX = 107  # bytes of a unix socket's path on Linux

Accept = Callable[[], asyncio.Protocol]
"""What is called for each new connection."""


class Listener:
    """Everything that minigate listens on for apps; `port` is the one in use once `start` returned."""

    __slots__ = ("_servers", "_unix_identity", "port", "unix_path")

    def __init__(self) -> None:
        self.port = 0
        self.unix_path: Path | None = None
        self._servers: list[asyncio.Server] = []
        self._unix_identity: tuple[int, int] | None = None

    @property
    def addresses(self) -> list[str]:
        """Where apps can connect, as a person would write it."""
        names = [
            f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
            for server in self._servers
            for name in (sock.getsockname() for sock in server.sockets)
            if isinstance(name, tuple)
        ]
        return names + ([str(self.unix_path)] if self.unix_path is not None else [])

    async def start(self, settings: ListenSettings, accept: Accept) -> None:
        """Listen everywhere or nowhere.

        An address that the machine lacks (no IPv6, say) is a warning while there is another. Raises
        `ListenError` when the port is taken on any address, or no address is there: an app that connects to
        "localhost" must not reach somebody else's server by the other address family.
        """
        loop = asyncio.get_running_loop()
        try:
            for sock in self._bind_tcp(settings.hosts, settings.port):
                self._servers.append(await loop.create_server(accept, sock=sock, backlog=BACKLOG))
            if settings.unix_socket is not None:
                sock = self._bind_unix(settings.unix_socket, int(settings.unix_socket_mode, 8))
                self._servers.append(await loop.create_unix_server(accept, sock=sock, backlog=BACKLOG))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Accept no more; connections that were accepted stay."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self.unix_path is not None:
            # Another minigate may have put its own socket there since.
            with contextlib.suppress(OSError):
                status = self.unix_path.lstat()
                if (status.st_dev, status.st_ino) == self._unix_identity:
                    self.unix_path.unlink()
            self.unix_path = None

    def _bind_tcp(self, hosts: Sequence[str], port: int) -> list[socket.socket]:
        bound: list[socket.socket] = []
        absent: OSError | None = None
        try:
            for host in hosts:
                try:
                    sock = _bind(host, port)
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise ListenError("apps (listen.port)", host, port, error) from None
                    absent = error
                    log.warning("address is not there, apps cannot use it", host=host)
                    continue
                bound.append(sock)
                port = sock.getsockname()[1]
            if absent is not None and not bound:
                raise ListenError("apps (listen.port)", " and ".join(hosts), port, absent)
        except BaseException:
            for sock in bound:
                sock.close()
            raise
        self.port = port
        return bound

    def _bind_unix(self, directory: Path, mode: int) -> socket.socket:
        path = directory / f".s.PGSQL.{self.port}"
        if len(os.fsencode(path)) > _SUN_PATH_MAX:
            raise ConfigError(
                f"{path} is too long for a unix socket ({_SUN_PATH_MAX} bytes)",
                hint="choose a shorter listen.unix_socket",
            )
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(path))
            path.chmod(mode)
            status = path.lstat()
        except OSError as error:
            sock.close()
            raise UnixListenError(path, error) from None
        sock.setblocking(False)
        self.unix_path = path
        self._unix_identity = (status.st_dev, status.st_ino)
        return sock


class UnixListenError(MeshError):
    """The unix socket cannot be made."""

    def __init__(self, path: Path, error: OSError) -> None:
        if error.errno == errno.EADDRINUSE:
            super().__init__(
                f"cannot listen on {path}: another program does",
                hint=f"find it: ss -lxp src {path}; or choose another listen.unix_socket",
            )
        else:
            super().__init__(
                f"cannot listen on {path}: {(error.strerror or str(error)).lower()}",
                hint=f"make {path.parent} exist and writable for this user",
            )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)  # here, so that a port that somebody else listens on is found before we answer
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed process left; one that answers stays, and `bind` will say so."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return
