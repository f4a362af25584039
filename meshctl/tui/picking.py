"""A file of this machine, chosen by walking through its folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from meshctl import view
from meshctl.tui.confirm import Modal, told
from meshctl.tui.fields import dropped
from meshctl.tui.layout import clean

if TYPE_CHECKING:
    from textual.app import ComposeResult

LISTED: Final = 1000
"""Names that are listed of one folder."""


class FilePicker(Modal):
    """Ends with a path as text, or None. ``begin`` is what stands in the field; with ``suffixes`` folders
    and files of these endings alone are listed.
    """

    DEFAULT_CSS: ClassVar[str] = """
    FilePicker OptionList { border: none; background: $panel; height: 14; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor(1)", show=False),
        Binding("k", "cursor(-1)", show=False),
        Binding("backspace,left,h", "up", show=False),
        Binding("q", "leave", show=False),
    ]

    def __init__(self, begin: str = "", *, suffixes: Sequence[str] = ()) -> None:
        super().__init__()
        self.suffixes = tuple(suffixes)
        self.folder = _folder(begin)
        self.entries: list[Path] = []

    def compose(self) -> ComposeResult:
        """The folder, what is in it, and the keys."""
        with Vertical(classes="modal--box"):
            yield told("", classes="modal--title")
            yield OptionList()
            yield told(self.say("enter choose   backspace up   esc cancel"), classes="modal--muted")

    def on_mount(self) -> None:
        """List the folder."""
        super().on_mount()
        self._show(None)

    def action_cursor(self, by: int) -> None:
        """Up or down as in vi."""
        options = self.query_one(OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_up(self) -> None:
        """To the folder above."""
        before, self.folder = self.folder, self.folder.parent
        self._show(before)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Into a folder, or done."""
        event.stop()
        path = self.entries[event.option_index]
        if path.is_dir():
            self.folder = path
            self._show(None)
        else:
            self.dismiss(str(path))

    def _show(self, chosen: Path | None) -> None:
        try:
            self.entries = listed(self.folder, self.suffixes)
            problem = ""
        except OSError as error:
            self.entries = []
            problem = f"  {(error.strerror or str(error)).lower()}"
        self.query_one(".modal--title").update(Content(clean(f"{self.folder}{problem}")))  # type: ignore[attr-defined]
        options = self.query_one(OptionList)
        options.clear_options()
        told = self.room.catalogue.shown
        options.add_options(Option(_line(path, told)) for path in self.entries)
        if self.entries:
            options.highlighted = self.entries.index(chosen) if chosen in self.entries else 0
        options.focus()


def listed(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Folders first, then files, by name; nothing hidden. OSError where it cannot be read."""
    folders: list[Path] = []
    files: list[Path] = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            folders.append(path)
        elif path.is_file() and (not suffixes or path.name.casefold().endswith(tuple(suffixes))):
            files.append(path)
    order = sorted(folders, key=lambda one: one.name.casefold())
    return [*order, *sorted(files, key=lambda one: one.name.casefold())][:LISTED]


def _folder(begin: str) -> Path:
    try:
        path = Path(dropped(begin)).expanduser() if begin.strip() else Path.cwd()
        while not path.is_dir() and path != path.parent:
            path = path.parent
        return path.absolute()
    except (OSError, RuntimeError):
        return Path("/")


def _line(path: Path, told: Callable[[str], str]) -> Content:
    if path.is_dir():
        return Content.assemble((f"{clean(path.name)}/", "bold"))
    try:
        size = told(view.size(path.stat().st_size))
    except OSError:
        size = "-"
    return Content.assemble(clean(path.name), (f"   {size}", "$text-muted"))
