"""Replies of the gate → rows for a person. Pure: no printing, no clock, no terminal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Show = Callable[[Any], str]
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column names; ``right`` holds the indexes of right-aligned columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the key in a record (dots reach into nested ones), how to show the value."""

    heading: str
    key: str
    show: Show | None = None
    right: bool = False


# --- values -------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """Any value as a cell: nothing for None, yes/no, lists joined, tables as key=value."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        shown = [f"{k}={text(v)}" for k, v in value.items() if v is not None]
        return ", ".join(shown) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value) or "-"
    return str(value)


def moment(value: Any) -> str:
    """A time (unix seconds or ISO 8601) as UTC to the second."""
    if value is None or value == "":
        return "-"
    if isinstance(value, int | float):
        at = dt.datetime.fromtimestamp(value, dt.UTC)
    else:
        try:
            at = dt.datetime.fromisoformat(str(value)).astimezone(dt.UTC)
        except ValueError:
            return str(value)
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def size(value: Any) -> str:
    """Bytes in binary units with three figures."""
    if value is None:
        return "-"
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024 or unit == "GiB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f}"


def milliseconds(value: Any) -> str:
    """Seconds as milliseconds; nothing where none was measured yet."""
    return f"{float(value) * 1000:.1f} ms" if value else "-"


def span(value: Any) -> str:
    """Seconds as the two largest units: 3d 4h, 12m 5s."""
    if value is None:
        return "-"
    left = int(value)
    parts: list[str] = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= seconds or (unit == "s" and not parts):
            parts.append(f"{left // seconds}{unit}")
            left %= seconds
    return " ".join(parts[:2])


def hosts(value: Any) -> str:
    """A route's hosts, given as [host, port] pairs, {host, port} tables or text."""
    shown = []
    for item in value or ():
        if isinstance(item, Mapping):
            shown.append(f"{item.get('host')}:{item.get('port')}")
        elif isinstance(item, list | tuple) and len(item) == 2:
            shown.append(f"{item[0]}:{item[1]}")
        else:
            shown.append(str(item))
    return ", ".join(shown) or "-"


def ratio(plain: float, wire: float) -> str:
    """How many bytes of the app one byte on the wire stood for."""
    return f"{plain / wire:.1f}x" if wire else "-"


# --- tables -------------------------------------------------------------------------------------------------


def table(records: Iterable[Record], columns: Sequence[Column], title: str = "") -> Table:
    """One row a record."""
    return Table(
        columns=tuple(column.heading for column in columns),
        rows=tuple(
            tuple((column.show or text)(_at(record, column.key)) for column in columns) for record in records
        ),
        right=frozenset(index for index, column in enumerate(columns) if column.right),
        title=title,
    )


def card(record: Record, columns: Sequence[Column] | None = None, title: str = "") -> Table:
    """One record as name and value, a line each; every key of it where no columns are given."""
    chosen = columns if columns is not None else [Column(key.replace("_", " "), key) for key in record]
    return Table(
        columns=("", ""),
        rows=tuple((column.heading, (column.show or text)(_at(record, column.key))) for column in chosen),
        title=title,
    )


def _at(record: Record, key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


DATABASE_COLUMNS = (
    Column("NAME", "name"),
    Column("HOSTS", "hosts", hosts),
    Column("DBNAME", "dbname"),
    Column("USER", "user"),
    Column("TLS", "sslmode"),
    Column("COMPRESSION", "compression"),
    Column("POOL", "pool_size", right=True),
    Column("ROTATED", "rotated_at", moment),
)

DATABASE_CARD = (
    Column("name", "name"),
    Column("hosts", "hosts", hosts),
    Column("dbname", "dbname"),
    Column("user", "user"),
    Column("read-only user", "read_only_user"),
    Column("sslmode", "sslmode"),
    Column("target session", "target_session_attrs"),
    Column("compression", "compression"),
    Column("pool size", "pool_size"),
    Column("pool idle", "pool_idle_s"),
    Column("limits", "limits"),
    Column("replication", "allow_replication"),
    Column("audit detail", "audit_detail"),
    Column("rotated", "rotated_at", moment),
    Column("pending rotation", "pending_rotation"),
    Column("created", "created_at", moment),
)

APP_COLUMNS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("DATABASES", "databases"),
    Column("MODELS", "policy.models"),
    Column("EXPIRES", "expires_at", moment),
    Column("SIDECARS", "sidecars"),
    Column("READ-ONLY", "read_only"),
    Column("SESSIONS", "sessions", right=True),
    Column("CREATED", "created_at", moment),
)

