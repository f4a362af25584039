"""`meshctl cluster`: this pool and all that it is paired with, in one view; each is asked now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meshctl import cluster_view, view
from meshctl.cli import options
from meshctl.render import Output

commands = options.group("All pools in one view: each is asked now, and those that do not answer are named.")


@commands.command("overview")
def overview(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show every pool at a glance."""
    _shown(
        "overview",
        cluster_view.OVERVIEW_COLUMNS,
        cluster_view.overview,
        gate_dir,
        socket,
        output,
        watch,
        every,
    )


@commands.command("workers")
def workers(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the workers of all pools."""
    _shown(
        "workers", cluster_view.WORKER_COLUMNS, cluster_view.worker, gate_dir, socket, output, watch, every
    )


@commands.command("pools")
def pools(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show which pool sees which, and how it stands to it."""
    _shown("pools", cluster_view.SEEN_COLUMNS, dict, gate_dir, socket, output, watch, every)


@commands.command("replication")
def replication(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show how far every log has come at every pool."""
    _shown("replication", cluster_view.LOG_COLUMNS, dict, gate_dir, socket, output, watch, every)


@commands.command("incidents")
def incidents(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the incidents of all pools that are not resolved."""
    _shown("incidents", cluster_view.INCIDENT_COLUMNS, dict, gate_dir, socket, output, watch, every)


def _shown(
    question: str,
    columns: Sequence[view.Column],
    flat: Callable[[view.Record], dict[str, Any]],
    gate_dir: Path | None,
    socket: Path | None,
    output: Output,
    watch: bool,
    every: float,
) -> None:
    gate = options.connect(gate_dir, socket)

    def look() -> options.Shown:
        reply = gate.get(f"/cluster/{question}")
        rows = [flat(row) for row in reply["items"]]
        return reply, [view.table(rows, columns), *cluster_view.missing(reply)]

    options.show(look, output, watch=watch, every=every)
