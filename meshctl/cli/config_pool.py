"""`meshctl config export` and what follows: the whole configuration of the pool as one document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.cli.config import commands
from meshctl.configuration_view import HISTORY, lines, parsed_document
from meshctl.errors import CommandError
from meshctl.render import Output, emit, machine_text, write
from meshctl.terminal import confirm, note, read_text

__all__ = ["commands", "lines", "read_document"]

File = Annotated[str, typer.Argument(metavar="FILE", help="A document in YAML or JSON, or -.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the revision.")]
Revision = Annotated[int, typer.Argument(metavar="N", min=1, help="The revision's number.")]


@commands.command("export")
def export(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Write it there.", show_default=False)
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.YAML,
) -> None:
    """Print everything that can be configured, as one document without secrets."""
    document = options.connect(gate_dir, socket).get("/configuration")
    text = machine_text(document, Output.YAML if output is Output.TABLE else output)
    if file is None:
        write(text)
        return
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{file} cannot be written: {(error.strerror or str(error)).lower()}.",
            hint="--file FILE in a folder of your own",
        ) from None
    note(f"The configuration is in {file}.")


@commands.command("diff")
def diff(
    file: File,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what applying a document would change. Exit code 0: nothing; 1: something; 2: it cannot be."""
    document = read_document(file)
    reply = options.connect(gate_dir, socket).post("/configuration/diff", document)
    _print(reply, output)
    if reply["refused"]:
        raise typer.Exit(2)
    if reply["changes"]:
        raise typer.Exit(1)


@commands.command("apply")
def apply(
    file: File,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also where something was changed since it was exported.")
    ] = False,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what a document would change, ask, and apply all of it or nothing."""
    gate = options.connect(gate_dir, socket)
    document = read_document(file)
    seen = gate.post("/configuration/diff", document)
    if output is Output.TABLE:
        _print(seen, output)
    if not seen["changes"] and not seen["refused"]:
        if output is not Output.TABLE:
            emit({**seen, "revision": None}, [], output)
        return
    if not seen["refused"]:
        confirm(f"Make {len(seen['changes'])} changes?", yes=yes)
    # What was looked at is what is applied: a change in between is refused, and looked at again.
    base = document.get("etag") or seen["etag"]
    body = {"document": {**document, "etag": base}, "reason": reason, "force": force}
    reply = gate.post("/configuration/apply", body)
    if output is Output.TABLE:
        undo = options.named_again(f"meshctl config revert {reply['revision'] - 1}", gate_dir, socket)
        note(f"Revision {reply['revision']}. Undo it: {undo}")
        return
    emit(reply, [], output)


@commands.command("history")
def history(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many, the newest.")] = 50,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the revisions: who changed how much, when and why."""
    rows = options.connect(gate_dir, socket).items("/configuration/revisions", {"limit": limit})
    emit(rows, view.table(rows, HISTORY), output, empty="No document was applied yet.")


@commands.command("show")
def show(
    revision: Revision,
    document: Annotated[bool, typer.Option("--document", help="The whole document as it was then.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what a revision changed."""
    row = options.connect(gate_dir, socket).get(f"/configuration/revisions/{revision}")
    if document:
        write(machine_text(row["document"], Output.YAML if output is Output.TABLE else output))
        return
    if output is not Output.TABLE:
        emit(row, [], output)
        return
    emit(row, view.table([row], HISTORY), output)
    write("\n".join(lines(row["changes"])))


@commands.command("revert")
def revert(
    revision: Revision,
    reason: Reason = "",
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Go back to a revision, by a new one. What holds a secret is neither made nor removed."""
    gate = options.connect(gate_dir, socket)
    row = gate.get(f"/configuration/revisions/{revision}")
    document = {name: value for name, value in row["document"].items() if name != "etag"}
    if output is Output.TABLE:
        _print(gate.post("/configuration/diff", document), output)
    confirm(f"Go back to revision {revision}?", yes=yes)
    reply = gate.post(f"/configuration/revisions/{revision}/revert", {"reason": reason})
    if output is not Output.TABLE:
        emit(reply, [], output)
    elif reply["revision"] is None:
        note("Nothing differs from it.")
    else:
        note(f"Revision {reply['revision']}: as revision {revision} was.")


def read_document(source: str) -> dict[str, Any]:
    """A document of a file, in JSON or YAML. Raises UsageError."""
    return parsed_document(read_text(source, "The document"), source)


def _print(reply: dict[str, Any], output: Output) -> None:
    if output is not Output.TABLE:
        emit(reply, [], output)
        return
    if reply["changes"]:
        write("\n".join(lines(reply["changes"])))
    for change in reply["refused"]:
        note(f"Refused: {change['problem']}.")
    if reply["kept"]:
        note(f"Kept, though the document lacks them: {', '.join(reply['kept'])}.")
    if not reply["changes"] and not reply["refused"]:
        note("Nothing differs.")
