"""`meshctl app set`: what an app may use and how much of it, after it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.client import as_seen
from meshctl.errors import UsageError
from meshctl.moments import moment_of
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

NOTHING: Final = frozenset({"", "none", "any", "never"})
"""Words that take a bound away."""

LIMITS: Final[Mapping[str, str]] = {
    "max_connections": "--max-connections",
    "queue": "--queue",
    "queue_timeout_s": "--queue-timeout",
    "idle_timeout_s": "--idle-timeout",
    "idle_in_transaction_s": "--idle-in-transaction",
    "statement_timeout_s": "--statement-timeout",
}
COUNTS: Final = frozenset({"max_connections", "queue"})

_NONE: Final = "; none: the gate's default."


def set_app(
    name: options.AppName,
    databases: Annotated[
        list[str] | None,
        typer.Option("--db", metavar="DB", help="The databases it may use, and no others; repeatable."),
    ] = None,
    add_db: Annotated[
        list[str] | None, typer.Option("--add-db", metavar="DB", help="One database more; repeatable.")
    ] = None,
    drop_db: Annotated[
        list[str] | None, typer.Option("--drop-db", metavar="DB", help="One database less; repeatable.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="WHEN",
            help="End of life: 30d from now, a day or a moment as 2027-01-31T12:00:00Z, or never.",
            show_default=False,
        ),
    ] = None,
    sidecars: Annotated[
        list[str] | None,
        typer.Option("--sidecar", metavar="NAME", help="Only through this sidecar; repeatable; any."),
    ] = None,
    access: Annotated[
        str | None, typer.Option("--access", help="read-only or read-write.", show_default=False)
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="CLASS", help="This class of statement only; repeatable; any."),
    ] = None,
    replication: Annotated[
        bool | None,
        typer.Option("--replication/--no-replication", help="Replication connections.", show_default=False),
    ] = None,
    max_connections: Annotated[
        str | None,
        typer.Option("--max-connections", metavar="N", help=f"Connections at one time{_NONE}"),
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="N", help=f"Connections that may wait{_NONE}")
    ] = None,
    queue_timeout: Annotated[
        str | None, typer.Option("--queue-timeout", metavar="TIME", help=f"How long they may wait{_NONE}")
    ] = None,
    idle_timeout: Annotated[
        str | None,
        typer.Option("--idle-timeout", metavar="TIME", help=f"End a session idle this long{_NONE}"),
    ] = None,
    statement_timeout: Annotated[
        str | None,
        typer.Option("--statement-timeout", metavar="TIME", help=f"End a statement after this long{_NONE}"),
    ] = None,
    idle_in_transaction: Annotated[
        str | None,
        typer.Option(
            "--idle-in-transaction", metavar="TIME", help=f"End a session idle inside a transaction{_NONE}"
        ),
    ] = None,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Change what an app may use: databases, limits, sidecars, end, access. What is not named stays.

    It is refused where somebody else has changed the app meanwhile. Live sessions obey at once; those that
    may not go on are ended.
    """
    if databases and (add_db or drop_db):
        raise UsageError("--db says all of them; --add-db and --drop-db one more or less.")
    limits = {
        "max_connections": max_connections,
        "queue": queue,
        "queue_timeout_s": queue_timeout,
        "idle_timeout_s": idle_timeout,
        "idle_in_transaction_s": idle_in_transaction,
        "statement_timeout_s": statement_timeout,
    }
    body: dict[str, Any] = {
        **_end(expires),
        **({} if sidecars is None else {"sidecars": _names(sidecars)}),
        **({} if classes is None else {"statement_classes": _names(classes)}),
        **({} if access is None else {"read_only": _read_only(access)}),
        **({} if replication is None else {"replication": replication}),
    }
    if given := {key: _limit(key, text) for key, text in limits.items() if text is not None}:
        body["limits"] = given
    gate = options.connect(gate_dir, socket)
    path = f"/apps/{quote(name, safe='')}"
    row = gate.get(path)
    held = list(row.get("databases") or ())
    if databases is not None:
        body["databases"] = _names(databases) or []
    elif add_db or drop_db:
        gone = set(drop_db or ())
        if strange := sorted(gone - set(held)):
            raise UsageError(f"{name} does not use {strange[0]}.", hint=f"meshctl app show {name}")
        body["databases"] = [one for one in [*held, *(add_db or ())] if one not in gone]
    if not body:
        raise UsageError("Nothing was named to change.", hint="meshctl app set --help")
    lost = sorted(set(held) - set(body.get("databases", held)))
    if lost and row.get("sessions"):
        confirm(f"Take {', '.join(lost)} from app {name}, and end its sessions there?", yes=yes)
    row = gate.call("PATCH", path, body=body, headers=as_seen(row.get("version"))).body
    note(f"App {name} is changed.")
    emit(row, view.app(row), output)


def _end(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    if text.strip().lower() in NOTHING:
        return {"expires_at": None}
    try:
        at = moment_of(text)
    except ValueError:
        raise UsageError(
            f"--expires: there is no such day or hour: {text}", hint="a moment as 2027-01-31T12:00:00Z"
        ) from None
    if at is not None:
        return {"expires_at": at}
    return {"expires_in_s": options.seconds(text, "--expires")}


def _names(words: list[str]) -> list[str] | None:
    kept = [word.strip() for text in words for word in text.split(",")]
    return None if all(word.lower() in NOTHING for word in kept) else [word for word in kept if word]


def _read_only(text: str) -> bool:
    if text not in {"read-only", "read-write"}:
        raise UsageError(f'--access: "{text}" is neither read-only nor read-write.')
    return text == "read-only"


def _limit(key: str, text: str) -> float | int | None:
    if text.strip().lower() in NOTHING:
        return None
    if key not in COUNTS:
        return options.seconds(text, LIMITS[key])
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f'{LIMITS[key]}: "{text}" is no whole number.', hint="a number, or none")
    return int(text)
