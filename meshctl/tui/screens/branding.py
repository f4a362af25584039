"""Branding: name, logo in text, colours and support line, seen as they will look while they are typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual import events
from textual.containers import Vertical, VerticalScroll
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from meshctl.errors import GateError, UsageError
from meshctl.tui.acting import FIXABLE
from meshctl.tui.branded import TOKENS, specimen, wear
from meshctl.tui.confirm import told
from meshctl.tui.declare import Action, Call, Confirm, OwnPane, Record, Section
from meshctl.tui.fields import Field, FieldError, Form, Kind, Values, readable, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import clean
from meshctl.tui.pane import PaneView
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.room import Room

PATH: Final = "/branding"
KEPT: Final = ("name", "logo", "support", "colours", "white_label")
SETTLED_S: Final = 0.25
"""How long nothing is typed before it is shown how that would look."""
TALL: Final = 36
"""Lines of a terminal from which there is room for more of both."""
LOGO_MAX: Final = 16_384


def form_of(shown: Record) -> Form:
    """The fields with what they are now."""
    colours = tuple(
        Field(
            f"colours.{token}",
            token,
            default=shown["colours"].get(token),
            help="" if token in shown["colours"] else str(shown["theme"][token]),
        )
        for token in TOKENS
    )
    return Form(
        t("Branding"),
        (
            Field("name", t("Name"), default=shown["name"] or None, help=t("40 cells at most")),
            Field("support", t("Support"), default=shown["support"] or None, help=t("whom to ask; one line")),
            Field(
                "white_label",
                t("White label"),
                Kind.BOOL,
                default=bool(shown["white_label"]),
                help=t("without the product's name; takes a licence"),
            ),
            *colours,
            Field(
                "logo",
                t("Logo"),
                Kind.LONG,
                default="\n".join(shown["logo"]) or None,
                help=t("text of at most 60 by 12 cells"),
            ),
        ),
    )


def changes_of(shown: Record, values: Values) -> dict[str, Any]:
    """The fields that differ from what is shown."""
    colours = {
        token: str(values[f"colours.{token}"]).lower() for token in TOKENS if values.get(f"colours.{token}")
    }
    wanted = {
        "name": values.get("name") or "",
        "support": values.get("support") or "",
        "white_label": bool(values.get("white_label")),
        "logo": str(values.get("logo") or "").splitlines(),
        "colours": colours,
    }
    return {name: value for name, value in wanted.items() if value != shown[name]}


def command_of(changes: Mapping[str, Any]) -> str:
    """How a command would say the changes."""
    words = ["meshctl branding set"]
    words += [f"--{name} {shlex.quote(changes[name])}" for name in ("name", "support") if name in changes]
    if "white_label" in changes:
        words.append("--white-label" if changes["white_label"] else "--no-white-label")
    words += [f"--colour {token}={colour}" for token, colour in changes.get("colours", {}).items()]
    if "logo" in changes:
        words.append("--logo FILE")
    return " ".join(words)


def kept(shown: Record) -> dict[str, Any]:
    """What a change takes back to."""
    return {name: shown[name] for name in KEPT}


def _back(shown: Record, _values: Values, _reply: Any) -> Call:
    return Call("PATCH", PATH, kept(shown), cli=command_of(kept(shown)), label=t("Change the branding"))


def _logo_of(values: Values) -> list[str]:
    path = readable(str(values.get("file") or ""))
    if path.stat().st_size > LOGO_MAX:
        raise UsageError(f"{path} is too large for a logo.", hint="a text of at most 60 by 12 cells")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text.", hint="a logo is made of characters") from None


class BrandingForm(FormScreen):
    """The form, and below it what the gate says that it would look like."""

    DEFAULT_CSS: ClassVar[str] = """
    BrandingForm > .modal--box { width: 90; }
    BrandingForm VerticalScroll { max-height: 7; }
    BrandingForm #specimen { height: auto; max-height: 5; overflow: hidden; }
    BrandingForm #unlike { height: auto; max-height: 3; color: $text-error; }
    BrandingForm #command { max-height: 2; }
    BrandingForm.-tall VerticalScroll { max-height: 14; }
    BrandingForm.-tall #specimen { max-height: 15; }
    """

    def __init__(self, shown: Record, *, given: Mapping[str, str] | None = None, problem: str = "") -> None:
        form = form_of(shown)
        super().__init__(form, given=given, problem=problem, preview=self._draft)
        self.heading = form.title
        self.shown = shown
        self._settling: Timer | None = None
        self._seen: Mapping[str, Any] = shown

    def compose(self) -> ComposeResult:
        """The fields, the specimen, the request."""
        with Vertical(classes="modal--box"):
            yield told(self.say(self.heading), classes="modal--title")
            with VerticalScroll(can_focus=False):
                for field in self.form.fields:
                    yield from self._line(field)
            yield Static(id="specimen")
            yield Static(Text(clean(self.problem)), id="unlike")
            yield Static(id="request", classes="modal--muted")
            yield Static(id="command", classes="modal--code")
            yield told(self.say("enter next   ctrl+s send   esc cancel"), classes="modal--muted")

    def on_mount(self) -> None:
        """Show what is there now."""
        super().on_mount()
        self._draw()
        for lines in self.query(
            VerticalScroll
        ):  # where they come to lie is known later than who has the focus
            self.watch(lines, "virtual_size", self._laid_out, init=False)

    def _laid_out(self) -> None:
        self.call_after_refresh(self._show_focused)

    def on_resize(self) -> None:
        """Another width, another height."""
        self.set_class(self.app.size.height >= TALL, "-tall")
        self._draw()
        self.call_after_refresh(
            self.call_after_refresh, self._show_focused
        )  # once all lines have their places

    def _show_focused(self) -> None:
        if self.focused is not None:
            self._show_label(self.focused)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Its label is seen as well."""
        self.call_after_refresh(self._show_label, event.widget)

    def _show_label(self, widget: Widget) -> None:
        siblings = list(widget.parent.children) if widget.parent is not None else []
        if widget not in siblings[1:] or not isinstance(widget.parent, VerticalScroll):
            return
        label = siblings[siblings.index(widget) - 1]
        region = label.virtual_region.union(widget.virtual_region)
        widget.parent.scroll_to_region(region, animate=False)

    def _draft(self, values: Values) -> Call:
        return Call("PATCH", PATH, cli=command_of(changes_of(self.shown, values)))

    def _show_request(self) -> None:
        super()._show_request()
        if self._settling is not None:
            self._settling.stop()
        self._settling = self.set_timer(SETTLED_S, self._look)

    def _look(self) -> None:
        self.run_worker(self._looked(), group="preview", exclusive=True)

    async def _looked(self) -> None:
        values: dict[str, Any] = {}
        said = ""
        typed = self.typed()
        try:
            for field in self.form.fields:
                values[field.name] = field.parse(typed[field.name])
            changes = changes_of(self.shown, values)
            self._seen = await self.room.desk.send(Call("POST", "/branding/preview", changes))
        except FieldError as error:
            said = self.say(error.message, **error.values)
        except MeshError as error:
            said = self.room.catalogue.problem(error.message)
        if not (self.is_attached and self.display):  # it was left while the gate answered
            return
        same = self.problem if self.problem and typed == self.given else ""
        self.query_one("#unlike", Static).update(Text(clean(same or said)))
        self._draw()
        if self.focused is not None:
            self.call_after_refresh(self._show_label, self.focused)

    def _draw(self) -> None:
        box = self.query_one("#specimen", Static)
        width = max(20, (box.size.width or 72))
        box.update(specimen(self._seen, width, ascii_only=self.room.ascii_only, say=self.say))


