"""Cluster config: the whole configuration as one document; edited, compared, confirmed, kept, reverted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.widgets import Static, TextArea

from meshctl import view
from meshctl.configuration_view import HISTORY, lines, parsed_document
from meshctl.errors import UsageError
from meshctl.render import Output, machine_text
from meshctl.tui.confirm import ConfirmScreen
from meshctl.tui.data import in_thread
from meshctl.tui.declare import (
    Action,
    Call,
    Confirm,
    OwnPane,
    Record,
    Role,
    Section,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.describe import DocumentView
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import Form as Shape
from meshctl.tui.layout import clean, described
from meshctl.tui.pager import Line, Pager
from meshctl.tui.pane import PaneView
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.room import Room

APPLY_PATH: Final = "/configuration/apply"
REVERT_PATH: Final = "/configuration/revisions/{revision}/revert"
KINDS: Final = ("setting", "alias", "price", "budget", "route", "provider", "app", "peer")
"""Kinds of things whose changes concern the document."""

REASON: Final = Field("reason", t("Reason"), option="--reason", help=t("for the history; it may stay empty"))


def change_lines(changes: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Changes in the manner of a diff, added and removed in their colours."""
    roles = {"+": "add", "-": "remove"}
    return [((clean(text), roles.get(text[:1], "key")),) for text in lines(changes)]


# --- what a document would do -------------------------------------------------------------------------------


def _nothing_to_do(seen: Record) -> str:
    if seen.get("refused"):
        return t("It asks for what no document can do.")
    return "" if seen.get("changes") else t("Nothing differs.")


def _applied(seen: Record, values: Values) -> dict[str, Any]:
    """What was looked at is what is applied: a change in between is refused, and looked at again."""
    document = seen["document"]
    base = document.get("etag") or seen["etag"]
    return {
        "document": {**document, "etag": base},
        "reason": values.get("reason") or "",
        "force": bool(values.get("force")),
    }


def _back(_seen: Record, _values: Values, reply: Any) -> Call | None:
    number = reply.get("revision")
    if number is None or number < 2:
        return None
    path = filled(REVERT_PATH, {"revision": number - 1})
    return Call("POST", path, {}, cli=f"meshctl config revert {number - 1}", label=t("Apply a document"))


APPLY: Final = Action(
    "configuration.apply",
    "a",
    t("Apply"),
    "POST",
    APPLY_PATH,
    "meshctl config apply {source}",
    form=Form(
        t("Apply a document"),
        (
            REASON,
            Field(
                "force",
                t("Although it changed"),
                Kind.BOOL,
                default=False,
                option="--force",
                help=t("since the document was exported"),
            ),
        ),
        t("All of it, or nothing."),
    ),
    body=_applied,
    against=_nothing_to_do,
    confirm=Confirm.ASK,
    question=t("Make {name} changes?"),
    name="count",
    undo=_back,
    done=t("The document is applied."),
)
GO_BACK: Final = Action(
    "configuration.revert",
    "a",
    t("Go back"),
    "POST",
    REVERT_PATH,
    "meshctl config revert {revision}",
    form=Form(
        t("Go back to a revision"), (REASON,), t("It becomes a new revision; nothing of the history goes.")
    ),
    body=lambda _seen, values: {"reason": values.get("reason") or ""},
    against=lambda seen: "" if seen.get("changes") else t("Nothing differs."),
    confirm=Confirm.ASK,
    question=t("Go back to revision {name}?"),
    name="revision",
    undo=_back,
    done=t("It is as revision {name} was."),
)


