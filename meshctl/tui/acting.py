"""Doing what an action says: may it be done, what has to be asked, the requests, and what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meshctl.errors import GateError
from meshctl.render import Output, machine_text
from meshctl.tui.confirm import ConfirmScreen, OnceScreen
from meshctl.tui.declare import Action, Call, Confirm, Record, Result, Role
from meshctl.tui.fields import Form, t
from meshctl.tui.forms import FormScreen, Given
from meshctl.tui.layout import clean
from meshctl.tui.typed_ahead import Question
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.data import Principal
    from meshctl.tui.pane import PaneView
    from meshctl.tui.room import Room

AT_ONCE: Final = 4
"""Requests under way together when an action is about many."""

FIXABLE: Final = frozenset({400, 404, 409, 422, 502, 507})
"""Answers after which the form comes back with what was typed."""

CHANGED: Final = 412
"""Somebody was faster: the form comes back as well, over what is there now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request: the record as it was, and the answer or the error."""

    record: Record
    call: Call
    reply: Any = None
    error: MeshError | None = None


def refusal(action: Action, principal: Principal) -> tuple[str, dict[str, object]]:
    """Why this principal may not do it, as a text and its values; ("", {}) where they may."""
    if principal.read_only and action.role is not Role.VIEWER:
        return t("This context is read-only."), {}
    if not principal.role.covers(action.role):
        return t("This needs the role {role}; yours is {own}."), {"role": action.role, "own": principal.role}
    return "", {}


def asks(action: Action) -> bool:
    """Whether anything is asked before it is done."""
    return action.form is not None or action.confirm is not Confirm.NONE or action.opens is not None


class Acting:
    """Does actions for the screen, one at a time as a person does."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def reason(self, action: Action, records: Sequence[Record]) -> str:
        """Why it cannot be done now, in the person's language; "" where it can."""
        say = self._room.say
        text, values = refusal(action, self._room.principal)
        if text:
            return say(text, **values)
        if action.row and not records:
            return say("There is no row to do that to.")
        reasons = [action.against(record) for record in records] if action.row else [""]
        return say(reasons[0]) if reasons and all(reasons) else ""

    def begin(self, action: Action, view: PaneView) -> Coroutine[Any, Any, None] | None:
        """What is to be done about the records that are chosen now; None where that is nothing, or begun.

        What is typed from here on waits for what is asked.
        """
        records: Sequence[Record] = view.chosen() if action.row else ({},)
        if action.row and not action.bulk and (front := view.front()) is not None:
            records = (front,)
        if why := self.reason(action, records):
            self._room.warn(why)
            if asks(action):
                self._room.typed.mute()
            return None
        if action.opens is not None:
            action.opens(self._room, records)
            self._room.typed.opening()
            return None
        if action.row:
            records = [record for record in records if not action.against(record)]
        question = Question(self._room.typed)
        if asks(action):
            question.on()
        return self._perform(action, records, view, question)

    async def _perform(
        self, action: Action, records: Sequence[Record], view: PaneView, question: Question
    ) -> None:
        with question.asked():
            outcomes = await self._asked_and_done(action, records, view, question)
        if outcomes is not None:
            await self._tell(action, outcomes)
            view.reload()

    async def _asked_and_done(
        self, action: Action, records: Sequence[Record], view: PaneView, question: Question
    ) -> list[Outcome] | None:
        first = records[0]
        form = action.asked(first)
        typed: dict[str, str] = {}
        problem = ""
        while True:
            values: Given = {}
            if form is not None:
                screen = FormScreen(
                    form,
                    title=self._title(action, form, records),
                    given=typed,
                    problem=problem,
                    preview=_drafting(action, first, form),
                )
                answer = await self._room.push_screen_wait(screen)
                if not isinstance(answer, dict):
                    return None
                values, typed = answer, screen.typed()
            try:
                calls = [action.call(record, values, form) for record in records]
                if not await self._confirmed(action, records, calls, values):
                    return None
            except MeshError as error:  # what would happen cannot be said: it would not happen
                if form is None:
                    self._room.fail(error)
                    return None
                problem = self._said(error)
                continue
            question.off()
            outcomes = await self._done(action, records, calls)
            refused = outcomes[0].error if len(outcomes) == 1 else None
            if form is not None and isinstance(refused, GateError) and refused.status in FIXABLE:
                problem = self._said(refused)
                question.on()
                continue
            fresh = await self._anew(refused, first, view) if form is not None else None
            if form is not None and fresh is not None and refused is not None:
                typed = _own(form, typed)
                first, records, form = fresh, [fresh], action.asked(fresh) or form
                kept = self._room.say("What you typed is still here: ctrl+s sends it all the same.")
                problem = f"{self._said(refused)}\n{kept}"
                question.on()
                continue
            self._remember(action, values, outcomes)
            return outcomes

    @staticmethod
    async def _anew(refused: MeshError | None, record: Record, view: PaneView) -> Record | None:
        """The record as it is now, where somebody was faster; None where something else was wrong."""
        if not isinstance(refused, GateError) or refused.status != CHANGED:
            return None
        try:
            return await view.anew(record)
        except MeshError:
            return None

    def _title(self, action: Action, form: Form, records: Sequence[Record]) -> str:
        title = self._room.say(form.title or action.label)
        if not action.row:
            return title
        subject = clean(action.subject(records[0]))
        if len(records) > 1:
            return f"{title} ({len(records)})"
        return self._named(title, subject)

    def _named(self, label: str, name: str) -> str:
        return self._room.say("{label}: {name}", label=label, name=name) if name else label

    async def _confirmed(
        self, action: Action, records: Sequence[Record], calls: Sequence[Call], values: Given
    ) -> bool:
        plan = await self._plan(action, calls) if action.dry is not None else ""
        if action.ahead is not None:
            reply = await self._room.desk.send(action.ahead(records[0], values))
            plan = self._lines(action.planned(reply) if action.planned else str(reply))
        if action.plan is not None:
            plan = "\n".join(dict.fromkeys(self._lines(action.plan(record, values)) for record in records))
        if action.confirm is Confirm.NONE:
            return True
        say = self._room.say
        subject = clean(action.subject(records[0]))
        many = len(records) > 1
        name = "" if action.confirm is Confirm.ASK else (str(len(records)) if many else subject)
        what = say("{count} rows", count=len(records)) if many else subject
        question = (
            say(action.question, name=what)
            if action.question
            else say("{what}?", what=self._named(say(action.label), what))
        )
        screen = ConfirmScreen(
            question, calls, name=name, plan=plan, undoable=action.undo is not None and not name
        )
        return bool(await self._room.push_screen_wait(screen))

    async def _plan(self, action: Action, calls: Sequence[Call]) -> str:
        assert action.dry is not None
        said = []
        for call in calls:
            body = {**(call.body or {}), **action.dry}
            reply = await self._room.desk.send(Call(call.method, call.path, body, version=call.version))
            said.append(self._lines(action.planned(reply) if action.planned else str(reply)))
        return "\n".join(dict.fromkeys(said))

    async def _done(self, action: Action, records: Sequence[Record], calls: Sequence[Call]) -> list[Outcome]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(record: Record, call: Call) -> Outcome:
            async with gate:
                try:
                    return Outcome(record, call, await self._room.desk.send(call))
                except MeshError as error:
                    return Outcome(record, call, error=error)

        with self._room.busy(self._room.say(action.label)):
            return await asyncio.gather(*(one(*pair) for pair in zip(records, calls, strict=True)))

    def _remember(self, action: Action, values: Given, outcomes: Sequence[Outcome]) -> None:
        if action.undo is None:
            return
        for outcome in outcomes:
            if outcome.error is None and (inverse := action.undo(outcome.record, values, outcome.reply)):
                self._room.undo.done(inverse)

    async def _tell(self, action: Action, outcomes: Sequence[Outcome]) -> None:
        say = self._room.say
        for outcome in outcomes:
            if outcome.error is not None:
                self._room.fail(outcome.error, about=clean(action.subject(outcome.record)))
        done = [outcome for outcome in outcomes if outcome.error is None]
        if not done:
            return
        if action.missed is not None:
            for line in (line for one in done for line in action.missed(one.reply)):
                self._room.warn(self._lines(line))
        if action.result is Result.ONCE:
            text = "\n\n".join(clean_lines(machine_text(one.reply, Output.YAML)) for one in done)
            where = self._room.desk.gate.socket_path
            if action.once is not None:
                shown = [action.once(where, one.reply) for one in done]
            else:
                shown = [action.answer(one.reply) for one in done] if action.answer is not None else []
            label = self._room.catalogue.label
            parts = [
                (clean(label(row[0])), clean(row[1])) for some in shown for one in some for row in one.rows
            ]
            await self._room.push_screen_wait(OnceScreen(say(action.label), text, parts))
            return
        if action.result is Result.DESCRIBE:
            self._room.show_answer(say(action.label), done[0].reply, action.answer)
            return
        name = clean(action.subject(done[0].record)) if len(done) == 1 else str(len(done))
        text = say(action.done, name=name) if action.done else self._named(say(action.label), name)
        if action.undo is not None:
            text += "  " + say("(u takes it back)")
        self._room.tell(text)

    def _lines(self, text: str) -> str:
        """What an action says of a plan, a line at a time in the person's language."""
        return "\n".join(clean(self._room.say(line)) for line in text.splitlines())

    def _said(self, error: MeshError) -> str:
        return self._room.catalogue.told(error)

    async def take_back(self, view: PaneView | None) -> None:
        """Undo the newest change, after asking."""
        call = self._room.undo.newest()
        if call is None:
            self._room.warn(self._room.say("There is nothing to take back."))
            return
        question = self._room.say("Take back: {what}?", what=self._room.say(call.label))
        if not await self._room.push_screen_wait(ConfirmScreen(question, [call])):
            return
        self._room.undo.taken(call)
        try:
            await self._room.desk.send(call)
        except MeshError as error:
            self._room.fail(error)
        else:
            self._room.tell(self._room.say("Taken back: {what}", what=self._room.say(call.label)))
        if view is not None:
            view.reload()


def _drafting(action: Action, record: Record, form: Form) -> Callable[[Given], Call]:
    """The request as it would be with what is typed."""
    return lambda given: action.draft(record, given, form)


def _own(form: Form, typed: Given) -> dict[str, str]:
    """What somebody typed themselves, apart from what the form had filled in."""
    filled = {field.name: field.shown(field.default) for field in form.fields}
    return {name: text for name, text in typed.items() if text != filled.get(name)}


def clean_lines(text: str) -> str:
    """A text of several lines without what a terminal would obey."""
    return "\n".join(clean(line) for line in text.splitlines())
