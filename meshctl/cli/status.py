"""`meshctl status`: one look at a gate."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit


def status(
    watch: Annotated[
        float | None,
        typer.Option("--watch", "-w", min=0.2, metavar="SECONDS", help="Repeat every so many seconds."),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the gate, its store, the links of its sidecars and the sessions in them."""
    gate = options.connect(gate_dir, socket)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            reply = gate.get("/status")
            emit(reply, view.status(reply), output)
            if watch is None:
                return
            time.sleep(watch)
