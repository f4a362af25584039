"""Replies about providers, prices, budgets and receipts → rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshctl.view import Column, Record, Table, card, moment, span, table, text

ALIAS_COLUMNS = (
    Column("NAME", "name"),
    Column("STANDS FOR", "target"),
    Column("CHANGED", "changed_at", moment),
)

_PROVIDERS = (
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("URL", "url"),
    Column("LOCAL", "local"),
    Column("ISOLATION", "isolation"),
    Column("KEY", "has_key", lambda has: "sealed" if has else "none"),
    Column("MODELS", "models", lambda models: str(len(models or ())), right=True),
    Column("UNPRICED", "unpriced", right=True),
)
_MODELS = (
    Column("MODEL", "name"),
    Column("KINDS", "kinds"),
    Column("CONTEXT", "context", lambda tokens: text(tokens or None), right=True),
    Column("IN", "price.input", right=True),
    Column("OUT", "price.output", right=True),
    Column("AS OF", "price.as_of"),
)
_PRICES = (
    Column("MODEL", "model"),
    Column("IN", "input", right=True),
    Column("OUT", "output", right=True),
    Column("CACHED", "cached", right=True),
    Column("CURRENCY", "currency"),
    Column("AS OF", "as_of"),
    Column("SOURCE", "source"),
)


def percent(part: Any) -> str:
    """A part of one."""
    return "-" if part is None else f"{float(part) * 100:.0f}%"


_BUDGETS = (
    Column("BUDGET", "id"),
    Column("SOFT", "soft", right=True),
    Column("HARD", "hard", right=True),
    Column("SPENT", "spent", right=True),
    Column("LEFT", "left", right=True),
    Column("USED", "used", percent, right=True),
    Column("CURRENCY", "currency"),
    Column("UNTIL", "ends_at", moment),
    Column("LASTS", "forecast.in_time"),
)
_BUDGET = (
    Column("budget", "id"),
    Column("hard limit", "hard"),
    Column("soft limit", "soft"),
    Column("currency", "currency"),
    Column("spent", "spent"),
    Column("left", "left"),
    Column("used", "used", percent),
    Column("leased to gates", "committed"),
    Column("lost with gates", "lost"),
    Column("began", "started_at", moment),
    Column("ends", "ends_at", moment),
)
_FORECASTS = (
    Column("BUDGET", "id"),
    Column("SPENT", "spent", right=True),
    Column("HARD", "hard", right=True),
    Column("PER HOUR", "forecast.per_hour", right=True),
    Column("AT THE END", "forecast.projected", right=True),
    Column("SPENT UP IN", "forecast.ends_in_s", span, right=True),
    Column("LASTS", "forecast.in_time"),
    Column("UNTIL", "ends_at", moment),
)
_GATES = (
    Column("GATE", "gate"),
    Column("LEASED", "granted", right=True),
    Column("SPENT", "spent", right=True),
    Column("HEARD OF", "seen_at", moment),
)
_HISTORY = (
    Column("PERIOD", "started_at", moment),
    Column("SPENT", "spent", right=True),
    Column("COMMITTED", "committed", right=True),
)
SHIFT_COLUMNS = (
    Column("TIME", "at", moment),
    Column("BUDGET", "budget"),
    Column("WHAT", "what"),
    Column("APP", "app"),
    Column("TO", "to_model"),
    Column("REASON", "reason"),
)
USAGE_COLUMNS = (
    Column("WHAT", "name"),
    Column("REQUESTS", "requests", right=True),
    Column("FAILED", "failed", right=True),
    Column("TOKENS IN", "tokens_in", right=True),
    Column("OUT", "tokens_out", right=True),
    Column("COST", "cost", right=True),
    Column("CURRENCY", "currency"),
    Column("LAST", "last_at", moment),
)
_RECEIPTS = (
    Column("ID", "id"),
    Column("TIME", "ended_at", moment),
    Column("APP", "app"),
    Column("TASK", "task"),
    Column("MODEL", "model"),
    Column("NODES", "nodes", lambda nodes: text([one.get("node") for one in nodes or ()])),
    Column("IN", "tokens_in", right=True),
    Column("OUT", "tokens_out", right=True),
    Column("MS", "duration_ms", right=True),
    Column("PRICE", "price", right=True),
    Column("OUTCOME", "outcome"),
)


def providers(rows: Iterable[Record]) -> Table:
    """One line a provider."""
    return table(rows, _PROVIDERS)


def provider(row: Record) -> list[Table]:
    """One provider, then its models."""
    head = {name: value for name, value in row.items() if name != "models"}
    return [card(head), table(row.get("models") or (), _MODELS, title="models")]


def prices(rows: Iterable[Record]) -> Table:
    """One line a price."""
    return table(rows, _PRICES)


def budgets(rows: Iterable[Record]) -> Table:
    """One line a budget."""
    return table(rows, _BUDGETS)


def budget(row: Record) -> list[Table]:
    """One budget, and what is known of its past."""
    shown = [card(row, _BUDGET)]
    shown.append(table([row], _FORECASTS, title="forecast"))
    for title, columns in (("gates", _GATES), ("history", _HISTORY), ("shifts", SHIFT_COLUMNS)):
        if row.get(title):
            shown.append(table(row[title], columns, title=title))
    return shown


def forecasts(rows: Iterable[Record]) -> Table:
    """Where each budget goes."""
    return table(rows, _FORECASTS)


def shifts(rows: Iterable[Record]) -> Table:
    """One line an entry of the journal."""
    return table(rows, SHIFT_COLUMNS)


def receipts(rows: Iterable[Record]) -> Table:
    """One line a receipt."""
    return table(rows, _RECEIPTS)


def usage(rows: Iterable[Record]) -> Table:
    """One line for what was added up by app, team, model, task or day."""
    return table(rows, USAGE_COLUMNS)


def receipt(document: Record) -> Table:
    """One receipt without its signature and certificate, which are for programs."""
    return card({name: one for name, one in document.items() if name not in {"signature", "certificate"}})
