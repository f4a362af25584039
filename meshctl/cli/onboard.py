"""`meshctl onboard`: the first steps of a pool, one after the other; a run that broke off goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl import onboarding, view
from meshctl.cli import options
from meshctl.client import Gate
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import note

commands = typer.Typer(
    help="The first steps of a pool.",
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode=None,
    add_completion=False,
)

COLUMNS = (
    view.Column("STEP", "step"),
    view.Column("STATE", "state"),
    view.Column("WHAT", "title"),
    view.Column("DETAIL", "detail"),
    view.Column("NEXT", "next"),
)


@commands.callback()
def onboard(
    context: typer.Context,
    step: Annotated[
        str | None,
        typer.Option(
            "--step",
            metavar="STEP",
            help=f"This one only: {', '.join(onboarding.STEPS)}.",
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="FILE",
            help="A TOML file with a table a step; nothing is asked.",
            show_default=False,
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Do the first steps of a pool that are not done yet: machine, admin, store, database, model, pair.

    Without a command it goes through them and asks; with --answers it asks nothing.
    """
    if context.invoked_subcommand is not None:
        return
    if step is not None and step not in onboarding.STEPS:
        raise UsageError(f'There is no step "{step}".', hint=f"choose from {', '.join(onboarding.STEPS)}")
    given = None if answers is None else onboarding.read_answers(answers)
    ask_for = given is None and sys.stdin.isatty() and sys.stderr.isatty()
    gate = options.connect(gate_dir, socket)
    for row in _open_steps(gate, step):
        name = str(row["step"])
        if given is not None and name not in given and onboarding.KEYS[name] and step is None:
            note(f"{name}: left open, for the answers say nothing of it.")
            continue
        found = None if given is None else given.get(name)
        note(f"{name}: {onboarding.do(name, gate, found, ask_for=ask_for)}")
    state = gate.get("/onboarding")
    if state["done"]:
        note("Every step is done or was skipped.")
    else:
        every = options.named_again("meshctl onboard status", gate_dir, socket)
        note(f"The next open step is {state['next']}. All of them: {every}")


@commands.command("status")
def status(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show every step: done, open or skipped, and what does it."""
    reply = options.connect(gate_dir, socket).get("/onboarding")
    rows = [
        {**row, "next": row["next"] and options.named_again(row["next"], gate_dir, socket)}
        for row in reply["steps"]
    ]
    emit(reply, view.table(rows, COLUMNS), output)


@commands.command("skip")
def skip(
    step: Annotated[str, typer.Argument(metavar="STEP", help="Which one.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take it up again.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Pass over a step, or take it up again."""
    state = "open" if undo else "skipped"
    options.connect(gate_dir, socket).put(f"/onboarding/{step}", {"state": state})
    note(f"{step} is {state}.")


def _open_steps(gate: Gate, step: str | None) -> list[dict[str, Any]]:
    rows = [row for row in gate.get("/onboarding")["steps"] if step is None or row["step"] == step]
    for row in rows:
        if row["state"] != "open" and step != "machine":
            note(f"{row['step']}: {row['state']} already ({row['detail']}).")
    return [row for row in rows if row["state"] == "open" or step == "machine"]
