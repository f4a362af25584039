"""`meshctl smtp`: how this pool sends mail, and who is told of notifications."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import people_view, view
from meshctl.cli import options
from meshctl.errors import CheckError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import note, read_secret

commands = options.group("Mail of this pool: its server, who is told of notifications, a test.")


Recipient = Annotated[str, typer.Argument(metavar="ADDRESS", help="Who.", show_default=False)]


@commands.command("show")
def show(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show how mail is sent; the password is never shown."""
    row = options.connect(gate_dir, socket).get("/smtp")
    emit(row, people_view.smtp(row), output)


@commands.command("set")
def set_up(
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The mail server; '' for none.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="Its port.")] = None,
    tls: Annotated[str | None, typer.Option("--tls", metavar="HOW", help="starttls, tls or none.")] = None,
    ca_file: Annotated[
        str | None,
        typer.Option(
            "--ca-file", metavar="PATH", help="On the gates' machines; '': the system's authorities."
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Log in as; '' for nobody.")
    ] = None,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="ADDRESS", help="Where mail comes from.")
    ] = None,
    password: Annotated[bool, typer.Option("--password", help="Ask for the password.")] = False,
    password_file: Annotated[
        str | None,
        typer.Option("--password-file", metavar="FILE", help="Read the password; - for standard input."),
    ] = None,
    no_password: Annotated[bool, typer.Option("--no-password", help="Forget the password.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout-s", min=0.1, help="How long the server may be silent.")
    ] = None,
    give_up_hours: Annotated[
        int | None, typer.Option("--give-up-hours", min=1, help="How long a mail is tried.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Change how mail is sent; what is not named stays. The password belongs to one host and user."""
    given = {
        "host": host,
        "port": port,
        "tls": tls,
        "ca_file": ca_file,
        "user": user,
        "from": sender,
        "timeout_s": timeout_s,
        "give_up_hours": give_up_hours,
    }
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if no_password and (password or password_file is not None):
        raise UsageError("--no-password forgets the password; --password gives one.")
    if no_password:
        changes["password"] = ""
    if password or password_file is not None:
        changes["password"] = read_secret("Mail server's password", password_file, option="--password-file")
    if not changes:
        raise UsageError("Nothing is to be changed.", hint="meshctl smtp set --host HOST --from ADDRESS")
    row = options.connect(gate_dir, socket).put("/smtp", changes)
    emit(row, people_view.smtp(row), output)
    if row.get("password") in {"missing", "for another server"}:
        note("The password of this server and user is not known: meshctl smtp set --password")


@commands.command("recipients")
def recipients(
    to: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADDRESS[=SEVERITY]",
            help="Who is told, from info, warning (the default) or critical on; nobody where none is named.",
            show_default=False,
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say who is told of notifications by mail; this replaces the list."""
    rows = []
    for one in to or []:
        address, _, severity = one.partition("=")
        rows.append({"to": address, "severity": severity or "warning"})
    row = options.connect(gate_dir, socket).put("/smtp/recipients", {"recipients": rows})
    emit(row, people_view.smtp(row), output)


@commands.command("tell")
def tell(
    address: Recipient,
    severity: Annotated[
        str, typer.Option("--severity", metavar="LEAST", help="info, warning or critical, and above.")
    ] = "warning",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Tell one more address of notifications by mail, or the same one from another severity on."""
    path = f"/smtp/recipients/{quote(address, safe='')}"
    row = options.connect(gate_dir, socket).put(path, {"severity": severity})
    emit(row, people_view.smtp(row), output)


@commands.command("untell")
def untell(
    address: Recipient,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Tell one address no more."""
    row = options.connect(gate_dir, socket).delete(f"/smtp/recipients/{quote(address, safe='')}")
    emit(row, people_view.smtp(row), output)


@commands.command("test")
def send_test(
    to: Annotated[
        str, typer.Option("--to", metavar="ADDRESS", help="Where the test goes.", show_default=False)
    ],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Send a letter now and say, step by step, what happened; exit code 6 where it was not taken."""
    reply = options.connect(gate_dir, socket).post("/smtp/test", {"to": to}, timeout=660)
    emit(reply, view.steps(reply.get("steps", [])), output)
    if not reply.get("ok"):
        said = any(not step.get("ok", True) for step in reply.get("steps", ())) and output is Output.TABLE
        problem = "" if said else f": {reply.get('problem')}"
        raise CheckError(
            f"The letter was not sent{problem or '.'}", hint="" if said else str(reply.get("next") or "")
        )


@commands.command("mail")
def mail(
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="STATE", help="waiting, sent or failed.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, the newest.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List what became of mail; addresses and texts are not shown."""
    rows = options.connect(gate_dir, socket).items("/smtp/mail", {"state": state, "limit": limit})
    emit(rows, view.table(rows, people_view.MAIL_COLUMNS), output, empty="No mail was sent.")


@commands.command("retry")
def retry(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Try all mail that waits now."""
    reply = options.connect(gate_dir, socket).post("/smtp/retry", {})
    if output is Output.TABLE:
        note(f"{reply['waiting']} mails are tried now: meshctl smtp mail")
    else:
        emit(reply, [], output)
