"""`meshctl failover`: where sidecars and workers go when their pool is dead, and sending them there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshctl import failover_view
from meshctl.cli import options
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Moves between pools: by themselves, by order, and what came of them.")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Authority = Annotated[
    bool,
    typer.Option("--authority", help="Of the catalogue's master, not of sidecars and workers."),
]
Nodes = Annotated[
    list[str] | None,
    typer.Option("--node", metavar="NAME", help="This node only; repeatable.", show_default=False),
]
Of = Annotated[
    str | None,
    typer.Option(
        "--of",
        metavar="POOL",
        help="Nodes of that pool, which are here or stand by; without it our own.",
        show_default=False,
    ),
]
PoolName = Annotated[
    str,
    typer.Argument(
        metavar="POOL",
        help="Where to.",
        autocompletion=options.pool_names,
        show_default=False,
    ),
]


@commands.command("status")
def status(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the mode, the order of pools, and where the nodes stand that are connected to this gate."""
    reply = options.connect(gate_dir, socket).get("/failover")
    emit(reply, failover_view.status(reply), output)


@commands.command("auto")
def auto(
    dry_run: DryRun = False,
    authority: Authority = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let nodes move by themselves: at once when this pool is dead, and home 30 to 60 s after it is back.

    With --authority: let a majority of the catalogue's group replace a master that is dead. Each pool says so
    for itself; two pools have no majority, and are refused.
    """
    _mode("auto", dry_run, authority, gate_dir, socket, output)


@commands.command("manual")
def manual(
    dry_run: DryRun = False,
    authority: Authority = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let nodes stay until they are ordered; a dead pool becomes an incident at the next one."""
    _mode("manual", dry_run, authority, gate_dir, socket, output)


@commands.command("to")
def to(
    pool: PoolName,
    nodes: Nodes = None,
    of: Of = None,
    yes: options.Yes = False,
    dry_run: DryRun = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Order nodes to a pool; they stay there until they are ordered back or that pool is dead.

    At the pool that is to take them over, name whose nodes: meshctl failover to US --of THEM.
    """
    body = {"verb": "move", "pool": pool, "of": of, "nodes": nodes or []}
    _order(body, dry_run, yes, gate_dir, socket, output)


@commands.command("back")
def back(
    nodes: Nodes = None,
    of: Of = None,
    yes: options.Yes = False,
    dry_run: DryRun = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Order nodes home again."""
    _order({"verb": "back", "of": of, "nodes": nodes or []}, dry_run, yes, gate_dir, socket, output)


@commands.command("history")
def history(
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="Of this node only.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, the newest.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the moves that nodes told this pool of: what was seen, by which rule, what came of it."""
    gate = options.connect(gate_dir, socket)
    rows = gate.items("/failover/history", {"limit": limit, "node": node})
    emit(rows, failover_view.history(rows), output, empty="No node has moved yet.")


def _mode(mode: str, dry_run: bool, authority: bool, gate_dir: Any, socket: Any, output: Output) -> None:
    body = {"mode": mode, "dry_run": dry_run, "authority": authority}
    reply = options.connect(gate_dir, socket).put("/failover/mode", body)
    if output is not Output.TABLE:
        emit(reply, [], output)
        return
    verb = "would be" if dry_run else "is"
    if authority:
        voters = ", ".join(reply["voters"]) or "nobody"
        how = f"{reply['needed']} of {voters} elect" if mode == "auto" else "a person promotes"
        note(f"The authority {verb} {mode} at this pool (it was {reply['was']}): {how}.")
        return
    where = ", ".join(reply["targets"]) or "nowhere"
    note(f"The mode {verb} {mode} (it was {reply['was']}); nodes go to: {where}.")


def _order(
    body: dict[str, Any], dry_run: bool, yes: bool, gate_dir: Any, socket: Any, output: Output
) -> None:
    gate = options.connect(gate_dir, socket)
    plan = gate.post("/failover/orders", {**body, "dry_run": True})
    if dry_run:
        _said(plan, "would", output)
        return
    moving = len(plan["moving"])
    if moving:
        confirm(f"Move {moving} of {len(plan['reached'])} nodes of {plan['of']} to {plan['to']}?", yes=yes)
    _said(gate.post("/failover/orders", body), "will", output)


def _said(reply: dict[str, Any], word: str, output: Output) -> None:
    if output is not Output.TABLE:
        emit(reply, [], output)
        return
    names = ", ".join(reply["moving"]) or "none of those connected here"
    note(f"Nodes of {reply['of']} that {word} go to {reply['to']}: {names}.")
    if word == "will":
        note("Watch them: meshctl failover status")
