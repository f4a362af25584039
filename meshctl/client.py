"""The one way from meshctl to a gate: HTTP over whatever a dialler connects.

A dialler knows one or more places where the control API answers: the gate's unix socket, or the pools of a
context (`meshctl.admin_session`). When a place cannot be reached, or goes away before it has answered a GET,
the same request goes to the next. A change carries an ``Idempotency-Key``: where its answer was cut off it
goes out again with the same key, to whichever gate of the same pool answers, and is done once. It never goes
to another pool after it may have been carried out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from meshctl.dialling import Dialler, UnixDialler, http_over
from meshctl.errors import CommandError, GateError, UnreachableError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

API = "/control/v1"
SYSTEM_GATE = Path("/var/lib/qgate")
DEV_STATE = Path(".mesh")
SOCKET_NAME = "admin.sock"
CALL_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 360.0
UPLOAD_PIECE = 1 << 20
DIRECTORY: Final = "name the gate's own directory, where its qgate.toml lies, or a dev stack's"
SAFE: Final = frozenset({"GET", "HEAD"})
"""Methods that may be repeated when nobody knows how far the first attempt came (RFC 9110, 9.2.1)."""

KEY: Final = "Idempotency-Key"
KEY_BYTES: Final = 16
KEYED_MAX: Final = 1 << 20
"""Longest body, in bytes, that a gate takes under a key; a longer one goes without."""

REPEAT_S: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0)
"""Pauses before a change is sent again whose answer was cut off: a gate that restarts is back by then."""

RUNNING_S: Final = 1.0
"""How often it is asked for again while the first one still runs."""

T = TypeVar("T")
Send: TypeAlias = "Callable[[HTTPConnection, Mapping[str, str]], HTTPResponse]"


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer: HTTP status and the decoded body (None where there is none)."""

    status: int
    body: Any


