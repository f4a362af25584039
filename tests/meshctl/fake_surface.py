"""An OpenAI-compatible surface on a unix socket or a TCP port, whose answers a test writes line by line."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar


@dataclass
class FakeSurface:
    """Answers every request with ``status`` and ``body``; ``events`` are sent as a stream where it is asked.

    ``hold``: after the events keep the connection until the client closes it, then set ``left``.
    """

    address: str = ""
    status: int = 200
    body: Any = None
    events: list[Any] = field(default_factory=list)
    hold: bool = False
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


@contextmanager
def surfacing(path: Path | None) -> Iterator[FakeSurface]:
    """Serve on the unix socket ``path``, or on a free port of loopback."""
    fake = FakeSurface()

    class Handler(BaseHTTPRequestHandler):
        surface: ClassVar[FakeSurface] = fake

        def address_string(self) -> str:
            return "client"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            asked = json.loads(self.rfile.read(size))
            self.surface.asked.append((self.path, dict(self.headers), asked))
            if asked.get("stream") and self.surface.status == 200:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for event in self.surface.events:
                    text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
                    self.wfile.write(text.encode())
                    self.wfile.flush()
                if self.surface.hold and not self.rfile.read(1):
                    self.surface.left.set()
                return
            body = self.surface.body
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(self.surface.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    server: socketserver.BaseServer
    if path is not None:
        server = _UnixServer(str(path), Handler)
    else:
        server = _TcpServer(("127.0.0.1", 0), Handler)
        fake.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
