"""A gate for the control room's tests: answers from a table, and a live feed that tests write to."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.unix_http import UnixHandler, serving_unix

Answer = Callable[[Mapping[str, str], Any], tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    call: str
    query: Mapping[str, str]
    body: Any
    headers: Mapping[str, str]


@dataclass
class RoomGate:
    """``answers`` maps "METHOD /path" to a status and a body, or to a function of query and body."""

    socket: Path
    live: bool = True
    answers: dict[str, tuple[int, Any] | Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    streams: list[queue.Queue[str | None]] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)

    def answer(self, call: str, body: Any, status: int = 200) -> None:
        """What a call is answered with from now on."""
        self.answers[call] = (status, body)

    def problem(self, call: str, status: int, detail: str, following: str = "", code: str = "") -> None:
        """A problem document."""
        self.answers[call] = (status, {"detail": detail, "code": code, "next": following})

    def tell(self, topic: str, data: Any) -> None:
        """Send news to every stream that is open."""
        for stream in tuple(self.streams):
            stream.put(f"id: 1\nevent: {topic}\ndata: {json.dumps(data)}\n\n")

    def cut(self) -> None:
        """End every stream."""
        for stream in tuple(self.streams):
            stream.put(None)

    def calls(self, method: str = "") -> list[Asked]:
        """What was asked, without what every screen asks."""
        return [one for one in self.asked if one.call.startswith(method)]

    def last(self, call: str) -> Asked:
        """The last request of this kind."""
        return next(one for one in reversed(self.asked) if one.call == call)


@contextmanager
def serving(path: Path) -> Iterator[RoomGate]:
    """Serve on ``path`` until the block ends."""
    fake = RoomGate(path)
    fake.answers |= DEFAULTS

    class Handler(UnixHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            call, query, body = self.read_request()
            fake.asked.append(Asked(call, query, body, dict(self.headers)))
            self.close_connection = True
            if call == "GET /live" and fake.live:
                self._stream(query.get("topics", ""))
                return
            found = fake.answers.get(call, (404, {"detail": f"{call} is not there", "code": "not-found"}))
            status, answer = found(query, body) if callable(found) else found
            self._send(status, "" if answer is None else json.dumps(answer))

        def _send(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, topics: str) -> None:
            news: queue.Queue[str | None] = queue.Queue()
            fake.topics.append(topics)
            fake.streams.append(news)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                self.wfile.write(b": qgate\n\n")
                while (text := news.get()) is not None:
                    self.wfile.write(text.encode())
            except OSError:
                pass
            finally:
                fake.streams.remove(news)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _reply  # noqa: N815 - http.server's names

    with serving_unix(path, Handler):
        try:
            yield fake
        finally:
            fake.cut()


def worker(name: str, **changes: Any) -> dict[str, Any]:
    """A worker as the control API shows it."""
    return {
        "name": name,
        "state": "present",
        "connected": True,
        "fingerprint": "ab:cd",
        "expires_at": "2027-01-01T00:00:00+00:00",
        "address": "10.0.0.7:40112",
        "version": "0.1.0",
        "seen_at": 1_790_000_000.0,
        "draining": False,
        "jobs_running": 1,
        "jobs_queued": 0,
        "slots": 4,
        "model_count": 2,
        "resident": ["qwen3-8b"],
        "loading": [],
        "load": {
            "cpu": 0.25,
            "load_1m": 1.5,
            "memory_available": 8 << 30,
            "swap_used": 0,
            "gpus": [{"utilisation": 0.4, "vram_used": 6 << 30, "temperature": 61, "power": 120}],
        },
        "hardware": {
            "cpu": "EPYC 7402P",
            "threads": 48,
            "memory": 64 << 30,
            "memory_bandwidth": 190e9,
            "gpus": [{"index": 0, "name": "RTX 4090", "vram": 24 << 30}],
        },
        **changes,
    }


def overview(**changes: Any) -> dict[str, Any]:
    """The overview as the control API shows it."""
    series = {
        name: [float(n % 7) for n in range(60)]
        for name in (
            *("requests_s", "queries_s", "tokens_s", "errors_s"),
            *("running", "waiting", "connections", "sessions"),
        )
    }
    return {
        "pool": {"name": "hq", "kind": "pool", "named": True},
        "gate": {"name": "gate-1", "version": "0.1.0", "state": "serving", "uptime_s": 7260},
        "gates": [{"name": "gate-1", "seen_at": time.time(), "serving": True}],
        "workers": {
            "total": 3,
            "serving": 2,
            "draining": 1,
            "away": 0,
            "jobs_running": 2,
            "jobs_queued": 1,
            "slots": 8,
            "vram": 48 << 30,
            "vram_used": 12 << 30,
            "memory": 64 << 30,
            "memory_available": 32 << 30,
        },
        "sessions": {"connected": 2, "total": 2, "connections": 5, "streams": 7},
        "peers": {"total": 2, "up": 1},
        "requests_s": 3.2,
        "queries_s": 41.0,
        "tokens_s": 12_500.0,
        "errors_s": 0.0,
        "running": 2,
        "waiting": 1,
        "cost_today": [{"currency": "EUR", "amount": "1.25"}],
        "burn_down": [
            {"id": "research", "hard": "100", "soft": "80", "currency": "EUR", "spent": "85", "used": 0.85}
        ],
        "incidents": {"open": 1, "acknowledged": 0},
        "certificates": [{"name": "node.cert", "expires_at": time.time() + 86_400, "expiring": True}],
        "problems": {},
        "store": "",
        "series": series,
        **changes,
    }


def incident(number: int, **changes: Any) -> dict[str, Any]:
    """An incident as the control API shows it."""
    return {
        "id": number,
        "state": "open",
        "severity": "critical",
        "kind": "target_dead",
        "subject": "lyon",
        "seen": 3,
        "opened_at": 1_790_000_000.0,
        "seen_at": 1_790_000_100.0,
        "escalated_at": None,
        "answered_by": None,
        "note": "",
        **changes,
    }


def setting(name: str, value: Any, kind: str, **changes: Any) -> dict[str, Any]:
    """A setting of the registry as the control API shows it."""
    return {
        "name": name,
        "type": kind,
        "default": value,
        "value": value,
        "source": "default",
        "description": f"What {name} does.",
        "restart_needed": False,
        "minimum": None,
        "maximum": None,
        "choices": [],
        "version": 0,
        "changed_by": None,
        "changed_at": None,
        **changes,
    }


def listed(*items: Mapping[str, Any]) -> tuple[int, Any]:
    """A whole list."""
    return 200, {"items": list(items), "next": None, "total": len(items)}


DEFAULTS: Mapping[str, tuple[int, Any]] = {
    "GET /session": (
        200,
        {"name": "alice", "role": "owner", "pool": "", "kind": "session", "read_only": False},
    ),
    "GET /overview": (200, overview()),
    "GET /incidents": listed(incident(7)),
    "GET /workers": listed(worker("gpu-1"), worker("gpu-2", state="away", connected=False), worker("old-3")),
    "GET /workers/gpu-1": (200, worker("gpu-1", models=[], runtimes=[])),
    "GET /settings": listed(
        setting("audit.retention_days", 90, "int", minimum=1, maximum=3650),
        setting("failover.mode", "auto", "str", choices=["auto", "manual"]),
        setting("nlp.mask", True, "bool"),
        {"name": "listen.port", "type": "int", "value": 7443, "default": 7443, "source": "default"},
    ),
    "GET /failover": (200, {"pool": "hq", "mode": "auto", "targets": [], "nodes": [], "guests_from": []}),
    "GET /failover/history": listed(),
    "GET /settings/history": listed(),
    "GET /audit": listed(),
}
