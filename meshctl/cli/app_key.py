"""`meshctl app key`: the keys by which an app is known to the HTTP surface."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Keys of an app for the OpenAI-compatible surface; the gate keeps digests only.")


def _path(name: str, key: str = "") -> str:
    return f"/apps/{quote(name, safe='')}/keys" + (f"/{quote(key, safe='')}" if key else "")


@commands.command("create")
def create(
    name: options.AppName,
    expires_in: Annotated[
        str | None,
        typer.Option("--expires-in", metavar="TIME", help="End of life, as 12h or 30d.", show_default=False),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Make a further key and show it, this once. To replace one: create, change the app, revoke."""
    gate = options.connect(gate_dir, socket)
    body = {} if expires_in is None else {"expires_in_s": options.seconds(expires_in, "--expires-in")}
    reply = gate.post(_path(name), body)
    if output is Output.TABLE:
        note(f"Key {reply['id']} of app {name}. It is shown this once.")
    emit(reply, view.card({"key": reply["api_key"], "id": reply["id"]}), output)


@commands.command("list")
def list_keys(
    name: options.AppName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List an app's keys by their first characters."""
    rows = options.connect(gate_dir, socket).items(_path(name))
    emit(rows, view.table(rows, view.KEY_COLUMNS), output)


@commands.command("revoke")
def revoke(
    name: options.AppName,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Its id, or its first characters.", show_default=False)
    ],
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Refuse a key from now on, at every gate of the pool."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Revoke key {key} of app {name}?", yes=yes)
    reply = gate.delete(_path(name, key))
    note(f"Key {reply['id']} of app {name} is revoked.")
