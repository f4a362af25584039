"""`meshctl pool log|verify|export|import|redundancy|workers`: what pools published, and who has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import replication_view
from meshctl.cli import options
from meshctl.errors import CheckError, CommandError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

PoolArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="POOL",
        help="One pool; left out, all of them.",
        autocompletion=options.pool_names,
        show_default=False,
    ),
]


def log(
    pool: Annotated[
        str | None,
        typer.Argument(
            metavar="POOL",
            help="Show this pool's entries; left out, how far every log has come.",
            autocompletion=options.pool_names,
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="Entries after this number.", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="How many.")] = 20,
    stream: Annotated[
        str | None, typer.Option("--stream", help="Of this stream only.", show_default=False)
    ] = None,
    held: Annotated[bool, typer.Option("--held", help="Entries that wait, and why.")] = False,
    stranded: Annotated[
        bool, typer.Option("--stranded", help="What was put aside: forks, tails of restored logs.")
    ] = False,
    erase: Annotated[
        list[int] | None,
        typer.Option(
            "--erase", min=1, help="Erase this entry of our own log, everywhere.", show_default=False
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="With --erase: why.")] = "",
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show how replication goes, or one pool's log; payloads are never shown."""
    gate = options.connect(gate_dir, socket)
    if erase:
        if pool is not None:
            raise UsageError(
                "--erase is for this pool's own log: leave POOL out.", hint="leave POOL out, or --erase"
            )
        confirm(f"Erase what {len(erase)} entries say, here and at every pool that has them?", yes=yes)
        reply = gate.post("/logs/erase", {"places": erase, "reason": reason})
        note(f"{reply['erased']} payloads erased; the entries stay, so that the chain still verifies.")
        return
    if stranded:
        rows = gate.items("/logs/stranded")
        emit(rows, replication_view.stranded(rows), output, empty="Nothing was put aside.")
    elif pool is None and not (held or stream or after is not None):
        status = gate.get("/logs")
        emit(status, replication_view.logs(status), output)
    else:
        query: dict[str, object] = {"pool": pool, "after": after, "limit": number, "stream": stream}
        rows = gate.items("/logs/entries", {**query, "held": "true" if held else None})
        emit(rows, replication_view.entries(rows), output, empty="No such entries.")


def verify(
    pool: PoolArgument = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make the tables anew from POOL's log.")] = False,
    release: Annotated[
        bool, typer.Option("--release", help="End POOL's quarantine, once its admin has explained it.")
    ] = False,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Check logs: signatures, links, payloads, holes, tables; exit code 6 where something is wrong."""
    gate = options.connect(gate_dir, socket)
    if (repair or release) and pool is None:
        raise UsageError(
            "--repair and --release are for one POOL: name it.", hint="meshctl pool list names them"
        )
    if release and pool is not None:
        confirm(f"Take entries of {pool} again, although it once contradicted itself?", yes=yes)
        gate.post(f"/logs/{quote(pool, safe='')}/release", {})
    if repair and pool is not None:
        reply = gate.post(f"/logs/{quote(pool, safe='')}/repair", {}, timeout=600)
        note(f"{reply['applied']} entries of {pool} applied again.")
    reply = gate.post("/logs/verify", {"pool": pool}, timeout=600)
    emit(reply, replication_view.checks(reply), output)
    if not reply.get("ok"):
        bad = [f"{row['pool']}: {row['problem']}" for row in reply.get("items") or [] if not row.get("ok")]
        raise CheckError("; ".join(bad), hint="meshctl pool verify POOL, then --repair where it says so")


def redundancy(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show who has a readable copy of what this pool published, and of its models; and what comes here.

    States are healthy, rebuilding, degraded, lost.
    """
    gate = options.connect(gate_dir, socket)
    reply = {**gate.get("/logs/redundancy"), "models": gate.get("/copies")}
    emit(reply, replication_view.redundancy(reply), output)


def export(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="POOL",
            help="Seal it to this pool.",
            autocompletion=options.pool_names,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write it.", show_default=False)
    ],
    whole: Annotated[
        bool, typer.Option("--whole", help="All of the log, not only what POOL is known to lack.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Write what a pool lacks of this pool's log into a file, to be carried there by hand."""
    gate = options.connect(gate_dir, socket)
    beside = out.with_name(f".{out.name}.part")
    size = 0
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for piece in gate.pieces(
                f"/logs/{quote(to, safe='')}/archive", {"whole": "true" if whole else None}
            ):
                size += len(piece)
                file.write(piece)
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CommandError(
            f"{out} cannot be written: {error.strerror}", hint="name a file in a folder of your own"
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    note(f"{size} bytes in {out}, readable by {to} alone. There: meshctl pool import {out.name}")


def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An archive, or the receipt of one.", show_default=False),
    ],
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Where to write the receipt.", show_default=False),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Take an archive that was carried here (all of it or nothing), or the receipt of one that was sent."""
    gate = options.connect(gate_dir, socket)
    reply = gate.send_file("/logs/import", file)
    emit(reply, replication_view.taken(reply), output)
    if reply.get("kind") != "archive":
        return
    place = receipt or file.with_name(f"{file.name}.receipt")
    try:
        place.write_text(f"{reply['receipt']}\n")
    except OSError as error:
        raise CommandError(
            f"{place} cannot be written: {error.strerror}", hint="name a file in a folder of your own"
        ) from error
    note(f"Carry {place} back: meshctl pool import {place.name} tells the sender what need not come again.")


def workers(
    pool: Annotated[
        str,
        typer.Argument(metavar="POOL", help="A peer.", autocompletion=options.pool_names, show_default=False),
    ],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the workers that a peer vouches for, and what it measured of its models there."""
    reply = options.connect(gate_dir, socket).get(f"/attested/{quote(pool, safe='')}")
    emit(reply, replication_view.attested(reply), output, empty=f"{pool} has told of no workers.")


def keys(
    pool: PoolArgument = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the online keys of this pool, or of a peer, and by whose word each took the other's place."""
    rows = options.connect(gate_dir, socket).items("/online-keys", {"pool": pool})
    emit(rows, replication_view.keys(rows), output, empty="No online key is known yet.")


def install(commands: typer.Typer) -> None:
    """Add these commands to `meshctl pool`."""
    commands.command("log")(log)
    commands.command("verify")(verify)
    commands.command("export")(export)
    commands.command("import")(import_)
    commands.command("redundancy")(redundancy)
    commands.command("workers")(workers)
    commands.command("keys")(keys)
