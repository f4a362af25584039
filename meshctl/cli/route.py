"""`meshctl route`: where a request would go, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshctl import route_view
from meshctl.cli import options
from meshctl.render import Output, emit
from meshctl.terminal import note

commands = options.group("Where requests go: every candidate with its score and the reasons.")


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
    emit(reply, route_view.candidates(reply), output)
    if output is Output.TABLE:
        _notes(reply)


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
