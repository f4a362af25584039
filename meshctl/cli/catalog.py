"""`meshctl catalog`: the catalogue of models that paired pools share, and who may write it."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import replication_view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("The shared catalogue of models: one master writes it, promoted by a person.")

Pool = Annotated[
    str | None,
    typer.Argument(
        metavar="POOL",
        help="The pool; left out, this one.",
        autocompletion=options.pool_names,
        show_default=False,
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is signed and kept.")]


@commands.command("status")
def status(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show who may write the catalogue, how that came, and whether it is frozen."""
    reply = options.connect(gate_dir, socket).get("/catalogue")
    emit(reply, replication_view.catalogue(reply), output)


@commands.command("promote")
def promote(
    pool: Pool = None,
    reason: Reason = "",
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Make a pool the master; what its predecessor wrote beyond what is known here goes to review."""
    gate = options.connect(gate_dir, socket)
    now = gate.get("/catalogue")
    if now.get("master"):
        confirm(
            f"Replace {now['master']} as the master at epoch {int(now['epoch']) + 1}? "
            "What it wrote and did not get out goes to review.",
            yes=yes,
        )
    reply = gate.post("/catalogue/promote", {"pool": pool, "reason": reason})
    emit(reply, replication_view.catalogue(reply), output)


@commands.command("demote")
def demote(
    reason: Reason = "",
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Make nobody the master: the catalogue is read-only everywhere until somebody is promoted."""
    confirm("Make the catalogue read-only everywhere?", yes=yes)
    reply = options.connect(gate_dir, socket).post("/catalogue/demote", {"reason": reason})
    emit(reply, replication_view.catalogue(reply), output)


@commands.command("resolve")
def resolve(
    pool: Pool = None,
    reason: Reason = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """End a freeze after two promotions at one epoch: pick the master."""
    body = {"pool": pool, "reason": reason}
    reply = options.connect(gate_dir, socket).post("/catalogue/resolve", body)
    emit(reply, replication_view.catalogue(reply), output)


@commands.command("group")
def group(
    promoter: Annotated[
        list[str] | None,
        typer.Option("--promoter", metavar="POOL", help="May promote; without any, all members may."),
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option("--witness", metavar="POOL", help="Votes and holds nothing.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Sign who shares the catalogue (all pools of trust 3) and who may promote."""
    body = {"promoters": promoter or None, "witnesses": witness or None}
    reply = options.connect(gate_dir, socket).put("/catalogue/group", body)
    emit(reply, replication_view.catalogue(reply), output)


@commands.command("list")
def list_records(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the catalogue's records."""
    rows = options.connect(gate_dir, socket).items("/catalogue/records")
    emit(rows, replication_view.records(rows), output, empty="The catalogue is empty.")


@commands.command("set")
def set_record(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", show_default=False)],
    values: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="What is said of it.", show_default=False)
    ],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Write a record, at the master: meshctl catalog set llama-8b quant=Q4_K_M context=8192."""
    document: dict[str, Any] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f'"{pair}" is not KEY=VALUE.', hint="write it as KEY=VALUE")
        try:
            document[key] = json.loads(value)
        except ValueError:
            document[key] = value
    path = f"/catalogue/records/{quote(name, safe='')}"
    row = options.connect(gate_dir, socket).put(path, {"document": document})
    emit(row, replication_view.records([row]), output)


@commands.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", show_default=False)],
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Remove a record, at the master."""
    confirm(f"Remove {name} from the catalogue of every pool?", yes=yes)
    options.connect(gate_dir, socket).delete(f"/catalogue/records/{quote(name, safe='')}")
    note(f"{name} is removed.")


@commands.command("review")
def review(
    pool: Annotated[
        str | None,
        typer.Argument(metavar="POOL", help="With NUMBER: decide this write.", show_default=False),
    ] = None,
    number: Annotated[
        int | None, typer.Argument(metavar="NUMBER", help="Its number in POOL's log.", show_default=False)
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept/--drop", help="Write it again here, or let it go.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show writes of a replaced master that nobody had in time, or decide one of them."""
    gate = options.connect(gate_dir, socket)
    if (pool is None) != (number is None):
        raise UsageError("POOL and NUMBER come together.", hint="meshctl catalog entries tells both")
    if pool is not None:
        rows = gate.post(f"/catalogue/reviews/{quote(pool, safe='')}/{number}", {"accept": accept})["items"]
    else:
        rows = gate.items("/catalogue/reviews")
    emit(rows, replication_view.reviews(rows), output, empty="Nothing waits for a decision.")
