"""`meshctl people`: who may use this pool, what is theirs, and their rights over it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import people_view, view
from meshctl.cli import options
from meshctl.errors import CommandError, UsageError
from meshctl.proofs import checked_certificate
from meshctl.render import Output, emit, tell, write
from meshctl.terminal import confirm, note

commands = options.group("People: who may use this pool; export and erasure of what is held about them.")


Who = Annotated[
    str,
    typer.Argument(
        metavar="PERSON",
        help="Their id (p-...) or address.",
        autocompletion=options.names_in("/people", key="id"),
        show_default=False,
    ),
]
Name = Annotated[
    str, typer.Option("--name", metavar="TEXT", help="What they are called.", show_default=False)
]
Team = Annotated[str, typer.Option("--team", metavar="TEXT", help="Their team.", show_default=False)]
NoteText = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="For administrators.", show_default=False)
]
Admin = Annotated[
    str,
    typer.Option("--admin", metavar="NAME", help="Their administrator's account.", show_default=False),
]
Apps = Annotated[
    list[str] | None,
    typer.Option("--app", metavar="APP", help="An app that is theirs; may be repeated.", show_default=False),
]


@commands.command("list")
def list_people(
    state: Annotated[
        str | None,
        typer.Option(
            "--state", metavar="STATE", help="invited, pending, active or disabled.", show_default=False
        ),
    ] = None,
    q: Annotated[
        str | None,
        typer.Option("--search", metavar="TEXT", help="In name, address, team or id.", show_default=False),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List people by name."""
    rows = options.connect(gate_dir, socket).items("/people", {"state": state, "q": q})
    none = "Nobody is found." if state or q else "No people. Next: meshctl people add ADDRESS --name NAME"
    emit(rows, view.table(rows, people_view.PEOPLE_COLUMNS), output, empty=none)


