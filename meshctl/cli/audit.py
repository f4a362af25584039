"""`meshctl audit`: who asked which database what, and proof that nobody changed the answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.errors import CheckError, CommandError, UsageError
from meshctl.proofs import checked_export
from meshctl.render import Output, emit, machine_text, write
from meshctl.terminal import note

commands = options.group("The audit trail: append-only, hash-chained, without literals or content.")

App = Annotated[
    str | None, typer.Option("--app", help="Entries of this app only.", autocompletion=options.app_names)
]
Database = Annotated[
    str | None,
    typer.Option("--db", help="Entries of this database only.", autocompletion=options.database_names),
]
Kind = Annotated[
    str | None, typer.Option("--kind", help="query, session.open, session.close, denied, admin, ...")
]


@commands.command("tail")
def tail(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new entries as they come.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="How many of the latest to show.")] = 20,
    app: App = None,
    database: Database = None,
    kind: Kind = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the latest entries, oldest first; with --follow, one JSON object a line for -o json."""
    gate = options.connect(gate_dir, socket)
    chosen: dict[str, object] = {"app": app, "database": database, "kind": kind}
    rows = gate.items("/audit", {**chosen, "limit": limit}) if limit else []
    rows.sort(key=lambda row: row.get("seq") or 0)
    if not follow:
        emit(rows, view.audit(rows), output, empty="No entry of that kind.")
        return
    for row in rows:
        _line(row, output)
    after = rows[-1].get("seq") if rows else gate.get("/audit/head").get("seq")
    for row in gate.lines("/audit/stream", {"after": after}):
        if all(value is None or row.get(key) == value for key, value in chosen.items()):
            _line(row, output)


@commands.command("export")
def export(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Write the whole trail as newline-delimited JSON, the signed head last."""
    gate = options.connect(gate_dir, socket)
    lines = gate.lines("/audit/export")
    if out is None:
        for entry in lines:
            write(json.dumps(entry, ensure_ascii=False))
        return
    count = 0
    beside = out.with_name(f".{out.name}.part")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            for entry in lines:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                count += 1
        beside.replace(out)
    except OSError as error:
        raise CommandError(
            f"{out} cannot be written: {error.strerror}", hint="--out FILE in a folder of your own"
        ) from error
    note(f"{count} lines in {out}")


@commands.command("verify")
def verify(
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Check an export instead; no gate is asked."),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option("--pool", metavar="FP", help="With --file: the pool's fingerprint (meshctl key show)."),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Recompute the chain and check the signed head; exit code 6 at a changed, missing or moved entry."""
    if (file is None) != (pool is None):
        raise UsageError(
            "--file and --pool come together: an export proves nothing without the key it trusts.",
            hint="meshctl key show tells the pool's fingerprint",
        )
    if file is not None and pool is not None:
        reply = checked_export(file, pool)
    else:
        reply = options.connect(gate_dir, socket).post("/audit/verify", {}, timeout=600)
    emit(reply, view.audit_verdict(reply), output)
    if not reply.get("ok"):
        raise CheckError(
            f"The audit trail was altered: {reply.get('problem')}",
            hint="keep the store as it is, and compare: meshctl audit export --out FILE with an earlier one",
        )


def _line(row: dict[str, Any], output: Output) -> None:
    if output is Output.TABLE:
        shown = view.audit([row])
        write("  ".join(shown.rows[0]).rstrip())
    elif output is Output.JSON:
        write(json.dumps(row, ensure_ascii=False))
    else:
        write("---\n" + machine_text(row, output))
