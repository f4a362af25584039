"""The OpenAI-compatible surface as meshctl uses it: that of a gate, at its control socket or over a context,
or any URL with a key.

Over a context a question goes on to the next pool until one has begun to answer: asked twice it costs twice
and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meshctl.dialling import http_over
from meshctl.errors import CommandError, ExitCode, UnreachableError, UsageError, exit_code_of

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

    from meshctl.client import Gate

PATIENCE_S: Final = 3660.0
"""Longest silence that is waited through: the longest deadline a request may have, and a minute."""
LINE_MAX: Final = 64 * 1024 * 1024
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"


class AskError(CommandError):
    """The surface answered with an error; ``status`` is its HTTP status, ``kind`` its code."""

    def __init__(self, message: str, *, status: int, kind: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.kind = kind
        self.code = ExitCode.REFUSED if status == 402 else exit_code_of(status)


@dataclass(frozen=True, slots=True)
class Surface:
    """Where to ask: a ``gate``, or a ``url`` (up to and with /v1) and an API key."""

    gate: Gate | None = None
    url: str = ""
    key: str = ""

    def whole(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST JSON to ``path`` under /v1; the answer's object. Raises AskError and UnreachableError."""
        with self._exchange(path, body) as response:
            return _object(response.read())

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """POST JSON with a streamed answer; its chunks as they come. Closing the iterator cancels it.

        Raises AskError, also in the middle, where the answer ends with an error or with no end at all.
        """
        with self._exchange(path, {**body, "stream": True}) as response:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                yield _object(response.read())
                return
            while line := response.readline(LINE_MAX):
                if not line.startswith(_DATA):
                    continue
                data = line[len(_DATA) :].strip()
                if data == _DONE:
                    return
                event = _object(data)
                if "error" in event:
                    raise _error(200, event)
                yield event
        raise AskError("The answer broke off before its end.", status=502, hint="ask again")

    @contextlib.contextmanager
    def _exchange(self, path: str, body: Mapping[str, Any]) -> Iterator[HTTPResponse]:
        payload = json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if self.gate is not None:
            connection, response = self._asked_over(self.gate, payload, headers, path)
        else:
            connection, prefix = self._connection()
        try:
            if self.gate is None:
                connection.request("POST", prefix + path, body=payload, headers=headers)
                response = connection.getresponse()
            if response.status != 200:
                raise _error(response.status, _object(response.read(), strict=False))
            yield response
        except TimeoutError as error:
            raise UnreachableError(
                f"{self._name} said nothing for an hour.", hint="meshctl doctor"
            ) from error
        except OSError as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise AskError(f"The answer of {self._name} is not JSON: {error}", status=502) from error
        except _http_errors() as error:
            raise AskError(f"{self._name} does not speak HTTP: {error!r}", status=502) from error
        finally:
            connection.close()

    def _asked_over(
        self, gate: Gate, payload: bytes, headers: Mapping[str, str], path: str
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Ask a gate's places in turn, until one begins to answer. UnreachableError, GateError."""
        dialler = gate.dialler
        others, renewed = dialler.places - 1, False
        while True:
            place = dialler.place()
            connection = http_over(dialler, place, PATIENCE_S)
            try:
                own = dialler.headers(place)
                connection.request("POST", f"/v1{path}", body=payload, headers={**headers, **own})
                response = connection.getresponse()
                if response.status != HTTPStatus.UNAUTHORIZED or renewed or not dialler.renew(place):
                    return connection, response
                renewed = True
                connection.close()
            except (OSError, _http_errors()) as broken:
                connection.close()
                error = broken if isinstance(broken, OSError) else ConnectionResetError(str(broken))
                if others <= 0 or not (now := dialler.leave(place, error)):
                    raise dialler.explain(place, error, PATIENCE_S) from broken
                others, renewed = others - 1, False
                gate.moved(place, now)
            except BaseException:
                connection.close()
                raise

    def _connection(self) -> tuple[HTTPConnection, str]:
        """To the URL, and the path before every other."""
        from http.client import HTTPConnection, HTTPSConnection
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"--url: {error}", hint="--url http://localhost:11438/v1") from error
        if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
            raise UsageError(
                f'--url: "{self.url}" is no URL of an API.', hint="--url http://localhost:11438/v1"
            )
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(host, port, timeout=PATIENCE_S), parts.path.rstrip("/") or "/v1"

    @property
    def _name(self) -> str:
        if self.gate is None:
            return self.url
        return f"the pool {self.gate.place}" if self.gate.place else f"the gate at {self.gate.socket_path}"

    def _unreachable(self, error: OSError) -> CommandError:
        if self.gate is not None:
            return UnreachableError(f"{self._name} broke off: {error}", hint="ask again")
        return UnreachableError(
            f"{self.url} does not answer: {error.strerror or error}",
            hint="is a sidecar listening there? meshctl sidecar list",
        )


def _http_errors() -> type[Exception]:
    from http.client import HTTPException

    return HTTPException


def _object(data: bytes, *, strict: bool = True) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        if strict:
            raise
        found = {}
    if not isinstance(found, dict):
        if strict:
            raise ValueError("an object was expected")
        found = {}
    return found


def _error(status: int, body: Mapping[str, Any]) -> AskError:
    """The error of an OpenAI-shaped body, or of a problem; any other body still gives a useful one."""
    error = body.get("error")
    if isinstance(body.get("detail"), str):  # the gate's door answers before anything of OpenAI's does
        error = {"message": body["detail"], "code": body.get("code"), "hint": body.get("next")}
    if not isinstance(error, Mapping):
        error = {"message": error} if isinstance(error, str) else {}
    message = str(error.get("message") or f"The answer was HTTP {status}.")
    code = str(error.get("code") or "")
    if status == 200:
        status = _STATUS.get(code, 500)
    hint = str(error.get("hint") or "")
    if hint:
        message = message.removesuffix(f" ({hint})")  # SDKs show nothing but the message, so it has both
    return AskError(message, status=status, kind=code, hint=hint or _HINTS.get(status, ""))


_STATUS: Final = {"budget_exceeded": 402, "rate_limit_exceeded": 429, "context_length_exceeded": 400}
"""Codes of errors in mid-stream, where no HTTP status says whose fault it is."""
_HINTS: Final = {
    401: "--key-file FILE with a key of: meshctl app key create APP",
    403: "meshctl app show APP shows what the app may ask for",
    404: "meshctl model list shows the names",
    402: "meshctl budget list",
    429: "wait, then ask again",
    503: "meshctl route explain shows why nothing can take it",
}
