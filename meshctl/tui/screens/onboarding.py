"""Onboarding: the first steps of a pool, one after the other; broken off at any moment, it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on

from meshctl import view
from meshctl.errors import UsageError
from meshctl.tui.bars import shown_key
from meshctl.tui.declare import (
    Action,
    Call,
    Confirm,
    OwnPane,
    Record,
    Result,
    Role,
    Section,
    filled,
    state_of,
)
from meshctl.tui.fields import Field, Form, Kind, Values, t
from meshctl.tui.grid import Grid, Heading, Row
from meshctl.tui.layout import clean
from meshctl.tui.markdown import lay_out
from meshctl.tui.pager import Line, Pager
from meshctl.tui.pane import PaneView

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.tui.room import Room

STEP: Final = "/onboarding/{step}"
SLOW_S: Final = 300.0
"""How long a sample database, or the first look at a database or a model API, may take."""

ABOUT: Final[Mapping[str, str]] = {
    "machine": t(
        "The gate looks at its own machine: disk, memory, open files, clock, addresses, "
        "and who can read its keys."
    ),
    "admin": t(
        "Whoever owns the gate's files is its owner here. A named owner can log in from elsewhere, and the "
        "audit says who did what."
    ),
    "store": t("The gate keeps everything in PostgreSQL: its own, or one that [store] of qgate.toml names."),
    "database": t(
        "Apps reach it through localhost:11438 with pseudo-credentials; "
        "the real ones stay in the vault here. The sample is a shop that can be thrown away."
    ),
    "model": t(
        "A worker with a GGUF file, or a provider with its key. Text is split, searched and summed up "
        "without one."
    ),
    "pair": t(
        "Paired pools take over when this one is dead, keep its log, lend their workers: as far as each says."
    ),
}
"""What each step is for."""

WORDS: Final = (
    *(t("done"), t("open"), t("skipped")),
    *(t("check this machine"), t("make the first owner"), t("have a store")),
    *(t("add the first database"), t("have the first model"), t("pair with another pool")),
)
"""What the gate calls states and steps."""


def _is(*names: str) -> Any:
    def against(step: Record) -> str:
        return "" if step.get("step") in names else t("That is another step.")

    return against


def _not_made(step: Record) -> str:
    if step.get("step") != "admin":
        return t("That is another step.")
    return t("It is done already.") if step.get("state") == "done" else ""


def _skippable(step: Record) -> str:
    if not step.get("skippable"):
        return t("This step cannot be skipped.")
    return "" if step.get("state") == "open" else t("It is not open.")


def _skipped(step: Record) -> str:
    return "" if step.get("state") == "skipped" else t("It was not skipped.")


def _owner(_step: Record, values: Values) -> dict[str, Any]:
    if values.get("password") != values.get("again"):
        raise UsageError("The two entries differ.")
    return {"name": values["name"], "password": values["password"]}


def _moved(state: str, label: str) -> Any:
    def back(step: Record, _values: Values, _reply: Any) -> Call:
        command = f"meshctl onboard skip {step['step']}" + (" --undo" if state == "open" else "")
        return Call("PUT", filled(STEP, step), {"state": state}, cli=command, label=label)

    return back


def _elsewhere(section: str) -> Any:
    def go(room: Room, _records: Any) -> None:
        room.action_section(section)

    return go


def checks(reply: Any) -> Sequence[view.Table]:
    """What was found on the machine."""
    columns = (
        view.Column("CHECK", "name"),
        view.Column("VERDICT", "verdict"),
        view.Column("DETAIL", "detail"),
        view.Column("NEXT", "next"),
    )
    return [view.table(reply["checks"], columns)]


CHECK: Final = Action(
    "onboarding.machine",
    "o",
    t("Check the machine"),
    "POST",
    "/onboarding/machine",
    "meshctl onboard --step machine",
    against=_is("machine"),
    result=Result.DESCRIBE,
    answer=checks,
    name="step",
    bulk=False,
)
OWNER: Final = Action(
    "session.first",
    "a",
    t("Make the first owner"),
    "POST",
    "/session/first",
    "meshctl onboard --step admin",
    Role.OWNER,
    form=Form(
        t("The first owner"),
        (
            Field("name", t("Name"), default="admin", required=True),
            Field("password", t("Password"), Kind.SECRET, required=True),
            Field("again", t("Again"), Kind.SECRET, required=True),
        ),
        t("Others are added in Sign-up, Admins."),
    ),
    body=_owner,
    against=_not_made,
    name="",
    done=t("The first owner is there."),
    bulk=False,
)
SAMPLE: Final = Action(
    "sample.make",
    "t",
    t("Use a sample database"),
    "POST",
    "/sample",
    "meshctl onboard --step database",
    against=_is("database"),
    confirm=Confirm.ASK,
    question=t("Make the sample database shop?"),
    name="",
    done=t("The sample database shop is there."),
    bulk=False,
    timeout_s=SLOW_S,
)
DATABASE: Final = Action(
    "database.add",
    "b",
    t("Add a database"),
    "POST",
    "/databases",
    "meshctl db add",
    form=Form(
        t("Add a database"),
        (
            Field("name", t("Name"), default="main", required=True, option="", help=t("what apps call it")),
            Field(
                "dsn",
                t("Address"),
                required=True,
                option="--dsn",
                help="postgresql://user@host:5432/dbname?sslmode=require",
            ),
            Field("password", t("Password"), Kind.SECRET, option="--password-file"),
            Field("check", t("Try it now"), Kind.BOOL, default=True),
        ),
    ),
    against=_is("database"),
    name="",
    done=t("The database is there."),
    bulk=False,
    timeout_s=SLOW_S,
)
PROVIDER: Final = Action(
    "provider.add",
    "p",
    t("Add a provider"),
    "POST",
    "/providers",
    "meshctl provider add",
    form=Form(
        t("Add a provider"),
        (
            Field("name", t("Name"), required=True, option=""),
            Field(
                "kind",
                t("API"),
                Kind.CHOICE,
                default="openai",
                choices=("openai", "anthropic"),
                option="--kind",
            ),
            Field("url", t("Address"), option="--url", help=t("where it is not the provider's own")),
            Field("key", t("Key"), Kind.SECRET, option="--key-file"),
            Field("local", t("On own machines"), Kind.BOOL, default=False, option="--local"),
            Field("check", t("Try it now"), Kind.BOOL, default=True),
        ),
    ),
    against=_is("model"),
    name="",
    done=t("The provider is there."),
    bulk=False,
    timeout_s=SLOW_S,
)
UPLOAD: Final = Action(
    "model.add",
    "w",
    t("Upload a model"),
    "GET",
    "",
    "meshctl model add",
    Role.VIEWER,
    against=_is("model"),
    opens=_elsewhere("models"),
    bulk=False,
)
PAIR: Final = Action(
    "pool.pair",
    "i",
    t("Pair with a pool"),
    "GET",
    "",
    "meshctl pool pair",
    Role.VIEWER,
    against=_is("pair"),
    opens=_elsewhere("federation"),
    bulk=False,
)
SKIP: Final = Action(
    "onboarding.skip",
    "f",
    t("Skip"),
    "PUT",
    STEP,
    "meshctl onboard skip {step}",
    body=lambda _step, _values: {"state": "skipped"},
    against=_skippable,
    undo=_moved("open", t("Skip")),
    name="step",
    done=t("{name} is skipped."),
    bulk=False,
)
REOPEN: Final = Action(
    "onboarding.reopen",
    "v",
    t("Take up again"),
    "PUT",
    STEP,
    "meshctl onboard skip {step} --undo",
    body=lambda _step, _values: {"state": "open"},
    against=_skipped,
    undo=_moved("skipped", t("Take up again")),
    name="step",
    done=t("{name} is open again."),
    bulk=False,
)

WAYS: Final[Mapping[str, tuple[Action, ...]]] = {
    "machine": (CHECK,),
    "admin": (OWNER, SKIP, REOPEN),
    "store": (),
    "database": (SAMPLE, DATABASE, SKIP, REOPEN),
    "model": (UPLOAD, PROVIDER, SKIP, REOPEN),
    "pair": (PAIR, SKIP, REOPEN),
}
"""What does a step, the first way first."""


class StepsView(PaneView):
    """The steps above, and below what the one under the cursor is for and what does it."""

    DEFAULT_CSS: ClassVar[str] = """
    StepsView > Grid { height: 8; }
    StepsView > Pager { height: 1fr; border-top: solid $surface; padding: 0 2; }
    """

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.document: Mapping[str, Any] = {}
        self._next = ""

    def compose(self) -> ComposeResult:
        """Steps and explanation."""
        yield Grid(ascii_only=self.room.ascii_only)
        yield Pager()

    def on_mount(self) -> None:
        """Lay the columns out."""
        self.grid.columns(
            (
                Heading(self.say("STEP")),
                Heading(self.say("STATE")),
                Heading(self.say("WHAT"), most=30),
                Heading(""),
            )
        )

    @property
    def grid(self) -> Grid:
        """The steps."""
        return self.query_one(Grid)

    @property
    def steps(self) -> Sequence[Record]:
        """The steps as the gate told them."""
        found = self.document.get("steps", ())
        return found if isinstance(found, list) else []

    async def load(self) -> None:
        """Ask which are done; go on to the next one where another one was next before."""
        self.document = await self.room.desk.get("/onboarding")
        self.grid.fill([self._row(step) for step in self.steps])
        following = str(self.document.get("next") or "")
        if following != self._next:
            self._next = following
            names = [step["step"] for step in self.steps]
            if following in names:
                self.grid.go(names.index(following))
        self._explain()
        self.room.refresh_bars()

    def _row(self, step: Record) -> Row:
        state = str(step["state"])
        cells = (
            str(step["step"]),
            self.say(state),
            self.say(str(step["title"])),
            str(step.get("detail") or ""),
        )
        marked = state_of("pending" if state == "open" else "off" if state == "skipped" else state)
        return Row(str(step["step"]), tuple(clean(cell) for cell in cells), (None, marked, None, None))

    def chosen(self) -> Sequence[Record]:
        """The step under the cursor."""
        key = self.grid.cursor_key
        return tuple(step for step in self.steps if step["step"] == key)

    def actions(self) -> Sequence[Action]:
        """What does the step under the cursor."""
        step = self.front()
        return WAYS.get(str(step["step"]), ()) if step is not None else ()

    @on(Grid.Moved)
    def _on_moved(self) -> None:
        self._explain()
        self.room.refresh_bars()

    @on(Grid.Opened)
    def _on_opened(self) -> None:
        records = self.chosen()
        for action in self.actions():
            if not self.room.acting.reason(action, records):
                self.room.perform(action)
                return
        self.room.warn(self.say("There is nothing to do here."))

    def on_resize(self) -> None:
        """Another width."""
        self._explain()

    def _explain(self) -> None:
        step = self.front()
        if step is None or not self.is_mounted:
            return
        self.query_one(Pager).fill(self._lines(step, max(30, self.size.width - 6)))

    def _lines(self, step: Record, width: int) -> list[Line]:
        done = sum(1 for one in self.steps if one["state"] != "open")
        place = [one["step"] for one in self.steps].index(step["step"]) + 1
        count = self.say("{done} of {total} done or skipped", done=done, total=len(self.steps))
        lines: list[Line] = [
            (
                (
                    self.say(
                        "Step {number}: {title}", number=place, title=self.say(clean(str(step["title"])))
                    ),
                    "title",
                ),
                (f"   {count}", "muted"),
            ),
            *lay_out(self.say(ABOUT.get(str(step["step"]), "")), width).lines,
            (),
        ]
        for check in step.get("checks") or ():
            if check["verdict"] != "PASSED":
                role = "bad" if check["verdict"] == "FAILED" else "warn"
                verdict = self.say(check["verdict"])
                lines.append(((clean(f"{verdict}: {check['name']}: {check['detail']}"), role),))
                lines.append(((clean(f"  {check['next']}"), "muted"),))
        for index, action in enumerate(self.actions()):
            if why := self.room.acting.reason(action, (step,)):
                lines.append(((f"  {shown_key(action.key):>5}  {self.say(action.label)}  ({why})", "off"),))
                continue
            key = self.say("enter" if index == 0 else shown_key(action.key))
            command = filled(action.cli, step, plain=True)
            lines.append(
                ((f"  {key:>5}  ", "busy"), (self.say(action.label), ""), (f"   = {command}", "muted"))
            )
        if not self.actions() and step.get("next"):
            lines.append(((clean(str(step["next"])), "key"),))
        if self.document.get("done"):
            lines += [(), ((self.say("Every step is done or was skipped."), "good"),)]
        return lines

    def extract(self) -> tuple[str, str]:
        """The steps as they are listed."""
        return "onboarding", "\n".join("  ".join(row.cells) for row in self.grid.rows) + "\n"

    def became_stale(self) -> None:
        """Say why."""
        self.query_one(Pager).fill(((("! " + clean(self.problem), "warn"),),))


SECTION: Final = Section(
    "onboarding",
    "Onboarding",
    "U",
    (
        OwnPane(
            "steps",
            t("First steps"),
            StepsView,
            tuple(dict.fromkeys(action for ways in WAYS.values() for action in ways)),
            about=("route", "provider", "node", "peer", "pool", "admins", "admin", "onboarding"),
            cli="meshctl onboard status",
        ),
    ),
    about=t("The first steps of a pool. It can be left at any moment and goes on where it was."),
    page="onboarding.md",
)
