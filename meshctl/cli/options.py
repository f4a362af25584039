"""The options that many commands share, and how they reach a gate."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from meshctl.client import CALL_TIMEOUT_S, Gate, find_socket
from meshctl.errors import UnreachableError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import note
from meshctl.view import Table
from tunnel_proto.errors import MeshError

CONTEXT_META: Final = "meshctl.context"
"""Where the value of --context waits, in the parser's own notes on one invocation, for `GateDir`."""


class ContextName(type(Path())):  # type: ignore[misc]  # the class of this platform's paths
    """A gate directory that is none: the name of a context, as --context gave it."""


def _gate_dir(context: typer.Context, value: Path | None) -> Path | None:
    """What names the gate: --gate-dir, or --context in its place."""
    named = context.meta.get(CONTEXT_META)
    if named is None:
        return value
    if value is not None or context.params.get("socket") is not None:
        raise UsageError("--context and the gate's own socket exclude each other.", hint="give one of them")
    return ContextName(Path(named).absolute() if "/" in named else named)


GateDir = Annotated[
    Path | None,
    typer.Option(
        "--gate-dir",
        metavar="DIR",
        help="The gate's directory, or a dev stack's; without it ./.mesh, then /var/lib/qgate, then the "
        "current context.",
        show_default=False,
        callback=_gate_dir,
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", help="The gate's admin socket itself.", show_default=False),
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")]

COMPLETION_S = 0.5
"""How long a shell that completes a name waits for the gate, in seconds."""

EVERY_S = 1.0
"""How often a watch looks, in seconds, where nothing else is asked for."""

Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Print it again whenever it has changed, until Ctrl-C.")
]
Every = Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often --watch looks.")]
Shown = tuple[Any, Table | Sequence[Table]]
"""What a command has to show: the gate's answer, and its view for a person."""

OR = ", or: "
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)", re.ASCII)


def group(help_text: str) -> typer.Typer:
    """A noun: a group of commands that shows its help when called bare."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


def connect(gate_dir: Path | None, socket: Path | None) -> Gate:
    """The gate that the options name: a local one, or the pools of a context.

    Where nothing is named, the gate that runs here, else the current context. Raises UnreachableError when
    there is neither.
    """
    if isinstance(gate_dir, ContextName):
        return over_context(str(gate_dir))
    try:
        return Gate(find_socket(gate_dir, socket, here=Path.cwd()))
    except UnreachableError as error:
        named = current_context()
        if named:
            return over_context(named)
        error.hint += ", or a pool elsewhere: --context NAME"
        raise


def local_gate() -> Gate | None:
    """The gate that runs on this machine, None where there is none."""
    try:
        return Gate(find_socket(None, None, here=Path.cwd()))
    except UnreachableError:
        return None


def named_again(command: str, gate_dir: Path | None, socket: Path | None) -> str:
    """A command to do next, meant for the gate that this one was told to ask.

    Commands that are one or the other, parted by ", or: ", are named each.
    """
    if isinstance(gate_dir, ContextName):
        same = f" --context {shlex.quote(str(gate_dir))}"
    elif gate_dir is not None:
        same = f" --gate-dir {shlex.quote(str(gate_dir))}"
    else:
        same = "" if socket is None else f" --socket {shlex.quote(str(socket))}"
    return OR.join(f"{one}{same}" for one in command.split(OR))


def show(
    look: Callable[[], Shown], output: Output, *, watch: bool, every: float = EVERY_S, empty: str = ""
) -> None:
    """Print what ``look`` gives: once, or with ``watch`` whenever it has changed."""
    if watch:
        from meshctl.watching import watch as go_on

        go_on(look, output, every_s=every, empty=empty)
        return
    value, tables = look()
    emit(value, tables, output, empty=empty)


def current_context() -> str:
    """The context that is used where nothing is named and no gate runs here, "" where there is none."""
    from meshctl.contexts import Contexts

    return Contexts().current()


def over_context(named: str, *, timeout: float = CALL_TIMEOUT_S) -> Gate:
    """The pools of a context as a gate; says on standard error when it goes on at another pool."""
    import atexit

    from meshctl.admin_session import ContextDialler
    from meshctl.contexts import Contexts, split

    name, begin = split(named)
    dialler = ContextDialler(Contexts().existing(name), begin=begin)
    dialler.may_change = _ask_to_change
    atexit.register(dialler.close)
    gate = Gate(dialler, timeout=timeout)
    gate.moved = lambda left, now: note(f"The pool {left} does not answer; going on at {now}.")
    return gate


def _ask_to_change(home: str, now: str) -> bool:
    """A change belongs to the pool that was meant; at another one only with a yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{home} does not answer. Make this change at {now} instead? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def seconds(text: str | None, option: str) -> float | None:
    """A duration such as 90, 30s, 15m, 12h, 30d, 2w in seconds. Raises UsageError."""
    if text is None:
        return None
    parts = [_DURATION.fullmatch(part) for part in text.split()]
    if not parts or any(part is None for part in parts):
        raise UsageError(
            f'{option}: "{text}" is not a duration.', hint="write it as 30s, 15m, 12h, 30d or 2w"
        )
    return sum(float(part[1]) * _UNITS[part[2] or "s"] for part in parts if part)


