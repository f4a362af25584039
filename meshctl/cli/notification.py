"""`meshctl notification`: the pool's inbox."""

from __future__ import annotations

from typing import Annotated

import typer

from meshctl import people_view, view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit, tell

commands = options.group("Notifications: what somebody should know, until it is put away.")

Numbers = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID", help="Which; or --all.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="All that are in the inbox.")]


@commands.command("list")
def list_notifications(
    unread: Annotated[bool, typer.Option("--unread", help="Only what you have not read.")] = False,
    severity: Annotated[
        str, typer.Option("--severity", metavar="LEAST", help="info, warning or critical, and above.")
    ] = "info",
    cleared: Annotated[bool, typer.Option("--cleared", help="Also what was put away.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many, the newest.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List notifications, the newest first."""
    query: dict[str, object] = {"unread": unread, "severity": severity, "cleared": cleared, "limit": limit}
    rows = options.connect(gate_dir, socket).items("/notifications", query)
    shown = view.table(rows, people_view.NOTIFICATION_COLUMNS)
    emit(rows, shown, output, empty="The inbox is empty.")


@commands.command("read")
def read(
    ids: Numbers = None,
    every: Everything = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Note that you have read them; for others they stay unread."""
    reply = options.connect(gate_dir, socket).post("/notifications/read", _which(ids, every=every))
    tell(f"{reply['read']} read.", reply, output)


@commands.command("clear")
def clear(
    ids: Numbers = None,
    every: Everything = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Put them away, for everybody."""
    reply = options.connect(gate_dir, socket).post("/notifications/clear", _which(ids, every=every))
    tell(f"{reply['cleared']} put away.", reply, output)


def _which(ids: list[int] | None, *, every: bool) -> dict[str, object]:
    if bool(ids) == every:
        raise UsageError("Name notifications, or say --all.", hint="meshctl notification list")
    return {"ids": None if every else ids}