class Gate:
    """A gate's control API. One connection a call: the socket is local, or a stream of a tunnel that is up.

    ``moved`` hears of each change of place: the one given up and the one that calls go to from then on.
    ``pause`` waits so many seconds. Calls may come from several threads.
    """

    def __init__(self, way: Path | Dialler, *, timeout: float = CALL_TIMEOUT_S) -> None:
        self.dialler: Dialler = UnixDialler(way) if isinstance(way, Path) else way
        self.timeout = timeout
        self.moved: Callable[[str, str], None] = lambda _left, _now: None
        self.pause: Callable[[float], None] = time.sleep

    @property
    def socket_path(self) -> Path:
        """As the dialler's ``path``."""
        return self.dialler.path

    @property
    def place(self) -> str:
        """The pool that calls go to now; "" for the local gate."""
        return self.dialler.place()

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
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request and its whole answer.

        Raises UnreachableError when nobody answers and GateError when the gate answers with an error; the
        latter carries the gate's own next step.
        """
        key = secrets.token_urlsafe(KEY_BYTES) if _may_have_key(method, path) else ""
        send = _request(method, path, body, query, headers, key=key)
        limit = timeout or self.timeout
        try:
            connection, (status, data) = self._open(method, send, limit, _read, keyed=bool(key))
        except GateError as error:
            if error.problem == "not-found":
                error.hint = self._near(path, error.hint)
            if error.problem != "keys-unavailable":
                raise
            # Nothing was done: the gate cannot remember keys now, which is no reason to do nothing.
            send = _request(method, path, body, query, headers)
            connection, (status, data) = self._open(method, send, limit, _read)
        connection.close()
        return Reply(status, _json(data))

    def _near(self, path: str, hint: str) -> str:
        """``hint`` with the nearest name before it, where ``path`` asks for one that a list lacks."""
        from meshctl.near_names import COMPARED_MAX, asked_for, suggestion

        if (wanted := asked_for(path)) is None:
            return hint
        place, name = wanted
        with contextlib.suppress(CommandError):
            rows = self.items(place, {"limit": COMPARED_MAX})
            return suggestion(name, (str(row.get("name")) for row in rows), hint)
        return hint

    def send_file(
        self,
        path: str,
        file: Path,
        query: Mapping[str, object] | None = None,
        *,
        sent: Callable[[int], None] = lambda _count: None,
        timeout: float = UPLOAD_TIMEOUT_S,
        offset: int | None = None,
    ) -> Any:
        """PUT a file as it is; returns the decoded body. ``sent`` hears of each piece's size in bytes.

        With an ``offset`` its rest from there goes, as Content-Range says.

        ``timeout`` is the longest silence of the gate. Raises like `call`, and CommandError where the file
        cannot be read.
        """
        from urllib.parse import urlencode

        target = f"{API}{path}?{urlencode({k: _query_text(v) for k, v in (query or {}).items() if v})}"
        try:
            source = file.open("rb")
        except OSError as error:
            raise CommandError(
                f"{file} cannot be read: {(error.strerror or str(error)).lower()}.",
                hint="name a file that you may read",
            ) from None
        with source:
            size = os.fstat(source.fileno()).st_size
            first = offset or 0
            told = f"{first}-{size - 1}" if first < size else "*"

            def send(connection: HTTPConnection, headers: Mapping[str, str]) -> HTTPResponse:
                source.seek(first)
                connection.putrequest("PUT", target)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.putheader("Content-Type", "application/octet-stream")
                connection.putheader("Content-Length", str(size - first))
                if offset is not None:
                    connection.putheader("Content-Range", f"bytes {told}/{size}")
                connection.endheaders()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # an early answer: read it
                    while piece := source.read(UPLOAD_PIECE):
                        connection.send(piece)
                        sent(len(piece))
                return connection.getresponse()

            connection, (_, data) = self._open("PUT", send, timeout, _read)
        connection.close()
        return _json(data)

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
        with file.open("rb") as source:
            connection, (_, data) = self._open("PUT", _request("PUT", path, source, query), timeout, _read)
        connection.close()
        return _json(data)

    def lines(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[dict[str, Any]]:
        """GET newline-delimited JSON as it arrives; ends when the gate ends it. Raises like `call`."""
        with self._stream(path, query) as response:
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)

    def pieces(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[bytes]:
        """GET bytes as they arrive. Raises like `call`, and CommandError where they end before their end."""
        from http.client import IncompleteRead

        with self._stream(path, query) as response:
            try:
                while piece := response.read(UPLOAD_PIECE):
                    yield piece
            except IncompleteRead:
                raise CommandError("The gate ended its answer in the middle.", hint="try again") from None

    @contextlib.contextmanager
    def listening(
        self, path: str, query: Mapping[str, object] | None = None, *, silence_s: float | None = None
    ) -> Iterator[Listening]:
        """GET server-sent events, line by line, at one place to their end. Raises like `call`; ``silence_s``
        is the longest that nothing may come.
        """
        with self._stream(path, query, silence_s, {"Accept": "text/event-stream"}) as response:
            stream = Listening(response)
            try:
                yield stream
            finally:
                stream.release()

    @contextlib.contextmanager
    def _stream(
        self,
        path: str,
        query: Mapping[str, object] | None,
        silence_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        """An answer that is read as it comes, at one place to its end."""
        send = _request("GET", path, None, query, headers)
        connection, response = self._open("GET", send, silence_s, lambda got: got)
        place = self.place
        try:
            yield response
        except OSError as error:
            raise self.dialler.explain(place, error, None) from error
        except ValueError as error:
            raise GateError(
                f"The gate's answer is not JSON: {error}",
                status=502,
                hint="is the gate older than this meshctl? meshctl --version, meshctl status",
            ) from error
        finally:
            connection.close()

    def _open(
        self,
        method: str,
        send: Send,
        timeout: float | None,
        read: Callable[[HTTPResponse], T],
        *,
        keyed: bool = False,
    ) -> tuple[HTTPConnection, T]:
        """Send a request and ``read`` what came, at the first place that answers.

        ``keyed``: it has a key, so it may go out again where its answer was cut off.
        """
        from http.client import IncompleteRead

        others = self.dialler.places - 1
        renewed = False
        again = _Again(REPEAT_S if keyed else (), timeout or self.timeout)
        while True:
            place = again.place if again.cut else self.dialler.place()
            self.dialler.check(place, method)
            sent = False
            connection = http_over(self.dialler, place, timeout)
            try:
                headers = {"Accept": "application/json", **self.dialler.headers(place)}
                connection.connect()
                sent = True
                response = send(connection, headers)
                if response.status < 400:
                    return connection, read(response)
                refusal = problem(response.status, response.read())
                connection.close()
                if again.cut and refusal.problem == "in-progress" and again.still_runs():
                    self.pause(RUNNING_S)
                    continue
                if response.status != 401 or renewed:
                    raise refusal
                renewed = True
                sent = False  # it was refused, so it was not carried out
                if not self.dialler.renew(place):
                    raise refusal
            except (OSError, IncompleteRead) as broken:
                connection.close()
                error = broken if isinstance(broken, OSError) else ConnectionResetError(str(broken))
                # A gate that is only slow is no reason to ask another: a dead link ends otherwise.
                slow = sent and isinstance(error, TimeoutError)
                if (again.cut or (sent and keyed)) and not slow:
                    again.cut_at(place)
                    if (seconds := again.next_pause()) is not None:
                        self.pause(seconds)
                        continue
                elsewhere = not again.cut and (not sent or (method in SAFE and not slow))
                if elsewhere and others > 0 and (now := self.dialler.leave(place, error)):
                    others -= 1
                    renewed = False
                    self.moved(place, now)
                    continue
                if again.cut or (place and sent and method not in SAFE):
                    raise UnreachableError(
                        f"{f'The pool {place}' if place else 'The gate'} went away before it answered; "
                        "whether the change was made there is not known.",
                        hint="look before you repeat it",
                    ) from error
                raise self.dialler.explain(place, error, timeout) from error
            except BaseException:
                connection.close()
                raise


def _request(
    method: str,
    path: str,
    body: object,
    query: Mapping[str, object] | None,
    extra: Mapping[str, str] | None = None,
    *,
    key: str = "",
) -> Send:
    """What sends one request over a connection, as often as it has to be sent; always under one key."""
    from urllib.parse import urlencode

    target = path if path.startswith(("/healthz", "/readyz")) else API + path
    kept = {k: _query_text(v) for k, v in (query or {}).items() if v is not None}
    if kept:
        target += "?" + urlencode(kept)
    file = body if isinstance(body, io.BufferedIOBase) else None
    payload: Any = file
    own: dict[str, str] = dict(extra or {})
    if file is not None:
        own["Content-Type"] = "application/octet-stream"
        own["Content-Length"] = str(os.fstat(file.fileno()).st_size)
    elif body is not None:
        payload = json.dumps(body).encode()
        own["Content-Type"] = "application/json"
    if key and (payload is None or len(payload) <= KEYED_MAX):
        own[KEY] = key

    def send(connection: HTTPConnection, headers: Mapping[str, str]) -> HTTPResponse:
        if file is not None:
            file.seek(0)
        connection.request(method, target, body=payload, headers={**headers, **own})
        return connection.getresponse()

    return send


def as_seen(version: object) -> dict[str, str] | None:
    """The header with which a change is refused where what was seen is another one by now; a gate that tells
    no version (None) is not asked for it.
    """
    return None if version is None else {"If-Match": f'"{version}"'}


def _may_have_key(method: str, path: str) -> bool:
    """Whether gates remember keys of this request: of all changes but log-in and log-out."""
    return method not in SAFE and path.partition("?")[0].split("/")[1:2] != ["session"]


class _Again:
    """How a change whose answer was cut off is sent again: where, and how often."""

    def __init__(self, pauses: Iterable[float], longest_s: float) -> None:
        self._pauses = iter(pauses)
        self._asked_for_s = longest_s
        self.cut = False
        self.place = ""

    def cut_at(self, place: str) -> None:
        """It may have been carried out there, and goes nowhere else from now on."""
        if not self.cut:
            self.cut, self.place = True, place

    def next_pause(self) -> float | None:
        """Seconds until the next attempt, None after the last."""
        return next(self._pauses, None)

    def still_runs(self) -> bool:
        """Whether the first one, that still runs, is worth another wait."""
        self._asked_for_s -= RUNNING_S
        return self._asked_for_s > 0


def _read(response: HTTPResponse) -> tuple[int, bytes]:
    return response.status, response.read()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body.strip() else None
    except ValueError as error:
        raise GateError(
            f"The gate's answer is not JSON: {error}",
            status=502,
            hint="is the gate older than this meshctl? meshctl --version, meshctl status",
        ) from error


class Listening:
    """The lines of an answer that goes on; `end` may be called by any thread."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self._socket = socket.socket(fileno=os.dup(response.fileno()))

    def __iter__(self) -> Iterator[bytes]:
        while line := self._response.readline():
            yield line

    def end(self) -> None:
        """Have whoever waits for the next line find the end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give back what `end` needs."""
        self._socket.close()


