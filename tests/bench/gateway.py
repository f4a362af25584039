"""What a gateway adds: chat completions against a mock upstream, direct and through each gateway.

The upstream answers every request at once with the same body, so whatever is above "direct" is the gateway's.
Two loads: one client, for the time added at the median, and 32 clients, for requests a second. Rounds take
turns between contenders. The mesh is a real one: minigate, tunnel, gate, its key and policy checks, a receipt
signed for each request, and an OpenAI-compatible provider. Gateways that are not installed are left out, with
the reason.

    python -m tests.bench.gateway [--rounds N] [--seconds S] [--only NAME]... [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.peers import MissingError
from tests.bench.report import Check, Series, table, write
from tests.kit.mesh import Mesh
from tests.kit.process import Program, accepts, cpu, descendants, free_port

MODEL = "mock"
CLIENTS = 32
AIM_ADDED_MS = 1.0
AIM_RATE = 2000.0

_MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Say something about harbours. " * 12},
]
_REQUEST = json.dumps({"model": MODEL, "messages": _MESSAGES, "max_tokens": 64}).encode()
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Harbours are where ships rest. " * 8},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 60, "total_tokens": 150},
    }
).encode()
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0}]}).encode()


# --- the upstream -------------------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """Answers each whole request with a canned body; knows Content-Length only."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            whole = end + 4 + _length(head)
            if len(self._data) < whole:
                return
            self._data = self._data[whole:]
            body = _MODELS if head.startswith(b"GET") else _ANSWER
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(answer % len(body) + body)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0


async def _upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


# --- the load -----------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered, until it is told to stop."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._data = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end]
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(self._data[:600].decode("latin-1")))
            return
        if b"chunked" in head.lower():
            if not self._data.endswith(b"0\r\n\r\n"):
                return
        elif len(self._data) < end + 4 + _length(head):
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent)
        self._data = b""
        if now < self._until:
            self._send()
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or RuntimeError("the gateway closed the connection"))

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def _load(port: int, request: bytes, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and every latency in seconds."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = [
        (await loop.create_connection(lambda: Client(request, began + seconds), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for client in made))
    elapsed = time.perf_counter() - began
    latencies = [latency for client in made for latency in client.latencies]
    return len(latencies) / elapsed, latencies


# --- the contenders -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a client sends its requests, with which headers, and which processes serve them."""

    name: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)
    parts: Mapping[str, Callable[[], list[int]]] = field(default_factory=dict)
    """Its programs by name, each with the ids of its processes."""

    def hops(self) -> list[int]:
        """All processes that a request goes through."""
        return [pid for pids in self.parts.values() for pid in pids()]

    def request(self) -> bytes:
        """The whole request as bytes."""
        fields = {"Host": "localhost", "Content-Type": "application/json"} | self.headers
        lines = [f"{name}: {value}" for name, value in fields.items()]
        head = ["POST /v1/chat/completions HTTP/1.1", *lines, f"Content-Length: {len(_REQUEST)}", "", ""]
        return "\r\n".join(head).encode() + _REQUEST


@contextmanager
def mesh(upstream: int) -> Iterator[Gateway]:
    """minigate, tunnel and gate, with the mock as an OpenAI-compatible provider."""
    with Mesh() as made:
        made.wait_linked()
        made.control.post(
            "/providers",
            {
                "name": "mock",
                "kind": "openai",
                "url": f"http://127.0.0.1:{upstream}/v1",
                "models": [{"name": MODEL}],
                "local": True,
                "check": False,
            },
        )
        key = made.add_models_app("bench")
        gate, sidecar = made.gate.pid, made.sidecar.pid
        parts = {"gate": lambda: list(descendants(gate)), "minigate": lambda: list(descendants(sidecar))}
        yield Gateway("mesh", made.sidecar.port, {"Authorization": f"Bearer {key}"}, parts)


@contextmanager
def _started(name: str, argv: list[str], port: int, headers: dict[str, str], log: Path) -> Iterator[Gateway]:
    program = Program.start(argv, name=name, log=log, cwd=log.parent)
    try:
        program.wait_ready(lambda: accepts("127.0.0.1", port), timeout_s=90, what="to listen")
        yield Gateway(name, port, headers, {name: lambda: list(descendants(program.pid))})
    finally:
        program.stop()


