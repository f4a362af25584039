"""A gate's figures as Prometheus metrics: one prefix, base units, counters that end in ``_total``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from qgate.federation.log.replication import LogFigures
from tunnel_proto.stats import SessionStats

if TYPE_CHECKING:
    from qgate.gate import Gate


@dataclass(slots=True)
class TunnelTotals:
    """Counters over all sessions since the start, those that are over included."""

    sessions_opened: int = 0
    ended: SessionStats = field(default_factory=SessionStats)

    def session_ended(self, stats: SessionStats) -> None:
        """Keep what a closing session has counted."""
        _add(self.ended, stats)

    def with_live(self, live: list[SessionStats]) -> SessionStats:
        """Ended sessions and ``live`` ones together."""
        total = SessionStats()
        for stats in (self.ended, *live):
            _add(total, stats)
        return total


def _add(total: SessionStats, stats: SessionStats) -> None:
    total.bytes_app_in += stats.bytes_app_in
    total.bytes_app_out += stats.bytes_app_out
    total.bytes_wire_in += stats.bytes_wire_in
    total.bytes_wire_out += stats.bytes_wire_out
    total.records_in += stats.records_in
    total.records_out += stats.records_out
    total.resumes += stats.resumes
    total.resent_bytes += stats.resent_bytes


@dataclass(frozen=True, slots=True)
class Figures:
    """What a gate counts, at one moment; "app" bytes are the applications', "wire" bytes the sealed ones."""

    version: str = ""
    name: str = ""
    uptime_s: float = 0.0
    sessions: int = 0
    sessions_connected: int = 0
    sessions_opened: int = 0
    streams: int = 0
    tunnel: SessionStats = field(default_factory=SessionStats)
    handshakes_refused: Mapping[str, int] = field(default_factory=dict)
    streams_refused: Mapping[str, int] = field(default_factory=dict)
    connections: int = 0
    connections_opened: int = 0
    queries: int = 0
    rows: int = 0
    pools: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by (database, state)
    peers: Mapping[str, tuple[bool, int]] = field(default_factory=dict)  # by pool: link up, heartbeats taken
    logs: Mapping[str, LogFigures] = field(default_factory=dict)  # replicas, by pool
    log_sent: tuple[int, int] = (0, 0)  # of our own log: entries, bytes
    audit_queued: int = 0
    audit_written: int = 0
    audit_dropped: int = 0
    store_up: bool = False
    draining: bool = False
    certificate_expires_at: float = 0.0


class GateCollector(Collector):
    """Reads `Figures` when Prometheus asks, and never otherwise."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        """Every metric's name, without a value; lets the registry find clashes before the first scrape."""
        return list(families(Figures()))

    def collect(self) -> Iterator[Metric]:
        return families(self._figures())


def families(figures: Figures) -> Iterator[Metric]:
    """``figures`` as metric families, in the order of docs/operations.md."""
    yield InfoMetricFamily("qgate_build", "Version.", {"version": figures.version, "name": figures.name})
    yield _gauge(
        "qgate_sessions", "Tunnel sessions held, those that wait for resumption included.", figures.sessions
    )
    yield _gauge("qgate_sessions_connected", "Tunnel sessions with a live link.", figures.sessions_connected)
    yield _counter("qgate_sessions_opened", "Tunnel sessions started.", figures.sessions_opened)
    yield _gauge("qgate_streams", "Streams open over all sessions.", figures.streams)
    tunnel = figures.tunnel
    yield _both(
        "qgate_app_bytes",
        "Bytes of applications, before compression.",
        tunnel.bytes_app_in,
        tunnel.bytes_app_out,
    )
    yield _both(
        "qgate_wire_bytes",
        "Bytes on tunnels, compressed and sealed.",
        tunnel.bytes_wire_in,
        tunnel.bytes_wire_out,
    )
    yield _both("qgate_records", "Tunnel records.", tunnel.records_in, tunnel.records_out)
    yield _counter("qgate_resumes", "Sessions resumed on a new link.", tunnel.resumes)
    yield _counter("qgate_resent_bytes", "Bytes sent again after a resume.", tunnel.resent_bytes)
    yield _by_label(
        CounterMetricFamily("qgate_handshakes_refused", "Handshakes dropped in silence.", labels=["reason"]),
        figures.handshakes_refused,
    )
    yield _by_label(
        CounterMetricFamily("qgate_streams_refused", "Streams refused, by kind.", labels=["kind"]),
        figures.streams_refused,
    )
    yield _gauge("qgate_connections", "Application connections.", figures.connections)
    yield _counter(
        "qgate_connections_opened", "Application connections accepted.", figures.connections_opened
    )
    yield _counter("qgate_queries", "Statements relayed.", figures.queries)
    yield _counter("qgate_rows", "Rows returned or affected, as CommandComplete counts them.", figures.rows)
    pools = GaugeMetricFamily(
        "qgate_upstream_connections", "Connections to databases.", labels=["database", "state"]
    )
    for (database, state), count in sorted(figures.pools.items()):
        pools.add_metric([database, state], count)
    yield pools
    up = GaugeMetricFamily("qgate_peer_up", "1 while a link to the paired pool is up.", labels=["pool"])
    beats = CounterMetricFamily("qgate_peer_heartbeats", "Heartbeats taken from it.", labels=["pool"])
    for pool, (linked, taken) in sorted(figures.peers.items()):
        up.add_metric([pool], int(linked))
        beats.add_metric([pool], taken)
    yield up
    yield beats
    yield from _logs(figures)
    yield _gauge("qgate_audit_queue_entries", "Audit entries not yet written.", figures.audit_queued)
    yield _counter("qgate_audit_entries", "Audit entries written.", figures.audit_written)
    yield _counter(
        "qgate_audit_entries_dropped", "Audit entries lost to a full queue.", figures.audit_dropped
    )
    yield _gauge("qgate_store_up", "1 while the store answers.", int(figures.store_up))
    yield _gauge("qgate_draining", "1 after SIGTERM.", int(figures.draining))
    yield _gauge(
        "qgate_certificate_expiry_timestamp_seconds",
        "When this gate's certificate ends.",
        figures.certificate_expires_at,
    )
    yield _gauge("qgate_uptime_seconds", "Seconds since the start.", figures.uptime_s)


