"""The control room: the screen around the sections, and everything that they share.

It owns the gate's desk, the one live feed, the principal, the undo stack and the bars. Sections say what they
are in data (`meshctl.tui.declare`); this puts one of them in front.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Input, TextArea
from textual.worker import Worker

from meshctl.client import Gate
from meshctl.errors import GateError
from meshctl.tui import jumping, sections, words
from meshctl.tui.acting import Acting
from meshctl.tui.bars import Bar
from meshctl.tui.branded import wear
from meshctl.tui.confirm import ConfirmScreen
from meshctl.tui.context_screen import LOCAL, log_in
from meshctl.tui.data import Desk, Principal
from meshctl.tui.declare import CHANGES, Action, Role, named
from meshctl.tui.describe import AnswerView, DocumentView
from meshctl.tui.feed import Feed, Link, News, Standing
from meshctl.tui.keys import BINDINGS, OWN_ACTIONS
from meshctl.tui.layout import Form, clean
from meshctl.tui.lines import Lines
from meshctl.tui.palette import RoomCommands
from meshctl.tui.pane import PaneView
from meshctl.tui.preferences import Preferences
from meshctl.tui.prompt import Prompt
from meshctl.tui.section_view import SectionView
from meshctl.tui.shell import Shell
from meshctl.tui.table import TableView
from meshctl.tui.typed_ahead import ASKING, MOVING, Typed, TypedAhead
from meshctl.tui.undo import Undo
from tunnel_proto.errors import MeshError

KEPT_SECTIONS: Final = 4
"""Sections that stay as they were left; older ones are built anew."""

GLANCE: Final = "overview"
"""The topic that the header listens to, whatever is in front."""

FIRST: Final = "overview"
FRESH: Final = "onboarding"
"""Where one begins, and where in a pool that nobody has set up."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What the screen is started with; ``where`` is what the header calls the gate.

    ``section`` "" is the overview, or the first steps where nobody has taken any. ``at_home``: a gate of this
    machine can be gone to.
    """

    gate: Gate
    where: str = LOCAL
    preferences: Preferences = field(default_factory=Preferences)
    preferences_file: Path | None = None
    section: str = "overview"
    at_home: bool = False


class FeedNews(Message):
    """What the feed's thread has to say."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


