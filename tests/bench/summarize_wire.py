"""The gate's own engine through the whole wire: app, HTTP, minigate, tunnel, gate, NLP worker, and back.

Each request is a chat completion for `qg://task=summarize;prefer=speed` with another article of about 400
words: key and policy checks, placing, the summary, a signed receipt and the audit are all in it. Two loads:

- open loop: requests are sent at fixed times, however the answers come, and each latency counts from the time
  at which its request was to be sent, so that a stall is paid for by all who would have come in it. minigate,
  gate, the gate's store and its NLP worker share one core; the load has the other.
- closed loop: 32 clients, each sending its next request when it has its answer, everything on both cores.

CPU is shown by process, and how much of the machine went elsewhere. Where others work on it too, `--realtime`
has the kernel serve the measured processes first while a load runs (SCHED_RR; needs root).

    python -m tests.bench.summarize_wire [--rate R] [--seconds S] [--closed S] [--poisson] [--json FILE] ...
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from tests.bench.report import Check, write
from tests.bench.summarize import variants
from tests.kit.mesh import Mesh
from tests.kit.process import Cpu, cpu, descendants

MODEL = "qg://task=summarize;prefer=speed"
ARTICLES = 400
CONNECTIONS = 64
CLIENTS = 32
RATE = 360.0
AIM_P99_MS = 20.0
AIM_RATE = 2000.0
SERVED, LOAD = 0, 1  # the cores
_PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"
_END = b"\r\n\r\n"


# --- requests and answers -----------------------------------------------------------------------------------


def requests(key: str) -> list[bytes]:
    """Whole HTTP requests, one an article."""
    made = []
    for text in variants(ARTICLES):
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()
        head = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {key}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        made.append("\r\n".join([*head, "", ""]).encode() + body)
    return made


def checked(answer: bytes) -> None:
    """Raise RuntimeError where this is no summary by the gate's own engine."""
    head, _, body = answer.partition(_END)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer[:600].decode("latin-1"))
    shown = json.loads(body)
    result, receipt = shown["qgate"]["result"], shown["qgate"]["receipt"]
    if not shown["choices"][0]["message"]["content"] or not result["sentences"] or not receipt:
        raise RuntimeError(f"this is no summary: {answer[:600]!r}")


class Connection(asyncio.Protocol):
    """One keep-alive connection: `send`, then the future of `answered`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._whole = 0
        self._waiting: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future is its answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._whole:
            end = self._data.find(_END)
            if end < 0:
                return
            self._whole = end + len(_END) + _length(bytes(self._data[:end]))
        if len(self._data) >= self._whole:
            answer, self._whole = bytes(self._data), 0
            self._data.clear()
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or RuntimeError("the connection was closed"))

    def close(self) -> None:
        self._transport.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    raise RuntimeError(f"an answer without Content-Length: {head[:300]!r}")


# --- loads --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What one load showed; times in seconds."""

    rate: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # how much later than intended a request was sent

    def at(self, share: float) -> float:
        """The latency below which that share of all lie, in ms."""
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] * 1e3


async def _connect(port: int, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


async def open_loop(
    port: int, asked: Sequence[bytes], *, rate: float, seconds: float, poisson: bool
) -> Found:
    """Send at the times that `rate` gives, on whichever connection is free."""
    loop, found, chance = asyncio.get_running_loop(), Found(), random.Random(11)
    free = deque(await _connect(port, CONNECTIONS))
    overdue: deque[tuple[float, bytes]] = deque()
    wanted = int(rate * seconds)
    over = loop.create_future()

    def send(due: float, request: bytes) -> None:
        if not free:
            overdue.append((due, request))
            return
        connection = free.popleft()
        found.late.append(time.perf_counter() - due)
        connection.ask(request).add_done_callback(lambda done: answered(done, due, connection))

    def answered(done: asyncio.Future[bytes], due: float, connection: Connection) -> None:
        found.latencies.append(time.perf_counter() - due)
        try:
            answer = done.result()
            if not answer.startswith(b"HTTP/1.1 200") or len(found.latencies) % 50 == 1:
                checked(answer)
        except Exception as error:
            if not over.done():
                over.set_exception(error)
            return
        free.append(connection)
        if overdue:
            send(*overdue.popleft())
        if len(found.latencies) == wanted and not over.done():
            over.set_result(None)

    began = time.perf_counter() + 0.05
    due = began
    for number in range(wanted):
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)  # good for a millisecond, which counts
        send(due, asked[number % len(asked)])
        due += chance.expovariate(rate) if poisson else 1.0 / rate
    await over
    found.rate = wanted / (time.perf_counter() - began)
    for connection in free:
        connection.close()
    return found


