"""A form on the screen: typed fields, faults said at the field, and the command that would do the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Offset, Region
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from meshctl.tui import known
from meshctl.tui.choice import Choice
from meshctl.tui.confirm import Modal, told
from meshctl.tui.declare import Call
from meshctl.tui.fields import Field, FieldError, Form, Kind
from meshctl.tui.known import Completion, Name
from meshctl.tui.picking import FilePicker, NamePicker

if TYPE_CHECKING:
    from textual.app import ComposeResult

Given = Mapping[str, Any]
TRUTH = ("true", "false")
NUMERIC = frozenset({Kind.INTEGER, Kind.NUMBER, Kind.DURATION})
BESIDE = 13
"""Lines around the fields: frame, title, what the form says first, the request with its command, the keys."""
BOX_SHARE = 0.9
"""How much of the screen's height the box takes at most, as its style says."""
FRAME = 2


NAMED: Final = 3
"""Names that stand at a field; the others are in its list."""
FEW: Final = 6
"""Values from which on a choice can be made from a list too."""
LABEL = 2
"""Lines that the name of a field and what is said of it take at most."""


class Lines(VerticalScroll, inherit_bindings=False):
    """The fields below each other. Arrows go from one to the next; what scrolls follows, label and all."""

    def scroll_to_region(self, region: Region, **options: Any) -> Offset:
        """Show a field together with the lines above it, which say what it is called."""
        above = min(LABEL, region.y)
        whole = Region(region.x, region.y - above, region.width, region.height + above)
        return super().scroll_to_region(whole, **options)