def find_socket(gate_dir: Path | None, socket_path: Path | None, *, here: Path) -> Path:
    """The admin socket to use: what was named, else the dev stack in ``here``, else the system's gate.

    A directory may be a gate's own or a dev stack's state directory. Raises UnreachableError when nothing
    was named and nothing is there.
    """
    if socket_path is not None:
        return socket_path
    if gate_dir is not None:
        with contextlib.suppress(PermissionError):  # the socket says more of that
            try:
                os.listdir(gate_dir)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise UnreachableError(f"{gate_dir}: {error.strerror}.", hint=DIRECTORY) from None
        return socket_of(gate_dir)
    closed = ""
    for candidate in (here / DEV_STATE, SYSTEM_GATE):
        if os.path.exists(found := socket_of(candidate)):  # Path.exists raises where it may not look
            return found
        if candidate.is_dir() and not os.access(candidate, os.X_OK, effective_ids=True):
            closed = closed or str(candidate)
    if closed:
        raise UnreachableError(
            f"The gate in {closed} is another user's.",
            hint=f"sudo -u $(stat -c %U {closed}) meshctl ..., or as an admin: meshctl login",
        )
    raise UnreachableError(
        f"No gate is running here: neither {DEV_STATE}/ nor {SYSTEM_GATE} has an admin socket.",
        hint="meshctl dev   (or name one: --gate-dir DIR, --socket PATH)",
    )


def socket_of(directory: Path) -> Path:
    """Where the gate of ``directory`` listens for meshctl, from its qgate.toml where that says so."""
    gate = directory / "gate" if os.path.isdir(directory / "gate") else directory
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


def _query_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
