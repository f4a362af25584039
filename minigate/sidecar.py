"""One running minigate: listener, connections, uplink and monitor, started, reloaded and drained as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_bytes

import structlog
from prometheus_client import CollectorRegistry

from minigate.connections import LINGER_S, Connections
from minigate.enrolment import load_enrolment
from minigate.listener import Listener
from minigate.metrics import MinigateCollector, status
from minigate.pools import Pools
from minigate.settings import ListenSettings, MinigateSettings
from minigate.starting import Door, StartingApp
from minigate.tls import Certificate
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import INSTANCE_BYTES, StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError
from tunnel_proto.expiry import ExpiryWatch
from tunnel_proto.failover import Ready
from tunnel_proto.link import StreamError, TunnelClient
from tunnel_proto.mark import Mark
from tunnel_proto.monitor import Monitor
from tunnel_proto.node_directory import MARK_FILE, OFFER_FILE, Enrolment
from tunnel_proto.whereabouts import Whereabouts

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
        self._identity = enrolment.identity
        self._bundle = enrolment.bundle
        self._expiry = ExpiryWatch(
            loop, f"at the gate: meshctl sidecar enroll {settings.state_dir / OFFER_FILE}"
        )
        self._instance = token_bytes(INSTANCE_BYTES)
        self._mark = Mark(settings.state_dir / MARK_FILE, time.time_ns)
        if self._mark.damaged:
            log.warning("the handshake mark was damaged and begins anew", path=settings.state_dir / MARK_FILE)
        self.connections = Connections(
            loop,
            max_connections=settings.listen.max_connections,
            startup_timeout_s=settings.listen.startup_timeout_s,
            patience_s=settings.gate.patience_s,
        )
        self.where = Whereabouts(
            settings.state_dir,
            pool_key=self._bundle.pool_key,
            node=self._bundle.name,
            home=self._bundle.gates,
            share=self._identity.handshake_public[0] / 256,
            act=self._act,
        )
        self.uplink = Pools(
            connect=self._connect,
            on_up=self._gates_up,
            loop=loop,
            where=self.where,
            failover_s=settings.gate.failover_s,
            on_watch=self._watch_gates,
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
                name=self._bundle.name,
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
        self.uplink.open(self._bundle.chain, self._bundle.roster)
        self._expiry.watch(self._bundle.chain)
        log.info("listening", addresses=self.listener.addresses, metrics_port=self.monitor.port or None)

    async def reload(self, settings: MinigateSettings) -> None:
        """Apply what can change at run time: bundle, certificate, patience, failover and drain times.

        All is read before anything is changed; raises `ConfigError` and goes on as before otherwise.
        """
        enrolment = load_enrolment(settings.state_dir, now=time.time())
        if enrolment.identity.verify_key != self._identity.verify_key:
            raise ConfigError("the node's key was replaced", hint="restart minigate to use another identity")
        certificate = load_certificate(settings.listen)
        self._settings = settings
        self._bundle = enrolment.bundle
        self._door.certificate = certificate
        self.connections.waiting.period_s = settings.gate.patience_s
        self.uplink.failover_s = settings.gate.failover_s
        self.uplink.configure(self._bundle.gates, self._bundle.chain)
        self._expiry.watch(self._bundle.chain)
        log.info("reloaded", gates=[gate.name for gate in self._bundle.gates])

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
        self._expiry.close()
        self.listener.close()
        self._door.draining = True
        for app in list(self.connections.live):
            app.end_now(_DRAINING)
        await self.uplink.close(drain=1.0)
        await self.monitor.close()
        self.connections.close()
        self._mark.close()

    def _connect(
        self, pool: bytes, gate: GateAddress, chain: bytes, on_state: Callable[[TunnelClient], None]
    ) -> TunnelClient:
        return TunnelClient(
            identity=self._identity,
            chain=chain,
            gate=gate,
            settings=self._tunnel_settings(),
            role="client",
            next_timestamp=self._mark.next,
            on_state=on_state,
            proxy=self._settings.gate.proxy,
            instance=self._instance,
            on_stream=lambda stream: self.where.accept(pool, stream),
        )

    def _act(self, ready: Ready) -> None:
        self.uplink.act(ready)

    def _tunnel_settings(self) -> TunnelSettings:
        """With other pools to go to, a silent gate is noticed sooner."""
        tunnel = self._settings.tunnel
        return tunnel if self.where.alone() else tunnel.watchful(self._settings.gate.watch_s)

    def _watch_gates(self) -> None:
        for client in self.uplink.clients():
            client.retune(self._tunnel_settings())

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