KEY_COLUMNS = (
    Column("ID", "id"),
    Column("KEY", "prefix", lambda prefix: f"{prefix}..."),
    Column("STATE", "state"),
    Column("CREATED", "created_at", moment),
    Column("EXPIRES", "valid_until", moment),
)

SIDECAR_COLUMNS = (
    Column("NAME", "name"),
    Column("ROLE", "role"),
    Column("STATE", "state"),
    Column("CONNECTED", "connected"),
    Column("ADDRESS", "address"),
    Column("EXPIRES", "expires_at", moment),
    Column("FINGERPRINT", "fingerprint"),
)

GATE_COLUMNS = (
    Column("NAME", "name"),
    Column("ADDRESSES", "addresses"),
    Column("SEEN", "seen_at", moment),
    Column("IN BUNDLES", "in_bundles"),
)

AUDIT_COLUMNS = (
    Column("SEQ", "seq", right=True),
    Column("TIME", "started_at", moment),
    Column("KIND", "kind"),
    Column("APP", "app"),
    Column("SIDECAR", "sidecar"),
    Column("DATABASE", "database"),
    Column("OUTCOME", "outcome"),
    Column("N", "count", right=True),
    Column("ROWS", "rows", right=True),
    Column("WHAT", "what"),
)

SECRET_COLUMNS = (
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("WHAT", "what"),
    Column("CHANGED", "changed_at", moment),
)

SETTING_COLUMNS = (
    Column("NAME", "name"),
    Column("VALUE", "value"),
    Column("DEFAULT", "default"),
    Column("SOURCE", "source"),
    Column("RESTART", "restart_needed"),
    Column("DESCRIPTION", "description"),
)

PEER_COLUMNS = (
    Column("POOL", "pool"),
    Column("LINK", "up", lambda up: "up" if up else "down"),
    Column("RTT", "rtt_s", milliseconds, right=True),
    Column("FINGERPRINT", "fingerprint"),
)


def _role(value: Any) -> str:
    """The nouns of the commands: the tunnel calls a sidecar a client, and a worker a daemon."""
    return {"client": "sidecar", "daemon": "worker"}.get(str(value), text(value))


SESSION_COLUMNS = (
    Column("NODE", "node"),
    Column("ROLE", "role", _role),
    Column("LINK", "connected", lambda up: "up" if up else "lost"),
    Column("ADDRESS", "address"),
    Column("STREAMS", "streams", right=True),
    Column("RTT", "rtt_s", milliseconds, right=True),
    Column("APP BYTES", "app", size, right=True),
    Column("WIRE BYTES", "wire", size, right=True),
    Column("RATIO", "ratio", right=True),
    Column("RESUMES", "resumes", right=True),
)

STREAM_COLUMNS = (
    Column("APP", "app"),
    Column("DATABASE", "database"),
    Column("SIDECAR", "sidecar"),
    Column("STATE", "state"),
    Column("SINCE", "since", moment),
    Column("QUERIES", "queries", right=True),
)


POLICY_FIRST = ("models", "tasks", "data", "providers", "pools", "isolation", "max_tokens")
"""What of a policy is shown first; the rest follows as it comes."""


def app(record: Record) -> list[Table]:
    """One app, what it may ask of models, and its keys."""
    hidden = {"policy", "keys"}
    shown = [
        card(
            {
                name: moment(value) if name.endswith("_at") else value
                for name, value in record.items()
                if name not in hidden
            }
        )
    ]
    if policy := record.get("policy"):
        ordered = {name: policy[name] for name in (*POLICY_FIRST, *policy) if name in policy}
        shown.append(card(ordered, title="may ask of models"))
    if record.get("keys"):
        shown.append(table(record["keys"], KEY_COLUMNS, title="keys"))
    return shown