class BrandingView(PaneView):
    """What is shown now, in its colours, and how far these are apart."""

    DEFAULT_CSS: ClassVar[str] = "BrandingView > VerticalScroll { height: 1fr; padding: 0 1; }"

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.shown: Mapping[str, Any] | None = None
        self.contrasts: Sequence[Mapping[str, Any]] = ()

    def compose(self) -> ComposeResult:
        """One picture, which may be longer than the screen."""
        with VerticalScroll():
            yield Static(id="picture")

    def on_mount(self) -> None:
        """Others may change it too."""
        self.set_interval(30.0, self._on_time)

    def _on_time(self) -> None:
        if self.room.in_front(self):
            self.reload()

    def resume(self) -> None:
        """Scroll by keys."""
        super().resume()
        self.query_one(VerticalScroll).focus()

    async def load(self) -> None:
        """Ask for it, and for the contrasts."""
        self.shown = await self.room.desk.get(PATH)
        preview = await self.room.desk.send(Call("POST", "/branding/preview", {}))
        self.contrasts = preview["contrasts"]
        wear(self.room, self.shown or {})
        self._draw()
        self.room.refresh_bars()

    def on_resize(self) -> None:
        """Another width."""
        self._draw()

    def _draw(self) -> None:
        if self.shown is None or not self.is_mounted:
            return
        ascii_only, width = self.room.ascii_only, max(40, self.size.width - 4)
        picture = specimen(self.shown, width, ascii_only=ascii_only, say=self.say)
        picture.append("\n\n")
        picture.append_text(self._words(self.shown))
        self.query_one("#picture", Static).update(picture)

    def _words(self, shown: Mapping[str, Any]) -> Text:
        text = Text()
        white = self.say("no")
        if shown["white_label"]:
            in_force = bool(shown["white_label_in_force"])
            white = self.say("yes") if in_force else self.say("wanted, and no licence gives it")
        facts = (
            (self.say("Title"), shown["title"]),
            (self.say("White label"), white),
            (self.say("Changed by"), shown.get("changed_by") or "-"),
        )
        width = max(len(label) for label, _ in facts) + 2
        for label, value in facts:
            text.append(f"{label:<{width}}", "bold")
            text.append(f"{clean(str(value))}\n")
        pairs: dict[str, list[str]] = {}
        for pair in self.contrasts:
            pairs.setdefault(pair["token"], []).append(f"{pair['ratio']}:1 {self.say('on')} {pair['on']}")
        text.append("\n")
        for token in TOKENS:
            colour = str(shown["theme"][token])
            own = self.say("set") if token in shown["colours"] else ""
            text.append("   ", f"on {colour}")
            text.append(f" {token:<11} {colour}  {own:<5} {', '.join(pairs.get(token, []))}\n")
        if not shown["name"] and not shown["colours"] and not shown["logo"]:
            text.append("\n" + self.say("This is the product's own. Press e to give the pool a face."))
        return text

    def chosen(self) -> Sequence[Record]:
        """What is shown."""
        return (self.shown,) if self.shown is not None else ()

    def extract(self) -> tuple[str, str]:
        """The logo, and the words."""
        shown = self.shown or {}
        return "branding", "\n".join([*(shown.get("logo") or ()), str(shown.get("title", ""))]) + "\n"


