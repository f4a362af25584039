"""Files that people carry between pools: a form asks, the gate answers, and what came of it is written here.

Files are of the machine that the terminal is on, which may be another than the gate's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from meshctl.errors import CommandError, RefusedError, UsageError
from meshctl.tui.declare import Action, Record
from meshctl.tui.fields import Form, readable
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import clean
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.client import Gate
    from meshctl.tui.room import Room

T = TypeVar("T")

TEXT_MAX = 1 << 20
"""Characters of a file that is read whole; those of a pairing have a few thousand."""


async def carried(
    room: Room,
    action: Action,
    form: Form,
    work: Callable[[Gate, Mapping[str, Any]], T],
    *,
    record: Record | None = None,
) -> T | None:
    """Ask for the form's values and do ``work`` with them, beside the event loop.

    A refusal brings the form back with what was typed. None where it was left.
    """
    about: Record = record or {}
    typed: dict[str, str] = {}
    problem = ""
    subject = clean(action.subject(about))
    title = room.say(form.title) + (f": {subject}" if subject else "")
    while True:
        screen = FormScreen(
            form,
            title=title,
            given=typed,
            problem=problem,
            preview=lambda given: action.draft(about, given, form),
        )
        values = await room.push_screen_wait(screen)
        if not isinstance(values, dict):
            return None
        typed = screen.typed()
        try:
            with room.busy(room.say(action.label)):
                return await room.desk.run(partial(_with, work, values))
        except MeshError as error:
            problem = clean(room.catalogue.told(error, " "))


def _with(work: Callable[[Gate, Mapping[str, Any]], T], values: Mapping[str, Any], gate: Gate) -> T:
    return work(gate, values)


def read_text(typed: Any, what: str) -> str:
    """The text of a file that was typed or dropped. UsageError where it is no text, FieldError where it is
    not here.
    """
    path = readable(str(typed or ""))
    if path.stat().st_size > TEXT_MAX:
        raise UsageError(f"{path} is too large. {what} is a short text.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text. {what} is one.") from None


def write_text(typed: Any, text: str) -> Path:
    """Write a file; the same text there already is as good. RefusedError where another file has that name."""
    path = Path(str(typed)).expanduser().absolute()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if not path.is_file() or path.read_bytes() != text.encode():
            raise RefusedError(f"{path} exists and is another file.", hint="give it another name") from None
    except OSError as error:
        raise _unwritten(path, error) from error
    return path


def write_pieces(typed: Any, pieces: Callable[[], Any]) -> tuple[Path, int]:
    """Write what comes piece by piece; it is there whole or not at all. The path, and its size in bytes."""
    path = Path(str(typed)).expanduser().absolute()
    if path.exists():
        raise RefusedError(f"{path} exists.", hint="give it another name")
    beside = path.with_name(f".{path.name}.part")
    size = 0
    try:
        with beside.open("xb") as file:
            for piece in pieces():
                size += file.write(piece)
        beside.replace(path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        beside.unlink(missing_ok=True)
    return path, size


def _unwritten(path: Path, error: OSError) -> CommandError:
    return CommandError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.")