class DifferenceView(PaneView):
    """What a document would change, and the action that does it.

    ``source`` is what a command would call the document; ``revision`` is set where it is one of the
    history's. ``clean`` hears that nothing differs (any more).
    """

    DEFAULT_CSS: ClassVar[str] = """
    DifferenceView > .difference--line { height: 1; padding: 0 1; color: $text-muted; background: $surface; }
    """
    narrows = True

    def __init__(
        self,
        document: Mapping[str, Any],
        *,
        source: str,
        revision: int | None = None,
        same: Callable[[], None] = lambda: None,
    ) -> None:
        action = APPLY if revision is None else GO_BACK
        super().__init__(
            OwnPane("difference", t("Difference"), lambda _pane: self, (action,), cli="meshctl config diff"),
            crumb=source if revision is None else f"{revision}",
        )
        self.document = document
        self.source = source
        self.revision = revision
        self.same = same
        self.seen: Mapping[str, Any] | None = None

    def compose(self) -> ComposeResult:
        """The difference, and how much it is."""
        yield Pager()
        yield Static(classes="difference--line")

    async def load(self) -> None:
        """Ask what would change."""
        self.seen = await self.room.desk.send(Call("POST", "/configuration/diff", dict(self.document)))
        if not self.seen["changes"] and not self.seen["refused"]:
            self.same()
        self._show()
        self.room.refresh_bars()

    def _show(self) -> None:
        if self.seen is None:
            return
        seen = self.seen
        shown: list[Line] = [((clean(f"! {change['problem']}"), "bad"),) for change in seen["refused"]]
        if seen["kept"]:
            kept = self.say("Kept, though the document lacks them: {names}", names=", ".join(seen["kept"]))
            shown.append(((clean(kept), "warn"),))
        if seen.get("owner"):
            shown.append(((self.say("Some of it only an owner may change."), "warn"),))
        if shown:
            shown.append(())
        shown += change_lines(seen["changes"])
        if not seen["changes"] and not seen["refused"]:
            shown.append(((self.say("Nothing differs."), "good"),))
        self.query_one(Pager).fill(shown)
        line = self.say("{count} changes", count=len(seen["changes"]))
        self.query_one(".difference--line", Static).update(line)

    def chosen(self) -> Sequence[Record]:
        """The document with what it would do."""
        if self.seen is None:
            return ()
        return (
            {
                **self.seen,
                "count": len(self.seen["changes"]),
                "document": self.document,
                "source": self.source,
                "revision": self.revision,
            },
        )

    def narrow(self, text: str) -> None:
        """Search in it."""
        self.query_one(Pager).seek(text)

    def extract(self) -> tuple[str, str]:
        """The difference as it is shown."""
        return "difference", self.query_one(Pager).text() + "\n"

    def became_stale(self) -> None:
        """Say why."""
        self.query_one(Pager).fill((((f"! {clean(self.problem)}", "bad"),),))


# --- the document and its editor ----------------------------------------------------------------------------


class WholeView(DocumentView):
    """The document as it is now, as YAML."""

    form = Shape.YAML

    async def load(self) -> None:
        """Ask for it."""
        self.document = await self.room.desk.get("/configuration")
        self.show()
        self.room.refresh_bars()

    def tables_of(self, document: Any) -> Sequence[view.Table]:
        """How much there is of each section."""
        rows = [(name, str(len(entries))) for name, entries in document.items() if isinstance(entries, dict)]
        head = view.card({"pool": document.get("pool"), "etag": document.get("etag")})
        return [head, view.Table(("SECTION", "ENTRIES"), tuple(rows), right=frozenset({1}))]

    def chosen(self) -> Sequence[Record]:
        """The document."""
        return (self.document,) if isinstance(self.document, Mapping) else ()

    def extract(self) -> tuple[str, str]:
        """The document."""
        return "configuration", machine_text(self.document, Output.YAML) + "\n"