def audit(records: Iterable[Record]) -> Table:
    """Audit entries; WHAT is the statement's fingerprint, or what an administrator did to what."""
    rows = []
    for record in records:
        detail = record.get("detail") or {}
        done = " ".join(str(detail[key]) for key in ("what", "name", "by") if detail.get(key))
        rows.append({**record, "what": record.get("fingerprint") or done or detail.get("reason")})
    return table(rows, AUDIT_COLUMNS)


def audit_verdict(reply: Record, following: str = "") -> Table:
    """What a check of the audit's chain found; ``following``: what to do where it was altered."""
    head = reply.get("head") or {}
    shown = {
        "result": "PASSED" if reply.get("ok") else "FAILED",
        "entries": reply.get("entries"),
        "first bad entry": reply.get("first_bad_seq"),
        "problem": reply.get("problem"),
        "head": head.get("seq"),
        "hash": head.get("hash"),
        "signed at": moment(head.get("signed_at")),
        "next": "" if reply.get("ok") else following,
    }
    return card({key: value for key, value in shown.items() if value not in {None, ""}})


def sessions(records: Iterable[Record]) -> Table:
    """Tunnel sessions with bytes before and after compression, both directions together."""
    rows = []
    for record in records:
        plain = (record.get("bytes_app_in") or 0) + (record.get("bytes_app_out") or 0)
        wire = (record.get("bytes_wire_in") or 0) + (record.get("bytes_wire_out") or 0)
        rows.append({**record, "app": plain, "wire": wire, "ratio": ratio(plain, wire)})
    return table(rows, SESSION_COLUMNS, title="links")


def status(reply: Record) -> list[Table]:
    """`meshctl status`: the gate, its links, its streams."""
    gate, store = reply.get("gate") or {}, reply.get("store") or {}
    totals, audit = reply.get("totals") or {}, reply.get("audit") or {}
    version = text(store.get("server_version"))
    health = "ok" if store.get("ok") else f"DOWN: {text(store.get('detail'))}"
    head = {
        "gate": f"{text(gate.get('name'))} {text(gate.get('version'))}, {text(gate.get('state'))}, "
        f"pid {text(gate.get('pid'))}, up {span(gate.get('uptime_s'))}",
        "addresses": gate.get("addresses"),
        "fingerprint": gate.get("fingerprint"),
        "store": f"{health} ({text(store.get('kind'))}, PostgreSQL {version})",
        "audit": f"{text(audit.get('written'))} written, {text(audit.get('queued'))} queued, "
        f"{text(audit.get('dropped'))} dropped, head {text(audit.get('head_seq'))}",
        "served": f"{text(totals.get('queries'))} queries, {text(totals.get('rows'))} rows, "
        f"{size(totals.get('bytes_app'))} of app data in {size(totals.get('bytes_wire'))} on the wire "
        f"({ratio(totals.get('bytes_app') or 0, totals.get('bytes_wire') or 0)})",
    }
    if asked := reply.get("capability"):
        head["models"] = (
            f"{asked.get('requests')} requests, {asked.get('failed')} failed, "
            f"{asked.get('running')} running, {asked.get('waiting')} waiting; "
            f"{asked.get('tokens_in')} tokens in, {asked.get('tokens_out')} out"
        )
    shown = [card(head)]
    if reply.get("peers"):
        shown.append(table(reply["peers"], PEER_COLUMNS, title="peers"))
    if reply.get("sessions"):
        shown.append(sessions(reply["sessions"]))
    if reply.get("streams"):
        shown.append(table(reply["streams"], STREAM_COLUMNS, title="streams"))
    return shown


def steps(records: Iterable[Record]) -> Table:
    """The steps of a check, as PASSED, WARNING or FAILED with the next command."""
    rows = []
    for record in records:
        verdict = record.get("verdict") or ("PASSED" if record.get("ok") else "FAILED")
        rows.append(
            (verdict, str(record.get("name")), text(record.get("detail")), str(record.get("next") or ""))
        )
    return Table(("RESULT", "CHECK", "DETAIL", "NEXT"), tuple(rows))


def keys(reply: Record) -> Table:
    """`meshctl key show`: what a person compares before trusting a pool."""
    rows = []
    for name in ("pool", "online", "node"):
        entry = reply.get(name) or {}
        rows.append((name, text(entry.get("fingerprint")), moment(entry.get("expires_at"))))
    return Table(("KEY", "FINGERPRINT", "EXPIRES"), tuple(rows))
