"""The loopback port of a daemon: Prometheus metrics, health, readiness, and a status document.

    GET /metrics   text or OpenMetrics, by the Accept header
    GET /healthz   200 while the event loop turns
    GET /readyz    200 once the program can do its work, else 503 with what is missing
    GET /status    JSON, where the program offers one

A handful of lines of HTTP/1.1 instead of a server framework, because a minigate has none installed. It binds
to loopback only, answers only requests whose Host is loopback too (a page in somebody's browser cannot read
it by DNS rebinding), and takes no request body.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tunnel_proto.errors import ConfigError
from tunnel_proto.process import UnavailableError

MAX_REQUEST_BYTES = 8192
"""Request line and headers together; ours: a scraper's are below 1 KiB."""

REQUEST_TIMEOUT_S = 5.0
"""How long a client may take to send its request."""

MAX_CONNECTIONS = 32
"""Connections served at once; more are closed unanswered, so that a local loop cannot exhaust descriptors."""


@dataclass(slots=True)
class Monitor:
    """Serves metrics and health from the running event loop.

    ``problems`` returns what keeps the program from being ready, by part ("store": "unreachable"); an empty
    mapping means ready. ``status`` returns a JSON document.
    """

    registry: CollectorRegistry
    problems: Callable[[], Mapping[str, str]]
    status: Callable[[], Mapping[str, Any]] | None = None
    port: int = 0  # where it listens, once started
    _server: asyncio.Server | None = None
    _open: int = 0

    async def start(self, host: str, port: int) -> None:
        """Listen on ``host`` (a loopback address); port 0 takes any free one, found in `port` afterwards."""
        if not is_loopback(host):
            raise ConfigError(
                f"metrics.host is {host}, which is not a loopback address",
                hint="use 127.0.0.1 or ::1, and let an agent on this machine carry the metrics away",
            )
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise ListenError("metrics", host, port, error) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(request))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, request: bytes) -> bytes:
        head, *lines = request.decode("latin-1").split("\r\n")
        method, _, rest = head.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        if not _is_local_name(headers.get("host", "")):
            return _response(421, "text/plain", b"this port answers to its loopback address only\n")
        if method not in {"GET", "HEAD"}:
            return _response(405, "text/plain", b"GET only\n")
        status, kind, body = self._page(path, headers.get("accept", ""))
        return _response(status, kind, body, head_only=method == "HEAD")

    def _page(self, path: str, accept: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            encode, kind = choose_encoder(accept)
            return 200, kind, encode(self.registry)
        if path == "/healthz":
            return 200, "application/json", _json({"status": "ok"})
        if path == "/readyz":
            problems = dict(self.problems())
            state = {"status": "not ready" if problems else "ready", "problems": problems}
            return 503 if problems else 200, "application/json", _json(state)
        if path == "/status" and self.status is not None:
            return 200, "application/json", _json(self.status())
        return 404, "text/plain", b"here are /metrics, /healthz and /readyz\n"


class ListenError(UnavailableError):
    """A program cannot listen where its settings say."""

    def __init__(self, what: str, host: str, port: int, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(
            f"cannot listen on {host}:{port} for {what}: {reason}",
            hint=f"find who holds it: ss -ltnp 'sport = :{port}'; or choose another port for {what}",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_local_name(host: str) -> bool:
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return not host or is_loopback(name)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, default=str).encode() + b"\n"


def _response(status: int, kind: str, body: bytes, *, head_only: bool = False) -> bytes:
    reasons = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 421: "Misdirected Request"}
    head = (
        f"HTTP/1.1 {status} {reasons.get(status, 'Service Unavailable')}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)
