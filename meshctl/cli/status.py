"""`meshctl status`: one look at a gate."""

from __future__ import annotations

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output


def status(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the gate, its store, the links of its sidecars and the sessions in them."""
    gate = options.connect(gate_dir, socket)

    def look() -> options.Shown:
        reply = gate.get("/status")
        return reply, view.status(reply)

    options.show(look, output, watch=watch, every=every)
