"""`meshctl gate`: what an operator does to a gate as a whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.cli.enrolling import deliver
from meshctl.errors import CommandError, NotFoundError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("The gate itself: drain, backup, keys and certificates.")


@commands.command("list")
def list_gates(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the gates of the pool; those that announced themselves within a week go into bundles."""
    rows = options.connect(gate_dir, socket).items("/gates")
    emit(rows, view.table(rows, view.GATE_COLUMNS), output)


@commands.command("setup-token")
def setup_token(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it to a file instead of standard output."),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """On the gate's host, while the pool has no admin: print what makes the first owner from elsewhere.

    Whoever has the token may do that, once, for a day: carry it as you would a password.
    """
    reply = options.connect(gate_dir, socket).post("/session/setup-token", {})
    if output is not Output.TABLE:
        emit(reply, [], output)
        return
    note(f"Good until {view.moment(reply['expires_at'])}, once. Where you work:")
    note("  meshctl context add NAME --setup-token-file FILE --admin YOUR-NAME")
    deliver(str(reply["setup_token"]), out, mode=0o600)


@commands.command("drain")
def drain(
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Take no new sessions, let the running ones end, so that the gate can be upgraded."""
    gate = options.connect(gate_dir, socket)
    confirm("Drain this gate? Its sidecars move to the pool's other gates.", yes=yes)
    reply = gate.post("/drain", {}, timeout=600) or {}
    note("The gate is draining; watch it with: meshctl status")
    if reply:
        emit(reply, view.card(reply), output)


@commands.command("backup")
def backup(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it, on the gate's host.")],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Back up the store. Keys are not in it: keep vault.key and pool.key apart from it."""
    gate = options.connect(gate_dir, socket)
    reply = gate.post("/backup", {"path": str(path.absolute())}, timeout=3600) or {"path": str(path)}
    note(f"Backed up to {reply.get('path', path)}.")
    emit(reply, view.card(reply), output)


@commands.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup that `gate backup` wrote.")],
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The new gate's directory.")] = Path(
        "/var/lib/qgate"
    ),
    yes: options.Yes = False,
) -> None:
    """Put a backup into the empty store of a stopped gate; qgate.toml and keys/vault.key must be there."""
    import subprocess
    import sys

    settings = directory / "qgate.toml"
    if not settings.exists():
        raise NotFoundError(
            f"{settings} does not exist.", hint="put qgate.toml and keys/vault.key back first"
        )
    confirm(f"Restore {file} into {directory}?", yes=yes)
    done = subprocess.run(
        [sys.executable, "-m", "qgate", "--config", str(settings), "--restore", str(file)], check=False
    )
    if done.returncode:
        raise CommandError(
            f"Nothing was restored (qgate ended with {done.returncode}).",
            hint="mend what it says above, then give the same command again",
        )


@commands.command("rekey")
def rekey(
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Seal every secret of the vault afresh under a new master key."""
    gate = options.connect(gate_dir, socket)
    confirm("Re-key the vault? Older backups then need the older key.", yes=yes)
    reply = gate.post("/vault/rekey", {}, timeout=600) or {}
    note("The vault is sealed under a new key.")
    if reply:
        emit(reply, view.card(reply), output)


@commands.command("renew")
def renew(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The gate's directory.")] = Path(
        "/var/lib/qgate"
    ),
    days: Annotated[
        int, typer.Option("--days", min=1, help="How long the gate's certificate is valid.")
    ] = 365,
) -> None:
    """Renew the gate's certificate, and the online key's where the pool key is at hand."""
    from meshctl.gate_directory import renew_gate

    renewal = renew_gate(directory, now=time.time(), days=days)
    note(f"The gate's certificate is valid until {view.moment(renewal.node_expires)}.")
    if renewal.online_expires is not None:
        note(f"The online key's certificate is valid until {view.moment(renewal.online_expires)}.")
    note("Let the gate read it: systemctl reload qgate   (or send it SIGHUP)")
