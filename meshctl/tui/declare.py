"""What a section is made of, as data: columns, actions, panes. Imports nothing that draws.

A section's module says what it shows and what can be done there; table, form, confirmation, undo, help and
the parity tests read it from here.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshctl import view
from meshctl.tui.fields import Form, Values, body_of
from meshctl.tui.words import enumerated

if TYPE_CHECKING:
    from meshctl.tui.pane import PaneView
    from meshctl.tui.room import Room

Record = Mapping[str, Any]

CHANGES: Final = "changes"
"""The feed's topic that names what was changed by anybody ("app:web")."""

TOPICS: Final = frozenset({"overview", "topology", "incidents", "pools", "workers", CHANGES})
"""The feed's topics; a pane that names another one would hear nothing."""


def named(changes: Any, kinds: Collection[str]) -> bool:
    """Whether news of changes name a thing of one of these kinds, or so many that it may be among them."""
    if not isinstance(changes, Mapping):
        return False
    return bool(changes.get("all")) or any(
        str(name).partition(":")[0] in kinds for name in changes.get("names") or ()
    )


NUMBERED: Final = frozenset(
    {"id", "seq", "number", "port", "pid", "serial", "epoch", "revision", "version", "index"}
)
"""Fields whose numbers are names: nobody groups their digits, so that they can be typed as they stand."""


