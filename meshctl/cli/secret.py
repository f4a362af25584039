"""`meshctl secret`: the real passwords, which nobody needs to see."""

from __future__ import annotations

from urllib.parse import quote

from meshctl import view
from meshctl.cli import options
from meshctl.render import Output, emit
from meshctl.terminal import note

commands = options.group("Secrets: the databases' real passwords in the gate's vault.")


@commands.command("list")
def list_secrets(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List what the vault seals, by kind and name; never a secret. Names of people are not in it."""
    rows = options.connect(gate_dir, socket).items("/vault")
    emit(rows, view.table(rows, view.SECRET_COLUMNS), output, empty="The vault is empty.")


@commands.command("rotate")
def rotate(
    name: options.DatabaseName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Give a database's role a new random password. Sessions in use go on; no client notices."""
    reply = options.connect(gate_dir, socket).post(
        f"/databases/{quote(name, safe='')}/rotate", {}, timeout=180
    )
    note(f"The password of {view.text(reply.get('role'))} ({name}) was rotated.")
    emit(reply, view.card(reply), output)
