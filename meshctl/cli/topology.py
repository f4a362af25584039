"""`meshctl topology`: the pool as a graph, and how it was."""

from __future__ import annotations

from typing import Annotated

import typer

from meshctl import cluster_view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit

HISTORY_MAX_S = 3600.0


def topology(
    lines: Annotated[bool, typer.Option("--lines", help="What flows between them, not the nodes.")] = False,
    history: Annotated[
        str | None,
        typer.Option("--history", metavar="TIME", help="How it was, up to 1h ago.", show_default=False),
    ] = None,
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show pools, gates, workers, minigates, providers and databases, and what joins them."""
    gate = options.connect(gate_dir, socket)
    if history is not None:
        seconds = options.seconds(history, "--history")
        if seconds is None or not 1 <= seconds <= HISTORY_MAX_S:
            raise UsageError(f"{history} is not kept.", hint="from 1s to 1h")
        reply = gate.get("/topology/history", {"seconds": seconds})
        emit(reply["items"], cluster_view.history(reply), output, empty="Nothing is kept yet.")
        return

    def look() -> options.Shown:
        found = gate.get("/topology")
        return found, cluster_view.topology(found, lines=lines)

    options.show(look, output, watch=watch, every=every)