class Room(Shell):
    """The application. Ends with the name of a context to go on with, or None."""

    CSS_PATH = "room.tcss"
    TITLE = "meshctl"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    COMMANDS = {RoomCommands}  # noqa: RUF012 - as the base class declares it
    BINDINGS: ClassVar[list[BindingType]] = [*BINDINGS]

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch.preferences, launch.preferences_file)
        self.launch = launch
        self.desk = Desk(launch.gate)
        self.principal = Principal()
        self.undo = Undo()
        self.acting = Acting(self)
        self.typed = TypedAhead(self, self._type)
        self.feed = Feed(launch.gate, self._hear)
        self.newest: dict[str, Any] = {}
        self.standing = Standing(Link.CONNECTING)
        self.pool = ""
        self.brand = "qgate-mesh"
        self._sections: OrderedDict[str, SectionView] = OrderedDict()
        self._front = ""
        self._heard = time.monotonic()
        self._logging_in = False
        self._lines = Lines(self)

    # --- set-up

    def compose(self) -> ComposeResult:
        """Where we are; the section; the line for `:` and `/`; the keys."""
        yield Bar(id="top")
        yield Bar(id="crumbs")
        yield Container(id="body")
        yield Prompt()
        yield Bar(id="keys")

    async def on_mount(self) -> None:
        """Find out who we are, begin to listen, show the first section."""
        self.set_class(self.ascii_only, "-ascii")
        gate = self.launch.gate
        gate.moved = self._moved
        if hasattr(gate.dialler, "may_change"):
            gate.dialler.may_change = self._may_change
        self.screen_change_signal.subscribe(self, self.typed.changed, immediate=True)
        self.feed.start()
        self.set_interval(1.0, self._age)
        self.introduce()
        await self.show_section(self.launch.section or FIRST)
        if self.section is None:  # there is none of that name
            await self.show_section(FIRST)

    def on_unmount(self) -> None:
        """Stop listening."""
        self.feed.end()

    @work(group="introduce")
    async def introduce(self) -> None:
        """Ask the gate who we are and what it is called."""
        try:
            try:
                self.principal = await self.desk.principal()
            except GateError as error:
                if error.status != 401 or not self._may_log_in():
                    raise
                if not await self._logged_in():
                    self.exit()
                    return
                self.principal = await self.desk.principal()
                self._listen(anew=True)
                self.action_reload()
            with contextlib.suppress(MeshError):
                wear(self, await self.desk.get("/branding") or {})
            if not self.launch.section:
                await self._lead_in()
        except MeshError as error:
            self.fail(error)
        self.refresh_bars()

    async def _lead_in(self) -> None:
        """To the first steps of a pool, where none was taken and whoever looks is still where they began."""
        with contextlib.suppress(MeshError):
            steps = (await self.desk.get("/onboarding")).get("steps") or ()
            fresh = bool(steps) and all(one["state"] == "open" or one["step"] == "store" for one in steps)
            if fresh and self._front == FIRST and self.principal.role.covers(Role.ADMIN):
                self.action_section(FRESH)

    async def dress(self) -> None:
        """Name and colours anew, after somebody changed them."""
        with contextlib.suppress(MeshError):
            wear(self, await self.desk.get("/branding") or {})
        self.refresh_bars()

    def _may_log_in(self) -> bool:
        return hasattr(self.desk.gate.dialler, "keep")

    async def _logged_in(self) -> bool:
        self._logging_in = True
        try:
            return await log_in(self)
        finally:
            self._logging_in = False

    # --- what sections use

    def in_front(self, view: PaneView) -> bool:
        """Whether a pane is the one that is seen."""
        return self.pane is view

    def descend(self, view: PaneView) -> None:
        """Put a pane over the one in front, with a way back."""
        if (section := self.section) is not None:
            self.run_worker(self._descended(section, view), group=MOVING)

    async def _descended(self, section: SectionView, view: PaneView) -> None:
        await section.descend(view)
        self.refresh_bars()

    def show_answer(
        self, title: str, reply: Any, tables: Callable[[Any], Sequence[Any]] | None = None
    ) -> None:
        """Describe what the gate answered; ``tables`` lays it out."""
        if (pane := self.pane) is not None:
            view = AnswerView(pane.pane, crumb=title)
            view.document, view.laid_out = reply, tables
            self.descend(view)

    def perform(self, action: Action) -> None:
        """Do an action of the pane in front, asking what has to be asked."""
        if (pane := self.pane) is not None and (doing := self.acting.begin(action, pane)) is not None:
            self.run_worker(doing, group=ASKING)

    # --- sections

    @property
    def section(self) -> SectionView | None:
        """The section that is seen."""
        return self._sections.get(self._front)

    @property
    def pane(self) -> PaneView | None:
        """The pane that is seen."""
        section = self.section
        return section.front if section is not None else None

    async def show_section(self, name: str, *, pane: int | None = None) -> None:
        """Put a section in front."""
        entry = sections.named(name)
        if entry is None:
            self.warn(self.say("There is no section {name}.", name=name))
            return
        body = self.query_one("#body")
        if self.section is not None and self._front != entry.id:
            self.section.display = False
        self._front = entry.id
        if entry.id in self._sections:
            view = self._sections[entry.id]
            self._sections.move_to_end(entry.id)
            view.display = True
            if pane is not None and pane != view.number:
                await view.go(pane)
            elif view.front is not None:
                view.settle(view.front)
                view.front.resume()
        else:
            view = self._sections[entry.id] = SectionView(sections.load(entry))
            await body.mount(view)
            if pane:
                await view.go(pane)
        while len(self._sections) > KEPT_SECTIONS:
            _, old = self._sections.popitem(last=False)
            await old.remove()
        self._listen()
        self.refresh_bars()

    def _listen(self, *, anew: bool = False) -> None:
        section = self.section
        topics = section.section.topics() if section is not None else ()
        self.feed.listen({GLANCE, CHANGES, *topics}, anew=anew)

    @property
    def picture(self) -> str:
        """The section that is seen, after which a picture of the screen is called."""
        return self._front or "screen"

    # --- the feed

    def _hear(self, news: News) -> None:
        self.post_message(FeedNews(news))

    def on_feed_news(self, message: FeedNews) -> None:
        """Pass news on to whoever is in front."""
        news = message.news
        self._heard = time.monotonic()
        if isinstance(news, Standing):
            self.standing = news
            self.refresh_bars()
            if news.link is Link.REFUSED and self._may_log_in() and not self._logging_in:
                self.introduce()
            return
        if news.data is not None:
            self.newest[news.topic] = news.data
        if news.topic == GLANCE and isinstance(news.data, Mapping):
            self.glance(news.data)
        if news.topic == CHANGES and named(news.data, ("branding", "licence")):
            self.run_worker(self.dress(), group="introduce")
        pane = self.pane
        if pane is not None and pane.listens(news.topic, news.data):
            pane.told(news.topic, news.data)

    def glance(self, data: Mapping[str, Any]) -> None:
        """Take the pool's name from an overview."""
        pool = data.get("pool")
        name = pool.get("name") if isinstance(pool, Mapping) else pool
        if name and name != self.pool:
            self.pool = clean(str(name))
            self.refresh_bars()

    def _age(self) -> None:
        if self.standing.link is not Link.LIVE and self.app_focus:
            self.refresh_bars()

    def _moved(self, left: str, now: str) -> None:
        self.call_from_thread(self._tell_moved, left, now)

    def _tell_moved(self, left: str, now: str) -> None:
        self.warn(self.say("{left} does not answer; going on at {now}.", left=left, now=now))
        self.introduce()
        self.action_reload()  # what is in front is still what the other pool said
        self.refresh_bars()

    def _may_change(self, home: str, now: str) -> bool:
        question = self.say("{home} does not answer. Make this change at {now}?", home=home, now=now)
        answered: concurrent.futures.Future[bool] = concurrent.futures.Future()
        self.call_from_thread(
            self.push_screen, ConfirmScreen(question, ()), lambda answer: answered.set_result(bool(answer))
        )
        return answered.result()

    def on_app_blur(self) -> None:
        """Nobody looks: news come rarely."""
        self.feed.watch(False)

    def on_app_focus(self) -> None:
        """Somebody looks again."""
        self.feed.watch(True)

    # --- bars

    def refresh_bars(self) -> None:
        """Draw the lines at the top and the bottom again, where they changed."""
        with contextlib.suppress(NoMatches, IndexError):  # before the screen is there, and after
            self._lines.draw(self.screen_stack[0])

    @property
    def silence_s(self) -> float:
        """Seconds since the feed last said anything."""
        return time.monotonic() - self._heard

    @property
    def under_way(self) -> str:
        """What is being done now, "" for nothing."""
        return self._busy[-1] if self._busy else ""

    # --- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The screen's own keys come first, so that what is typed after `:` is not lost; but not before a
        question, nor before somebody who writes.
        """
        del parameters
        writes = isinstance(self.focused, Input | TextArea)
        return action not in OWN_ACTIONS or not (writes or len(self.screen_stack) > 1)

    async def on_event(self, event: events.Event) -> None:
        """What is typed for a question that is not asked yet waits for it."""
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            if not self.typed.takes(event):
                await self.typed.give(event)
        else:
            await super().on_event(event)

    async def _type(self, event: Typed) -> None:
        if not (isinstance(event, events.Key) and self._acts(event.key)):
            await super().on_event(event)

    def _acts(self, key: str) -> bool:
        """Whether it is a key of the pane in front: of an action or a switch."""
        pane = self.pane
        if pane is None or len(self.screen_stack) > 1 or isinstance(self.focused, Input | TextArea):
            return False
        if isinstance(pane, TableView) and pane.press(key):
            return True
        action = next((one for one in pane.actions() if one.key == key), None)
        if action is not None:
            self.perform(action)
        return action is not None

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """A question, or a way to somewhere, may have ended with its worker."""
        if event.worker.group in {ASKING, MOVING}:
            self.typed.worked()

    def action_section(self, name: str) -> None:
        """A section by its key."""
        self.run_worker(self.show_section(name), group=MOVING, exclusive=True)

    def action_pane(self, number: int) -> None:
        """A pane of this section by its number."""
        self.run_worker(self._to_pane(number), group=MOVING, exclusive=True)

    async def _to_pane(self, number: int) -> None:
        if (section := self.section) is not None:
            await section.go(number)
            self.refresh_bars()

    def action_pane_beside(self, by: int) -> None:
        """The next or the previous pane."""
        if (section := self.section) is not None:
            self.action_pane((section.number + by) % len(section.section.panes))

    async def action_back(self, end: bool = False) -> None:
        """Out of a search, marks, a filter, a description; at the top, `q` ends."""
        section, pane = self.section, self.pane
        if (pane is not None and pane.leave()) or (section is not None and await section.ascend()):
            self.refresh_bars()
        elif end:
            self.exit()

    def action_undo(self) -> None:
        """Take the newest change back."""
        self.run_worker(self.acting.take_back(self.pane), group=ASKING)
        self.typed.opening()

    def action_reload(self) -> None:
        """Ask the gate again, and draw everything anew, whatever the terminal made of it."""
        self.screen.refresh(layout=True)
        if (pane := self.pane) is not None:
            pane.reload()

    def action_describe(self, form: str) -> None:
        """All of the record under the cursor; in a description, the other forms."""
        pane = self.pane
        if isinstance(pane, DocumentView):
            pane.as_form(Form(form))
        elif isinstance(pane, TableView) and (record := pane.front()) is not None:
            pane.describe(record, Form(form))

    def action_copy_shown(self) -> None:
        """The name under the cursor, or the text that is shown."""
        pane = self.pane
        if isinstance(pane, TableView):
            chosen = pane.chosen()
            if chosen:
                self.copy("\n".join(pane.name_of(record) for record in chosen))
        elif pane is not None:
            self.copy(pane.extract()[1])

    def action_export(self) -> None:
        """What is shown, into a file."""
        if (pane := self.pane) is not None:
            from meshctl.tui.export import export

            self.run_worker(export(self, pane), group=ASKING)
            self.typed.opening()

    def action_mark_all(self) -> None:
        """Mark every row that is seen."""
        if isinstance(pane := self.pane, TableView):
            pane.mark_all()

    def action_order(self, by: int) -> None:
        """Order by the column beside."""
        if isinstance(pane := self.pane, TableView):
            pane.next_order(by)

    def action_turn_order(self) -> None:
        """The other direction."""
        if isinstance(pane := self.pane, TableView):
            pane.turn()

    def action_jump(self) -> None:
        """Ask where to go."""
        self.query_one(Prompt).ask(
            ":", words=[f":{word}" for word in jumping.destinations(self)], done=self._jumped
        )

    def _jumped(self, line: str | None) -> None:
        self._settle()
        if line:
            self.run_worker(jumping.go(self, line), group=MOVING)

    def action_filter(self) -> None:
        """Ask what to filter by, or to search for."""
        pane = self.pane
        if pane is None or not pane.narrows:
            self.warn(self.say("There is nothing to filter here."))
            return
        before = pane.filter.text if isinstance(pane, TableView) else ""

        def done(line: str | None) -> None:
            pane.narrow(before if line is None else line)
            self._settle()

        typed = pane.narrow if not (isinstance(pane, TableView) and pane.paged) else None
        self.query_one(Prompt).ask("/", given=before, typed=typed, done=done)

    def _settle(self) -> None:
        section, pane = self.section, self.pane
        if section is not None and pane is not None:
            section.settle(pane)

    def action_help(self) -> None:
        """The keys of this screen."""
        from meshctl.tui.help import help_screen

        self.push_screen(help_screen(self))

    def action_menu(self) -> None:
        """Everything that can be done here, and why not."""
        from meshctl.tui.menu import ActionMenu

        if (pane := self.pane) is not None:
            self.push_screen(ActionMenu(self, pane), self._chosen)

    def _chosen(self, answer: object) -> None:
        if isinstance(answer, Action):
            self.perform(answer)

    def action_audit(self) -> None:
        """The tail of the audit, over whatever is in front."""
        from meshctl.tui.tail import AUDIT_PANE, TailView

        if not isinstance(self.pane, TailView):
            self.descend(TailView(AUDIT_PANE))

    def action_contexts(self) -> None:
        """Other gates and pools."""
        from meshctl.tui.context_screen import choose_context

        self.run_worker(choose_context(self), group=ASKING)
        self.typed.opening()

    def use_language(self, language: str) -> None:
        """Speak another language, also the next time."""
        if language not in words.languages():
            self.warn(self.say("There is no language {name}.", name=language))
            return
        self.keep(language=language)
        self.catalogue = words.catalogue(language, ascii_only=self.ascii_only)
        self.run_worker(self._anew(), group=MOVING, exclusive=True)

    def use_ascii(self, wanted: bool) -> None:
        """Draw ASCII only, or not, also the next time."""
        self.keep(ascii_only=wanted)
        self.catalogue = words.catalogue(self.preferences.language, ascii_only=wanted)
        self.set_class(wanted, "-ascii")
        self.run_worker(self._anew(), group=MOVING, exclusive=True)

    async def _anew(self) -> None:
        front, number = self._front, self.section.number if self.section else 0
        while self._sections:
            await self._sections.popitem()[1].remove()
        await self.show_section(front, pane=number)
