"""Keys that were typed before what they are meant for is there: kept, and given to it when it is.

Whoever types "e", a value and enter at once, or pastes that, means the form. Between the key of an action and
its form lie a thread, a request perhaps, and a screen that has to be laid out; what comes in the meantime
must not move a cursor, open something else, or drain a worker. The same goes for a section that is coming.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

from textual import events
from textual.app import App
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.widgets import Input, TextArea

ASKING: Final = "act"
"""The group of the workers that ask something, and may do so only after a request."""

MOVING: Final = "move"
"""The group of those that put something else in front."""

KEPT: Final = 4096
"""Keys kept at most; more than that nobody types into a form."""

Typed = events.Key | events.Paste


class Question:
    """Something that is going to be asked; while it is on and nothing is asked yet, keys wait."""

    def __init__(self, ahead: TypedAhead) -> None:
        self._ahead = ahead

    def on(self) -> None:
        """It will be asked, or asked again."""
        self._ahead.begin(self)

    def off(self) -> None:
        """Nothing more will be asked."""
        self._ahead.end(self)

    @contextmanager
    def asked(self) -> Iterator[Question]:
        """Off when the block ends."""
        try:
            yield self
        finally:
            self.off()


class TypedAhead:
    """Holds keys for an application; ``give`` types one where it belongs now."""

    def __init__(self, app: App[Any], give: Callable[[Typed], Awaitable[None]]) -> None:
        self._app = app
        self._give = give
        self._kept: deque[Typed] = deque(maxlen=KEPT)
        self._questions: set[Question] = set()
        self._opening: Question | None = None
        self._ready: WeakSet[Screen[Any]] = WeakSet()
        self._awaited: WeakSet[Screen[Any]] = WeakSet()
        self._settling = 0
        self._muted = 0
        self._writing: MessagePump | None = None

    # --- what is going on

    def begin(self, question: Question) -> None:
        """Keys wait for this."""
        self._questions.add(question)

    def end(self, question: Question) -> None:
        """They do not any more."""
        self._questions.discard(question)
        self._app.call_later(self._drain)

    def opening(self) -> None:
        """A screen may be opened by a worker of its own: keys wait for it, or for that worker's end."""
        self._opening = Question(self)
        self._opening.on()
        self._app.call_later(self.worked)

    def worked(self) -> None:
        """A worker ended: nothing more is opened where it was the last that asks."""
        if self._opening is not None and not self._works(ASKING):
            self._opening.off()
            self._opening = None
        self._app.call_later(self._drain)

    def _works(self, group: str) -> bool:
        return any(one.group == group and not one.is_finished for one in self._app.workers)

    def mute(self) -> None:
        """There will be no question: what has been typed for it is for nobody."""
        self._muted += 1
        self._app.call_later(self._unmute)

    def _unmute(self) -> None:
        self._muted -= 1

    def changed(self, screen: Screen[Any]) -> None:
        """Another screen is in front: keys wait until it can take them."""
        if self._opening is not None and len(self._app.screen_stack) > 1:
            self._opening.off()
            self._opening = None
        self._settling += 1
        self._app.call_later(self._settled)
        self._await(screen)

    async def _settled(self) -> None:
        self._settling -= 1
        await self._drain()

    def _await(self, screen: Screen[Any]) -> None:
        if len(self._app.screen_stack) > 1 and screen not in self._awaited:
            self._awaited.add(screen)
            screen.call_after_refresh(self._laid_out, screen)

    def _laid_out(self, screen: Screen[Any]) -> None:
        self._app.call_later(self._opened, screen)  # after what it asked the application for, such as focus

    async def _opened(self, screen: Screen[Any]) -> None:
        self._ready.add(screen)
        await self._drain()

    # --- keys

    @property
    def waiting(self) -> bool:
        """Whether a key has to wait."""
        if self._settling:
            return True
        if len(self._app.screen_stack) > 1:
            return self._app.screen not in self._ready
        return bool(self._questions) or self._works(MOVING)

    def takes(self, event: Typed) -> bool:
        """Whether a key is kept, or belongs to nobody; else it is to be typed now."""
        if self._muted:
            return True
        if not _prints(event):
            self._catch_up()
        if not self._kept and not self.waiting:
            return False
        if self._questions and len(self._app.screen_stack) == 1 and _leaves(event):
            self._kept.clear()
            self._questions.clear()
            self._app.workers.cancel_group(self._app, ASKING)
            return True
        self._kept.append(event)
        if len(self._app.screen_stack) > 1:
            self._await(self._app.screen)
        return True

    async def _drain(self) -> None:
        while self._kept and not self.waiting and not self._muted:
            if not _prints(self._kept[0]) and self._catch_up():
                return
            await self.give(self._kept.popleft())
        if self._muted:
            self._kept.clear()

    def _catch_up(self) -> bool:
        """Letters go into a field one after the other and nobody waits for them, but a key that is none may
        be for the whole screen, such as one that sends a form: it waits until they are in. Whether any are
        under way.
        """
        taker, self._writing = self._writing, None
        if taker is None:
            return False
        self._settling += 1
        self._climb(taker, self._settle_later)
        return True

    async def give(self, event: Typed) -> None:
        """Type it now. The next one waits until all is done that this one does: it may move the cursor
        that the next is about, or close what it is typed into. Letters in a field do neither.
        """
        app = self._app
        if not app.app_focus:  # a terminal that types without saying that it has the focus
            app.app_focus = True
        taker = app.focused or app.screen
        await self._give(event)
        if isinstance(taker, Input | TextArea) and _prints(event):
            self._writing = taker
        else:
            self._settling += 1
            self._climb(taker, lambda: self._climb(taker, self._settle_later))

    def _climb(self, node: MessagePump, then: Callable[[], object]) -> None:
        """Follow a key through everything that hears of it, up to the application; that looks for its
        binding, and what comes of it goes the same way once more.
        """
        parent = node._parent
        if parent is None or not node.is_running or not node.call_later(self._climb, parent, then):
            self._app.call_later(then)

    def _settle_later(self) -> None:
        self._app.call_later(self._settled)


def _prints(event: Typed) -> bool:
    return isinstance(event, events.Paste) or event.is_printable


def _leaves(event: Typed) -> bool:
    return isinstance(event, events.Key) and event.key == "escape"
