"""Distribution: logs and who has copies of them, and models on their way between pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from rich.cells import cell_len
from textual.app import ComposeResult

from meshctl import replication_view, view
from meshctl.tui import spark
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    OwnPane,
    Record,
    Result,
    Role,
    Section,
    Switch,
    TablePane,
    columns_of,
    state_of,
)
from meshctl.tui.fields import Field, Form, Kind, Known, Values, t
from meshctl.tui.layout import clean, warning
from meshctl.tui.pager import Line, Pager
from meshctl.tui.pane import PaneView
from meshctl.tui.screens.archives import EXPORT, IMPORT

CHECK_S: Final = 600.0
"""Longest that the check of a long log may take."""
ENTRIES_SHOWN: Final = 500


def _own(log: Record) -> str:
    return t("It is this pool's own log.") if log.get("own") else ""


def _not_quarantined(log: Record) -> str:
    return _own(log) or ("" if log.get("state") == "quarantined" else t("It is not quarantined."))


VERIFY: Final = Action(
    "log.verify",
    "v",
    t("Verify"),
    "POST",
    "/logs/verify",
    "meshctl pool verify {pool}",
    Role.VIEWER,
    body=lambda log, values: {"pool": log["pool"]},
    result=Result.DESCRIBE,
    bulk=False,
    name="pool",
    timeout_s=CHECK_S,
)

LOGS: Final = (
    VERIFY,
    Action(
        "log.verify.all",
        "a",
        t("Verify all"),
        "POST",
        "/logs/verify",
        "meshctl pool verify",
        Role.VIEWER,
        body=lambda log, values: {},
        result=Result.DESCRIBE,
        row=False,
        timeout_s=CHECK_S,
    ),
    EXPORT,
    IMPORT,
    Action(
        "log.repair",
        "p",
        t("Repair"),
        "POST",
        "/logs/{pool}/repair",
        "meshctl pool verify {pool} --repair",
        against=_own,
        confirm=Confirm.ASK,
        question=t("Make the tables anew from what {name} published?"),
        done=t("The tables of {name} are made anew."),
        name="pool",
        timeout_s=CHECK_S,
    ),
    Action(
        "log.release",
        "e",
        t("Release"),
        "POST",
        "/logs/{pool}/release",
        "meshctl pool verify {pool} --release",
        against=_not_quarantined,
        confirm=Confirm.NAME,
        question=t("Take entries of {name} again, although it once contradicted itself?"),
        done=t("Entries of {name} are taken again."),
        name="pool",
        timeout_s=CHECK_S,
    ),
)

ERASE: Final = Action(
    "log.erase",
    "delete",
    t("Erase"),
    "POST",
    "/logs/erase",
    "meshctl pool log --erase {seq}",
    Role.OWNER,
    form=Form(t("Erase what an entry says"), (Field("reason", t("Reason"), option="--reason"),)),
    body=lambda entry, values: {"places": [entry["seq"]], "reason": values.get("reason") or ""},
    against=lambda entry: "" if entry.get("readable") else t("It says nothing any more."),
    confirm=Confirm.NAME,
    question=t("Erase what entry {name} says, here and at every pool that has it? The entry itself stays."),
    done=t("What entry {name} said is erased."),
    name="seq",
)


def entries(log: Record) -> TablePane:
    """What one pool published; ours without its name, so that it can be erased from."""
    own = bool(log.get("own"))
    command = "meshctl pool log" if own else f"meshctl pool log {log['pool']}"
    return TablePane(
        "entries",
        t("Entries"),
        "/logs/entries",
        columns_of(
            replication_view.ENTRY_COLUMNS,
            epoch={"least": 120},
            record={"least": 110},
            hash={"least": 130},
            reason={"least": 90},
        ),
        (ERASE,) if own else (),
        key="seq",
        name="seq",
        query={"limit": ENTRIES_SHOWN, "pool": log["pool"]},
        switches=(Switch("o", t("only those that wait"), {"held": "true"}),),
        sort="-seq",
        every=5.0,
        cli=f"{command} -n {ENTRIES_SHOWN}",
        empty=t("Nothing was published yet."),
    )


def copies_back(model: Record, _values: Values, _reply: Any) -> Call:
    """As many copies as were wanted before."""
    name, before = f"{model['model']}@{str(model['sha256'])[:12]}", model.get("wanted") or 0
    return Call(
        "PUT",
        "/copies",
        {"model": name, "copies": before},
        cli=f"meshctl model replicate {name} --copies {before}",
        label=t("Copies"),
    )


def _copies(model: Record) -> Form:
    return Form(
        t("Copies at other pools"),
        (
            Field(
                "copies",
                t("Copies"),
                Kind.INTEGER,
                default=model.get("wanted"),
                required=True,
                minimum=0,
                maximum=50,
                option="--copies",
            ),
        ),
        t("Pools that are trusted and have room take them; 0 wants none, and removes none."),
    )


WANT: Final = Action(
    "model.copies",
    "o",
    t("Copies"),
    "PUT",
    "/copies",
    "meshctl model replicate {model}@{sha256}",
    form=_copies,
    body=lambda model, values: {"model": model["sha256"], "copies": values["copies"]},
    undo=copies_back,
    done=t("The copies of {name} are ordered."),
    name="model",
)
PLACE: Final = Action(
    "model.replicate",
    "a",
    t("Copy a model"),
    "PUT",
    "/copies",
    "meshctl model replicate",
    form=Form(
        t("Copy a model to other pools"),
        (
            Field(
                "model",
                t("Model"),
                required=True,
                option="",
                help=t("NAME or NAME@SHA256"),
                known=Known.MODELS,
            ),
            Field(
                "copies",
                t("Copies"),
                Kind.INTEGER,
                default=1,
                required=True,
                minimum=0,
                maximum=50,
                option="--copies",
            ),
        ),
        t("Pools that are trusted and have room take them; 0 wants none, and removes none."),
    ),
    row=False,
    done=t("The copies are ordered."),
)


class RedundancyView(PaneView):
    """The verdict as a RAID gives it, each pool's copy as a bar, and what the log is made of."""

    DEFAULT_CSS: ClassVar[str] = "RedundancyView > Pager { padding: 0 1; }"
    EVERY_S: ClassVar[float] = 2.0

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.reply: Mapping[str, Any] | None = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield Pager()

    def on_mount(self) -> None:
        """Look again while it is seen."""
        self.set_interval(self.EVERY_S, lambda: self.reload() if self.room.in_front(self) else None)

    async def load(self) -> None:
        """Ask who has what."""
        self.reply = await self.room.desk.get("/logs/redundancy")
        self._show()

    def on_resize(self) -> None:
        """Another width, another bar."""
        self._show()

    def _show(self) -> None:
        if self.reply is not None and self.is_mounted:
            width = max(40, self.size.width - 4)
            head = [*warning(self.problem, width), ()] if self.problem else []
            self.query_one(Pager).fill([*head, *self.lines(width)])

    def lines(self, width: int) -> list[Line]:
        """All of it."""
        reply = self.reply or {}
        state, head = str(reply.get("state", "-")), int(reply.get("head") or 0)
        copies = self.say(
            "{whole} whole, {partial} partial, {wanted} wanted",
            **{name: reply.get(name, 0) for name in ("whole", "partial", "wanted")},
        )
        lines: list[Line] = [
            (
                (self.say("Our log") + "  ", "title"),
                (self.room.catalogue.value(state.upper()), _role(state)),
                (f"   {copies}   {self.say('{count} entries', count=f'{head:,}')}", ""),
            ),
            (),
            ((self.say("Copies"), "title"),),
        ]
        items: Sequence[Mapping[str, Any]] = reply.get("items") or ()
        if not items:
            lines.append(((f"  {self.say('No pool is paired: nobody else has it.')}", "muted"),))
            lines.append(((f"  {self.say('Next: pair one in Federation (F).')}", "muted"),))
        label = max((cell_len(clean(str(one["pool"]))) for one in items), default=0)
        for one in items:
            lines += self._copy(one, head, min(label, 24), max(10, min(40, width - min(label, 24) - 44)))
        if streams := reply.get("streams"):
            lines += [(), ((self.say("What it is made of"), "title"),)]
            most = max(streams.values())
            for name, count in sorted(streams.items(), key=lambda pair: -pair[1]):
                bar = spark.bar(count / most, 20, ascii_only=self.room.ascii_only)
                lines.append(((f"  {clean(name):<16} ", ""), (bar, "busy"), (f" {count:>9,}", "")))
        return lines

    def _copy(self, one: Mapping[str, Any], head: int, label: int, room: int) -> list[Line]:
        seq, behind, up = int(one.get("seq") or 0), int(one.get("behind") or 0), one.get("link") == "up"
        role = "good" if not behind else "busy" if up else "warn"
        bar = spark.bar(seq / head if head else 1.0, room, ascii_only=self.room.ascii_only)
        heard = one.get("heard_s")
        said = self.say("never") if heard is None else self.say("{span} ago", span=view.span(heard))
        marks = ("+", "-") if self.room.ascii_only else ("●", "○")
        name = clean(str(one["pool"]))[:label].ljust(label)
        lag = self.say("{count} behind", count=f"{behind:,}") if behind else self.say("all of it")
        lines: list[Line] = [
            (
                (f"  {marks[not up]} ", "good" if up else "warn"),
                (f"{name} ", ""),
                (bar, role),
                (f" {lag:>12}", role),
                (f"  {said}  {one.get('how') or ''}", "muted"),
            )
        ]
        if unread := one.get("not_told"):
            text = self.say("may not read: {streams}", streams=clean(", ".join(unread)))
            lines.append(((f"    {text}", "warn"),))
        return lines

    def extract(self) -> tuple[str, str]:
        """As it is drawn."""
        return "redundancy", self.query_one(Pager).text() + "\n"

    def became_stale(self) -> None:
        """Say why it is not current."""
        if self.reply is None:
            self.query_one(Pager).fill(warning(self.problem, self.size.width - 4))
        self._show()

    def became_current(self) -> None:
        """Draw it anew."""
        self._show()


