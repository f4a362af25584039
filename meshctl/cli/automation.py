"""`meshctl automation`: what the pool does unasked, with a switch each."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit, tell
from meshctl.terminal import note

commands = options.group("What the pool does unasked, with a switch each.")

COLUMNS = (
    view.Column("NAME", "name"),
    view.Column("ON", "on"),
    view.Column("LOOKED", "looked_at", view.moment),
    view.Column("NEXT", "next_at", view.moment),
    view.Column("DID LAST", "last_run_at", view.moment),
    view.Column("OUTCOME", "last_outcome"),
    view.Column("WHAT IT DOES", "description"),
)


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The automation's name.", autocompletion=options.names_in("/automations")
    ),
]


def _path(name: str) -> str:
    return f"/automations/{quote(name, safe='')}"


@commands.command("list")
def list_automations(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the automations: on or off, what each did last, when it looks next."""
    rows = options.connect(gate_dir, socket).items("/automations")
    emit(rows, view.table(rows, COLUMNS), output)


@commands.command("on")
def on(name: Name, gate_dir: options.GateDir = None, socket: options.Socket = None) -> None:
    """Turn an automation on, for every gate of the pool."""
    _switch(options.connect(gate_dir, socket), name, on=True)


@commands.command("off")
def off(name: Name, gate_dir: options.GateDir = None, socket: options.Socket = None) -> None:
    """Turn an automation off, for every gate of the pool."""
    _switch(options.connect(gate_dir, socket), name, on=False)


@commands.command("run")
def run(
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Do what an automation does, once and now."""
    gate = options.connect(gate_dir, socket)
    if dry_run:
        row = gate.get(_path(name))
        lines = [{"would": line} for line in row["would"]]
        emit(
            row if output is not Output.TABLE else lines,
            view.table(lines, (view.Column("WOULD", "would"),)),
            output,
            empty=f"{name} would do nothing now.",
        )
        return
    row = gate.post(f"{_path(name)}/run")
    tell(f"{name}: {row['outcome']}.", row, output)


def _switch(gate: Any, name: str, *, on: bool) -> None:
    row = gate.put(_path(name), {"on": on})
    note(f"{name} is {'on' if row['on'] else 'off'}.")