async def closed_loop(port: int, asked: Sequence[bytes], *, clients: int, seconds: float) -> Found:
    """Each client sends when it has its answer."""
    found = Found()
    connections = await _connect(port, clients)
    began = time.perf_counter()

    async def client(number: int, connection: Connection) -> None:
        turn = number * 17
        while (sent := time.perf_counter()) - began < seconds:
            answer = await connection.ask(asked[turn % len(asked)])
            found.latencies.append(time.perf_counter() - sent)
            if not answer.startswith(b"HTTP/1.1 200") or turn % 50 == 1:
                checked(answer)
            turn += 1

    await asyncio.gather(*(client(number, one) for number, one in enumerate(connections)))
    found.rate = len(found.latencies) / (time.perf_counter() - began)
    for connection in connections:
        connection.close()
    return found


# --- processes ----------------------------------------------------------------------------------------------


def parts(mesh: Mesh) -> dict[str, list[int]]:
    """Process ids by what they are."""
    found: dict[str, list[int]] = {"gate": [], "NLP workers": [], "store": [], "minigate": []}
    for pid in descendants(mesh.gate.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if pid == mesh.gate.pid:
            found["gate"].append(pid)
        elif b"nlp.worker" in command:
            found["NLP workers"].append(pid)
        elif b"postgres" in command:
            found["store"].append(pid)
    found["minigate"] = list(descendants(mesh.sidecar.pid))
    return found


@contextmanager
def meshed(workers: int, *, pinned: bool) -> Iterator[tuple[Mesh, str]]:
    """A mesh and an app's key; `pinned`: all of it on one core."""
    command = [sys.executable, "-c", _PIN, str(SERVED)] if pinned else []
    settings = {"nlp": {"workers": workers}}
    with Mesh(settings=settings, gate_command=command, sidecar_command=command) as mesh:
        mesh.wait_linked()
        yield mesh, mesh.add_models_app("bench")


def busy() -> float:
    """Seconds that the cores have worked so far, for whomever."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft, steal = map(int, first[:8])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU of a load by process, in µs a request, and the part of the machine that went elsewhere."""

    user: dict[str, float]
    system: dict[str, float]
    elsewhere: float

    @property
    def whole(self) -> float:
        """All of it but the load's own."""
        return sum(sum(one.values()) - one.get("load", 0.0) for one in (self.user, self.system))


def schedule(pids: Iterable[int], policy: int) -> None:
    """Have the kernel treat every thread of these processes by `policy`."""
    parameter = os.sched_param(0 if policy == os.SCHED_OTHER else 1)
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, parameter)


def measured(mesh: Mesh, load: Any, *, realtime: bool) -> tuple[Found, Spent]:
    """Run a load and read what it cost."""
    watched = parts(mesh) | {"load": [os.getpid()]}
    everything = [pid for pids in watched.values() for pid in pids]
    if realtime:
        schedule(everything, os.SCHED_RR)
    before = {name: cpu(pids) for name, pids in watched.items()}
    began, worked = time.monotonic(), busy()
    gc.collect()
    gc.disable()
    try:
        found: Found = uvloop.run(load)
    finally:
        gc.enable()
        if realtime:
            schedule(everything, os.SCHED_OTHER)
    used: dict[str, Cpu] = {name: cpu(pids) - before[name] for name, pids in watched.items()}
    others = busy() - worked - sum(one.user_s + one.system_s for one in used.values())
    count = len(found.latencies)
    return found, Spent(
        {name: one.user_s / count * 1e6 for name, one in used.items()},
        {name: one.system_s / count * 1e6 for name, one in used.items()},
        max(0.0, others / (time.monotonic() - began) / (os.cpu_count() or 1)),
    )