def _role(word: str) -> str:
    state = state_of(word)
    return str(state) if state is not None else ""


SECTION: Final = Section(
    "distribution",
    "Distribution",
    "D",
    (
        TablePane(
            "logs",
            t("Logs"),
            "/logs",
            columns_of(
                replication_view.LOG_COLUMNS,
                held={"least": 90},
                heard_at={"least": 100},
                hash={"least": 140},
                problem={"least": 70, "most": 60},
            ),
            LOGS,
            key="pool",
            name="pool",
            every=2.0,
            drill=entries,
            cli="meshctl pool log",
            empty=t("There is no log yet."),
        ),
        OwnPane("redundancy", t("Redundancy"), RedundancyView, cli="meshctl pool redundancy"),
        TablePane(
            "copies",
            t("Copies"),
            "/copies",
            columns_of(
                replication_view.MODEL_COLUMNS,
                state={"state": True},
                coming={"least": 100},
                declined={"least": 120},
                sha256={"least": 110},
            ),
            (WANT, PLACE),
            key="sha256",
            name="model",
            every=2.0,
            cli="meshctl pool redundancy",
            empty=t("No model has copies elsewhere. Press a to copy one."),
        ),
        TablePane(
            "blobs",
            t("Transfers"),
            "/copies",
            columns_of(
                replication_view.COMING_COLUMNS,
                gate={"least": 100},
                problem={"least": 80, "most": 60},
            ),
            (),
            key="sha256",
            name="model",
            every=1.0,
            items=lambda reply: reply.get("coming", ()),
            cli="meshctl pool redundancy",
            empty=t("No other pool wants a model of its own to be here."),
        ),
        TablePane(
            "room",
            t("Room"),
            "/copies",
            (Column("POOL", "pool"), Column("WOULD TAKE", "bytes", view.size, right=True)),
            (),
            key="pool",
            name="pool",
            every=5.0,
            items=lambda reply: reply.get("room", ()),
            cli="meshctl pool redundancy",
            empty=t("No pool has said how much it would take. Next: pair one in Federation (F)."),
        ),
        TablePane(
            "streams",
            t("Streams"),
            "/logs/streams",
            (
                Column("STREAM", "name"),
                Column("TRUST", "level", right=True),
                Column("WRITTEN BY", "written_by"),
                Column("VERSION", "version", right=True),
            ),
            sort="level",
            cli="meshctl pool log",
        ),
        TablePane(
            "stranded",
            t("Put aside"),
            "/logs/stranded",
            columns_of(replication_view.STRANDED_COLUMNS, hash={"least": 80}),
            (),
            key="hash",
            name="hash",
            every=10.0,
            cli="meshctl pool log --stranded",
            empty=t("Nothing was put aside."),
        ),
    ),
    about=t("What goes between pools: logs and who has copies of them, and models on their way."),
    page="federation.md",
)