def names_in(path: str, *, key: str = "name") -> Callable[[str], list[str]]:
    """Completion of names from one of the gate's lists; none where no gate answers quickly."""

    def complete(incomplete: str) -> list[str]:
        try:
            gate = connect(None, None)
            gate.timeout = COMPLETION_S
            gate.moved = lambda _left, _now: None
            names = [str(row.get(key)) for row in gate.items(path)]
        except MeshError:
            return []
        return [name for name in names if name.startswith(incomplete)]

    return complete


def context_names(incomplete: str) -> list[str]:
    """Completion of context names."""
    from meshctl.contexts import Contexts

    return [one.name for one in Contexts().all() if one.name.startswith(incomplete)]


app_names = names_in("/apps")
database_names = names_in("/databases")
sidecar_names = names_in("/sidecars")
setting_names = names_in("/settings")
worker_names = names_in("/workers")
pool_names = names_in("/pools")

DatabaseName = Annotated[
    str, typer.Argument(metavar="NAME", help="The route's name.", autocompletion=database_names)
]
AppName = Annotated[str, typer.Argument(metavar="NAME", help="The app's name.", autocompletion=app_names)]
SidecarName = Annotated[
    str, typer.Argument(metavar="NAME", help="The sidecar's name.", autocompletion=sidecar_names)
]
SettingName = Annotated[
    str, typer.Argument(metavar="NAME", help="The setting's name.", autocompletion=setting_names)
]


def limits(
    max_connections: int | None,
    queue: int | None,
    queue_timeout: str | None,
    idle: str | None,
    statement: str | None,
    in_transaction: str | None,
) -> dict[str, float | int] | None:
    """The limits that were given, as the control API wants them; None when none was."""
    given = {
        "max_connections": max_connections,
        "queue": queue,
        "queue_timeout_s": seconds(queue_timeout, "--queue-timeout"),
        "idle_timeout_s": seconds(idle, "--idle-timeout"),
        "statement_timeout_s": seconds(statement, "--statement-timeout"),
        "idle_in_transaction_s": seconds(in_transaction, "--idle-in-transaction"),
    }
    kept = {key: value for key, value in given.items() if value is not None}
    return kept or None


MaxConnections = Annotated[
    int | None, typer.Option("--max-connections", min=1, help="Connections at one time.", show_default=False)
]
Queue = Annotated[
    int | None,
    typer.Option("--queue", min=0, help="Connections that may wait for a free one.", show_default=False),
]
QueueTimeout = Annotated[
    str | None,
    typer.Option("--queue-timeout", metavar="TIME", help="How long they may wait.", show_default=False),
]
IdleTimeout = Annotated[
    str | None,
    typer.Option("--idle-timeout", metavar="TIME", help="End a session idle this long.", show_default=False),
]
StatementTimeout = Annotated[
    str | None,
    typer.Option(
        "--statement-timeout", metavar="TIME", help="End a statement after this long.", show_default=False
    ),
]
IdleInTransaction = Annotated[
    str | None,
    typer.Option(
        "--idle-in-transaction",
        metavar="TIME",
        help="End a session idle this long inside a transaction.",
        show_default=False,
    ),
]
