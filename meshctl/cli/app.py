"""`meshctl app`: the pseudo-credentials that applications log in with."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import app_key, app_policy, app_set, options
from meshctl.drivers import Credential, connection_strings, openai_settings, port_beside
from meshctl.errors import NotFoundError, UsageError
from meshctl.near_names import suggestion
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Pseudo-credentials: an app logs in with these, the gate holds the real ones.")
commands.add_typer(app_key.commands, name="key")
commands.command("policy")(app_policy.policy)
commands.command("set")(app_set.set_app)

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
        list[str] | None,
        typer.Option(
            "--db", metavar="DB", help="A database it may use; repeat for more.", show_default=False
        ),
    ] = None,
    models: app_policy.Models = None,
    tasks: app_policy.Tasks = None,
    local_only: app_policy.LocalOnly = None,
    providers: app_policy.Providers = None,
    isolation: app_policy.Isolation = None,
    team: app_policy.Team = None,
    rpm: app_policy.Rpm = None,
    tpm: app_policy.Tpm = None,
    max_tokens: app_policy.MaxTokens = None,
    share: app_policy.Share = None,
    kindred: app_policy.Kindred = None,
    reuse: app_policy.Reuse = None,
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
    failover: Annotated[
        bool,
        typer.Option(
            "--failover/--no-failover", help="Let it log in at paired pools while this one is dead."
        ),
    ] = True,
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

    With --models (or another option about models) it gets an API key too, for any OpenAI SDK. The gate keeps
    a SCRAM verifier and a digest only: what is lost cannot be shown again, but `app rotate` makes a new
    password and `app key create` a new key.
    """
    allowed = app_policy.given(
        models=models,
        tasks=tasks,
        local_only=local_only,
        providers=providers,
        isolation=isolation,
        team=team,
        rpm=rpm,
        tpm=tpm,
        max_tokens=max_tokens,
        share=share,
        kindred=kindred,
        reuse=reuse,
    )
    databases = databases or []
    if not databases and not allowed:
        raise UsageError("An app needs a database, or models.", hint="--db NAME, or --models '*'")
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
        "failover": None if failover else False,
        "policy": {key: value for key, value in allowed.items() if value is not None} if allowed else None,
    }
    reply = gate.post("/apps", {key: value for key, value in body.items() if value is not None})
    _show_credential(reply, databases, host, port or port_beside(gate.socket_path), output)


@commands.command("list")
def list_apps(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the apps, their databases and their state."""
    rows = options.connect(gate_dir, socket).items("/apps")
    none = "No apps. Next: meshctl app create NAME --db DATABASE, or --models '*'"
    emit(rows, view.table(rows, view.APP_COLUMNS), output, empty=none)


@commands.command("show")
def show(
    name: options.AppName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show an app: what it may do, its limits, its keys; never a secret."""
    gate = options.connect(gate_dir, socket)
    rows = {str(row["name"]): row for row in gate.items("/apps")}
    if name not in rows:
        raise NotFoundError(f"there is no app {name}", hint=suggestion(name, rows, "meshctl app list"))
    row = rows[name] | {"keys": gate.items(f"/apps/{quote(name, safe='')}/keys")}
    emit(row, view.app(row), output)


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
        reply, reply["app"].get("databases", []), host, port or port_beside(gate.socket_path), output
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
    if (app.get("policy")) and "qg" not in databases:
        databases = [*databases, "qg"]
    urls = {
        database: connection_strings(Credential(app["name"], reply["password"], database, host, port))
        for database in databases
    }
    key = reply.get("api_key")
    sdk = openai_settings(key, host, port) if key else {}
    if output is not Output.TABLE:
        emit({**reply, "urls": urls, **({"openai": sdk} if sdk else {})}, [], output)
        return
    note(f"App {app['name']}. The password {'and the key are' if key else 'is'} shown this once.")
    shown = [view.Table(("", ""), (("password", str(reply["password"])),))]
    shown += [
        view.Table(("", ""), tuple(strings.items()), title=f"database {database}")
        for database, strings in urls.items()
    ]
    if sdk:
        shown.append(view.Table(("", ""), tuple(sdk.items()), title="models"))
    emit(reply, shown, output)