def _row(name: str, found: Found, spent: Spent) -> list[str]:
    shown = [name, f"{found.rate:,.0f}/s", *(f"{found.at(one):.2f}" for one in (0.5, 0.9, 0.99, 0.999))]
    shown.append(f"{max(found.latencies) * 1e3:.1f}")
    return [*shown, *(f"{spent.user[one]:.0f} + {spent.system[one]:.0f}" for one in PARTS)]


PARTS = ("gate", "NLP workers", "minigate", "store")
HEADS = ["load", "rate", "p50 ms", "p90", "p99", "p99.9", "max", *(f"{one} µs" for one in PARTS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second of the open loop")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the open loop; 0: none")
    parser.add_argument("--closed", type=float, default=5.0, help="length of a closed loop; 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="closed loops, of which the median counts")
    parser.add_argument("--workers", type=int, default=2, help="NLP workers in the closed loop")
    parser.add_argument(
        "--poisson", action="store_true", help="random gaps of that mean, instead of even ones"
    )
    parser.add_argument("--realtime", action="store_true", help="before whatever else runs here; needs root")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    rows, checks, data = [HEADS], [], {}
    notes = [f"CPU as user + system, a request; articles of about 400 words, {ARTICLES} different ones"]
    cores = os.sched_getaffinity(0)
    if given.seconds:
        with meshed(1, pinned=True) as (mesh, key):
            asked, port = requests(key), mesh.sidecar.port
            os.sched_setaffinity(0, {LOAD} & cores or cores)
            uvloop.run(open_loop(port, asked, rate=given.rate / 2, seconds=3.0, poisson=False))
            load = open_loop(port, asked, rate=given.rate, seconds=given.seconds, poisson=given.poisson)
            found, spent = measured(mesh, load, realtime=given.realtime)
        name = f"open, {given.rate:.0f}/s{', random gaps' if given.poisson else ''}, one core"
        rows.append(_row(name, found, spent))
        checks.append(Check(f"{name}: p99", found.at(0.99), AIM_P99_MS, at_least=False, unit="ms"))
        data["open"] = {"latencies_s": found.latencies, "user_us": spent.user, "system_us": spent.system}
        late = sorted(found.late)[int(0.99 * len(found.late))] * 1e3
        notes.append(
            f"open loop: the served core was {spent.whole * given.rate / 1e4:.0f} % busy with it,"
            f" requests were sent late by {late:.2f} ms at p99,"
            f" {spent.elsewhere:.0%} of the machine went elsewhere"
        )
    os.sched_setaffinity(0, cores)
    if given.closed:
        with meshed(given.workers, pinned=False) as (mesh, key):
            asked, port = requests(key), mesh.sidecar.port
            uvloop.run(closed_loop(port, asked, clients=CLIENTS, seconds=2.0))
            rounds = [
                measured(
                    mesh,
                    closed_loop(port, asked, clients=CLIENTS, seconds=given.closed),
                    realtime=given.realtime,
                )
                for _ in range(given.rounds)
            ]
        rounds.sort(key=lambda one: one[0].rate)
        found, spent = rounds[len(rounds) // 2]
        name = f"closed, {CLIENTS} clients, two cores"
        rows.append(_row(name, found, spent))
        rate = statistics.median(one.rate for one, _ in rounds)
        checks.append(Check(f"{name}: requests/s", rate, AIM_RATE, at_least=True, unit="req/s"))
        notes.append(f"closed loop: {spent.elsewhere:.0%} of the machine went elsewhere")
        data["closed"] = {
            "rates": [one.rate for one, _ in rounds],
            "user_us": spent.user,
            "system_us": spent.system,
        }
    write(
        title="Summaries through the whole wire",
        rows=rows,
        checks=checks,
        notes=notes,
        data=data,
        json_path=given.json,
        markdown_path=given.markdown,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