@contextmanager
def litellm(upstream: int) -> Iterator[Gateway]:
    """LiteLLM's proxy with one worker and a master key."""
    found = _program("litellm", "pip install 'litellm[proxy]' beside this Python")
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder) / "config.yaml", free_port()
        base = f"http://127.0.0.1:{upstream}/v1"
        parameters = {"model": f"openai/{MODEL}", "api_base": base, "api_key": "none"}
        config.write_text(
            json.dumps(
                {
                    "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
                    "general_settings": {"master_key": "sk-bench"},
                }
            )
        )
        argv = [found, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with _started(
            "LiteLLM", argv, port, {"Authorization": "Bearer sk-bench"}, Path(folder) / "log"
        ) as made:
            yield made


@contextmanager
def vllm_router(upstream: int) -> Iterator[Gateway]:
    """vLLM's router over one worker."""
    found = _program("vllm-router", "pip install vllm-router beside this Python")
    port = free_port()
    argv = [found, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--worker-urls", f"http://127.0.0.1:{upstream}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        _started("vllm-router", argv, port, {}, Path(folder) / "log") as made,
    ):
        yield made


@contextmanager
def portkey(upstream: int) -> Iterator[Gateway]:
    """Portkey's gateway (npm), told by headers where to go."""
    node = _program("node", "Debian package nodejs")
    listed = subprocess.run(
        [_program("npm", "Debian package npm"), "root", "-g"], capture_output=True, text=True
    )
    script = Path(listed.stdout.strip()) / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        raise MissingError("Portkey is not installed (npm install -g @portkey-ai/gateway)")
    port = free_port()
    headers = {
        "Authorization": "Bearer none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    argv = [node, str(script), "--headless", f"--port={port}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        _started("Portkey", argv, port, headers, Path(folder) / "log") as made,
    ):
        yield made


def _program(name: str, hint: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MissingError(f"{name} is not installed ({hint})")
    return found


CONTENDERS = {"mesh": mesh, "vllm-router": vllm_router, "Portkey": portkey, "LiteLLM": litellm}


# --- the benchmark ------------------------------------------------------------------------------------------


ALONE, CROWD = "1 client", f"{CLIENTS} clients"
Shares = dict[tuple[str, str], list[float]]
"""µs of CPU a request in each round, by load and program."""


def measure(gateway: Gateway, series: dict[tuple[str, str], Series], shares: Shares, seconds: float) -> None:
    """One round of both loads on one contender."""
    for load, clients in ((ALONE, 1), (CROWD, CLIENTS)):
        parts = {name: pids() for name, pids in gateway.parts.items()}
        before = cpu(gateway.hops())
        before_each = {name: cpu(pids) for name, pids in parts.items()}
        rate, latencies = uvloop.run(_load(gateway.port, gateway.request(), clients, seconds))
        used = cpu(gateway.hops()) - before
        for name, pids in parts.items():
            spent = cpu(pids) - before_each[name]
            share = (spent.user_s + spent.system_s) / len(latencies) * 1e6
            shares.setdefault((load, name), []).append(share)
        one = series.setdefault((load, gateway.name), Series(load, gateway.name, "req/s"))
        one.rates.append(rate)
        one.latencies_s.append(statistics.median(latencies))
        if gateway.hops():
            one.user_us.append(used.user_s / len(latencies) * 1e6)
            one.system_us.append(used.system_s / len(latencies) * 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.upstream:
        uvloop.run(_upstream(given.upstream))
        return 0
    notes: list[str] = []
    series: dict[tuple[str, str], Series] = {}
    shares: Shares = {}
    with ExitStack() as stack:
        port = free_port()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        argv = [sys.executable, "-m", "tests.bench.gateway", "--upstream", str(port)]
        program = Program.start(argv, name="upstream", log=folder / "log", cwd=Path(__file__).parents[2])
        stack.callback(program.stop)
        program.wait_ready(lambda: accepts("127.0.0.1", port), timeout_s=20, what="to listen")
        gateways = [Gateway("direct", port)]
        for name, make in CONTENDERS.items():
            if given.only and name not in given.only:
                continue
            try:
                gateways.append(stack.enter_context(make(port)))
            except MissingError as missing:
                notes.append(f"{name} left out: {missing}")
        for gateway in gateways:  # warm up
            uvloop.run(_load(gateway.port, gateway.request(), 8, 1.0))
        for number in range(given.rounds):
            first = number % len(gateways)  # so that nobody always comes after the same one
            for gateway in gateways[first:] + gateways[:first]:
                measure(gateway, series, shares, given.seconds)
        notes += [
            f"{name}, {load}: {statistics.median(found):.0f} µs of CPU a request"
            for (load, name), found in shares.items()
            if name in {"gate", "minigate"}
        ]
    checks = _checks(series)
    write(
        title="What a gateway adds to a chat completion",
        rows=table(series.values()),
        checks=checks,
        notes=notes,
        data={"series": [[one.load, one.contender, one.rates, one.latencies_s] for one in series.values()]},
        json_path=given.json,
        markdown_path=given.markdown,
    )
    return 0


def _checks(series: dict[tuple[str, str], Series]) -> list[Check]:
    ours, direct, crowd = series.get((ALONE, "mesh")), series[ALONE, "direct"], series.get((CROWD, "mesh"))
    if ours is None or crowd is None:
        return []
    # Each round's own difference, so that a drift of the machine meets both.
    added = statistics.median(a - b for a, b in zip(ours.latencies_s, direct.latencies_s, strict=True))
    return [
        Check("mesh: added at the median, one client", added * 1000, AIM_ADDED_MS, at_least=False, unit="ms"),
        Check(f"mesh: requests/s at {CLIENTS} clients", crowd.rate, AIM_RATE, at_least=True, unit="req/s"),
    ]


if __name__ == "__main__":
    sys.exit(main())
