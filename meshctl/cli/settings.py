"""`meshctl settings`: the registry in the database, for everything that may change while the mesh runs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit, tell
from meshctl.terminal import confirm, note

commands = options.group("Settings in the database; qgate.toml is for start-up only.")


Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the change.")]

HISTORY = (
    view.Column("AT", "at", view.moment),
    view.Column("SETTING", "name"),
    view.Column("BY", "by"),
    view.Column("BEFORE", "before"),
    view.Column("AFTER", "after"),
    view.Column("WHAT", "what"),
    view.Column("REASON", "reason"),
)


def _path(name: str) -> str:
    return f"/settings/{quote(name, safe='')}"


@commands.command("list")
def list_settings(
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those that are not at their default.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Also the options of qgate.toml, read at start-up.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the settings: value, default, source, description. -o json has qgate.toml's options as well."""
    rows = options.connect(gate_dir, socket).items("/settings")
    if changed:
        rows = [row for row in rows if row.get("source") != "default"]
    live = [
        row for row in rows if "choices" in row
    ]  # what the registry declares; the file's options have none
    if output is Output.TABLE and not every and not changed:
        emit(live, view.table(live, view.SETTING_COLUMNS), output)
        if len(rows) > len(live):
            note(f"{len(rows) - len(live)} options of qgate.toml are not shown: --all")
        return
    emit(rows, view.table(rows, view.SETTING_COLUMNS), output)


@commands.command("get")
def get(
    name: options.SettingName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one setting in full."""
    row = options.connect(gate_dir, socket).get(_path(name))
    emit(row, view.card(row), output)


@commands.command("set", context_settings={"ignore_unknown_options": True})
def set_value(
    name: options.SettingName,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="The new value; the gate reads it as the setting's type.")
    ],
    reason: Reason = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Change a setting for the whole pool; it takes effect within a second unless a restart is needed."""
    gate = options.connect(gate_dir, socket)
    row = gate.call("PUT", _path(name), body={"value": value}, query={"reason": reason or None}).body
    tell(f"{name} is {view.text(row.get('value'))}.", row, output)
    _tell_restart(row)


@commands.command("reset")
def reset(
    name: options.SettingName,
    reason: Reason = "",
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Put a setting back to its default."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Reset {name} to its default?", yes=yes)
    row = gate.delete(_path(name), {"reason": reason or None}) or {}
    note(f"{name} is at its default again.")
    _tell_restart(row)


@commands.command("history")
def history(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Of this one only.", autocompletion=options.setting_names, show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many, the newest.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the changes of a setting, or of all: who, when, from what to what, why."""
    rows = options.connect(gate_dir, socket).items("/settings/history", {"name": name, "limit": limit})
    emit(rows, view.table(rows, HISTORY), output, empty="No setting was changed yet.")


def _tell_restart(row: dict[str, Any]) -> None:
    if row.get("restart_needed"):
        note("It takes effect when the gates are restarted.")