class Role(StrEnum):
    """Roles of administrators, each covering those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    OWNER = "owner"

    def covers(self, other: Role) -> bool:
        """Whether whoever has this role may do what ``other`` may."""
        order = tuple(Role)
        return order.index(self) >= order.index(other)


class Confirm(Enum):
    """What is asked before an action: nothing, yes or no, or the name to be typed."""

    NONE = "none"
    ASK = "ask"
    NAME = "name"


class Result(Enum):
    """What is done with the answer: a word of success, shown once and never again, or described."""

    TOAST = "toast"
    ONCE = "once"
    DESCRIBE = "describe"


class State(StrEnum):
    """How well something is; each has a colour and a mark of its own."""

    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    OFF = "off"


_SPOKEN: Final[Mapping[State, tuple[str, ...]]] = {
    State.GOOD: (
        *("ready", "serving", "active", "up", "ok", "well", "resident", "done", "resolved", "valid"),
        *(
            "linked",
            "on",
            "connected",
            "passed",
            "present",
            "paired",
            "alive",
            "healthy",
            "current",
            "publishing",
        ),
        *("whole", "here", "offered", "apply", "published"),
    ),
    State.BUSY: (
        *("busy", "loading", "running", "acknowledged", "acked", "pending", "waiting", "starting"),
        *(
            "info",
            "queued",
            "invited",
            "rebuilding",
            "fetching",
            "checking",
            "reclaiming",
            "answered",
            "confirmed",
        ),
    ),
    State.WARN: (
        *("draining", "warning", "expired", "suspect", "unfit", "lost", "lagging", "away", "grace"),
        *("not yet", "unsynced", "locked", "degraded", "alone", "held", "declined", "seen"),
    ),
    State.BAD: (
        *("failed", "dead", "down", "open", "critical", "error", "revoked", "quarantined", "invalid"),
        *("refused", "gone"),
    ),
    State.OFF: ("off", "disabled", "unknown", "default", "none", "never connected", "unpaired", "stored"),
}
WORDS: Final[Mapping[str, State]] = {word: state for state, words in _SPOKEN.items() for word in words}
"""How well the states are that gates speak of."""


def state_of(value: Any) -> State | None:
    """How well a state word is; None for one that says nothing about that."""
    return WORDS.get(str(value).lower())


@dataclass(frozen=True, slots=True)
class Column:
    """One column: heading, the key in a record (dots reach into nested ones), how its value is shown.

    ``least`` is the terminal width in cells from which it is shown, ``most`` the width that it takes at most.
    ``state`` marks a state word with its colour and shape.
    """

    heading: str
    key: str
    show: view.Show = view.text
    right: bool = False
    least: int = 0
    most: int = 48
    state: bool = False

    @property
    def words(self) -> bool:
        """Whether its values are words of ours, which are translated."""
        return self.state or enumerated(self.key)

    @property
    def counts(self) -> bool:
        """Whether its values are amounts, whose digits are grouped."""
        return self.right and self.key.rpartition(".")[2] not in NUMBERED

    def cell(self, record: Record) -> str:
        """The value of a record as one line."""
        return " ".join(self.show(at(record, self.key)).split())


def at(record: Record, key: str) -> Any:
    """What a record holds under a dotted key."""
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def columns_of(columns: Iterable[view.Column], **changes: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns that a command prints, for a table here; ``changes`` by key: ``cpu={"least": 120}``."""
    return tuple(
        Column(
            one.heading,
            one.key,
            one.show or view.text,
            one.right,
            **{"state": one.key == "state", **changes.get(one.key, {})},
        )
        for one in columns
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what it is for, and how a command says the same."""

    method: str
    path: str
    body: Any = None
    cli: str = ""
    label: str = ""
    version: str | None = None
    timeout_s: float | None = None
    query: Mapping[str, object] | None = None


def nothing_against(_record: Record) -> str:
    """No reason why not."""
    return ""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done, by key, menu and palette.

    path, cli   templates over the record ("/workers/{name}/drain"); in the path its values are quoted
    against     the reason why it cannot be done to a record, "" where it can
    form        what has to be asked; its values are the request's body where there is no ``body``
    body        makes the request's body from record and values
    query       names of values that go beside the body
    dry         is laid over the body to ask first what would happen; ``planned`` puts that answer in words
    ahead       another request that says what would happen, in place of ``dry``
    plan        says before the question what the values mean
    undo        the request that takes it back, from the record as it was, the values and the answer
    missed      what of it was not done, as lines, from an answer that says so for its parts
    answer      lays the answer out, where it is described
    once        lays out what is shown once, from where the gate is and its answer
    versioned   False: it changes something else than the record, whose version says nothing about that
    matched     True: a POST that takes the version as well, because it ends what was seen
    row         False: it needs no record; ``bulk``: it may be done to all that are marked
    version     the record's field that If-Match names
    opens       a screen of its own in place of all that
    """

    id: str
    key: str
    label: str
    method: str
    path: str
    cli: str
    role: Role = Role.ADMIN
    form: Form | Callable[[Record], Form] | None = None
    body: Callable[[Record, Values], Any] | None = None
    query: tuple[str, ...] = ()
    confirm: Confirm = Confirm.NONE
    question: str = ""
    against: Callable[[Record], str] = nothing_against
    dry: Mapping[str, Any] | None = None
    ahead: Callable[[Record, Values], Call] | None = None
    planned: Callable[[Any], str] | None = None
    plan: Callable[[Record, Values], str] | None = None
    undo: Callable[[Record, Values, Any], Call | None] | None = None
    missed: Callable[[Any], Sequence[str]] | None = None
    done: str = ""
    result: Result = Result.TOAST
    answer: Callable[[Any], Sequence[view.Table]] | None = None
    once: Callable[[Path, Any], Sequence[view.Table]] | None = None
    versioned: bool = True
    matched: bool = False
    row: bool = True
    bulk: bool = True
    name: str = "name"
    version: str = "version"
    timeout_s: float | None = None
    opens: Callable[[Room, Sequence[Record]], None] | None = None

    def asked(self, record: Record) -> Form | None:
        """The form for this record, if one is needed."""
        return self.form(record) if callable(self.form) else self.form

    def draft(self, record: Record, values: Values, form: Form | None) -> Call:
        """The request for one record without its body, while its values are still being typed."""
        return Call(
            self.method,
            filled(self.path, {**record, **values}),
            cli=self.command(record, values, form),
            label=self.label,
        )

    def call(self, record: Record, values: Values, form: Form | None) -> Call:
        """The request for one record."""
        if self.body is not None:
            body = self.body(record, values)
        else:
            sent = [one for one in form.fields if one.name not in self.query] if form is not None else []
            body = body_of(sent, values) if sent else None
        changes = self.versioned and (self.matched or self.method in {"PUT", "PATCH", "DELETE"})
        version = record.get(self.version) if changes else None
        return Call(
            self.method,
            filled(self.path, {**record, **values}),
            body,
            cli=self.command(record, values, form),
            label=self.label,
            version=None if version is None else str(version),
            timeout_s=self.timeout_s,
            query={name: values[name] for name in self.query if values.get(name) is not None} or None,
        )

    def command(self, record: Record, values: Values, form: Form | None) -> str:
        """The command that does the same."""
        words = [filled(self.cli, {**record, **values}, plain=True)]
        if form is not None:
            words += form.words(values)
        return " ".join(word for word in words if word)

    def said(self, records: Sequence[Record]) -> str:
        """The command for what is chosen now, with its name where that is one record."""
        return filled(self.cli, records[0], plain=True) if len(records) == 1 else self.cli

    def subject(self, record: Record) -> str:
        """What a record is called in questions."""
        return str(at(record, self.name) or "") if record else ""


def filled(template: str, record: Record, *, plain: bool = False) -> str:
    """A path or command with a record's values in its places; in a path they are quoted."""
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    given = {name: str(at(record, name) if at(record, name) is not None else "") for name in fields}
    for name, value in given.items():
        template = template.replace("{" + name + "}", value if plain else quote(value, safe=""))
    return template


def items_of(reply: Any) -> Sequence[Record]:
    """The records of a list's answer."""
    found = reply.get("items", ()) if isinstance(reply, Mapping) else reply
    return found if isinstance(found, list) else list(found or ())


def amended(record: Record, change: Record) -> Record:
    """A record with what the feed says has changed of it."""
    return {**record, **change}


@dataclass(frozen=True, slots=True)
class Switch:
    """A key that switches a list between two queries, such as with and without what is over."""

    key: str
    label: str
    query: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TablePane:
    """A list of the control API. ``key`` names a record's identity; ``topic`` is what the feed calls it.

    ``about`` are the kinds of things ("app", "route") whose changes concern it. ``flat`` makes a record's
    nested parts columns; ``one`` is the path of a whole record for its description, which ``tables`` lays
    out; ``drill`` opens another pane for a record in place of the description. ``every`` reloads it each so
    many seconds; 0 not. ``amend`` lays a row of the feed's over a record, where they are not alike.
    ``says`` names the field whose text stands below the rows, of the one under the cursor, where columns are
    cut.
    ``back``: its pages go back in time, as the audit's do: what an answer calls "previous" goes into
    ``before``.
    """

    id: str
    title: str
    path: str
    columns: tuple[Column, ...]
    actions: tuple[Action, ...] = ()
    key: str = "name"
    name: str = "name"
    topic: str = ""
    about: tuple[str, ...] = ()
    every: float = 0.0
    query: Mapping[str, Any] = field(default_factory=dict)
    items: Callable[[Any], Sequence[Record]] = items_of
    flat: Callable[[Record], Record] | None = None
    amend: Callable[[Record, Record], Record] = amended
    one: str = ""
    tables: Callable[[Any], Sequence[view.Table]] | None = None
    drill: Callable[[Record], Pane] | None = None
    switches: tuple[Switch, ...] = ()
    back: bool = False
    sort: str = ""
    says: str = ""
    cli: str = ""
    empty: str = ""


@dataclass(frozen=True, slots=True)
class CardPane:
    """One object of the control API, laid out by ``tables``; its actions get it as their record.

    ``name`` is what it is called in questions.
    """

    id: str
    title: str
    path: str
    tables: Callable[[Any], Sequence[view.Table]]
    actions: tuple[Action, ...] = ()
    topic: str = ""
    about: tuple[str, ...] = ()
    every: float = 0.0
    cli: str = ""


@dataclass(frozen=True, slots=True)
class OwnPane:
    """A pane that draws itself: ``build()`` makes its widget, a PaneView."""

    id: str
    title: str
    build: Callable[[OwnPane], PaneView]
    actions: tuple[Action, ...] = ()
    topic: str = ""
    about: tuple[str, ...] = ()
    cli: str = ""


Pane = TablePane | CardPane | OwnPane


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its name for ``:``, its title, its one key, and its panes, the first of which is shown."""

    id: str
    title: str
    key: str
    panes: tuple[Pane, ...]
    about: str = ""
    page: str = ""

    def actions(self) -> tuple[Action, ...]:
        """Every action of every pane."""
        return tuple(action for pane in self.panes for action in pane.actions)

    def topics(self) -> tuple[str, ...]:
        """The feed's topics that its panes listen to."""
        named = [pane.topic for pane in self.panes if pane.topic]
        changes = [CHANGES for pane in self.panes if pane.about]
        return tuple(dict.fromkeys([*named, *changes]))
