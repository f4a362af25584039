"""Where a request would go, as rows for a person. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from meshctl import view
from meshctl.view import Record, Table

COLUMNS = (
    view.Column("VERDICT", "verdict"),
    view.Column("NODE", "node"),
    view.Column("KIND", "kind"),
    view.Column("MODEL", "model"),
    view.Column("SCORE", "score", view.text, right=True),
    view.Column("SECONDS", "seconds", view.text, right=True),
    view.Column("PRICE", "price", view.text, right=True),
    view.Column("QUALITY", "quality", view.text, right=True),
    view.Column("WHY", "why"),
)

NARROW = tuple(
    next(one for one in COLUMNS if one.key == key)
    for key in ("verdict", "node", "model", "why", "score", "seconds", "price", "quality", "kind")
)
"""The same with the reasons before the figures: a narrow screen cuts what is last."""

FACTS = (
    view.Column("request", "request"),
    view.Column("app", "app"),
    view.Column("tokens in", "input_tokens"),
    view.Column("tokens out", "output_tokens"),
    view.Column("as good as the best", "equals"),
    view.Column("candidates", "total"),
    view.Column("problem", "problem"),
)


def candidates(reply: Record, columns: Sequence[view.Column] = COLUMNS) -> Table:
    """Every candidate, the best first, with its score and why it is or is not taken."""
    rows = []
    for item in reply["items"]:
        facts = [] if item["resident"] or item["kind"] != "worker" else [f"load {item['load_s']:.1f} s"]
        facts += [f"queue {item['queue_s']:.1f} s"] if item["queue_s"] else []
        rows.append({**item, "why": "; ".join([*item["reasons"], *facts])})
    return view.table(rows, columns)


def explained(reply: Record) -> list[Table]:
    """The request, what was weighed, and every candidate."""
    return [view.card(reply, FACTS), candidates(reply, NARROW), view.card({"weights": reply["weights"]})]
