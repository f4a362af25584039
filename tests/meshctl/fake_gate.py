"""A control API on a unix socket that answers from a table and remembers what it was asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.kit.unix_http import UnixHandler, serving_unix


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


@contextmanager
def serving(path: Path) -> Iterator[FakeGate]:
    """Serve on ``path`` until the block ends."""
    fake = FakeGate(path)

    class Handler(UnixHandler):
        gate: ClassVar[FakeGate] = fake

        def _reply(self) -> None:
            call, query, body = self.read_request()
            self.gate.asked.append((call, query, body))
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

    with serving_unix(path, Handler):
        yield fake


def refuse_connections(path: Path) -> None:
    """Leave a socket file behind that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
