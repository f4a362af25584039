"""The loopback port: metrics, health, and nothing for a browser that was led here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.monitor import MAX_REQUEST_BYTES, Monitor


@pytest.fixture
def problems() -> dict[str, str]:
    return {}


@pytest.fixture
async def monitor(problems: dict[str, str]) -> AsyncIterator[Monitor]:
    registry = CollectorRegistry()
    Counter("qgate_queries", "Statements.", registry=registry).inc(3)
    monitor = Monitor(registry, lambda: problems, lambda: {"sessions": 2})
    await monitor.start("127.0.0.1", 0)
    yield monitor
    await monitor.close()


async def ask(
    monitor: Monitor, path: str, headers: str = "Host: localhost", method: str = "GET"
) -> tuple[int, bytes]:
    return await raw(monitor, f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())


async def raw(monitor: Monitor, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", monitor.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


async def test_metrics_health_readiness_and_status(monitor: Monitor, problems: dict[str, str]) -> None:
    assert b"qgate_queries_total 3.0" in (await ask(monitor, "/metrics"))[1]
    openmetrics = await ask(monitor, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
    assert openmetrics[1].endswith(b"# EOF\n")
    assert (await ask(monitor, "/healthz"))[0] == 200
    assert (await ask(monitor, "/readyz?verbose"))[0] == 200
    problems["store"] = "unreachable"
    status, body = await ask(monitor, "/readyz")
    assert (status, json.loads(body)["problems"]) == (503, {"store": "unreachable"})
    assert json.loads((await ask(monitor, "/status"))[1]) == {"sessions": 2}
    assert (await ask(monitor, "/elsewhere"))[0] == 404


async def test_a_head_request_has_no_body(monitor: Monitor) -> None:
    assert await ask(monitor, "/healthz", method="HEAD") == (200, b"")
    assert (await ask(monitor, "/healthz", method="POST"))[0] == 405


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "[::1]:9", "127.9.9.9:1"])
async def test_loopback_names_are_answered(monitor: Monitor, host: str) -> None:
    assert (await ask(monitor, "/healthz", f"Host: {host}"))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11436", "10.0.0.1", "localhost.evil.example"])
async def test_a_rebound_name_is_not(monitor: Monitor, host: str) -> None:
    assert (await ask(monitor, "/status", f"Host: {host}"))[0] == 421


async def test_an_endless_header_is_dropped(monitor: Monitor) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", monitor.port)
    writer.write(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * MAX_REQUEST_BYTES)
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass  # closed with our bytes still unread: TCP says so by a reset
    finally:
        writer.close()


async def test_only_loopback_may_be_bound_and_a_taken_port_is_named(monitor: Monitor) -> None:
    other = Monitor(CollectorRegistry(), dict)
    with pytest.raises(ConfigError, match="not a loopback address"):
        await other.start("0.0.0.0", 0)
    with pytest.raises(MeshError) as caught:
        await other.start("127.0.0.1", monitor.port)
    assert str(monitor.port) in caught.value.message
    assert "ss -ltnp" in caught.value.hint
