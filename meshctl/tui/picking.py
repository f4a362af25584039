"""Something chosen from a list: a file of this machine, or names of what the gate has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from meshctl import view
from meshctl.tui.confirm import Modal, told
from meshctl.tui.fields import dropped
from meshctl.tui.known import Name
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


class NamePicker(Modal):
    """Ends with the names that were chosen, or None; ``several``: any number, those ``taken`` are marked."""

    DEFAULT_CSS: ClassVar[str] = """
    NamePicker OptionList { border: none; background: $panel; height: auto; max-height: 12; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "cursor(1)", show=False, priority=True),
        Binding("up", "cursor(-1)", show=False, priority=True),
        Binding("pagedown", "cursor(10)", show=False, priority=True),
        Binding("pageup", "cursor(-10)", show=False, priority=True),
        Binding("enter", "take", show=False, priority=True),
    ]

    def __init__(
        self, title: str, names: Sequence[Name], *, several: bool = False, taken: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.heading = title
        self.names = (*names, *(Name(one) for one in taken if one not in {name.name for name in names}))
        self.several = several
        self.marked = list(taken) if several else []
        self.seen: list[Name] = []
        self._touched = False

    def compose(self) -> ComposeResult:
        """What is typed to find a name, the names, and the keys."""
        keys = (
            self.say("type to find   space mark   enter take   esc cancel")
            if self.several
            else self.say("type to find   enter choose   esc cancel")
        )
        with Vertical(classes="modal--box"):
            yield told(self.heading, classes="modal--title")
            yield Input()
            yield OptionList()
            yield told(keys, classes="modal--muted")

    def on_mount(self) -> None:
        """All of them."""
        super().on_mount()
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._show("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only those that have what is typed."""
        event.stop()
        if self.several and " " in event.value:  # a line that is written takes its letters before any key
            event.input.value = event.value.replace(" ", "")
            self.action_mark()
        else:
            self._show(event.value)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click does as space or enter does."""
        event.stop()
        if self.several:
            self.action_mark()
        else:
            self.action_take()

    def action_cursor(self, by: int) -> None:
        """Down or up by so many."""
        options = self.query_one(OptionList)
        if self.seen:
            options.highlighted = max(0, min(len(self.seen) - 1, (options.highlighted or 0) + by))

    def action_mark(self) -> None:
        """Take this one too, or leave it again."""
        if not self.several or (name := self._front()) is None:
            return
        self._touched = True
        if name in self.marked:
            self.marked.remove(name)
        else:
            self.marked.append(name)
        self._show(self.query_one(Input).value, stay=name)

    def action_take(self) -> None:
        """Done: what is marked, else the one under the cursor."""
        name = self._front()
        if self.several:
            self.dismiss(self.marked or ([] if self._touched or name is None else [name]))
        elif name is not None:
            self.dismiss([name])

    def _front(self) -> str | None:
        at = self.query_one(OptionList).highlighted
        return self.seen[at].name if at is not None and at < len(self.seen) else None

    def _show(self, typed: str, *, stay: str = "") -> None:
        wanted = typed.strip().casefold()
        self.seen = [one for one in self.names if wanted in one.name.casefold()]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(self._row(one)) for one in self.seen)
        if self.seen:
            found = (number for number, one in enumerate(self.seen) if one.name == stay)
            options.highlighted = next(found, 0)

    def _row(self, one: Name) -> Content:
        mark = ("* " if one.name in self.marked else "  ") if self.several else ""
        note = self.room.catalogue.values.get(one.note, one.note)
        return Content.assemble(mark, one.name, (f"   {note}" if note else "", "$text-muted"))


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
