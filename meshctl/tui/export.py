"""What is shown, into a file: as JSON, YAML, comma-separated values or text, by the file's ending."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshctl.render import Output, machine_text
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Call
from meshctl.tui.describe import DocumentView
from meshctl.tui.fields import Field, Form, dropped, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.table import TableView

if TYPE_CHECKING:
    from meshctl.tui.pane import PaneView
    from meshctl.tui.room import Room

FORM = Form(
    t("Export what is shown"),
    (Field("path", t("File"), required=True, help=t("the ending decides: .json .yaml .csv .txt")),),
)


async def export(room: Room, pane: PaneView) -> None:
    """Ask for the file and write it; a file that is there already is not replaced."""
    name, text = pane.extract()
    ending = "csv" if isinstance(pane, TableView) else "txt"
    safe = "".join(char if char.isalnum() or char in "-._" else "-" for char in name).strip("-.") or "export"
    given = {"path": f"{safe}.{ending}"}
    problem = ""
    while True:
        screen = FormScreen(
            FORM, given=given, problem=problem, preview=lambda _values: Call("", pane.pane.cli)
        )
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return
        given = screen.typed()
        named = dropped(str(answer["path"]))
        try:
            path = await in_thread(partial(_written, named, pane, text))
        except FileExistsError:
            problem = room.say("{path} is there already.", path=named)
        except OSError as error:
            reason = error.strerror or str(error)
            problem = room.say("{path} cannot be written: {reason}", path=named, reason=reason)
        else:
            room.tell(room.say("Written: {path}", path=path))
            return


def _written(named: str, pane: PaneView, text: str) -> Path:
    path = Path(named).expanduser().absolute()
    with path.open("x", encoding="utf-8") as file:
        file.write(_content(pane, text, path.suffix))
    return path


def _content(pane: PaneView, text: str, suffix: str) -> str:
    value: object = None
    if isinstance(pane, TableView):
        value = pane.machine()
    elif isinstance(pane, DocumentView):
        value = pane.document
    if suffix == ".json":
        return machine_text(value, Output.JSON) + "\n"
    if suffix in {".yaml", ".yml"}:
        return machine_text(value, Output.YAML) + "\n"
    return text
