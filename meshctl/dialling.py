"""Where a gate's control API is reached: what a `meshctl.client.Gate` needs of its way there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from meshctl.errors import UnreachableError

if TYPE_CHECKING:
    from http.client import HTTPConnection

SUN_PATH_MAX = 107  # bytes that fit sockaddr_un.sun_path beside its NUL (unix(7))


class Dialler(Protocol):
    """Where a gate's control API is reached. ``place`` names one of several; it is "" for the local gate."""

    @property
    def path(self) -> Path:
        """The socket, or where it would be: what lies beside it belongs to the same gate or context."""

    @property
    def places(self) -> int:
        """How many places there are to try."""

    def place(self) -> str:
        """Where calls go now."""

    def check(self, place: str, method: str) -> None:
        """Refuse what must not be done at this place, by RefusedError."""

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        """A connection that speaks HTTP. Raises OSError."""

    def headers(self, place: str) -> Mapping[str, str]:
        """What every request there carries. Raises OSError, GateError."""

    def renew(self, place: str) -> bool:
        """After a 401: whether the request is worth repeating with other headers."""

    def leave(self, place: str, error: OSError) -> str:
        """Give a place up; where calls go now, "" where there is nowhere else."""

    def explain(self, place: str, error: OSError, timeout: float | None) -> UnreachableError:
        """Say in a person's words why nobody answers."""


class OnePlace:
    """What is the same for whoever knows one place and needs no log-in there; ``path`` as in `Dialler`."""

    places = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self) -> str:
        return ""

    def check(self, place: str, method: str) -> None:
        del place, method

    def headers(self, place: str) -> Mapping[str, str]:
        del place
        return {}

    def renew(self, place: str) -> bool:
        del place
        return False

    def leave(self, place: str, error: OSError) -> str:
        del place, error
        return ""


class UnixDialler(OnePlace):
    """The gate behind one unix socket; its owner and root need nothing else to be let in."""

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        del place
        return connect_unix(self.path, timeout)

    def explain(self, place: str, error: OSError, timeout: float | None) -> UnreachableError:
        del place
        if isinstance(error, TimeoutError) and timeout is not None:
            return UnreachableError(
                f"The gate at {self.path} did not answer within {timeout:.0f} s.", hint="meshctl doctor"
            )
        return unreachable(self.path, error)


def http_over(dialler: Dialler, place: str, timeout: float | None) -> HTTPConnection:
    """An HTTP connection to a place, which is dialled with the first request; ``timeout`` in seconds."""
    from http.client import HTTPConnection

    class Dialled(HTTPConnection):
        def connect(self) -> None:
            self.sock = dialler.dial(place, timeout)

    return Dialled("localhost", timeout=timeout)


def connect_unix(path: Path, timeout: float | None) -> socket.socket:
    """Connect to a stream socket, also where its path is longer than sockaddr_un holds. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        if len(os.fsencode(path)) <= SUN_PATH_MAX:
            sock.connect(str(path))
        else:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                sock.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
    except OSError:
        sock.close()
        raise
    return sock


def unreachable(path: Path, error: OSError) -> UnreachableError:
    """Say in a person's words why the socket could not be used."""
    if isinstance(error, FileNotFoundError):
        settings = path.with_name("qgate.toml")
        own = f"qgate --config {settings if os.path.isfile(settings) else 'FILE'}"
        return UnreachableError(
            f"No gate is running: {path} does not exist.",
            hint=f"start it (meshctl dev, or: {own})",
        )
    if isinstance(error, PermissionError):
        return UnreachableError(
            f"{path} may be used by the gate's own user and by root only.",
            hint="sudo -u qgate meshctl ..., or as an admin: --context NAME",
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(
            f"{path} is there but nobody listens on it: the gate stopped without cleaning up.",
            hint="start the gate again; it replaces the socket",
        )
    return UnreachableError(f"The gate at {path} does not answer: {error}", hint="meshctl doctor")
