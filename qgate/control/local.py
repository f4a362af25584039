"""The control API's unix socket: made with mode 0600, and asking the kernel who is on the other end.

The file's mode already keeps other users out; SO_PEERCRED (unix(7)) says so again for a socket that somebody
has opened up by mistake, and names the administrator for the audit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tunnel_proto.errors import ConfigError, MeshError

SUN_PATH_MAX = 107
"""Bytes of path that fit `sockaddr_un.sun_path` beside its NUL (unix(7))."""

_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_BACKLOG = 64
_STOP_PATIENCE_S = 2.0


class LocalServer:
    """Serves an ASGI application on a unix socket, to this user and to root.

    Requests carry the peer as their client address: host "uid=<uid>", port the peer's process id.
    """

    def __init__(self, application: Callable[..., Any], path: Path) -> None:
        self.path = path
        self._config = uvicorn.Config(
            application, http=HttpToolsProtocol, ws="none", lifespan="off", log_config=None, access_log=False
        )
        self._state = ServerState()
        self._server: asyncio.AbstractServer | None = None
        self._inode = 0

    async def start(self) -> None:
        """Bind and listen. Raises `ConfigError` where the path is unusable, `MeshError` where a live gate
        already listens there; a socket left behind by a killed gate is replaced.
        """
        self._config.load()
        listener = bind_private(self.path)
        self._inode = self.path.stat().st_ino
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._protocol, sock=listener, backlog=_BACKLOG)

    async def close(self) -> None:
        """Stop listening, let requests in progress end for a moment, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        if tasks := tuple(self._state.tasks):
            await asyncio.wait(tasks, timeout=_STOP_PATIENCE_S)
        for task in tuple(self._state.tasks):
            task.cancel()
        self._server = None
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:  # not the socket of a gate that has replaced us
                self.path.unlink()

    def _protocol(self) -> asyncio.Protocol:
        return _OwnerOnlyProtocol(config=self._config, server_state=self._state, app_state={})


class _OwnerOnlyProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        pid, uid = peer_of(transport)
        if uid not in {0, os.geteuid()}:
            structlog.get_logger().warning("control connection refused", uid=uid, pid=pid)
            transport.abort()
            return
        self.client = (f"uid={uid}", pid)


def peer_of(transport: asyncio.Transport) -> tuple[int, int]:
    """Process id and user id of the process at the other end of a unix socket."""
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as handle:
        packed = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, _ = _PEER_CREDENTIALS.unpack(packed)
    return pid, uid


def bind_private(path: Path) -> socket.socket:
    """Bind a unix socket that nobody but its owner may open, from its first moment on."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with _short(path) as short:
            listener.bind(short)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot make the control socket {path}: {(error.strerror or str(error)).lower()}",
            hint=f"check that {path.parent} exists and belongs to this user",
        ) from None
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} exists and is not a socket", hint="choose another control.socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, _short(path) as short:
        probe.setblocking(False)
        try:
            probe.connect(short)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # its backlog is full: somebody lives there
            pass
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error}", hint=f"ls -l {path}") from None
    raise MeshError(
        f"a gate already listens on {path}",
        hint=f"meshctl status --socket {path}; stop it, or choose another",
    )


@contextlib.contextmanager
def _short(path: Path) -> Any:
    """``path`` in a form that fits `sun_path`, through /proc where it is too long."""
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
