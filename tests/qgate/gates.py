"""Gates inside the test's own process, over a store of the test's own, and sidecars that dial them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from meshctl.gate_directory import make_gate
from qgate.gate import Gate
from qgate.settings import (
    GateFiles,
    GateSettings,
    ListenSettings,
    MetricsSettings,
    NlpSettings,
    StoreSettings,
)
from tests.kit.process import free_port
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.discard import Ignore
from tunnel_proto.enrolment import make_offer, read_bundle
from tunnel_proto.identity import Identity
from tunnel_proto.link import StreamError, TunnelClient
from tunnel_proto.settings import dump


def gate_settings(directory: Path, dsn: str, **changes: Any) -> GateSettings:
    """Settings of a gate on loopback over an external store. Its language engine's processes are left out."""
    port = free_port()
    settings = GateSettings(
        state_dir=directory,
        drain_timeout_s=0.5,
        listen=ListenSettings(host="127.0.0.1", port=port, advertise=(f"127.0.0.1:{port}",)),
        store=StoreSettings(kind="external", dsn=dsn, patience_s=0.2),
        metrics=MetricsSettings(port=0),
        tunnel=TunnelSettings(retry_min_s=0.02, retry_max_s=0.05),
        nlp=NlpSettings(enabled=False),
    )
    return dataclasses.replace(settings, **changes)


def make_directory(directory: Path, settings: GateSettings) -> Path:
    """Keys and settings of a new pool; returns the settings file."""
    return make_gate(
        directory, name=settings.name, settings_text=dump(settings), now=time.time()
    ).directory.settings


@contextlib.asynccontextmanager
async def running(settings: GateSettings) -> AsyncIterator[Gate]:
    """A started gate with its tasks, closed at the end."""
    gate = await Gate.start(settings, GateFiles.of(settings), version="test")
    task = asyncio.create_task(gate.run())
    try:
        await until(lambda: not gate.problems())
        yield gate
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gate.close()


@contextlib.asynccontextmanager
async def control(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    """The control API, over its socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(gate.files.control_socket))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost/control/v1", timeout=20
    ) as client:
        yield client


async def until(condition: Any, timeout_s: float = 60) -> None:
    """Wait until ``condition()`` holds, looking often."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Sidecar:
    """A node with keys of its own, enrolled over the control API."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = Identity.generate()
        self.states: list[str] = []
        self.client: TunnelClient | None = None

    async def enrol(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """Ask for a bundle and keep it."""
        offer = make_offer(self.identity, role="client", name=self.name, now=time.time())
        reply = await client.post("/sidecars", json={"offer": offer})
        assert reply.status_code == 201, reply.text
        document: dict[str, Any] = reply.json()
        self.bundle = read_bundle(document["bundle"], self.identity)
        return document

    def dial(self, number: int = 0) -> TunnelClient:
        """Begin to connect to a gate of the bundle."""
        self.client = TunnelClient(
            identity=self.identity,
            chain=self.bundle.chain,
            gate=self.bundle.gates[number],
            settings=TunnelSettings(retry_min_s=0.02, retry_max_s=0.05),
            role="client",
            next_timestamp=time.time_ns,
            on_state=lambda client: self.states.append(client.state),
        )
        self.client.start()
        return self.client


class Ear(Ignore):
    """A stream's receiver that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = asyncio.Event()
        self.error: StreamError | None = None

    def data_received(self, data: bytes, boundary: bool) -> None:
        self.data += data

    def stream_closed(self, error: StreamError | None) -> None:
        self.error = error
        self.closed.set()
