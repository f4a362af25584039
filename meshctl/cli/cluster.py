"""`meshctl cluster`: this pool and all that it is paired with, in one view; each is asked now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshctl import cluster_view, view
from meshctl.cli import options
from meshctl.render import Output

commands = options.group("All pools in one view: each is asked now, and those that do not answer are named.")


def _command(
    question: str,
    columns: Sequence[view.Column],
    help_text: str,
    flat: Callable[[view.Record], dict[str, Any]] = dict,
) -> None:
    """Add a command that puts ``question`` to all pools and shows a line for each item of their answers."""

    @commands.command(question, help=help_text)
    def show(
        watch: options.Watch = False,
        every: options.Every = options.EVERY_S,
        gate_dir: options.GateDir = None,
        socket: options.Socket = None,
        output: options.Format = Output.TABLE,
    ) -> None:
        gate = options.connect(gate_dir, socket)

        def look() -> options.Shown:
            reply = gate.get(f"/cluster/{question}")
            rows = [flat(row) for row in reply["items"]]
            return reply, [view.table(rows, columns), *cluster_view.missing(reply)]

        options.show(look, output, watch=watch, every=every)


_command("overview", cluster_view.OVERVIEW_COLUMNS, "Show every pool at a glance.", cluster_view.overview)
_command("workers", cluster_view.WORKER_COLUMNS, "Show the workers of all pools.", cluster_view.worker)
_command("pools", cluster_view.SEEN_COLUMNS, "Show which pool sees which, and how it stands to it.")
_command("replication", cluster_view.LOG_COLUMNS, "Show how far every log has come at every pool.")
_command("incidents", cluster_view.INCIDENT_COLUMNS, "Show the incidents of all pools that are not resolved.")
