"""`meshctl receipt`: what the pool certified about requests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import finops_view
from meshctl.cli import options
from meshctl.errors import CheckError, UnreachableError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import note, read_text
from tunnel_proto.errors import AuthenticationFailed

USAGE_BY = ("app", "team", "model", "task", "day")

commands = options.group("Receipts: who asked for what, where it ran, what it cost; never the content.")


@commands.command("list")
def list_receipts(
    app: Annotated[
        str | None,
        typer.Option("--app", metavar="NAME", help="Of this app only.", autocompletion=options.app_names),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Not older than, as 2h or 7d.")
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="How many.")] = 30,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List receipts, newest first."""
    span = options.seconds(since, "--since")
    query = {"app": app, "limit": number, "since": None if span is None else time.time() - span}
    rows = options.connect(gate_dir, socket).items("/receipts", query)
    emit(rows, finops_view.receipts(rows), output, empty="No receipts: nothing was asked for.")


@commands.command("usage")
def usage(
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="app, team, model, task or day.")] = "app",
    app: Annotated[
        str | None,
        typer.Option("--app", metavar="NAME", help="Of this app only.", autocompletion=options.app_names),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Not older than, as 2h or 7d; 92d at most.")
    ] = "30d",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Add receipts up: requests, tokens and cost by app, team, model, task or day."""
    if by not in USAGE_BY:
        raise UsageError(f'--by: "{by}" is none of {", ".join(USAGE_BY)}.', hint=f"--by {USAGE_BY[0]}")
    span = options.seconds(since, "--since") or 0.0
    query = {"by": by, "app": app, "since": time.time() - span}
    rows = options.connect(gate_dir, socket).items("/usage", query)
    emit(rows, finops_view.usage(rows), output, empty="Nothing was asked for in that time.")


@commands.command("show")
def show(
    receipt: Annotated[str, typer.Argument(metavar="ID", help="The receipt's id.", show_default=False)],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one receipt; with -o json the signed object itself."""
    document = options.connect(gate_dir, socket).get(f"/receipts/{quote(receipt, safe='')}")
    emit(document, finops_view.receipt(document), output)


@commands.command("verify")
def verify(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A receipt, or an answer that holds one, streamed or not; - for stdin.",
            show_default=False,
        ),
    ],
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="FP",
            help="The pool's fingerprint (meshctl key show); then no gate is asked.",
            show_default=False,
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Check that the pool signed every word of a receipt; exit code 6 where it did not.

    With --pool nothing but the file is needed: a client checks its own copy on a machine that knows no gate.
    """
    from tunnel_proto.receipt import check_receipt, read_receipt

    try:
        document = read_receipt(read_text(file, "The receipt"))
    except ValueError as error:
        raise UsageError(
            f"{file} holds no receipt: {error}.",
            hint="name an answer of the gate, or what meshctl receipt show ID -o json prints",
        ) from error
    if pool is None:
        pool = _pool(gate_dir, socket)
    try:
        check_receipt(document, pool=pool)
    except ValueError as error:
        raise CheckError(
            f"This is no receipt: {error}.",
            hint="name an answer of the gate, or what meshctl receipt show ID -o json prints",
        ) from error
    except AuthenticationFailed as error:
        raise CheckError(
            f"The receipt is not genuine: {error.message}.", hint="is --pool the right pool? meshctl key show"
        ) from error
    note("PASSED: the pool signed it as it is.")
    if output is Output.TABLE:
        emit(document, finops_view.receipt(document), output)
    else:
        emit({"ok": True, "receipt": json.loads(json.dumps(document))}, [], output)


def _pool(gate_dir: Path | None, socket: Path | None) -> str:
    try:
        return str(options.connect(gate_dir, socket).get("/key")["pool"]["fingerprint"])
    except UnreachableError as error:
        raise UnreachableError(
            f"Whose signature should it be? {error.message}",
            hint="--pool FINGERPRINT needs no gate; whoever runs the gate sees it with: meshctl key show",
        ) from error