def _logs(figures: Figures) -> Iterator[Metric]:
    head = GaugeMetricFamily("qgate_log_head", "Newest entry of its log that is here.", labels=["pool"])
    behind = GaugeMetricFamily("qgate_log_behind_entries", "Entries that are not here yet.", labels=["pool"])
    silent = GaugeMetricFamily(
        "qgate_log_silent_seconds", "Since the pool last answered about its log.", labels=["pool"]
    )
    taken = CounterMetricFamily("qgate_log_entries_taken", "Entries accepted of its log.", labels=["pool"])
    size = CounterMetricFamily("qgate_log_bytes_taken", "Bytes of entries that came.", labels=["pool"])
    refused = CounterMetricFamily(
        "qgate_log_refusals", "Times that it refused a stream of its log.", labels=["pool"]
    )
    for pool, one in sorted(figures.logs.items()):
        head.add_metric([pool], one.head)
        taken.add_metric([pool], one.entries)
        size.add_metric([pool], one.bytes)
        refused.add_metric([pool], one.refusals)
        if one.behind is not None:
            behind.add_metric([pool], one.behind)
        if one.silent_s is not None:
            silent.add_metric([pool], one.silent_s)
    yield from (head, behind, silent, taken, size, refused)
    entries, sent = figures.log_sent
    yield _counter("qgate_log_entries_sent", "Entries of our own log told to peers.", entries)
    yield _counter("qgate_log_bytes_sent", "Bytes of our own log told to peers.", sent)


def registry_of(figures: Callable[[], Figures]) -> CollectorRegistry:
    """A registry with the gate's figures and the process's own (CPU, memory, open files)."""
    registry = CollectorRegistry()
    registry.register(GateCollector(figures))
    ProcessCollector(namespace="qgate", registry=registry)
    return registry


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _both(name: str, text: str, received: int, sent: int) -> Metric:
    family = CounterMetricFamily(name, text, labels=["direction"])
    family.add_metric(["in"], received)
    family.add_metric(["out"], sent)
    return family


def _by_label(family: CounterMetricFamily, counts: Mapping[str, int]) -> Metric:
    for label, count in sorted(counts.items()):
        family.add_metric([label], count)
    return family


def figures_of(gate: Gate) -> Figures:
    """What a gate counts, now."""
    sessions = list(gate.tunnel.sessions.values())
    front, audit = gate.parts.front, gate.parts.audit
    pools: dict[tuple[str, str], int] = {}
    for name, counts in front.pool.counts().items():
        pools.update(
            {(name, state): n for state, n in zip(("active", "idle", "waiting"), counts, strict=True)}
        )
    return Figures(
        version=gate.version,
        name=gate.settings.name,
        uptime_s=gate.uptime_s,
        sessions=len(sessions),
        sessions_connected=sum(one.connected for one in sessions),
        sessions_opened=gate.totals.sessions_opened,
        streams=sum(len(one.streams) for one in sessions),
        tunnel=gate.totals.with_live([one.stats for one in sessions]),
        handshakes_refused=dict(gate.authorisation.refused + gate.tunnel.refusals.counts),
        streams_refused=dict(gate.streams_refused),
        connections=len(gate.connections),
        connections_opened=front.stats.connections,  # log-ins, whatever the database
        queries=front.stats.queries_total + gate.capabilities.sql.queries,
        rows=front.stats.rows_total,
        pools=pools,
        peers=gate.peering.figures(),
        logs=gate.replication.figures(),
        log_sent=(gate.replication.publisher.entries_sent, gate.replication.publisher.bytes_sent),
        audit_queued=audit.queued,
        audit_written=audit.written,
        audit_dropped=audit.dropped,
        store_up=gate.parts.watch.fresh,
        draining=gate.state == "draining",
        certificate_expires_at=gate.parts.keys.certificate.not_after,
    )
