"""`meshctl order`: what is to be done at a time: moving nodes, draining workers, changing the mode."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Orders for a later time; one gate of the pool carries each out, once.")

COLUMNS = (
    view.Column("ORDER", "number", right=True),
    view.Column("AT", "at", view.moment),
    view.Column("WHAT", "what"),
    view.Column(
        "ARGUMENTS", "arguments", lambda found: " ".join(f"{k}={v}" for k, v in (found or {}).items() if v)
    ),
    view.Column("STATE", "state"),
    view.Column("BY", "by"),
    view.Column("REASON", "reason"),
    view.Column("OUTCOME", "outcome"),
)

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="The order's number.")]


@commands.command("list")
def list_orders(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")] = 100,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List orders that are to come."""
    rows = options.connect(gate_dir, socket).items("/orders", {"all": all_, "limit": limit})
    emit(rows, view.table(rows, COLUMNS), output, empty="No order is to come. Give one: meshctl order add")


@commands.command("show")
def show(
    number: Number,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one order and what came of it."""
    row = options.connect(gate_dir, socket).get(f"/orders/{number}")
    emit(row, view.card(row), output)


@commands.command("add")
def add(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="failover, drain, undrain or mode.")],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="When: 2027-01-31T02:00, UTC unless it says more.",
            show_default=False,
        ),
    ] = None,
    in_: Annotated[
        str | None,
        typer.Option("--in", metavar="TIME", help="When, from now: 90s, 15m, 12h.", show_default=False),
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option("--worker", metavar="NAME", help="For drain and undrain.", show_default=False),
    ] = None,
    verb: Annotated[
        str | None, typer.Option("--verb", help="For failover: move, back or reassign.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="POOL", help="For failover: where to.", show_default=False)
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--of", metavar="POOL", help="For failover: whose nodes.", show_default=False),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NAME", help="For failover: which nodes.", show_default=False),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="For mode: auto or manual.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say whether it could be done now, and keep nothing.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have something done at a time. An order that cannot be begun within order.late_s of it is missed."""
    given = {"worker": worker, "verb": verb, "pool": to, "of": of, "nodes": node, "mode": mode}
    body: dict[str, Any] = {
        "what": what,
        "arguments": {name: value for name, value in given.items() if value},
        "reason": reason,
        "dry_run": dry_run,
        "at": _moment(at, in_),
    }
    row = options.connect(gate_dir, socket).post("/orders", body)
    if dry_run and output is Output.TABLE:
        note(f"At {row['at']}: {what}. " + (row["problem"] or "It could be done now."))
        return
    emit(row, view.card(row), output)


@commands.command("cancel")
def cancel(
    number: Number,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Let an order not be done."""
    gate = options.connect(gate_dir, socket)
    row = gate.get(f"/orders/{number}")
    confirm(f"Cancel order {number} ({row['what']} at {row['at']})?", yes=yes)
    gate.delete(f"/orders/{number}")
    note(f"Order {number} is cancelled.")


def _moment(at: str | None, in_: str | None) -> float:
    if (at is None) == (in_ is None):
        raise UsageError("When?", hint="--at 2027-01-31T02:00, or --in 12h")
    if at is None:
        return time.time() + (options.seconds(in_, "--in") or 0.0)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise UsageError(f'--at: "{at}" is no time.', hint="write it as 2027-01-31T02:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