def _edit(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(_edited(room, records[0]), group="act")


async def _edited(room: Room, shown: Record) -> None:
    given: dict[str, str] = {}
    problem = ""
    while True:
        screen = BrandingForm(shown, given=given, problem=problem)
        values = await room.push_screen_wait(screen)
        if not isinstance(values, dict):
            return
        given = screen.typed()
        changes = changes_of(shown, values)
        if not changes:
            room.warn(room.say("Nothing differs."))
            return
        call = Call("PATCH", PATH, changes, version=str(shown["version"]))
        try:
            await room.desk.send(call)
        except MeshError as error:
            if isinstance(error, GateError) and error.status in FIXABLE:
                problem = room.catalogue.told(error)
                continue
            room.fail(error)
        else:
            room.undo.done(_back(shown, {}, None))
            room.tell(room.say("The branding is changed.") + "  " + room.say("(u takes it back)"))
        if room.pane is not None:
            room.pane.reload()
        return


EDIT: Final = Action(
    "branding.set",
    "e",
    t("Change"),
    "PATCH",
    PATH,
    "meshctl branding set",
    opens=_edit,
    undo=_back,
    name="title",
)
LOGO: Final = Action(
    "branding.logo",
    "f",
    t("Logo from a file"),
    "PATCH",
    PATH,
    "meshctl branding set",
    form=Form(
        t("Logo from a file"),
        (
            Field(
                "file",
                t("File"),
                Kind.FILE,
                required=True,
                option="--logo",
                choices=(".txt", ".asc"),
                help=t("text of at most 60 by 12 cells"),
            ),
        ),
    ),
    body=lambda _shown, values: {"logo": _logo_of(values)},
    ahead=lambda _shown, values: Call("POST", "/branding/preview", {"logo": _logo_of(values)}),
    planned=lambda reply: "\n".join(reply["logo"]),
    confirm=Confirm.ASK,
    question=t("Show this logo?"),
    undo=_back,
    name="title",
    done=t("The branding is changed."),
)
RESET: Final = Action(
    "branding.reset",
    "delete",
    t("Reset"),
    "DELETE",
    PATH,
    "meshctl branding reset",
    confirm=Confirm.ASK,
    question=t("Forget the pool's name, logo and colours?"),
    against=lambda shown: "" if any(kept(shown).values()) else t("It is the product's own already."),
    undo=_back,
    name="title",
    done=t("The product's own is shown again."),
)

SECTION: Final = Section(
    "branding",
    "Branding",
    "B",
    (
        OwnPane(
            "branding",
            t("Branding"),
            BrandingView,
            (EDIT, LOGO, RESET),
            about=("branding", "licence"),
            cli="meshctl branding show",
        ),
    ),
    about=t("What the pool shows of itself: name, logo in text, colours as a theme, whom to ask."),
    page="licence.md",
)
