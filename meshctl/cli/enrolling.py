"""Making a node known at the gate: read its offer, compare its fingerprint, hand out its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl.cli import options
from meshctl.client import Gate
from meshctl.errors import RefusedError
from meshctl.render import Output, emit, write
from meshctl.terminal import STDIN, confirm, note, read_text

ROLES = {"client": "sidecar", "daemon": "worker", "admin": "admin"}
"""What a person calls a node of each role."""

OfferFile = Annotated[str, typer.Argument(metavar="OFFER", help="The offer file, or - for standard input.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write it to a file instead of standard output.", show_default=False
    ),
]
ValidDays = Annotated[
    int | None, typer.Option("--days", min=1, help="How long its certificate is valid.", show_default=False)
]
Expected = Annotated[
    str | None,
    typer.Option(
        "--fingerprint",
        metavar="FP",
        help="Refuse any other key than the one of this fingerprint.",
        show_default=False,
    ),
]
Readmit = Annotated[
    bool, typer.Option("--readmit", help="Let a key in again that was revoked; without it, it stays refused.")
]


def enrol_offer(
    offer_file: str,
    *,
    noun: str,
    days: int | None,
    expected: str | None,
    yes: bool,
    gate: Callable[[], Gate],
    path: str = "/sidecars",
    readmit: bool = False,
) -> dict[str, Any]:
    """Enrol the offer in a file; returns the gate's reply with the bundle. ``noun`` is a value of `ROLES`."""
    from tunnel_proto.enrolment import read_offer

    text = read_text(offer_file, "The offer")
    offered = read_offer(text)
    other = ROLES.get(offered.role, offered.role)
    if other != noun:
        raise RefusedError(
            f"This is the offer of {_one(other)}, not of {_one(noun)}.",
            hint=f"meshctl {other} enroll {offer_file}",
        )
    reached = gate()
    if expected is not None:
        if expected.strip().lower() != offered.fingerprint.lower():
            raise RefusedError(
                f"The offer's fingerprint is {offered.fingerprint}, not the one expected.",
                hint="ask its host again; where they still differ the offer was changed: do not enroll it",
            )
    elif offer_file != STDIN or yes:
        note(f"{noun} {offered.name}, fingerprint {offered.fingerprint}")
        confirm(f"Is that the fingerprint which the {noun}'s host showed?", yes=yes)
    else:
        raise RefusedError(
            "The offer came through standard input, so nobody can be asked about its fingerprint.",
            hint="add --fingerprint FP or --yes",
        )
    body: dict[str, object] = {"offer": text}
    if days is not None:
        body["valid_days"] = days
    if readmit:
        body["readmit"] = True
    reply: dict[str, Any] = reached.post(path, body)
    install = "context add NAME" if noun == "admin" else f"{noun} install"
    note(f"{noun.capitalize()} {reply['name']} is enrolled. On its host: meshctl {install} BUNDLE")
    return reply


def enroll_help(noun: str) -> str:
    """What `meshctl NOUN enroll` does, for its help."""
    return (
        f"At the gate: make a {noun}'s key known and write the signed bundle that goes back to its host.\n\n"
        f"Compare the fingerprint with the one that `{noun} offer` showed there before you say yes."
    )


def enroll_command(noun: str) -> Callable[..., None]:
    """`meshctl NOUN enroll` of a sidecar or a worker."""

    def enroll(
        offer_file: OfferFile,
        out: Out = None,
        days: ValidDays = None,
        expected: Expected = None,
        readmit: Readmit = False,
        yes: options.Yes = False,
        gate_dir: options.GateDir = None,
        socket: options.Socket = None,
        output: options.Format = Output.TABLE,
    ) -> None:
        reply = enrol_offer(
            offer_file,
            noun=noun,
            days=days,
            expected=expected,
            yes=yes,
            readmit=readmit,
            gate=lambda: options.connect(gate_dir, socket),
        )
        hand_out(reply, out, output)

    return enroll


def _one(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def hand_out(reply: dict[str, Any], out: Path | None, output: Output) -> None:
    """Give the bundle out to a file or a person; a program that named no file gets the whole reply."""
    if output is Output.TABLE or out is not None:
        deliver(reply["bundle"], out, mode=0o600)
    else:
        emit(reply, [], output)


def deliver(text: str, out: Path | None, *, mode: int) -> None:
    """Write a text to a file of this mode, or to standard output where none is named."""
    if out is None:
        write(text.removesuffix("\n"))
        return
    from meshctl.gate_directory import write_file

    write_file(out, text.encode(), mode=mode)
    note(f"written to {out}")
