"""`meshctl incident`: what went wrong in this pool, who looks after it, and that it is over."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshctl import failover_view
from meshctl.cli import options
from meshctl.render import Output, emit, tell

commands = options.group("Incidents of this pool; one that nobody answers is escalated.")

Number = Annotated[int, typer.Argument(metavar="ID", help="The incident's number.", show_default=False)]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="What to note with it.")]


@commands.command("list")
def list_incidents(
    resolved: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, the newest.")] = 50,
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List incidents that are not over, newest first."""
    gate = options.connect(gate_dir, socket)

    def look() -> options.Shown:
        rows = gate.items("/incidents", {"all": resolved, "limit": limit})
        return rows, failover_view.incidents(rows)

    none = "No incident was ever kept." if resolved else "No incident is open. Those that are over: --all"
    options.show(look, output, watch=watch, every=every, empty=none)


@commands.command("show")
def show(
    number: Number,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one incident with what was seen of it, and by whom."""
    row = options.connect(gate_dir, socket).get(f"/incidents/{number}")
    emit(row, failover_view.incident(row), output)


@commands.command("ack")
def acknowledge(
    number: Number,
    note: Note = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say that you look after it; it is not escalated then."""
    _answer(number, "ack", note, gate_dir, socket, output)


@commands.command("resolve")
def resolve(
    number: Number,
    note: Note = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say that it is over; the same trouble would be a new incident."""
    _answer(number, "resolve", note, gate_dir, socket, output)


def _answer(number: int, verb: str, note: str, gate_dir: Any, socket: Any, output: Output) -> None:
    row = options.connect(gate_dir, socket).post(f"/incidents/{number}/{verb}", {"note": note})
    tell(f"Incident {number} is {row['state']}.", row, output)