@commands.command("show")
def show(
    person: Who,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one person with their apps."""
    row = options.connect(gate_dir, socket).get(_path(person))
    emit(row, people_view.person(row), output)


@commands.command("add")
def add(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Their address.", show_default=False)],
    name: Name,
    team: Team = "",
    remark: NoteText = "",
    admin: Admin = "",
    app: Apps = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Add a person who is active at once; apps of theirs may be named, or given later: meshctl people own."""
    _add(email, name, team, remark, admin, app, gate_dir, socket, output, invite=False)


@commands.command("invite")
def invite(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Their address, or id.", show_default=False)],
    name: Annotated[
        str, typer.Option("--name", metavar="TEXT", help="For somebody new.", show_default=False)
    ] = "",
    team: Team = "",
    remark: NoteText = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Mail somebody a code for a key of their own; without --name, somebody who was invited before."""
    if name:
        _add(email, name, team, remark, "", None, gate_dir, socket, output, invite=True)
        return
    row = options.connect(gate_dir, socket).post(f"{_path(email)}/invite", {})
    tell(f"{row['id']} is mailed a code that is good for a week.", row, output)


@commands.command("change")
def change(
    person: Who,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="New name.")] = None,
    email: Annotated[str | None, typer.Option("--email", metavar="EMAIL", help="New address.")] = None,
    team: Annotated[str | None, typer.Option("--team", metavar="TEXT", help="New team.")] = None,
    remark: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="New note.")] = None,
    admin: Annotated[
        str | None,
        typer.Option("--admin", metavar="NAME", help="Their administrator's account; '' for none."),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Change what is known of a person."""
    given = {"name": name, "email": email, "team": team, "note": remark, "admin": admin}
    changes = {key: value for key, value in given.items() if value is not None}
    if not changes:
        raise UsageError("Nothing is to be changed.", hint="--name, --email, --team, --note or --admin")
    row = options.connect(gate_dir, socket).call("PATCH", _path(person), body=changes).body
    emit(row, people_view.person(row), output)


@commands.command("disable")
def disable(
    person: Who,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """End what a person's apps may do, until they are enabled again."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Disable {person}? Their apps stop working at once.", yes=yes)
    _said(gate.post(f"{_path(person)}/disable", {}), output)


@commands.command("enable")
def enable(
    person: Who,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let a disabled person's apps go on."""
    _said(options.connect(gate_dir, socket).post(f"{_path(person)}/enable", {}), output)


@commands.command("own")
def own(
    person: Who,
    app: options.AppName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let an app be a person's."""
    row = options.connect(gate_dir, socket).put(f"{_path(person)}/apps/{quote(app, safe='')}", {})
    emit(row, people_view.person(row), output)


@commands.command("disown")
def disown(
    person: Who,
    app: options.AppName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let an app be nobody's; it goes on."""
    row = options.connect(gate_dir, socket).delete(f"{_path(person)}/apps/{quote(app, safe='')}")
    emit(row, people_view.person(row), output)


@commands.command("export")
def export(
    person: Who,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The archive; without it ID.zip here.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Write everything that is held about a person into one archive for them (ZIP of JSON files)."""
    gate = options.connect(gate_dir, socket)
    row = gate.get(_path(person))
    target = out or Path(f"{row['id']}.zip")
    _write_new(target, gate.pieces(f"{_path(row['id'])}/export"))
    note(f"{target} holds everything about {row['id']}.")


@commands.command("erase")
def erase(
    person: Who,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", metavar="FILE", help="Where the certificate goes; without it ID.erased.json."
        ),
    ] = None,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Erase a person for good: who they are, their apps, their receipts. It cannot be undone.

    The certificate is the only copy that can be tied to the person: give it to them.
    """
    gate = options.connect(gate_dir, socket)
    row = gate.get(_path(person))
    confirm(f"Erase {row['id']} ({row['name']}, {row['email']}) for good?", yes=yes)
    target = certificate or Path(f"{row['id']}.erased.json")
    if target.exists():
        raise CommandError(f"{target} exists; nobody was erased.", hint="--certificate FILE")
    _write_new(target, ())  # before it is done: what the gate answers is nowhere else
    try:
        document = gate.post(f"{_path(row['id'])}/erase", {"confirm": row["id"]}, timeout=600)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    content = json.dumps(document, indent=2) + "\n"
    try:
        target.write_text(content)
    except OSError as error:
        write(content.rstrip())
        raise CommandError(
            f"{row['id']} is erased, but {target} cannot be written: {error.strerror}.",
            hint="keep what was printed: no other copy proves whom it is about",
        ) from None
    note(f"{row['id']} is erased; {target} is the certificate, and no other copy proves whom it is about.")
    if document.get("kept"):
        tables = ", ".join(f"{name} ({count})" for name, count in document["kept"].items())
        note(f"Their name or address can still be read in: {tables}. docs/people.md says what to do.")
    if output is not Output.TABLE:
        emit(document, [], output)


@commands.command("erasures")
def erasures(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List who was erased, by pseudonym."""
    rows = options.connect(gate_dir, socket).items("/erasures")
    emit(rows, view.table(rows, people_view.ERASURE_COLUMNS), output, empty="Nobody was erased.")


@commands.command("verify-certificate")
def verify_certificate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate of an erasure.")],
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool", metavar="FP", help="The pool's fingerprint (meshctl key show).", show_default=False
        ),
    ] = None,
    email: Annotated[
        str | None,
        typer.Option("--email", metavar="EMAIL", help="Also check that it is about this address."),
    ] = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Check a certificate's signature; no gate is asked. Exit code 6 where it does not hold."""
    document, signer = checked_certificate(file, pool=pool, email=email)
    emit({**document, "ok": True, "pool": signer}, people_view.certificate(document, signer=signer), output)
    if pool is None:
        note("Compare the pool's fingerprint with the one you know, or give it: --pool FP")


def _add(
    email: str,
    name: str,
    team: str,
    remark: str,
    admin: str,
    apps: list[str] | None,
    gate_dir: Any,
    socket: Any,
    output: Output,
    *,
    invite: bool,
) -> None:
    body = {"email": email, "name": name, "team": team, "note": remark, "admin": admin, "apps": apps or []}
    row = options.connect(gate_dir, socket).post("/people", {**body, "invite": invite})
    if output is Output.TABLE:
        write(row["id"])
        note(
            f"{row['id']} is mailed a code that is good for a week." if invite else f"{row['id']} is active."
        )
    else:
        emit(row, [], output)


def _said(row: dict[str, Any], output: Output) -> None:
    tell(f"{row['id']} is {row['state']}.", row, output)


def _write_new(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file that was not there; where the pieces end in an error, none is left."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise CommandError(f"{path} exists and is not replaced.", hint="name another file") from None
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}.",
            hint="name a file that is not there yet, in a folder of your own",
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _path(person: str) -> str:
    return f"/people/{quote(person, safe='')}"
