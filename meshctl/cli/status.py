"""`meshctl status`: one look at a gate."""

from __future__ import annotations

import contextlib
from typing import Any

from meshctl import view
from meshctl.cli import options
from meshctl.errors import GateError
from meshctl.render import Output


def status(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the gate, its store, the links of its sidecars and the sessions in them."""
    gate = options.connect(gate_dir, socket)
    shown: list[view.Table] = []
    if output is Output.TABLE:
        with contextlib.suppress(GateError):  # an older gate has none
            shown = _named(gate.get("/branding"))

    def look() -> options.Shown:
        reply = gate.get("/status")
        return reply, [*shown, *view.status(reply)]

    options.show(look, output, watch=watch, every=every)


def _named(branding: dict[str, Any]) -> list[view.Table]:
    """What the pool calls itself, where it was given a name."""
    if not branding.get("name"):
        return []
    rows = {"pool": branding["title"], "support": branding.get("support")}
    return [view.card({name: value for name, value in rows.items() if value})]
