"""`meshctl config`: settings files, checked before a daemon reads them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.errors import CheckError
from meshctl.render import Output, emit
from meshctl.terminal import note, why_unreadable
from tunnel_proto.errors import ConfigError

commands = options.group("The pool's configuration as one document; the daemons' settings files.")

GATE_TABLES = frozenset({"store", "keys", "control", "postgres", "name", "drain_timeout_s"})
SIDECAR_TABLES = frozenset({"gate"})
WORKER_TABLES = frozenset({"models", "llama", "engines", "discovery", "jobs", "probe"})


@commands.command("check")
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A qgate.toml, minigate.toml or qdaemon.toml.")
    ],
    output: options.Format = Output.TABLE,
) -> None:
    """Check a daemon's settings file, whichever's it is; exit code 6 when the daemon would refuse it."""
    kind, problem, hint = "", "", ""
    try:
        kind = kind_of(file)
        load_settings(file, kind)
    except ConfigError as error:
        problem, hint = error.message, error.hint
    reply: dict[str, Any] = {"file": str(file), "kind": kind or None, "ok": not problem}
    if problem:
        reply |= {"problem": problem, "next": hint or None}
    if output is not Output.TABLE:
        emit(reply, view.card(reply), output)
    if problem:
        raise CheckError(problem, hint=hint)
    note(f"{file} is a valid {kind}.toml.")


def kind_of(file: Path) -> str:
    """Which daemon a settings file is for: its name says, else its tables do. Raises ConfigError."""
    if "minigate" in file.name or "sidecar" in file.name:
        return "minigate"
    if "qdaemon" in file.name or "worker" in file.name:
        return "qdaemon"
    if "qgate" in file.name:
        return "qgate"
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {why_unreadable(error)}",
            hint="name a qgate.toml, minigate.toml or qdaemon.toml",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}", hint=f"correct {file}") from None
    if WORKER_TABLES & document.keys():
        return "qdaemon"
    if SIDECAR_TABLES & document.keys() or "hosts" in _table(document, "listen"):
        return "minigate"
    if GATE_TABLES & document.keys() or "host" in _table(document, "listen"):
        return "qgate"
    raise ConfigError(
        f"{file}: whether this is for qgate, minigate or qdaemon cannot be told",
        hint="name it qgate.toml, minigate.toml or qdaemon.toml",
    )


def load_settings(file: Path, kind: str) -> object:
    """Load it as its daemon would. Raises ConfigError."""
    if kind == "minigate":
        from minigate.settings import MinigateSettings
        from tunnel_proto.settings import load

        return load(file, MinigateSettings)
    if kind == "qdaemon":
        from qdaemon.settings import QdaemonSettings
        from tunnel_proto.settings import load

        return load(file, QdaemonSettings)
    from qgate.settings import load_gate_settings

    return load_gate_settings(file)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}
