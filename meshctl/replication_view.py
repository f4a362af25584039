"""Logs, copies and the catalogue as rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshctl import view
from meshctl.view import Column, Record, Table


def _seq(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _short(value: Any) -> str:
    return str(value)[:12] if value else "-"


def _ago(value: Any) -> str:
    return "never" if value is None else "now" if value < 1.5 else f"{view.span(value)} ago"


LOG_COLUMNS = (
    Column("POOL", "pool"),
    Column("STATE", "state"),
    Column("LAST", "seq", _seq, right=True),
    Column("ENTRIES", "entries", _seq, right=True),
    Column("HELD", "held", _seq, right=True),
    Column("BEHIND", "behind", _seq, right=True),
    Column("HEARD", "heard_at", view.moment),
    Column("HASH", "hash", _short),
    Column("PROBLEM", "problem"),
)

ENTRY_COLUMNS = (
    Column("NUMBER", "seq", _seq, right=True),
    Column("AT", "at", view.moment),
    Column("STREAM", "stream"),
    Column("STATE", "state"),
    Column("REASON", "reason"),
    Column("EPOCH", "epoch", right=True),
    Column("BYTES", "bytes", right=True),
    Column("READABLE", "readable"),
    Column("RECORD", "record", _short),
    Column("HASH", "hash", _short),
)

CHECK_COLUMNS = (
    Column("POOL", "pool"),
    Column("RESULT", "ok", lambda ok: "PASSED" if ok else "FAILED"),
    Column("ENTRIES", "entries", _seq, right=True),
    Column("LAST", "head", _seq, right=True),
    Column("ERASED", "erased", _seq, right=True),
    Column("WITHHELD", "withheld", _seq, right=True),
    Column("FIRST BAD", "first_bad_seq", _seq, right=True),
    Column("PROBLEM", "problem"),
)

COPY_COLUMNS = (
    Column("POOL", "pool"),
    Column("HAS", "seq", _seq, right=True),
    Column("BEHIND", "behind", _seq, right=True),
    Column("SAID", "heard_s", _ago),
    Column("BY", "how"),
    Column("LINK", "link"),
    Column("MAY NOT READ", "not_told"),
)

MODEL_COLUMNS = (
    Column("MODEL", "model"),
    Column("SIZE", "size", view.size, right=True),
    Column("STATE", "state", lambda state: str(state).upper()),
    Column("WANTED", "wanted", right=True),
    Column("COPIES AT", "copies"),
    Column("COMING TO", "coming"),
    Column("NO ROOM AT", "declined"),
    Column("SHA256", "sha256", _short),
)

COMING_COLUMNS = (
    Column("MODEL HERE", "model"),
    Column("OF POOL", "pool"),
    Column("SIZE", "size", view.size, right=True),
    Column("STATE", "state"),
    Column("DONE", "share", lambda share: f"{100 * (share or 0):.0f} %", right=True),
    Column("GATE", "gate"),
    Column("PROBLEM", "problem"),
)

WORKER_COLUMNS = (
    Column("WORKER", "name"),
    Column("CPU", "cpu"),
    Column("CORES", "cores", right=True),
    Column("MEMORY", "memory", view.size, right=True),
    Column("GPUS", "gpus"),
)

SPEED_COLUMNS = (
    Column("WORKER", "worker"),
    Column("MODEL", "model"),
    Column("TOKENS/S", "speed", right=True),
    Column("PROMPT TOKENS/S", "prefill", right=True),
    Column("SHA256", "sha256", _short),
)

KEY_COLUMNS = (
    Column("FINGERPRINT", "fingerprint"),
    Column("SERIAL", "serial", right=True),
    Column("UNTIL", "not_after", view.moment),
    Column("BY THE WORD OF", "by"),
    Column("AFTER ENTRY", "after", _seq, right=True),
)

RECORD_COLUMNS = (
    Column("NAME", "name"),
    Column("POOL", "pool"),
    Column("EPOCH", "epoch", right=True),
    Column("CHANGED", "changed_at", view.moment),
    Column("BY", "changed_by"),
    Column("DOCUMENT", "document"),
)

REVIEW_COLUMNS = (
    Column("POOL", "pool"),
    Column("NUMBER", "seq", right=True),
    Column("NAME", "name"),
    Column("EPOCH", "epoch", right=True),
    Column("WHY", "why"),
    Column("DOCUMENT", "document"),
)

PROMOTION_COLUMNS = (
    Column("EPOCH", "epoch", right=True),
    Column("MASTER", "master", lambda name: name or "nobody"),
    Column("BY POOL", "by_pool"),
    Column("AT", "at", view.moment),
    Column("CUT AT", "through", _seq, right=True),
    Column("REASON", "reason"),
)

STRANDED_COLUMNS = (
    Column("POOL", "pool"),
    Column("NUMBER", "seq", _seq, right=True),
    Column("STREAM", "stream"),
    Column("WHY", "why"),
    Column("HASH", "hash", _short),
)


def logs(reply: Record) -> list[Table]:
    """Every log, ours first."""
    tables = [view.table(reply.get("items") or [], LOG_COLUMNS)]
    if reply.get("waits_for"):
        tables.append(view.card({"publishing waits": reply["waits_for"]}))
    return tables


def entries(rows: Iterable[Record]) -> Table:
    """Entries of one log."""
    return view.table(rows, ENTRY_COLUMNS)


def checks(reply: Record) -> Table:
    """What verification found."""
    return view.table(reply.get("items") or [], CHECK_COLUMNS)


def redundancy(reply: Record) -> list[Table]:
    """The verdict as a RAID gives it, and each copy."""
    summary = {
        "state": str(reply.get("state", "")).upper(),
        "copies": f"{reply.get('whole')} whole, {reply.get('partial')} partial, {reply.get('wanted')} wanted",
        "entries": reply.get("head"),
    }
    tables = [view.card(summary), view.table(reply.get("items") or [], COPY_COLUMNS)]
    models = reply.get("models") or {}
    if models.get("items"):
        tables.append(view.table(models["items"], MODEL_COLUMNS))
    if models.get("coming"):
        tables.append(view.table(models["coming"], COMING_COLUMNS))
    return tables


def attested(reply: Record) -> list[Table]:
    """What a peer says of its workers."""
    tables = [view.table(reply.get("items") or [], WORKER_COLUMNS)]
    if reply.get("speeds"):
        tables.append(view.table(reply["speeds"], SPEED_COLUMNS))
    return tables


def keys(rows: Iterable[Record]) -> Table:
    """Online keys, newest first."""
    return view.table(rows, KEY_COLUMNS)


def catalogue(reply: Record) -> list[Table]:
    """Who writes the catalogue, and how that came."""
    summary: dict[str, Any] = {
        "master": reply.get("master") or "nobody",
        "epoch": reply.get("epoch"),
        "writable here": reply.get("writable_here"),
        "frozen": reply.get("reason") if reply.get("frozen") else False,
        "members": reply.get("members"),
        "promoters": reply.get("promoters"),
        "witnesses": reply.get("witnesses"),
        "records": reply.get("records"),
        "in review": reply.get("in_review"),
        "automatic": True if reply.get("automatic") else f"no: {reply.get('why_not_automatic')}",
    }
    tables = [view.card(summary)]
    if contenders := reply.get("contenders"):
        tables.append(view.table(contenders, PROMOTION_COLUMNS, "contenders"))
    if promotions := reply.get("promotions"):
        tables.append(view.table(promotions, PROMOTION_COLUMNS, "promotions"))
    return tables


def records(rows: Iterable[Record]) -> Table:
    """The catalogue's records."""
    return view.table(rows, RECORD_COLUMNS)


def reviews(rows: Iterable[Record]) -> Table:
    """Writes that wait for a decision."""
    return view.table(rows, REVIEW_COLUMNS)


def stranded(rows: Iterable[Record]) -> Table:
    """Entries that were put aside."""
    return view.table(rows, STRANDED_COLUMNS)


def taken(reply: Mapping[str, Any]) -> Table:
    """What came of an import."""
    kept = {name: value for name, value in reply.items() if name != "receipt"}
    return view.card(kept)
