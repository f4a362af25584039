"""`meshctl login`, `logout`, `whoami`: one log-in that every pool which trusts the admin's own honours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.client import Gate
from meshctl.errors import CommandError, GateError, RefusedError, UnreachableError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import STDIN, ask, note, read_secret

if TYPE_CHECKING:
    from meshctl.admin_session import AdminSession, ContextDialler

SECOND_FACTOR = frozenset({"second-factor-needed"})
"""What a gate answers to a right password where a code is needed as well."""

CONTEXT_HELP = "The context to use; without it the current one."
ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME[@POOL]",
        help=CONTEXT_HELP,
        show_default=False,
        autocompletion=options.context_names,
    ),
]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="The password from a file, or - for standard input; without it a prompt.",
        show_default=False,
    ),
]
CodeFile = Annotated[
    str | None,
    typer.Option(
        "--code-file",
        metavar="FILE",
        help="The second factor's code from a file, or - for standard input; without it a prompt.",
        show_default=False,
    ),
]


def login(
    context: ContextOption = None,
    admin: Annotated[
        str | None,
        typer.Option(
            "--admin", metavar="NAME", help="Who logs in; without it as the last time.", show_default=False
        ),
    ] = None,
    password_file: PasswordFile = None,
    code_file: CodeFile = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse every change in this session, at the gate.")
    ] = False,
    output: options.Format = Output.TABLE,
) -> None:
    """Log in at the context's home pool; the session holds on every pool that trusts it, for a working day.

    The password never passes through the command line. The log-in is kept in the context's folder and is of
    no use without the key that lies there too.
    """
    if password_file == STDIN and code_file == STDIN:
        raise UsageError(
            "Standard input can give the password or the code, not both.", hint="put one of them into a file"
        )
    dialler = dialler_of(context)
    name = admin or dialler.settings.admin or ask("Admin")
    password = read_secret(f"Password of {name}", password_file, option="--password-file")
    session = log_in(dialler, name, password, code_file=code_file, read_only=read_only)
    reply = shown(dialler, session)
    emit(reply, view.card(reply), output)
    others = [pool.name for pool in dialler.pools[1:]]
    if others and output is Output.TABLE:
        note(f"If {dialler.home} goes away, commands go on at: {', '.join(others)}.")


def logout(
    context: ContextOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Forget the session here although no gate ends it: there it goes on to its end."
        ),
    ] = False,
) -> None:
    """End the session, here and at every pool that can be reached.

    Where no gate ends it, it is kept here, so that the same command can be given again.
    """
    dialler = dialler_of(context)
    if dialler.session is None:
        note("Nobody is logged in.")
        return
    try:
        dialler.may_change = lambda _home, _now: True
        Gate(dialler).delete("/session")
    except GateError as error:
        if error.status != 401:  # over already
            _not_ended(error, dialler, force=force)
    except (UnreachableError, RefusedError) as error:
        _not_ended(error, dialler, force=force)
    with contextlib.suppress(OSError):
        dialler.context.session.unlink()
    note(f"Logged out of {dialler.context.name}.")


def _not_ended(error: CommandError, dialler: ContextDialler, *, force: bool) -> None:
    """A session that no gate has ended is kept, or forgotten here alone where that is wanted."""
    if not force:
        kept = CommandError(
            f"{error.message} The session was not ended, and is kept here.",
            hint="try again later; to forget it here alone: meshctl logout --force",
        )
        kept.code = error.code
        raise kept from error
    session = dialler.session
    until = "" if session is None else f", {view.moment(session.expires_at)} at the latest"
    note(f"{error.message} The session is forgotten here and ends there by itself{until}.")


def whoami(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show who the gate takes you for, with which role, and how long the session lasts."""
    gate = options.connect(gate_dir, socket)
    reply = dict(gate.get("/session"))
    if gate.place:
        reply["at"] = gate.place
    cells = {key: _cell(key, value) for key, value in reply.items()}
    if output is Output.TABLE and not cells.get("pool"):
        cells["pool"] = f"{gate.get('/failover')['pool']} (this one)"
    emit(reply, view.card(cells), output)


def dialler_of(named: str | None, *, authenticated: bool = True) -> ContextDialler:
    """The dialler of a context that was named, or of the current one. UsageError where there is none."""
    import atexit

    from meshctl.admin_session import ContextDialler
    from meshctl.contexts import Contexts, split

    contexts = Contexts()
    chosen = named or contexts.current()
    if not chosen:
        raise UsageError(
            "There is no context to log in with.",
            hint="beside a gate: meshctl context create NAME --admin ADMIN; elsewhere: context offer NAME",
        )
    name, begin = split(chosen)
    dialler = ContextDialler(contexts.existing(name), begin=begin, authenticated=authenticated)
    atexit.register(dialler.close)
    return dialler


def log_in(
    dialler: ContextDialler,
    name: str,
    password: str,
    *,
    code_file: str | None = None,
    read_only: bool = False,
) -> AdminSession:
    """Log in at the home pool and keep the session and the pools it is good for. Raises GateError."""
    code = _code(code_file) if code_file is not None else ""
    try:
        return dialler.log_in(name, password, code=code, read_only=read_only)
    except GateError as error:
        if error.problem not in SECOND_FACTOR or code:
            raise
    return dialler.log_in(name, password, code=_code(None), read_only=read_only)


def shown(dialler: ContextDialler, session: AdminSession) -> dict[str, object]:
    """A log-in for a person and for a program; nothing secret."""
    return {
        "context": dialler.context.name,
        "admin": session.name,
        "role": session.role,
        "pool": dialler.home,
        "pools": [pool.name for pool in dialler.pools],
        "expires_at": view.moment(session.expires_at),
    }


def _code(source: str | None) -> str:
    code = read_secret("Code of the second factor", source, option="--code-file").strip().replace(" ", "")
    if not code.isdigit():
        raise CommandError(
            "The code of the second factor has digits only.",
            hint="type the six digits that the authenticator app shows now",
        )
    return code


def _cell(key: str, value: object) -> object:
    return view.moment(value) if key.endswith("_at") and isinstance(value, int | float) else value
