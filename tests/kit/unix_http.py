"""An HTTP server on a unix socket, in a thread: what stands in for a gate's control API."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class UnixHandler(BaseHTTPRequestHandler):
    """One connection; what is derived from it answers."""

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def read_request(self) -> tuple[str, dict[str, str], Any]:
        """The call as "METHOD /path" (without /control/v1), its query and its JSON body."""
        url = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        return f"{self.command} {url.path.removeprefix('/control/v1')}", dict(parse_qsl(url.query)), body


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave before its answer
            super().handle_error(request, client_address)


@contextmanager
def serving_unix(path: Path, handler: type[UnixHandler]) -> Iterator[None]:
    """Serve on ``path`` until the block ends."""
    with _Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