class FormScreen(Modal):
    """Asks for the values of a form: a mapping by field name, None when it was left.

    ``preview`` makes the request from the values, to be shown while they are typed. ``problem`` is what the
    gate had against the last attempt, ``given`` what was typed then.
    """

    DEFAULT_CSS: ClassVar[str] = """
    FormScreen VerticalScroll { max-height: 18; }
    FormScreen .form--label { height: auto; max-height: 2; color: $text-muted; }
    FormScreen .form--fault { height: auto; color: $text-error; }
    FormScreen .form--fault.-none { display: none; }
    FormScreen TextArea { height: 5; border: none; background: $surface; }
    FormScreen TextArea:focus { border: none; background: $primary 35%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "submit", show=False, priority=True),
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
        Binding("enter", "forward", show=False),
        Binding("ctrl+f", "pick", show=False, priority=True),
    ]

    def __init__(
        self,
        form: Form,
        *,
        title: str = "",
        given: Mapping[str, str] | None = None,
        problem: str = "",
        preview: Callable[[Given], Call] | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.heading = title or form.title
        self.given = given or {}
        self.problem = problem
        self.preview = preview
        self.widgets: dict[str, Widget] = {}
        self.faults: dict[str, Static] = {}
        self.before: dict[str, str] = {}
        self.labels: dict[str, Static] = {}
        self.offered: dict[str, Sequence[Name]] = {}

    def compose(self) -> ComposeResult:
        """The fields, what the gate said, and the request as it stands."""
        with Vertical(classes="modal--box"):
            yield told(self.say(self.heading), classes="modal--title")
            if self.form.intro:
                yield told(self.say(self.form.intro), classes="modal--muted")
            with Lines(can_focus=False):
                for field in self.form.fields:
                    yield from self._line(field)
            yield Static(Content(self.problem), id="problem", classes="modal--bad")
            yield Static(id="request", classes="modal--muted")
            yield Static(id="command", classes="modal--code")
            yield told(self.say("enter next   ctrl+s send   esc cancel"), classes="modal--muted")

    def _line(self, field: Field) -> ComposeResult:
        if field.kind is Kind.CHOICE and len(field.choices) >= FEW:
            called = self.room.catalogue.choices(field.choices)
            self.offered[field.name] = tuple(Name(one, called.get(one, "")) for one in field.choices)
        label = self.labels[field.name] = told(self._label(field), classes="form--label")
        yield label
        widget = self.widgets[field.name] = self._widget(field)
        yield widget
        fault = self.faults[field.name] = told("", classes="form--fault -none")
        yield fault

    def _label(self, field: Field) -> str:
        mark = " *" if field.required else ""
        note = f"  {self.say(field.help)}" if field.help else ""
        if field.kind is Kind.FILE or (field.kind is Kind.CHOICE and field.name in self.offered):
            note += f"  ({self.say('ctrl+f chooses')})"
        elif names := self.offered.get(field.name):
            first = ", ".join(one.name for one in names[:NAMED])
            note += "  ({})".format(self.say("ctrl+f: {names}", names=first + ", ..." * bool(names[NAMED:])))
        elif field.name in self.offered:
            note += f"  ({self.say('there is none yet')})"
        return f"{self.say(field.label)}{mark}{note}"

    async def _learn(self) -> None:
        """Say at each field what the gate has for it, and complete what is typed there."""
        for kind in dict.fromkeys(field.known for field in self.form.fields if field.known is not None):
            found = await known.names(self.room, kind)
            for field in self.form.fields:
                if field.known is kind and found is not None:
                    self._offer(field, found)

    def _offer(self, field: Field, found: Sequence[Name]) -> None:
        self.offered[field.name] = found
        self.labels[field.name].update(Content(self._label(field)))
        box = self.widgets[field.name]
        if isinstance(box, Input) and isinstance(box.suggester, Completion):
            box.suggester.names = tuple(one.name for one in found)

    def _widget(self, field: Field) -> Widget:
        text = self.given.get(field.name, self._written(field))
        match field.kind:
            case Kind.CHOICE:
                return Choice(field.choices, text, self.room.catalogue.choices(field.choices))
            case Kind.BOOL:
                return Choice(TRUTH, text or TRUTH[1], self.room.catalogue.choices(TRUTH))
            case Kind.LONG:
                return TextArea(text)
            case Kind.SECRET:
                return Input(text, password=True)
            case _:
                completion = Completion(several=field.kind is Kind.LIST) if field.known else None
                return Input(text, select_on_focus=False, suggester=completion)

    def _written(self, field: Field) -> str:
        text = field.shown(field.default)
        return text.replace(".", self.room.catalogue.figures.decimal) if field.kind is Kind.NUMBER else text

    def _parsed(self, field: Field) -> Any:
        text = _text(self.widgets[field.name])
        if field.kind in NUMERIC:
            text = self.room.catalogue.figures.typed(text)
        return field.parse(text)

    def on_mount(self) -> None:
        """Begin at what the gate complains of, else at the first field, past what is filled in for one
        that has to be: nobody types a password behind a name that stands there.
        """
        super().on_mount()
        for field in self.form.fields:
            if re.search(rf"(?<![\w.]){re.escape(field.name)} ?:", self.problem):
                self.widgets[field.name].focus()
                break
        else:
            if self.form.fields:
                self.widgets[self._first().name].focus()
        self.before = self.typed()
        self._show_request()
        if any(field.known for field in self.form.fields):
            self.run_worker(self._learn(), group="learn")

    def _first(self) -> Field:
        """Where to begin."""
        fields = self.form.fields
        empty = next((one for one in fields if not _text(self.widgets[one.name])), None)
        return empty if empty is not None and empty.required else fields[0]

    def on_resize(self) -> None:
        """The fields scroll where there is no room, so that the request and the keys are always seen."""
        self.query_one(VerticalScroll).styles.max_height = max(3, self.size.height - BESIDE)
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        """Give the fields what a long problem and a long command leave of the screen."""
        fields = self.query_one(VerticalScroll)
        box = fields.parent
        if not isinstance(box, Widget):
            return
        beside = sum(one.outer_size.height for one in box.children if one is not fields)
        room = int(self.size.height * BOX_SHARE) - FRAME - beside
        fields.styles.max_height = max(3, min(self.size.height - BESIDE, room))

    def typed(self) -> dict[str, str]:
        """What stands in the fields."""
        return {name: _text(widget) for name, widget in self.widgets.items()}

    def values(self) -> dict[str, Any] | None:
        """The values; None where a field has a fault, which is shown at it."""
        found: dict[str, Any] = {}
        first: Widget | None = None
        for field in self.form.fields:
            fault = self._fault(field)
            if fault and first is None:
                first = self.widgets[field.name]
            if not fault:
                found[field.name] = self._parsed(field)
        if first is not None:
            first.focus()
            return None
        return found

    def _fault(self, field: Field) -> str:
        try:
            self._parsed(field)
        except FieldError as error:
            text = self.room.catalogue.told(error)
        else:
            text = ""
        fault = self.faults[field.name]
        fault.update(Content(text))
        fault.set_class(not text, "-none")
        return text

    def _show_request(self) -> None:
        if self.preview is None:
            return
        values: dict[str, Any] = {}
        for field in self.form.fields:
            try:
                values[field.name] = self._parsed(field)
            except FieldError:
                values[field.name] = None
        call = self.preview(values)
        self.query_one("#request", Static).update(Content(f"{call.method} {call.path}"))
        self.query_one("#command", Static).update(Content(f"= {call.cli}" if call.cli else ""))
        self.call_after_refresh(self._fit)

    @on(Input.Changed)
    @on(Choice.Changed)
    @on(TextArea.Changed)
    def _changed(self) -> None:
        self._show_request()
        if self.problem and self.typed() != self.before:  # it was about what stood there
            self.problem = ""
            for box in self.query("#problem").results(Static):  # a form of its own may say it elsewhere
                box.update("")

    @on(Input.Blurred)
    def _left(self, event: Input.Blurred) -> None:
        for field in self.form.fields:
            if self.widgets[field.name] is event.input and (event.value or not field.required):
                self._fault(field)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_forward()

    def action_forward(self) -> None:
        """To the next field; from the last one, send."""
        names = [field.name for field in self.form.fields]
        here = next((n for n, name in enumerate(names) if self.widgets[name] is self.focused), len(names) - 1)
        if here + 1 < len(names):
            self.widgets[names[here + 1]].focus()
        else:
            self.action_submit()

    def action_pick(self) -> None:
        """Choose: a file of this machine, or of what the gate has."""
        here = next((one for one in self.form.fields if self.widgets[one.name] is self.focused), None)
        if here is None:
            return
        if here.kind is Kind.FILE:
            self._pick_file(here)
        elif names := self.offered.get(here.name):
            self._pick_name(here, names)
        elif here.known:
            self.room.tell(self.say("there is none yet"))

    def _pick_file(self, field: Field) -> None:
        box = self.widgets[field.name]
        assert isinstance(box, Input)

        def chosen(path: object) -> None:
            if isinstance(path, str):
                box.value = path

        self.app.push_screen(FilePicker(box.value, suffixes=field.choices), chosen)

    def _pick_name(self, field: Field, names: Sequence[Name]) -> None:
        box = self.widgets[field.name]
        assert isinstance(box, Input | Choice)
        several = field.kind is Kind.LIST

        def chosen(found: object) -> None:
            if isinstance(found, list):
                box.value = ", ".join(found)
                if isinstance(box, Input):
                    box.cursor_position = len(box.value)
                else:
                    self._changed()

        taken = [part.strip() for part in box.value.split(",") if part.strip()] if several else ()
        self.app.push_screen(NamePicker(self.say(field.label), names, several=several, taken=taken), chosen)

    def action_submit(self) -> None:
        """Hand the values over, if they fit."""
        values = self.values()
        if values is not None:
            self.dismiss(values)


def _text(widget: Widget) -> str:
    if isinstance(widget, Input | Choice):
        return widget.value
    return widget.text if isinstance(widget, TextArea) else ""
