"""Requests that the control API's own description allows, and some that it does not, against a real gate.

    python -m tests.qgate.control_fuzz --examples 100

Each operation gets so many requests of either kind. Whatever comes back must be an answer: no 5xx that is not
meant, and each refusal a problem document with a code.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from qgate.gate import Gate
from qgate.settings import GateFiles
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import gate_settings, make_directory, until

LEFT_OUT: Final = frozenset(
    {
        "audit_stream",  # they do not end
        "live_stream",
        "backup_write",  # it writes where it is told to
        "vault_rekey",  # it replaces the gate's keys on disk
    }
)

MEANT: Final = frozenset({"not-connected", "no-worker", "store-unavailable", "upstream"})
"""Codes of 5xx that say what the gate has not: workers, a database that answers."""

TIMEOUT_S: Final = 30.0


@contextmanager
def gate_in_a_thread(directory: Path, server: EmbeddedPostgres) -> Iterator[Gate]:
    """A real gate on an event loop of its own, with its tasks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Any, timeout: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout)

    async def make_database() -> str:
        name = f"fuzz_{secrets.token_hex(4)}"
        connection = await asyncpg.connect(server.dsn())
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return server.dsn(name)

    gate_at = gate_settings(directory, wait(make_database()))
    make_directory(directory, gate_at)
    gate: Gate = wait(Gate.start(gate_at, GateFiles.of(gate_at), version="test"))
    running = asyncio.run_coroutine_threadsafe(gate.run(), loop)
    try:
        wait(until(lambda: not gate.problems()))
        yield gate
    finally:
        running.cancel()
        wait(gate.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def explore(
    gate: Gate, *, examples: int, only: str = "", budget_s: float = 3600.0
) -> tuple[Counter[int], list[str]]:
    """How many requests got which status, and what was wrong. Operations come in an order by chance, so
    that what the budget leaves out is not always the same.
    """
    transport = httpx.HTTPTransport(uds=str(gate.files.control_socket))
    wrong: dict[str, str] = {}
    answers: Counter[int] = Counter()
    ends = time.monotonic() + budget_s
    with httpx.Client(transport=transport, base_url="http://gate", timeout=TIMEOUT_S) as client:
        document = client.get("/control/v1/openapi.json").json()
        described = schemathesis.openapi.from_dict(document).get_all_operations()
        found = [one.ok() for one in described if isinstance(one, Ok)]
        random.shuffle(found)
        for operation in found:
            name = operation.definition.raw["operationId"]
            if name in LEFT_OUT or only not in name or time.monotonic() > ends:
                continue
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                requests = operation.as_strategy(generation_mode=mode)
                for fault, request in _attempt(client, requests, examples, answers):
                    wrong.setdefault(f"{name}: {fault}", request)
    return answers, [f"{fault} | {request}" for fault, request in wrong.items()]


def _attempt(
    client: httpx.Client, requests: Any, examples: int, answers: Counter[int]
) -> list[tuple[str, str]]:
    """Faults of one operation under so many requests of one kind."""
    faults = []

    @seed(random.getrandbits(32))
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests)
    def attempt(case: Any) -> None:
        if (fault := _sent(client, case, answers)) is not None:
            faults.append(fault)

    try:
        attempt()
    except Unsatisfiable:  # there is nothing to get wrong about it
        return []
    return faults


def _sent(client: httpx.Client, case: Any, answers: Counter[int]) -> tuple[str, str] | None:
    """What is wrong with the answer to a request, and the request."""
    given_: dict[str, Any] = case.as_transport_kwargs(base_url="http://gate")
    body = {name: given_[name] for name in ("json", "data", "content") if given_.get(name) is not None}
    if isinstance(body.get("data"), bytes | str):
        body["content"] = body.pop("data")
    headers = {
        name: value
        for name, value in given_["headers"].items()
        if value.isascii() and value.isprintable() and name.replace("-", "").isalnum()
    }
    try:
        request = client.build_request(
            given_["method"], given_["url"], params=given_["params"], headers=headers, **body
        )
    except (httpx.InvalidURL, ValueError, TypeError):  # not sendable at all
        return None
    shown = f"{request.method} {request.url.raw_path.decode()[:200]} {request.content[:200]!r}"
    try:
        reply = client.send(request)
    except httpx.TransportError as error:
        return f"no answer: {type(error).__name__}", shown
    answers[reply.status_code] += 1
    if reply.status_code < 400:
        return None
    if not reply.headers.get("content-type", "").startswith("application/problem+json"):
        if reply.text == "Invalid HTTP request received.":
            return None
        return f"{reply.status_code} is no problem document: {reply.text[:100]!r}", shown
    problem = reply.json()
    if reply.status_code >= 500 and problem["code"] not in MEANT:
        return f"{reply.status_code} {problem['code']}: {problem['detail'][:200]}", shown
    return None


def main() -> int:
    """Explore for long; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50, help="requests of each kind an operation")
    parser.add_argument("--only", default="", help="operations whose id has this in it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = EmbeddedPostgres(Path(name) / "pg", durable=False)
        asyncio.run(server.start())
        try:
            with gate_in_a_thread(Path(name) / "gate", server) as gate:
                answers, wrong = explore(gate, examples=asked.examples, only=asked.only)
        finally:
            asyncio.run(server.stop())
    print("\n".join(wrong))
    print(f"{answers.total()} answers {dict(sorted(answers.items()))}, {len(wrong)} faults", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
