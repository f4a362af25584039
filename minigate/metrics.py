"""What minigate counts, as Prometheus metrics and as the JSON of /status; read only when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tunnel_proto.stats import SessionStats

if TYPE_CHECKING:
    from prometheus_client import Metric

    from minigate.connections import Connections
    from minigate.pools import Pools
    from minigate.uplink import Link, Uplink
    from tunnel_proto.link import TunnelClient

_STATES = ("idle", "connecting", "up", "lost", "draining", "closed")
_SUMMED = ("bytes_app_in", "bytes_app_out", "bytes_wire_in", "bytes_wire_out", "resumes", "resent_bytes")


class Ledger:
    """Sums of sessions that are over, so that counters never fall when a gate's client is replaced."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = dict.fromkeys(_SUMMED, 0)

    def settle(self, stats: SessionStats) -> None:
        """Add the counters of a client that is gone."""
        for name in _SUMMED:
            self._sums[name] += getattr(stats, name)

    def totals(self, clients: Iterable[TunnelClient]) -> dict[str, int]:
        """Sums of the past and of ``clients``."""
        sums = dict(self._sums)
        for client in clients:
            for name in _SUMMED:
                sums[name] += getattr(client.stats, name)
        return sums


class MinigateCollector(Collector):
    """Turns the state of one minigate into metric families at each scrape."""

    def __init__(self, connections: Connections, uplink: Uplink | Pools) -> None:
        self._connections = connections
        self._uplink = uplink

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read at registration

    def collect(self) -> Iterable[Metric]:
        connections, counts = self._connections, self._connections.counts
        gauge = GaugeMetricFamily("minigate_connections", "App connections by phase.", labels=["phase"])
        for phase, number in phases(connections).items():
            gauge.add_metric([phase], number)
        yield gauge
        yield _counter("minigate_accepted", "Connections accepted.", "listener", counts.accepted)
        yield _counter("minigate_recognised", "Start-ups by protocol.", "protocol", counts.recognised)
        yield _counter("minigate_refused", "Connections refused here.", "reason", counts.refused)
        yield _counter("minigate_errors", "Errors told to apps by minigate.", "sqlstate", counts.errors)
        for name, text, value in (
            ("minigate_aborted", "Connections cut in the middle of a message.", counts.aborted),
            ("minigate_cancels", "Cancel requests forwarded.", counts.cancels),
            ("minigate_streams_opened", "Streams opened.", counts.opened),
            ("minigate_stream_interruptions", "Streams that waited for a link.", counts.link_losses),
        ):
            yield CounterMetricFamily(name, text, value=value)
        totals = self._uplink.ledger.totals(self._uplink.clients())
        for name, text in (
            ("bytes_app_in", "Bytes received for apps, after decompression."),
            ("bytes_app_out", "Bytes sent by apps, before compression."),
            ("bytes_wire_in", "Bytes read from links."),
            ("bytes_wire_out", "Bytes written to links."),
            ("resumes", "Sessions resumed."),
            ("resent_bytes", "Bytes sent again by resumptions."),
        ):
            unit = "" if name == "resumes" else "_bytes"
            stem = name.replace("bytes_", "").replace("_bytes", "")
            yield CounterMetricFamily(f"minigate_{stem}{unit}", text, value=totals[name])
        yield from self._gates()

    def _gates(self) -> Iterable[Metric]:
        state = GaugeMetricFamily("minigate_gate_state", "1 for a gate's state.", labels=["gate", "state"])
        rtt = GaugeMetricFamily(
            "minigate_gate_rtt_seconds", "Smoothed round trip to a gate.", labels=["gate"]
        )
        streams = GaugeMetricFamily("minigate_gate_streams", "Streams open at a gate.", labels=["gate"])
        for link in self._uplink.links:
            current = link.client.state if link.client is not None else "idle"
            for one in _STATES:
                state.add_metric([link.gate.name, one], float(one == current))
            if link.client is not None:
                rtt.add_metric([link.gate.name], link.client.stats.rtt_s)
                streams.add_metric([link.gate.name], len(link.client.streams))
        return (state, rtt, streams)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def phases(connections: Connections) -> dict[str, int]:
    """How many app connections are in each phase."""
    return {
        "starting": len(connections.starting),
        "waiting": len(connections.waiting),
        "live": len(connections.live),
        "idle": sum(app.idle for app in connections.live),
        "lingering": len(connections.lingering),
    }


def status(
    connections: Connections, uplink: Pools, *, name: str, addresses: Callable[[], list[str]], started: float
) -> dict[str, Any]:
    """The document of /status: addresses, links, connections, totals. ``started`` is in unix seconds."""
    counts = connections.counts
    return {
        "name": name,
        "listening": addresses(),
        "started": started,
        "connections": phases(connections),
        "pools": uplink.pools(),
        "links": [_link(link) for link in uplink.links],
        "retired": [_client(client) for client in uplink.retired],
        "totals": {
            **uplink.ledger.totals(uplink.clients()),
            "streams_opened": counts.opened,
            "cancels": counts.cancels,
            "refused": sum(counts.refused.values()),
            "aborted": counts.aborted,
        },
    }


def _link(link: Link) -> dict[str, Any]:
    described = {"gate": link.gate.name, "address": link.where.rpartition(" ")[2]}
    if link.client is None:
        return {**described, "state": "idle", "cause": link.went, "streams": 0}
    return {**described, **_client(link.client)}


def _client(client: TunnelClient) -> dict[str, Any]:
    stats = client.stats
    return {
        "gate": client.gate.name,
        "state": client.state,
        "cause": client.last_error,
        "streams": len(client.streams),
        "rtt_s": stats.rtt_s,
        "resumes": stats.resumes,
        **{name: getattr(stats, name) for name in _SUMMED if name != "resumes"},
    }
