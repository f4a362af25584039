"""`meshctl key`: the fingerprints a person compares."""

from __future__ import annotations

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit

commands = options.group("Keys: who this pool and this gate are.")


@commands.command("show")
def show(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the fingerprints of the pool's, the online and this gate's key, and when they expire."""
    reply = options.connect(gate_dir, socket).get("/key")
    emit(reply, view.keys(reply), output)
