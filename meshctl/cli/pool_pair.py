"""`meshctl pool pair`: the ceremony that pairs two pools, step by step or as a conversation.

here                                   there
offer                    ── file ──▶   answer
confirm                  ◀── file ──
                         ── file ──▶   finish
type what there shows  ◀── spoken ──▶  type what here shows
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl.cli import options
from meshctl.cli.enrolling import deliver
from meshctl.client import Gate
from meshctl.render import Output, emit
from meshctl.terminal import note, read_text

commands = typer.Typer(
    help="Pair this pool with another: as a conversation, or file by file.",
    invoke_without_command=True,
    rich_markup_mode=None,
    add_completion=False,
)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write it to a file instead of standard output.", show_default=False
    ),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="What to call the other pool here.", show_default=False),
]


@commands.callback()
def pair(
    context: typer.Context,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Pair this pool with another one: walks through the ceremony on both sides, one admin at each.

    Files are carried in person, mailed or copied: it does not matter who reads or changes them, because both
    admins read each other a short string at the end. Where the gates reach each other, one file is enough.
    """
    if context.invoked_subcommand is None:
        from meshctl.pairing import converse

        converse(options.connect(gate_dir, socket))


@commands.command("offer")
def offer(
    out: Out = None,
    valid: Annotated[
        str, typer.Option("--valid", metavar="TIME", help="How long it may be answered, at most 30d.")
    ] = "7d",
    online: Annotated[
        bool,
        typer.Option("--online", help="Let the other gate answer over the network, with no further file."),
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Make another one though one is still open.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Begin: write the offer that the other pool answers."""
    body = {"valid_s": options.seconds(valid, "--valid"), "online": online, "new": new}
    reply = options.connect(gate_dir, socket).post("/pairings/offer", body)
    note("Carry it to the other pool: meshctl pool pair answer OFFER" + (" --online" if online else ""))
    _deliver(reply, "offer", out, output)


@commands.command("answer")
def answer(
    file: Annotated[str, typer.Argument(metavar="OFFER", help="The offer file, or - for standard input.")],
    out: Out = None,
    name: As = None,
    online: Annotated[
        bool, typer.Option("--online", help="Answer over the network: the offer's gate must be reachable.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Answer an offer that came from another pool."""
    gate = options.connect(gate_dir, socket)
    body = {"file": read_text(file, "The offer"), "name": name}
    if online:
        reply = gate.post("/pairings/online", body)
        tell(gate, reply)
        if output is not Output.TABLE:
            emit(reply, [], output)
        return
    reply = gate.post("/pairings/answer", body)
    peer = reply["peer"]
    note(f"The offer is of {peer['name']} ({peer['kind']}), fingerprint {peer['fingerprint']}.")
    note("Carry the answer back: meshctl pool pair confirm ANSWER")
    _deliver(reply, "answer", out, output)


@commands.command("confirm")
def confirm_answer(
    file: Annotated[str, typer.Argument(metavar="ANSWER", help="The answer file, or - for standard input.")],
    out: Out = None,
    name: As = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Confirm the answer to an offer made here; shows the string that the other admin must type."""
    body = {"file": read_text(file, "The answer"), "name": name}
    gate = options.connect(gate_dir, socket)
    reply = gate.post("/pairings/confirm", body)
    note("Carry the confirmation to the other pool: meshctl pool pair finish CONFIRM")
    tell(gate, reply)
    _deliver(reply, "confirm", out, output)


@commands.command("finish")
def finish(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="The confirmation (or, where the offer was made, the finish)."),
    ],
    out: Out = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Take the confirmation; shows the string that the other admin must type, and asks for nothing yet."""
    gate = options.connect(gate_dir, socket)
    reply = gate.post("/pairings/finish", {"file": read_text(file, "The confirmation")})
    tell(gate, reply)
    if reply.get("finish") is not None and reply["side"] == "answerer":
        if out is not None or output is not Output.TABLE:
            _deliver(reply, "finish", out, output)
    elif output is not Output.TABLE:
        emit(reply, [], output)


def tell(gate: Gate, reply: dict[str, Any]) -> None:
    """Say which string to read out, and what to do with the other one."""
    from meshctl.pairing import name_here

    name = name_here(gate, reply)
    note("")
    note(f"    Read this to the admin of {name}:   {reply['string']}")
    note("")
    note(f"and type what that admin reads to you:  meshctl pool trust {name} --level LEVEL --string STRING")


def _deliver(reply: dict[str, Any], what: str, out: Path | None, output: Output) -> None:
    if output is Output.TABLE or out is not None:
        deliver(reply[what], out, mode=0o644)
    else:
        emit(reply, [], output)
