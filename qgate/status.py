"""The status document: one look at a gate, as `meshctl status` and the dev stack show it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from tunnel_proto.identity import fingerprint

if TYPE_CHECKING:
    from qgate.gate import Gate
    from qgate.postgres.session import FrontSession
    from qgate.postgres.virtual import VirtualSession
    from tunnel_proto.link import PeerSession

STREAMS_SHOWN = 1000
"""Connections listed at most; the totals count all of them."""


def status_of(gate: Gate) -> dict[str, Any]:
    """The document; bytes, seconds and unix times as plain numbers."""
    figures = gate.figures()
    parts = gate.parts
    engine = gate.capabilities.engine
    store_problem = gate.problems().get("store", "")
    return {
        "gate": {
            "name": gate.settings.name,
            "version": gate.version,
            "pid": os.getpid(),
            "uptime_s": round(gate.uptime_s, 3),
            "fingerprint": parts.keys.node.fingerprint,
            "pool_fingerprint": fingerprint(parts.keys.pool_key),
            "addresses": list(gate.settings.listen.advertise),
            "state": gate.state,
            "metrics_port": gate.metrics_port,
        },
        "store": {
            "ok": not store_problem,
            "kind": parts.store.kind,
            "server_version": parts.store.server_version,
            "detail": store_problem,
        },
        "sessions": [_session(one, parts.directory.label(one.peer)) for one in gate.tunnel.sessions.values()],
        "peers": gate.peering.state(),
        "streams": [_connection(one) for one in gate.connections[:STREAMS_SHOWN]],
        "totals": {
            "sessions": figures.sessions,
            "streams": figures.streams,
            "queries": figures.queries,
            "rows": figures.rows,
            "bytes_app": figures.tunnel.bytes_app_in + figures.tunnel.bytes_app_out,
            "bytes_wire": figures.tunnel.bytes_wire_in + figures.tunnel.bytes_wire_out,
            "resumes": figures.tunnel.resumes,
        },
        "capability": {
            "requests": engine.figures.requests.total(),
            "failed": engine.figures.requests.total() - engine.figures.requests["ok"],
            "running": engine.figures.in_flight,
            "waiting": engine.waiting,
            "tokens_in": engine.figures.prompt_tokens,
            "tokens_out": engine.figures.completion_tokens,
            "http_connections": gate.capabilities.http.live,
        },
        "audit": {
            "queued": figures.audit_queued,
            "written": figures.audit_written,
            "dropped": figures.audit_dropped,
            "head_seq": parts.audit.head_seq,
        },
    }


def _session(session: PeerSession, node: str) -> dict[str, Any]:
    stats = session.stats
    return {
        "id": session.id,
        "node": node,
        "role": session.peer.role,
        "address": session.address,
        "connected": session.connected,
        "streams": len(session.streams),
        "rtt_s": stats.rtt_s,
        "bytes_app_in": stats.bytes_app_in,
        "bytes_app_out": stats.bytes_app_out,
        "bytes_wire_in": stats.bytes_wire_in,
        "bytes_wire_out": stats.bytes_wire_out,
        "resumes": stats.resumes,
        "since": session.since,
    }


def _connection(session: FrontSession | VirtualSession) -> dict[str, Any]:
    return {
        "app": session.app_name,
        "database": session.database,
        "sidecar": session.sidecar,
        "state": session.state,
        "since": time.time() - (time.monotonic() - session.started),
        "queries": session.queries,
    }
