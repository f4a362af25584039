"""The one way from meshctl to a gate: HTTP over the gate's unix socket."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshctl.errors import CommandError, GateError, UnreachableError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

API = "/control/v1"
SYSTEM_GATE = Path("/var/lib/qgate")
DEV_STATE = Path(".mesh")
SOCKET_NAME = "admin.sock"
SUN_PATH_MAX = 107  # bytes that fit sockaddr_un.sun_path beside its NUL (unix(7))
CALL_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 360.0
UPLOAD_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer: HTTP status and the decoded body (None where there is none)."""

    status: int
    body: Any


class Gate:
    """A gate's control API. One connection a call: the socket is local and calls are rare."""

    def __init__(self, socket_path: Path, *, timeout: float = CALL_TIMEOUT_S) -> None:
        self.socket_path = socket_path
        self.timeout = timeout

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        """GET ``/control/v1`` + ``path``; returns the decoded body. Raises like `call`."""
        return self.call("GET", path, query=query).body

    def items(self, path: str, query: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """GET a list; returns its items."""
        body = self.get(path, query)
        items = body.get("items", []) if isinstance(body, dict) else body
        return list(items or [])

    def post(self, path: str, body: object = None, *, timeout: float | None = None) -> Any:
        """POST JSON; returns the decoded body. Raises like `call`."""
        return self.call("POST", path, body=body, timeout=timeout).body

    def put(self, path: str, body: object) -> Any:
        """PUT JSON; returns the decoded body. Raises like `call`."""
        return self.call("PUT", path, body=body).body

    def delete(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        """DELETE; returns the decoded body, None for 204. Raises like `call`."""
        return self.call("DELETE", path, query=query).body

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """One request and its whole answer.

        Raises UnreachableError when nobody answers on the socket and GateError when the gate answers
        with an error; the latter carries the gate's own next step.
        """
        with self._exchange(method, path, body, query, timeout or self.timeout) as response:
            return Reply(response.status, _decoded(response.read()))

    def send_file(
        self,
        path: str,
        file: Path,
        query: Mapping[str, object] | None = None,
        *,
        sent: Callable[[int], None] = lambda _count: None,
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> Any:
        """PUT a file as it is; returns the decoded body. ``sent`` hears of each piece's size in bytes.

        ``timeout`` is the longest silence of the gate. Raises like `call`, and CommandError where the file
        cannot be read.
        """
        from urllib.parse import urlencode

        target = f"{API}{path}?{urlencode({k: _query_text(v) for k, v in (query or {}).items() if v})}"
        try:
            source = file.open("rb")
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from None
        connection = self._connection(timeout)
        with source, contextlib.closing(connection):
            size = os.fstat(source.fileno()).st_size
            try:
                connection.putrequest("PUT", target)
                connection.putheader("Content-Type", "application/octet-stream")
                connection.putheader("Content-Length", str(size))
                connection.endheaders()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # an early answer: read it
                    while piece := source.read(UPLOAD_PIECE):
                        connection.send(piece)
                        sent(len(piece))
                response = connection.getresponse()
                data = response.read()
            except OSError as error:
                raise unreachable(self.socket_path, error) from error
            if response.status >= 400:
                raise problem(response.status, data)
            return _decoded(data)

    def upload(
        self,
        path: str,
        file: Path,
        query: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """PUT a file's bytes as they are; returns the decoded body. Raises like `call`, OSError for the file.

        ``timeout`` bounds each pause of the exchange, not the whole of it.
        """
        with file.open("rb") as source, self._exchange("PUT", path, source, query, timeout) as response:
            return _decoded(response.read())

    def lines(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[dict[str, Any]]:
        """GET newline-delimited JSON as it arrives; ends when the gate ends it. Raises like `call`."""
        with self._exchange("GET", path, None, query, None) as response:
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)

    def pieces(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[bytes]:
        """GET bytes as they arrive. Raises like `call`, and CommandError where they end before their end."""
        from http.client import IncompleteRead

        with self._exchange("GET", path, None, query, None) as response:
            try:
                while piece := response.read(UPLOAD_PIECE):
                    yield piece
            except IncompleteRead:
                raise CommandError("The gate ended its answer in the middle.", hint="try again") from None

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, object] | None,
        timeout: float | None,
    ) -> Iterator[HTTPResponse]:
        from urllib.parse import urlencode

        target = path if path.startswith(("/healthz", "/readyz")) else API + path
        kept = {k: _query_text(v) for k, v in (query or {}).items() if v is not None}
        if kept:
            target += "?" + urlencode(kept)
        headers = {"Accept": "application/json"}
        payload: Any = None
        if isinstance(body, io.BufferedIOBase):
            payload = body
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Length"] = str(os.fstat(body.fileno()).st_size)
        elif body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = self._connection(timeout)
        try:
            try:
                connection.request(method, target, body=payload, headers=headers)
                response = connection.getresponse()
                if response.status >= 400:
                    raise problem(response.status, response.read())
            except TimeoutError as error:
                raise UnreachableError(
                    f"The gate at {self.socket_path} did not answer within {timeout:.0f} s.",
                    hint="meshctl doctor",
                ) from error
            except OSError as error:
                raise unreachable(self.socket_path, error) from error
            yield response
        except ValueError as error:
            raise GateError(f"The gate's answer is not JSON: {error}", status=502) from error
        finally:
            connection.close()

    def _connection(self, timeout: float | None) -> HTTPConnection:
        from http.client import HTTPConnection

        socket_path = self.socket_path

        class UnixConnection(HTTPConnection):
            def connect(self) -> None:
                self.sock = connect_unix(socket_path, self.timeout)

        return UnixConnection("localhost", timeout=timeout)


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


def find_socket(gate_dir: Path | None, socket_path: Path | None, *, here: Path) -> Path:
    """The admin socket to use: what was named, else the dev stack in ``here``, else the system's gate.

    A directory may be a gate's own or a dev stack's state directory. Raises UnreachableError when nothing
    was named and nothing is there.
    """
    if socket_path is not None:
        return socket_path
    if gate_dir is not None:
        return socket_of(gate_dir)
    for candidate in (here / DEV_STATE, SYSTEM_GATE):
        if (found := socket_of(candidate)).exists():
            return found
    raise UnreachableError(
        f"No gate is running here: neither {DEV_STATE}/ nor {SYSTEM_GATE} has an admin socket.",
        hint="meshctl dev   (or name one: --gate-dir DIR, --socket PATH)",
    )


def socket_of(directory: Path) -> Path:
    """Where the gate of ``directory`` listens for meshctl, from its qgate.toml where that says so."""
    gate = directory / "gate" if (directory / "gate").is_dir() else directory
    with contextlib.suppress(OSError, ValueError):
        import tomllib

        configured = tomllib.loads((gate / "qgate.toml").read_text()).get("control", {}).get("socket")
        if isinstance(configured, str) and configured:
            return gate / configured
    return gate / SOCKET_NAME


def problem(status: int, body: bytes) -> GateError:
    """The error that an application/problem+json body describes; any other body still gives a useful one."""
    try:
        document = json.loads(body)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    detail = str(document.get("detail") or document.get("title") or f"The gate answered HTTP {status}.")
    return GateError(
        detail,
        status=status,
        problem=str(document.get("code") or ""),
        hint=str(document.get("next") or ""),
    )


def unreachable(path: Path, error: OSError) -> UnreachableError:
    """Say in a person's words why the socket could not be used."""
    if isinstance(error, FileNotFoundError):
        settings = path.with_name("qgate.toml")
        own = f"qgate --config {settings if settings.is_file() else 'FILE'}"
        return UnreachableError(
            f"No gate is running: {path} does not exist.",
            hint=f"start it (meshctl dev, or: {own})",
        )
    if isinstance(error, PermissionError):
        return UnreachableError(
            f"{path} may be used by the gate's own user and by root only.", hint="sudo -u qgate meshctl ..."
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(
            f"{path} is there but nobody listens on it: the gate stopped without cleaning up.",
            hint="start the gate again; it replaces the socket",
        )
    return UnreachableError(f"The gate at {path} does not answer: {error}", hint="meshctl doctor")


def _decoded(body: bytes) -> Any:
    return json.loads(body) if body.strip() else None


def _query_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
