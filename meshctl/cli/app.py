"""`meshctl app`: the pseudo-credentials that applications log in with."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.drivers import DEFAULT_PORT, Credential, connection_strings
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Pseudo-credentials: an app logs in with these, the gate holds the real ones.")

Host = Annotated[str, typer.Option("--host", help="Where the app reaches its sidecar, for the URLs shown.")]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=1,
        max=65535,
        help="The sidecar's port, for the URLs shown; 11438, or the dev stack's.",
        show_default=False,
    ),
]


@commands.command("create")
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name for the app; its login.", show_default=False)
    ],
    databases: Annotated[
        list[str],
        typer.Option(
            "--db", metavar="DB", help="A database it may use; repeat for more.", show_default=False
        ),
    ],
    expires_in: Annotated[
        str | None,
        typer.Option("--expires-in", metavar="TIME", help="End of life, as 12h or 30d.", show_default=False),
    ] = None,
    sidecars: Annotated[
        list[str] | None,
        typer.Option("--sidecar", metavar="NAME", help="Let it in through this sidecar only; repeatable."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Log in upstream as the database's read-only role.")
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="CLASS", help="Allow this class of statement only; repeatable."),
    ] = None,
    replication: Annotated[
        bool, typer.Option("--replication", help="Let it open replication connections.")
    ] = False,
    max_connections: options.MaxConnections = None,
    queue: options.Queue = None,
    queue_timeout: options.QueueTimeout = None,
    idle_timeout: options.IdleTimeout = None,
    statement_timeout: options.StatementTimeout = None,
    idle_in_transaction: options.IdleInTransaction = None,
    host: Host = "localhost",
    port: Port = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Make an app and show its password, this once, as URLs for the common drivers.

    The gate keeps a SCRAM verifier only: a lost password cannot be shown again, but `app rotate` makes a
    new one.
    """
    gate = options.connect(gate_dir, socket)
    body: dict[str, Any] = {
        "name": name,
        "databases": databases,
        "expires_in_s": options.seconds(expires_in, "--expires-in"),
        "limits": options.limits(
            max_connections, queue, queue_timeout, idle_timeout, statement_timeout, idle_in_transaction
        ),
        "sidecars": sidecars or None,
        "read_only": read_only or None,
        "statement_classes": classes or None,
        "replication": replication or None,
    }
    reply = gate.post("/apps", {key: value for key, value in body.items() if value is not None})
    _show_credential(reply, databases, host, port or _dev_port(gate.socket_path), output)


@commands.command("list")
def list_apps(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the apps, their databases and their state."""
    rows = options.connect(gate_dir, socket).items("/apps")
    emit(rows, view.table(rows, view.APP_COLUMNS), output)


@commands.command("rotate")
def rotate(
    name: options.AppName,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="TIME",
            help="How long the old password works beside the new.",
            show_default="the setting app.rotate_overlap_s",
        ),
    ] = None,
    host: Host = "localhost",
    port: Port = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Give an app a new password; the old one keeps working for the overlap."""
    gate = options.connect(gate_dir, socket)
    body = {} if overlap is None else {"overlap_s": options.seconds(overlap, "--overlap")}
    reply = gate.post(f"/apps/{quote(name, safe='')}/rotate", body)
    if output is Output.TABLE and reply.get("old_valid_until"):
        note(f"The old password works until {view.moment(reply['old_valid_until'])}.")
    _show_credential(
        reply, reply["app"].get("databases", []), host, port or _dev_port(gate.socket_path), output
    )


@commands.command("revoke")
def revoke(
    name: options.AppName,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Revoke an app for good; its live sessions end at once."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Revoke app {name} and end its sessions?", yes=yes)
    reply = gate.delete(f"/apps/{quote(name, safe='')}") or {"name": name}
    note(f"App {name} is revoked; {reply.get('sessions_ended', 0)} sessions ended.")
    if output is not Output.TABLE:
        emit(reply, view.card(reply), output)


def _show_credential(
    reply: dict[str, Any], databases: list[str], host: str, port: int, output: Output
) -> None:
    app = reply["app"]
    urls = {
        database: connection_strings(Credential(app["name"], reply["password"], database, host, port))
        for database in databases
    }
    if output is not Output.TABLE:
        emit({**reply, "urls": urls}, [], output)
        return
    note(f"App {app['name']}. The password is shown this once.")
    shown = [view.Table(("", ""), (("password", str(reply["password"])),))]
    shown += [
        view.Table(("", ""), tuple(strings.items()), title=f"database {database}")
        for database, strings in urls.items()
    ]
    emit(reply, shown, output)


def _dev_port(socket_path: Path) -> int:
    """The sidecar's port of the dev stack that the gate belongs to, else the usual one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((socket_path.parent.parent / "dev.json").read_text())["port"])
    return DEFAULT_PORT
