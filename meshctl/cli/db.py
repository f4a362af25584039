"""`meshctl db`: the real databases behind the gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.dsn import dsn_of, with_parameters
from meshctl.errors import CheckError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note, read_secret, read_text

commands = options.group("Databases: a route's name, and the real PostgreSQL it leads to.")


def _path(name: str, rest: str = "") -> str:
    return f"/databases/{quote(name, safe='')}{rest}"


@commands.command("add")
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What apps call the database.", show_default=False)
    ],
    dsn_file: Annotated[
        str | None,
        typer.Option(
            "--dsn-file", metavar="FILE", help="Read the DSN (URL or key=value) from a file, or - for stdin."
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST[:PORT]", help="Instead of a DSN: the server; repeat for several."
        ),
    ] = None,
    dbname: Annotated[
        str | None, typer.Option("--dbname", help="The database there; the route's name if left out.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="The role to log in as.")] = None,
    password_file: Annotated[
        str | None,
        typer.Option("--password-file", metavar="FILE", help="Read the role's password from a file, or -."),
    ] = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="The role needs none (client certificate, trust).")
    ] = False,
    sslmode: Annotated[
        str | None, typer.Option("--sslmode", help="disable, prefer, require, verify-ca or verify-full.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target-session-attrs", help="any, read-write, primary, standby, ...")
    ] = None,
    sslrootcert: Annotated[
        Path | None, typer.Option("--sslrootcert", metavar="FILE", help="CA certificates (PEM).")
    ] = None,
    sslcert: Annotated[
        Path | None, typer.Option("--sslcert", metavar="FILE", help="Client certificate (PEM).")
    ] = None,
    sslkey: Annotated[
        Path | None,
        typer.Option("--sslkey", metavar="FILE", help="Client key (PEM); it goes into the vault."),
    ] = None,
    read_only_user: Annotated[
        str | None, typer.Option("--read-only-user", help="The role that read-only apps become.")
    ] = None,
    read_only_password_file: Annotated[
        str | None, typer.Option("--read-only-password-file", metavar="FILE", help="Its password, or -.")
    ] = None,
    compression: Annotated[
        str | None, typer.Option("--compression", help="off, auto or long (see docs/security.md).")
    ] = None,
    pool_size: Annotated[
        int | None,
        typer.Option("--pool-size", min=1, help="Upstream connections at one time.", show_default=False),
    ] = None,
    pool_idle: Annotated[
        float | None,
        typer.Option(
            "--pool-idle",
            min=0,
            metavar="SECONDS",
            help="How long an upstream connection waits to be used again; 0 closes it with its session.",
            show_default=False,
        ),
    ] = None,
    replication: Annotated[
        bool, typer.Option("--allow-replication", help="Allow replication connections to it.")
    ] = False,
    audit_detail: Annotated[
        str | None, typer.Option("--audit-detail", help="interval (equal statements merged) or statement.")
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Register it without logging in first.")
    ] = False,
    max_connections: options.MaxConnections = None,
    queue: options.Queue = None,
    queue_timeout: options.QueueTimeout = None,
    idle_timeout: options.IdleTimeout = None,
    statement_timeout: options.StatementTimeout = None,
    idle_in_transaction: options.IdleInTransaction = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Register a database. The gate logs in once to check, then seals the password in its vault.

    Passwords come from a prompt, a file or standard input, never from the command line.
    """
    gate = options.connect(gate_dir, socket)
    if [dsn_file, password_file, read_only_password_file].count("-") > 1:
        raise UsageError("Standard input can be read once only.", hint="put one of the secrets into a file")
    body: dict[str, Any] = {
        "name": name,
        "check": not no_check,
        "read_only_user": read_only_user,
        "compression": compression,
        "pool_size": pool_size,
        "pool_idle_s": pool_idle,
        "allow_replication": replication or None,
        "audit_detail": audit_detail,
        "limits": options.limits(
            max_connections, queue, queue_timeout, idle_timeout, statement_timeout, idle_in_transaction
        ),
    }
    if dsn_file is not None and (host or user or dbname):
        raise UsageError(
            "Give either a DSN or --host, --user and --dbname, not both.",
            hint="leave out --dsn-file, or the others",
        )
    if host or user:
        body["dsn"] = dsn_of(host or ["localhost"], user, dbname or name, sslmode, target)
        if not no_password:
            body["password"] = read_secret(
                f"Password of {user or 'the role'}", password_file, option="--password-file"
            )
    else:
        if dsn_file is None and not sys.stdin.isatty():
            raise UsageError(
                f"Where is the database {name}?", hint="--host HOST --user USER, or --dsn-file FILE"
            )
        body["dsn"] = read_secret("DSN", dsn_file, option="--dsn-file").strip()
        extra = {"sslmode": sslmode, "target_session_attrs": target}
        body["dsn"] = with_parameters(body["dsn"], {k: v for k, v in extra.items() if v})
        if password_file is not None:
            body["password"] = read_secret("Password", password_file, option="--password-file")
    if read_only_user is not None:
        body["read_only_password"] = read_secret(
            f"Password of {read_only_user}", read_only_password_file, option="--read-only-password-file"
        )
    for key, file in (("sslrootcert", sslrootcert), ("sslcert", sslcert), ("sslkey", sslkey)):
        if file is not None:
            body[key] = read_text(str(file), f"--{key}")
    row = gate.post("/databases", {key: value for key, value in body.items() if value is not None})
    following = options.named_again(f"meshctl app create NAME --db {name}", gate_dir, socket)
    note(f"Database {name} is registered. Next: {following}")
    emit(row, view.card(row, view.DATABASE_CARD), output)


@commands.command("list")
def list_databases(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the databases; never a password."""
    rows = options.connect(gate_dir, socket).items("/databases")
    none = "No databases. Next: meshctl db add NAME --host HOST --user USER"
    emit(rows, view.table(rows, view.DATABASE_COLUMNS), output, empty=none)


@commands.command("show")
def show(
    name: options.DatabaseName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one database in full, but for its secrets."""
    row = options.connect(gate_dir, socket).get(_path(name))
    emit(row, view.card(row, view.DATABASE_CARD), output)


@commands.command("check")
def check(
    name: options.DatabaseName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have the gate reach and log in to the database, step by step; exit code 6 if a step fails."""
    reply = options.connect(gate_dir, socket).post(_path(name, "/check"), {})
    emit(reply, view.steps(reply.get("steps") or []), output)
    if not reply.get("ok"):
        raise CheckError(f"Database {name} did not pass.", hint="each line above says what mends it")
    latency = reply.get("latency_ms")
    facts = [f"PostgreSQL {reply.get('server_version')}", str(reply.get("tls") or "no TLS")]
    facts += [f"login by {view.text(reply.get('auth'))}", f"{view.text(latency)} ms"]
    note(", ".join(facts))


@commands.command("remove")
def remove(
    name: options.DatabaseName,
    force: Annotated[
        bool, typer.Option("--force", help="Also where apps are bound to it; they lose it.")
    ] = False,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Forget a database and its sealed password. The database itself is not touched."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Remove database {name} from this gate?", yes=yes)
    gate.delete(_path(name), {"force": True} if force else None)
    note(f"Database {name} is removed.")
