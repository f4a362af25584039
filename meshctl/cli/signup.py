"""`meshctl signup`: people who ask for an account themselves."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import people_view, view
from meshctl.cli import options
from meshctl.render import Output, emit, tell
from meshctl.terminal import note

commands = options.group("Self-sign-up: whether people may ask for an account, and who waits for an answer.")

Who = Annotated[
    str, typer.Argument(metavar="PERSON", help="Their id (p-...) or address.", show_default=False)
]


@commands.command("list")
def list_requests(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List who has confirmed their address and waits, oldest first."""
    rows = options.connect(gate_dir, socket).items("/signup/requests")
    emit(rows, view.table(rows, people_view.REQUEST_COLUMNS), output, empty="Nobody waits.")


@commands.command("approve")
def approve(
    person: Who,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let somebody in; they are mailed a code for their key."""
    row = options.connect(gate_dir, socket).post(f"/signup/requests/{quote(person, safe='')}/approve", {})
    tell(f"{row['id']} is mailed a code for their key.", row, output)


@commands.command("reject")
def reject(
    person: Who,
    silent: Annotated[bool, typer.Option("--silent", help="Do not mail them.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Turn somebody away; what they entered is removed."""
    path = f"/signup/requests/{quote(person, safe='')}/reject"
    row = options.connect(gate_dir, socket).post(path, {"tell": not silent})
    tell(f"{row['id']} is turned away, and what they entered is removed.", row, output)


@commands.command("settings")
def settings(
    enabled: Annotated[
        bool | None, typer.Option("--on/--off", help="Whether people may ask.", show_default=False)
    ] = None,
    domains: Annotated[
        str | None, typer.Option("--domains", metavar="LIST", help="Mail domains that may; '' for any.")
    ] = None,
    automatic_domains: Annotated[
        str | None,
        typer.Option("--automatic-domains", metavar="LIST", help="Mail domains that need no approval."),
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="LIST", help="Models that a person's app may use.")
    ] = None,
    databases: Annotated[
        str | None, typer.Option("--databases", metavar="LIST", help="Databases that it may use.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what is set, after changing what is named; the rest is at meshctl settings (signup.*)."""
    gate = options.connect(gate_dir, socket)
    given = {
        "enabled": enabled,
        "domains": domains,
        "automatic_domains": automatic_domains,
        "models": models,
        "databases": databases,
    }
    for name, value in given.items():
        if value is not None:
            gate.put(f"/settings/signup.{name}", {"value": value})
    row = gate.get("/signup")
    emit(row, view.card(row), output)
    if row.get("enabled") and not row.get("open"):
        note("Mail is not set up, so nobody can sign up: meshctl smtp set --host HOST --from ADDRESS")
