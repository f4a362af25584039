"""`meshctl route`: where a request would go, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit
from meshctl.terminal import note

commands = options.group("Where requests go: every candidate with its score and the reasons.")

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


@commands.command("explain")
def explain(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="A qg:// request (its qg:// may be left out), a model's name or an alias.",
            show_default=False,
        ),
    ],
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="APP",
            help="Ask with this app's policy and budgets; without it as an administrator.",
            show_default=False,
            autocompletion=options.app_names,
        ),
    ] = None,
    input_tokens: Annotated[
        int | None,
        typer.Option("--input-tokens", metavar="N", min=0, help="How long the input is.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="Rows at most.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show every candidate for a request, the best first, with its score and why it is or is not taken.

    The score is in seconds and the lowest is taken: predicted time, plus what quality, money and distance are
    worth in seconds. Nothing is started, and the budgets are only looked at.
    """
    body = {"request": request, "app": app, "input_tokens": input_tokens, "limit": limit}
    reply = options.connect(gate_dir, socket).post("/route/explain", body)
    emit(reply, _table(reply), output)
    if output is Output.TABLE:
        _notes(reply)


def _table(reply: dict[str, Any]) -> view.Table:
    rows = []
    for item in reply["items"]:
        facts = [] if item["resident"] or item["kind"] != "worker" else [f"load {item['load_s']:.1f} s"]
        facts += [f"queue {item['queue_s']:.1f} s"] if item["queue_s"] else []
        rows.append({**item, "why": "; ".join([*item["reasons"], *facts])})
    return view.table(rows, COLUMNS)


def _notes(reply: dict[str, Any]) -> None:
    weights = reply["weights"]
    parts = [f"{weights['time']:g} x seconds", f"{weights['quality']:g} x (1 - quality)"]
    parts.append(f"{weights['money']:g} x price")
    if weights["abroad"]:
        parts.append(f"{weights['abroad']:g} outside the company")
    note(f"{reply['request']} with {reply['input_tokens']} tokens in, {reply['output_tokens']} out")
    note(f"score = {' + '.join(parts)}, + {weights['pressure']:g} x pressure of a budget where it is spent")
    if reply["total"] > len(reply["items"]):
        note(f"{reply['total'] - len(reply['items'])} more are not shown: --limit")
    if reply["equals"] > 1:
        note(f"{reply['equals']} are as good as the best: two are drawn, the better is taken")
    if reply["problem"] is not None:
        note(f"It would be refused: {reply['problem']['status']} {reply['problem']['code']}")
