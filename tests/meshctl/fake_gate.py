"""A control API on a unix socket that answers from a table and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit


@dataclass
class FakeGate:
    """``answers`` maps "METHOD /path" (without /control/v1) to (status, body); text goes out as it is.

    ``guard`` is asked first, with the call, its headers and its body; what it returns is the answer.
    """

    socket: Path
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    guard: Callable[[str, dict[str, str], Any], tuple[int, Any] | None] | None = None

    def answer(self, call: str, body: Any, status: int = 200) -> None:
        self.answers[call] = (status, body)

    def problem(self, call: str, status: int, detail: str, following: str = "", code: str = "") -> None:
        self.answers[call] = (status, {"title": "no", "detail": detail, "code": code, "next": following})

    def body_of(self, call: str) -> Any:
        """The body of the last request to ``call``."""
        return next(body for name, _, body in reversed(self.asked) if name == call)

    def query_of(self, call: str) -> dict[str, str]:
        """The query of the last request to ``call``."""
        return next(query for name, query, _ in reversed(self.asked) if name == call)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave before its answer
            super().handle_error(request, client_address)


@contextmanager
def serving(path: Path) -> Iterator[FakeGate]:
    """Serve on ``path`` until the block ends."""
    fake = FakeGate(path)

    class Handler(BaseHTTPRequestHandler):
        gate: ClassVar[FakeGate] = fake

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def _reply(self) -> None:
            url = urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            call = f"{self.command} {url.path.removeprefix('/control/v1')}"
            self.gate.asked.append((call, dict(parse_qsl(url.query)), body))
            guard = self.gate.guard
            first = guard(call, dict(self.headers), body) if guard is not None else None
            status, answer = first or self.gate.answers.get(
                call, (404, {"detail": f"{call} is not there", "next": ""})
            )
            text = answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _reply  # noqa: N815 - http.server's names

    with _UnixServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def refuse_connections(path: Path) -> None:
    """Leave a socket file behind that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
