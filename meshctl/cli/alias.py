"""`meshctl alias`: names that stand for a model or for a `qg://` request."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import finops_view, view
from meshctl.cli import options
from meshctl.client import Gate
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note
from tunnel_proto.errors import MeshError
from tunnel_proto.request import is_request

commands = options.group("Names that stand for a model, or for a qg:// request.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What apps say.", show_default=False)]


@commands.command("set")
def set_alias(
    name: Name,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A model's name, or qg://task=...", show_default=False)
    ],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Let NAME stand for TARGET, at every gate of the pool."""
    gate = options.connect(gate_dir, socket)
    gate.put(f"/aliases/{quote(name, safe='')}", {"target": target})
    note(f"{name} stands for {target}.")
    known = set() if is_request(target) else _models(gate)
    if known and target.partition("@")[0] not in known:
        note(f"No worker or provider has a model {target} now: meshctl model list, meshctl provider list")


def _models(gate: Gate) -> set[str]:
    """Names that a request may have today; none where the gate does not say."""
    try:
        found = {str(row.get("name")) for path in ("/models", "/aliases") for row in gate.items(path)}
        for provider in gate.items("/providers"):
            found |= {str(model.get("name")) for model in provider.get("models") or ()}
    except MeshError:
        return set()
    return found


@commands.command("list")
def list_aliases(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the aliases."""
    rows = options.connect(gate_dir, socket).items("/aliases")
    none = "No aliases. Next: meshctl alias set NAME MODEL-OR-REQUEST"
    emit(rows, view.table(rows, finops_view.ALIAS_COLUMNS), output, empty=none)


@commands.command("remove")
def remove(
    name: Name,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Forget an alias."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Remove alias {name}?", yes=yes)
    gate.delete(f"/aliases/{quote(name, safe='')}")
    note(f"Alias {name} is removed.")
