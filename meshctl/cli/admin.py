"""`meshctl admin`: who may administer this pool, with which role, from which keys."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import admin_view, view
from meshctl.cli import options
from meshctl.cli.enrolling import (
    Expected,
    OfferFile,
    Out,
    Readmit,
    ValidDays,
    enrol_offer,
    hand_out,
)
from meshctl.cli.login import CodeFile, PasswordFile
from meshctl.client import Gate
from meshctl.errors import UsageError
from meshctl.render import Output, emit, tell, write
from meshctl.terminal import confirm, note, read_secret

commands = options.group("Admins of this pool: accounts, roles, second factors, client keys and sessions.")


class Role(StrEnum):
    """What an admin may do; each role may do all that those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    OWNER = "owner"


admin_names = options.names_in("/admins")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The admin's name.", autocompletion=admin_names)]
RoleArgument = Annotated[
    Role, typer.Argument(metavar="ROLE", help="viewer, operator, admin or owner.", show_default=False)
]
CurrentFile = Annotated[
    str | None,
    typer.Option(
        "--current-file",
        metavar="FILE",
        help="For oneself: the present password, from a file or - for standard input; else a prompt.",
        show_default=False,
    ),
]


@commands.command("create")
def create(
    name: Name,
    role: Annotated[Role, typer.Option("--role", help="What they may do.")] = Role.ADMIN,
    password_file: PasswordFile = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Add an admin. Next they need a client key: meshctl context create beside the gate, or context offer."""
    gate = options.connect(gate_dir, socket)
    password = read_secret(f"Password of {name}", password_file, option="--password-file", twice=True)
    reply = gate.post("/admins", {"name": name, "role": str(role), "password": password})
    following = options.named_again(f"meshctl context create NAME --admin {name}", gate_dir, socket)
    tell(f"Admin {name} is {role}. Next: {following}", reply, output)


@commands.command("list")
def list_admins(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the admins of this pool."""
    rows = options.connect(gate_dir, socket).items("/admins")
    none = "No admins. Next: meshctl admin create NAME --role owner"
    emit(rows, view.table(rows, admin_view.ADMIN_COLUMNS), output, empty=none)


@commands.command("show")
def show(
    name: Name,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show an admin and the client keys that they may log in from."""
    gate = options.connect(gate_dir, socket)
    reply = gate.get(_path(name))
    reply["keys"] = gate.items(f"{_path(name)}/keys")
    facts = {key: value for key, value in reply.items() if key != "keys"}
    shown = {
        key: view.moment(value) if key.endswith(("_at", "_until")) else value for key, value in facts.items()
    }
    emit(
        reply,
        [view.card(shown), view.table(reply["keys"], admin_view.KEY_COLUMNS, title="client keys")],
        output,
    )


@commands.command("role")
def role(
    name: Name,
    role: RoleArgument,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Give an admin another role; sessions that are open have it at once."""
    reply = _change(options.connect(gate_dir, socket), name, {"role": str(role)})
    tell(f"Admin {name} is {role}.", reply, output)


@commands.command("disable")
def disable(
    name: Name,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let an admin in no more and end their sessions, here and at paired pools; nothing is deleted."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Disable the admin {name} and end their sessions?", yes=yes)
    tell(f"Admin {name} is disabled.", _change(gate, name, {"disabled": True}), output)


@commands.command("enable")
def enable(
    name: Name,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let a disabled admin in again."""
    reply = _change(options.connect(gate_dir, socket), name, {"disabled": False})
    tell(f"Admin {name} is enabled.", reply, output)


@commands.command("remove")
def remove(
    name: Name,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Delete an admin's account, their sessions and their client keys."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Remove the admin {name} with their keys and sessions?", yes=yes)
    gate.delete(_path(name))
    note(f"Admin {name} is removed.")


@commands.command("unlock")
def unlock(
    name: Name,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Let an admin try passwords again before their lock-out is over."""
    options.connect(gate_dir, socket).post(f"{_path(name)}/unlock", {})
    note(f"Admin {name} may try again.")


@commands.command("password")
def password(
    name: Name,
    password_file: PasswordFile = None,
    current_file: CurrentFile = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Set an admin's password; all their sessions end. An owner may set another's without the present one."""
    gate = options.connect(gate_dir, socket)
    body: dict[str, Any] = {}
    if current_file is not None or _is_oneself(gate, name):
        body["current"] = read_secret("Present password", current_file, option="--current-file")
    body["password"] = read_secret("New password", password_file, option="--password-file", twice=True)
    gate.put(f"{_path(name)}/password", body)
    note(f"The password of {name} is set; log in again.")


@commands.command("second-factor")
def second_factor(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Let the password alone do again.")] = False,
    code_file: CodeFile = None,
    current_file: CurrentFile = None,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Ask for a code of an authenticator app at log-in (TOTP, RFC 6238): shows the secret once, takes a code.

    Without a terminal there are two steps: -o json prints the secret and stops; a second call with
    --code-file confirms it. Replacing one's own takes the present password (--current-file) at both.
    """
    gate = options.connect(gate_dir, socket)
    path = f"{_path(name)}/second-factor"
    if off:
        confirm(f"Let {name} log in with the password alone?", yes=yes)
        own = current_file is not None or _is_oneself(gate, name)
        given = read_secret("Present password", current_file, option="--current-file") if own else None
        gate.call("DELETE", path, body={"current": given} if given is not None else None)
        note(f"{name} logs in with the password alone.")
        return
    proof: dict[str, Any] = {}
    if current_file is not None or (_is_oneself(gate, name) and gate.get(_path(name)).get("second_factor")):
        proof["current"] = read_secret("Present password", current_file, option="--current-file")
    if code_file is None:
        made = gate.post(path, proof)
        if output is not Output.TABLE:
            emit(made, [], output)
            return
        note("Add this to the authenticator app; it is shown this once:")
        _draw(str(made["uri"]))
        write(str(made["uri"]))
        note(f"secret {made['secret']}")
    code = read_secret("Code that the app shows", code_file, option="--code-file").strip().replace(" ", "")
    tell(f"{name} needs a code at log-in from now on.", gate.put(path, {"code": code, **proof}), output)


@commands.command("enroll")
def enroll(
    offer_file: OfferFile,
    admin: Annotated[
        str,
        typer.Option("--admin", metavar="NAME", help="Whose key it is.", autocompletion=admin_names),
    ],
    out: Out = None,
    days: ValidDays = None,
    expected: Expected = None,
    readmit: Readmit = False,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Make an admin's client key known and write the signed bundle that goes back to their machine.

    Compare the fingerprint with the one that `context offer` showed there before you say yes.
    """
    reply = enrol_offer(
        offer_file,
        noun="admin",
        days=days,
        expected=expected,
        yes=yes,
        readmit=readmit,
        gate=lambda: options.connect(gate_dir, socket),
        path=f"{_path(admin)}/keys",
    )
    hand_out(reply, out, output)


@commands.command("revoke")
def revoke(
    name: Name,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The client key's name: meshctl admin show.")],
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Revoke one client key of an admin; its tunnels and sessions end at once."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Revoke the key {key} of {name} and cut its sessions?", yes=yes)
    gate.delete(f"{_path(name)}/keys/{quote(key, safe='')}")
    note(f"The key {key} of {name} is revoked.")


@commands.command("sessions")
def sessions(
    end: Annotated[
        str | None,
        typer.Option("--end", metavar="SESSION", help="End this one, everywhere.", show_default=False),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the sessions that admins have open, or end one."""
    gate = options.connect(gate_dir, socket)
    if end is not None:
        gate.delete(f"/sessions/{quote(end, safe='')}")
        note(f"The session {end} is over.")
        return
    rows = gate.items("/sessions")
    emit(rows, view.table(rows, admin_view.SESSION_COLUMNS), output, empty="Nobody is logged in.")


def _is_oneself(gate: Gate, name: str) -> bool:
    """Whether it is this admin who asks, of the pool that is asked: a password goes to no other. The local
    gate's owner is nobody by name.
    """
    if not gate.place:
        return False
    who = gate.get("/session")
    return who.get("name") == name and not who.get("pool")


def _draw(uri: str) -> None:
    """The address as a QR code, where a person looks at a terminal that can show one."""
    if not sys.stderr.isatty() or "utf" not in (sys.stderr.encoding or "").lower():
        return
    from rich.console import Console

    from meshctl import qr

    console = Console(stderr=True)
    try:
        size = console.size
        drawn = qr.on_terminal(
            uri, columns=size.width, lines=size.height, colour=console.color_system is not None
        )
    except UsageError as error:
        note(error.message)
    else:
        sys.stderr.write(drawn + "\n")
        sys.stderr.flush()


def _change(gate: Gate, name: str, body: dict[str, Any]) -> Any:
    return gate.call("PATCH", _path(name), body=body).body


def _path(name: str) -> str:
    return f"/admins/{quote(name, safe='')}"
