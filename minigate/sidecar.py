"""One running minigate: listener, connections, uplink and monitor, started, reloaded and drained as one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from minigate.connections import LINGER_S, Connections
from minigate.enrolment import load_enrolment, node
from minigate.listener import Listener
from minigate.metrics import MinigateCollector, status
from minigate.pools import Pools
from minigate.settings import ListenSettings, MinigateSettings
from minigate.starting import Door, StartingApp
from minigate.tls import Certificate
from tunnel_proto.constants import StreamCode
from tunnel_proto.failover import Ready
from tunnel_proto.link import StreamError
from tunnel_proto.monitor import Monitor
from tunnel_proto.node import Node
from tunnel_proto.node_directory import Enrolment

log = structlog.get_logger()

DRAIN_LOOK_S = 0.1
"""How often a drain looks for apps that have become idle."""

_DRAINING = StreamError(
    StreamCode.GATE_SHUTDOWN, "terminating connection because the sidecar shuts down", sqlstate="57P01"
)


def load_certificate(listen: ListenSettings) -> Certificate | None:
    """Read the local TLS certificate, if one is configured."""
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    return Certificate.load(listen.tls_cert, listen.tls_key)


class Sidecar:
    """A minigate inside a running event loop."""

    def __init__(self, settings: MinigateSettings, enrolment: Enrolment) -> None:
        """Prepare; raises `ConfigError` for a certificate or mark file that cannot be used."""
        loop = asyncio.get_running_loop()
        self._settings = settings
        self.node = Node(
            node(settings.state_dir),
            enrolment,
            tunnel=settings.tunnel,
            reach=settings.gate,
            act=self._act,
        )
        self.connections = Connections(
            loop,
            max_connections=settings.listen.max_connections,
            startup_timeout_s=settings.listen.startup_timeout_s,
            patience_s=settings.gate.patience_s,
        )
        self.uplink = Pools(
            connect=self.node.connect,
            on_up=self._gates_up,
            loop=loop,
            where=self.node.where,
            failover_s=settings.gate.failover_s,
            on_watch=lambda: self.node.retune(self.uplink.clients()),
        )
        self._door = Door(self.connections, self.uplink, load_certificate(settings.listen))
        self.listener = Listener()
        registry = CollectorRegistry()
        registry.register(MinigateCollector(self.connections, self.uplink))
        started = time.time()
        self.monitor = Monitor(
            registry,
            self._problems,
            status=lambda: status(
                self.connections,
                self.uplink,
                name=self.node.bundle.name,
                addresses=lambda: self.listener.addresses,
                started=started,
            ),
        )

    async def start(self) -> None:
        """Listen and begin to connect; raises `MeshError` where a port is taken. Does not wait for a gate."""
        await self.listener.start(self._settings.listen, lambda: StartingApp(self._door))
        metrics = self._settings.metrics
        if metrics.enabled:
            await self.monitor.start(metrics.host, metrics.port)
        self.uplink.open(self.node.bundle.chain, self.node.bundle.roster)
        self.node.start()
        log.info("listening", addresses=self.listener.addresses, metrics_port=self.monitor.port or None)

    async def reload(self, settings: MinigateSettings) -> None:
        """Apply what can change at run time: bundle, certificate, patience, failover and drain times.

        All is read before anything is changed; raises `ConfigError` and goes on as before otherwise.
        """
        certificate = load_certificate(settings.listen)
        self.node.reload()
        self._settings = settings
        self._door.certificate = certificate
        self.connections.waiting.period_s = settings.gate.patience_s
        self.uplink.failover_s = settings.gate.failover_s
        bundle = self.node.bundle
        self.uplink.configure(bundle.gates, bundle.chain)
        log.info("reloaded", gates=[gate.name for gate in bundle.gates])

    async def drain(self) -> None:
        """Accept no more, end idle apps with 57P01, and those still busy after ``drain_s`` too.

        Returns once all have closed, or have had `LINGER_S` to read why they are to go.
        """
        self.listener.close()
        self._door.draining = True
        for app in self.connections.waiting:
            if isinstance(app, StartingApp):
                app.refuse_draining()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.drain_s
        while self.connections.live and loop.time() < deadline + LINGER_S:
            for app in list(self.connections.live):
                if loop.time() < deadline:
                    app.end_idle(_DRAINING)
                else:
                    app.end_now(_DRAINING)
            await asyncio.sleep(DRAIN_LOOK_S)

    async def close(self) -> None:
        """End what is left, at once; safe after `drain` and without it."""
        self.listener.close()
        self._door.draining = True
        for app in list(self.connections.live):
            app.end_now(_DRAINING)
        await self.uplink.close(drain=1.0)
        await self.monitor.close()
        self.connections.close()
        self.node.close()

    def _act(self, ready: Ready) -> None:
        self.uplink.act(ready)

    def _gates_up(self) -> None:
        self._door.gates_up()

    def _problems(self) -> dict[str, str]:
        if self._door.draining:
            return {"minigate": "draining"}
        if self.uplink.available() is None:
            return {"gate": self.uplink.outage().message}
        return {}


def check_config(path: Path, settings: MinigateSettings) -> list[str]:
    """Read all that a start would read, listen nowhere, and describe it in lines. Raises `ConfigError`."""
    enrolment = load_enrolment(settings.state_dir, now=time.time())
    load_certificate(settings.listen)
    bundle = enrolment.bundle
    gates = ", ".join(f"{gate.name} at {gate.host}:{gate.port}" for gate in bundle.gates)
    return [
        f"{path}: good",
        f"node {bundle.name}, fingerprint {enrolment.identity.fingerprint}",
        f"gates: {gates}",
    ]