class EditorView(PaneView):
    """The document as text. ctrl+s shows what would change; nothing is changed in here."""

    DEFAULT_CSS: ClassVar[str] = """
    EditorView > TextArea { height: 1fr; border: none; padding: 0; background: $background; }
    EditorView > TextArea:focus { border: none; }
    EditorView > .editor--line { height: auto; max-height: 3; padding: 0 1; background: $surface; }
    EditorView > .editor--line.-bad { color: $text-error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "compare", show=False),
        Binding("escape", "leave_editor", show=False),
    ]

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(
            OwnPane("editor", t("Edit"), lambda _pane: self, cli="meshctl config apply"), crumb="edit"
        )
        self._kept = machine_text(document, Output.YAML)

    def compose(self) -> ComposeResult:
        """The text, and what to do with it."""
        yield TextArea(self._kept, show_line_numbers=True, soft_wrap=False)
        yield Static(classes="editor--line")

    @property
    def area(self) -> TextArea:
        """The text."""
        return self.query_one(TextArea)

    def resume(self) -> None:
        """Write on."""
        self._note("")
        self.call_after_refresh(self.area.focus)

    def reload(self) -> None:
        """What was written stays."""

    def _note(self, problem: str) -> None:
        line = self.query_one(".editor--line", Static)
        line.set_class(bool(problem), "-bad")
        line.update(clean(problem) if problem else self.say("ctrl+s shows what would change   esc leaves"))

    def extract(self) -> tuple[str, str]:
        """The text."""
        return "configuration", self.area.text

    def action_compare(self) -> None:
        """Show what would change."""
        self.run_worker(self._compared(), group="compare", exclusive=True)

    async def _compared(self) -> None:
        text = self.area.text
        try:
            document = await in_thread(lambda: parsed_document(text, self.say("What is written here")))
            await self.room.desk.send(Call("POST", "/configuration/diff", document))
        except MeshError as error:
            self._note(self.room.catalogue.told(error, "  "))
            return

        def same() -> None:
            self._kept = text

        self.room.descend(DifferenceView(document, source="FILE", same=same))

    def action_leave_editor(self) -> None:
        """Back to the document, after asking where something was written."""
        if self.area.text == self._kept:
            self.room.run_worker(self._left(), group="move")
            return
        question = self.say("Leave, and forget what was written?")
        self.room.push_screen(ConfirmScreen(question, ()), self._answered)

    def _answered(self, answer: object) -> None:
        if answer:
            self._kept = self.area.text
            self.room.run_worker(self._left(), group="move")

    async def _left(self) -> None:
        self.screen.set_focus(None)
        await self.room.action_back()


def _edit(room: Room, records: Sequence[Record]) -> None:
    room.descend(EditorView(records[0]))


FILE: Final = Form(
    t("Compare a document of a file"),
    (
        Field(
            "file",
            t("File"),
            Kind.FILE,
            required=True,
            option="",
            help=t("YAML or JSON"),
            choices=(".yaml", ".yml", ".json"),
        ),
    ),
    t("What it would change is shown; nothing is changed by that."),
)


def _compare_file(room: Room, _records: Any) -> None:
    room.run_worker(_compared_file(room), group="act")


async def _compared_file(room: Room) -> None:
    given: dict[str, str] = {}
    problem = ""
    while True:
        screen = FormScreen(
            FILE,
            given=given,
            problem=problem,
            preview=lambda values: Call(
                "POST", "/configuration/diff", cli=f"meshctl config diff {values.get('file') or ''}".rstrip()
            ),
        )
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return
        given = screen.typed()
        path = str(answer["file"])
        try:
            document = await in_thread(lambda: _document_of(path))  # noqa: B023 - awaited at once
            await room.desk.send(Call("POST", "/configuration/diff", document))
        except MeshError as error:
            problem = room.catalogue.told(error)
        else:
            room.descend(DifferenceView(document, source=path))
            return


def _document_of(path: str) -> dict[str, Any]:
    try:
        text = readable(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text.") from None
    return parsed_document(text, path)


EDIT: Final = Action(
    "configuration.edit",
    "e",
    t("Edit"),
    "POST",
    APPLY_PATH,
    "meshctl config apply",
    opens=_edit,
    bulk=False,
)
COMPARE: Final = Action(
    "configuration.diff",
    "f",
    t("Compare a file"),
    "POST",
    "/configuration/diff",
    "meshctl config diff",
    Role.VIEWER,
    opens=_compare_file,
    row=False,
)


# --- revisions ----------------------------------------------------------------------------------------------


def _to_revision(room: Room, records: Sequence[Record]) -> None:
    room.run_worker(_compared_revision(room, int(records[0]["revision"])), group="act")


async def _compared_revision(room: Room, number: int) -> None:
    try:
        row = await room.desk.get(f"/configuration/revisions/{number}")
    except MeshError as error:
        room.fail(error)
        return
    document = {name: value for name, value in row["document"].items() if name != "etag"}
    room.descend(DifferenceView(document, source=str(number), revision=number))


REVERT: Final = Action(
    "configuration.revert",
    "v",
    t("Go back to it"),
    "POST",
    REVERT_PATH,
    "meshctl config revert {revision}",
    opens=_to_revision,
    bulk=False,
    name="revision",
)


class RevisionView(DocumentView):
    """One revision: who, when, why, and what it changed; the whole document as YAML or JSON."""

    def __init__(self, pane: OwnPane, row: Record) -> None:
        super().__init__(pane, crumb=str(row["revision"]))
        self.row = row
        self.document = row

    async def load(self) -> None:
        """Ask for all of it."""
        found = await self.room.desk.get(f"/configuration/revisions/{self.row['revision']}")
        self.row, self.document = found, found["document"]
        self.show()

    def show(self) -> None:
        """What it changed; the other forms are the document's."""
        super().show()
        if self.form is Shape.PERSON and self.children:
            head = view.card(self.row, [one for one in HISTORY if self.row.get(one.key) is not None])
            changes = change_lines(self.row.get("changes") or ())
            self.spread([*described([head], self.room.catalogue), (), *changes])

    def chosen(self) -> Sequence[Record]:
        """The revision."""
        return (self.row,)


def revision_of(row: Record) -> OwnPane:
    """The pane of a revision."""
    return OwnPane(
        "revision",
        t("Revision"),
        lambda pane: RevisionView(pane, row),
        (REVERT,),
        cli=f"meshctl config show {row['revision']}",
    )


SECTION: Final = Section(
    "configuration",
    "Cluster config",
    "E",
    (
        OwnPane(
            "document", t("Document"), WholeView, (EDIT, COMPARE), about=KINDS, cli="meshctl config export"
        ),
        TablePane(
            "revisions",
            t("Revisions"),
            "/configuration/revisions",
            columns_of(HISTORY, reverts={"least": 90}, reason={"most": 60}),
            (REVERT,),
            key="revision",
            name="revision",
            about=KINDS,
            drill=revision_of,
            cli="meshctl config history",
            empty=t("No document was applied yet. Press 1, then e to edit the configuration."),
        ),
    ),
    about=t(
        "Everything that can be configured as one document: edited, compared, applied at once, reverted."
    ),
    page="configuration.md",
)
