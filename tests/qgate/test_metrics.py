"""A gate's metrics keep the conventions, and page and dashboard speak of those that exist."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from qgate.metrics import Figures, GateCollector, TunnelTotals, families, registry_of
from tunnel_proto.stats import SessionStats

ROOT = Path(__file__).parents[2]


def test_names_have_the_prefix_and_their_units() -> None:
    for family in families(Figures()):
        assert family.name.startswith("qgate_")
        assert family.documentation.endswith(".")
        if re.search(r"_(s|ms|kb|mb|total)$", family.name):
            raise AssertionError(f"{family.name} has a unit that is no base unit")


def test_the_page_lists_every_metric_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `(qgate_\w+)` ", page, re.MULTILINE))
    exposed = {
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        for family in families(Figures())
    }
    assert listed == exposed


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    text = generate_latest(registry_of(Figures)).decode()
    dashboard = (ROOT / "conf.example" / "grafana" / "qgate.json").read_text()
    for name in set(re.findall(r"qgate_[a-z_]+", dashboard)):
        assert f"\n# TYPE {name.removesuffix('_info')}" in "\n" + text, name


def test_figures_come_out_with_their_labels() -> None:
    registry = CollectorRegistry()
    figures = Figures(
        version="1",
        name="g",
        tunnel=SessionStats(bytes_app_in=3, bytes_wire_out=5, resumes=2),
        handshakes_refused={"revoked": 4},
        pools={("shop", "idle"): 6},
    )
    registry.register(GateCollector(lambda: figures))
    text = generate_latest(registry).decode()
    for line in (
        'qgate_app_bytes_total{direction="in"} 3.0',
        'qgate_wire_bytes_total{direction="out"} 5.0',
        "qgate_resumes_total 2.0",
        'qgate_handshakes_refused_total{reason="revoked"} 4.0',
        'qgate_upstream_connections{database="shop",state="idle"} 6.0',
    ):
        assert line in text


def test_what_ended_sessions_counted_is_kept() -> None:
    totals = TunnelTotals()
    totals.session_ended(SessionStats(bytes_app_in=1, records_out=2, streams_open=9))
    both = totals.with_live([SessionStats(bytes_app_in=10, resent_bytes=4)])
    assert (both.bytes_app_in, both.records_out, both.resent_bytes) == (11, 2, 4)
    assert totals.ended.bytes_app_in == 1
