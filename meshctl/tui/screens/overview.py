"""Overview: how the pool is, at a glance, and how that went in the last minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.cells import cell_len
from textual.app import ComposeResult

from meshctl import view
from meshctl.tui import jumping, sections, spark
from meshctl.tui.declare import Action, OwnPane, Record, Role, Section, state_of
from meshctl.tui.fields import t
from meshctl.tui.layout import clean, warning
from meshctl.tui.pager import Line, Pager, Piece, plain
from meshctl.tui.pane import PaneView
from meshctl.tui.screens.audit import AUDIT
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

WIDE: Final = 110
"""From this width on, two columns."""
INCIDENTS_SHOWN: Final = 20
"""Incidents asked for; as many are shown as there is room for."""
TALL: Final = 34
"""From this height on, rates are drawn over several lines."""
BUSIEST_S: Final = 86_400.0
"""Of how long the busiest models and apps are."""
BUSIEST_EVERY_S: Final = 60.0
CERTIFICATES_SHOWN: Final = 4
CHARTS: Final = frozenset({"requests_s", "queries_s", "tokens_s", "errors_s"})

RATES: Final = (
    ("requests_s", t("requests/s")),
    ("queries_s", t("queries/s")),
    ("tokens_s", t("tokens/s")),
    ("errors_s", t("errors/s")),
    ("running", t("running")),
    ("waiting", t("waiting")),
    ("connections", t("connections")),
    ("sessions", t("tunnels")),
)


class OverviewView(PaneView):
    """Draws the overview document; asked for once, then told by the feed."""

    DEFAULT_CSS: ClassVar[str] = "OverviewView > Pager { padding: 0 1; }"

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.document: Mapping[str, Any] | None = None
        self.incidents: Sequence[Mapping[str, Any]] = ()
        self.busiest: dict[str, Sequence[Mapping[str, Any]]] = {}

    def on_mount(self) -> None:
        """Who uses most is asked for rarely."""
        self.set_interval(BUSIEST_EVERY_S, self._on_time)

    def _on_time(self) -> None:
        if self.room.in_front(self):
            self.reload()

    def compose(self) -> ComposeResult:
        """One text."""
        yield Pager()

    async def load(self) -> None:
        """Ask for it, and for the newest incidents."""
        self.document = await self.room.desk.get("/overview")
        self.room.glance(self.document or {})
        reply = await self.room.desk.get("/incidents", {"limit": INCIDENTS_SHOWN})
        self.incidents = reply.get("items", [])[:INCIDENTS_SHOWN]
        self._show()
        since = time.time() - BUSIEST_S
        for by in ("model", "app"):
            with contextlib.suppress(MeshError):  # a gate without it
                reply = await self.room.desk.get(
                    "/usage", {"by": by, "since": since, "limit": 8, "sort": "-requests"}
                )
                self.busiest[by] = reply.get("items", [])
        self._show()

    def told(self, topic: str, data: Any) -> None:
        """The document comes with the news; incidents are asked for when their number changed."""
        if not isinstance(data, Mapping):
            self.reload()
            return
        before = (self.document or {}).get("incidents")
        self.document = data
        self._show()
        if data.get("incidents") != before:
            self.reload()

    def on_resize(self) -> None:
        """Another width, another layout."""
        self._show()

    def _show(self) -> None:
        if self.document is None or not self.is_mounted:
            return
        picture = Picture(self, self.document, self.incidents, time.time(), self.busiest)
        width = max(40, self.size.width - 4)
        head = [*warning(self.problem, width), ()] if self.problem else []
        self.query_one(Pager).fill([*head, *picture.lines(width, self.size.height - len(head))])

    def extract(self) -> tuple[str, str]:
        """As it is drawn."""
        return "overview", self.query_one(Pager).text() + "\n"

    def became_stale(self) -> None:
        """Say why it is not current."""
        if self.document is None:
            self.query_one(Pager).fill(warning(self.problem, self.size.width - 4))
        self._show()

    def became_current(self) -> None:
        """Draw it anew."""
        self._show()


class Picture:
    """The overview as lines; ``now`` in unix seconds."""

    def __init__(
        self,
        pane: PaneView,
        document: Mapping[str, Any],
        incidents: Sequence[Mapping[str, Any]],
        now: float,
        busiest: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._say = pane.say
        self._told = pane.room.catalogue.figures.told
        self._ascii = pane.room.ascii_only
        self._of = document
        self._incidents = incidents
        self._now = now
        self._busiest = busiest

    def lines(self, width: int, height: int) -> list[Line]:
        """All of it, in one column or two; the keys of the sections at the bottom where there is room."""
        left_width = width if width < WIDE else (width - 3) // 2
        right_width = min(left_width, 90)
        tall = 1 if width < WIDE or height < TALL else min(5, 3 + (height - TALL) // 12)
        left = [*self._gate(), (), *self._rates(left_width, tall), (), *self._workers(left_width)]
        right = [
            *self._troubles(INCIDENTS_SHOWN if height >= TALL else 5),
            (),
            *self._burn_down(right_width),
            (),
            *self._certificates(),
            *self._gates(),
        ]
        if width < WIDE:
            return [*left, (), *right, (), *self._busy_ones(left_width), *self._legend(width)]
        right += ((), *self._busy_ones(right_width))
        lines = beside(left, right, left_width)
        legend = self._legend(width)
        free = height - len(lines) - len(legend)
        return [*lines, *([()] * max(1, free)), *legend]

    def _busy_ones(self, width: int) -> list[Line]:
        """Who asked for most in the last day, models and apps."""
        lines: list[Line] = []
        room = max(8, min(24, width - 50))
        titles = {"model": self._say("Busiest models"), "app": self._say("Busiest apps")}
        for by, title in titles.items():
            rows = self._busiest.get(by) or ()
            if not rows:
                continue
            most = max(float(one.get("requests") or 0) for one in rows) or 1.0
            lines.append(((title + "  ", "title"), (self._say("in the last day"), "muted")))
            for one in rows[:5]:
                count = float(one.get("requests") or 0)
                cost = (
                    f"  {self._told(str(one.get('cost')))} {one['currency']}" if one.get("currency") else ""
                )
                lines.append(
                    (
                        (f"  {_left(clean(str(one.get('name') or '-'))[:20], 20)} ", ""),
                        (spark.bar(count / most, room, ascii_only=self._ascii), "busy"),
                        (f" {self._figure(count):>7}", ""),
                        (cost, "muted"),
                    )
                )
            lines.append(())
        return lines

    def _certificates(self, *, soon: bool = False) -> list[Line]:
        """Those that end first; ``soon``: those that have to be renewed now, which are troubles."""
        ends = sorted(
            (
                one
                for one in self._of.get("certificates") or ()
                if one.get("expires_at") and bool(one.get("expiring")) is soon
            ),
            key=lambda one: float(one["expires_at"]),
        )
        lines: list[Line] = []
        for one in ends[:CERTIFICATES_SHOWN]:
            left = view.span(max(0.0, float(one["expires_at"]) - self._now))
            text = self._say("{name} ends in {span}", name=clean(str(one.get("name"))), span=left)
            lines.append(((f"  {text}", "warn" if soon else "muted"),))
        return lines if soon or not lines else [((self._say("Certificates"), "title"),), *lines, ()]

    def _legend(self, width: int) -> list[Line]:
        """Where everything is, for whoever is new here."""
        lines: list[Line] = [()]
        pieces: list[Piece] = []
        used = 0
        for entry in sections.present():
            title = self._say(entry.title)
            size = cell_len(title) + 4
            if used + size > width and pieces:
                lines.append(tuple(pieces))
                pieces, used = [], 0
            pieces += [(entry.key, "key"), (f" {title}  ", "muted")]
            used += size
        return [*lines, tuple(pieces)]

    def _gate(self) -> list[Line]:
        pool, gate, peers = (self._of.get(key) or {} for key in ("pool", "gate", "peers"))
        state = str(gate.get("state", "-"))
        linked = self._say("{up} of {total} peers", up=peers.get("up", 0), total=peers.get("total", 0))
        return [
            (
                (clean(str(pool.get("name", "-"))), "title"),
                (f"  {clean(str(gate.get('name', '-')))} {gate.get('version', '')}  ", ""),
                (self._say(state), _role(state)),
                (f"  {self._say('up {span}', span=view.span(gate.get('uptime_s')))}", "muted"),
                (f"  {linked}", ""),
            )
        ]

    def _rates(self, width: int, tall: int) -> list[Line]:
        series = self._of.get("series") or {}
        names = [(key, self._say(name)) for key, name in RATES]
        label = max(cell_len(name) for _, name in names)
        room = max(10, min(60, width - label - 12))
        lines: list[Line] = []
        for key, name in names:
            values = series.get(key) or []
            value = self._of.get(key)
            if not isinstance(value, int | float):
                value = values[-1] if values else 0
            bad = key == "errors_s" and value > 0
            if tall > 1 and key in CHARTS:
                *above, drawn = spark.area(values, room, tall, ascii_only=self._ascii)
                lines += [((" " * (label + 10), ""), (one, "bad" if bad else "busy")) for one in above]
            else:
                drawn = spark.sparkline(values, room, ascii_only=self._ascii)
            lines.append(
                (
                    (_left(name, label) + " ", "key"),
                    (f"{self._figure(value):>8} ", "bad" if bad else ""),
                    (drawn, "bad" if bad else "busy"),
                )
            )
        return lines

    def _workers(self, width: int) -> list[Line]:
        workers = self._of.get("workers") or {}
        jobs = self._say(
            "{running} of {slots} slots, {queued} wait",
            running=workers.get("jobs_running", 0),
            slots=workers.get("slots", 0),
            queued=workers.get("jobs_queued", 0),
        )
        head = self._say(
            "{serving} of {total} serve", serving=workers.get("serving", 0), total=workers.get("total", 0)
        )
        away = workers.get("away") or 0
        lines: list[Line] = [
            ((self._say("Workers") + "  ", "title"), (head, ""), (f"   {jobs}", "")),
        ]
        if away or workers.get("draining"):
            text = self._say("{away} away, {draining} drain", away=away, draining=workers.get("draining", 0))
            lines.append(((f"  {text}", "warn"),))
        if elsewhere := workers.get("elsewhere"):
            lines.append(((f"  {self._say('{elsewhere} at other pools', elsewhere=elsewhere)}", ""),))
        room = max(10, min(40, width - 36))
        for name, used, total in (
            (
                self._say("memory"),
                (workers.get("memory") or 0) - (workers.get("memory_available") or 0),
                workers.get("memory"),
            ),
            (self._say("VRAM"), workers.get("vram_used") or 0, workers.get("vram")),
        ):
            if total:
                bar = spark.bar(used / total, room, ascii_only=self._ascii)
                lines.append(
                    (
                        (f"  {_left(name, 8)} ", "key"),
                        (bar, "busy"),
                        (f" {self._told(view.size(used))} / {self._told(view.size(total))}", ""),
                    )
                )
        return lines

    def _troubles(self, most: int) -> list[Line]:
        counts = self._of.get("incidents") or {}
        opened, acknowledged = counts.get("open", 0), counts.get("acknowledged", 0)
        lines: list[Line] = [
            (
                (self._say("Incidents") + "  ", "title"),
                (self._say("{count} open", count=opened), "bad" if opened else "good"),
                (f"   {self._say('{count} looked after', count=acknowledged)}", ""),
            )
        ]
        for one in self._incidents[:most]:
            kind = self._say(str(one.get("kind")))
            text = self._say("{label}: {name}", label=kind, name=str(one.get("subject")))
            lines.append(
                (
                    (f"  {one.get('id'):>5} ", "muted"),
                    (f"{self._age(one.get('opened_at')):>9}  ", "muted"),
                    (clean(text), _role(str(one.get("severity")))),
                )
            )
        for name, problem in (self._of.get("problems") or {}).items():
            lines.append(((f"  {clean(name)}: {clean(str(problem))}", "bad"),))
        if store := self._of.get("store"):
            lines.append(((f"  {self._say('the store: {problem}', problem=clean(str(store)))}", "bad"),))
        return [*lines, *self._certificates(soon=True)]

    def _age(self, opened_at: Any) -> str:
        """How long something has been so."""
        if isinstance(opened_at, str):
            try:
                opened_at = datetime.fromisoformat(opened_at).timestamp()
            except ValueError:
                return ""
        if not isinstance(opened_at, int | float):
            return ""
        return self._told(view.span(max(0.0, self._now - opened_at)))

    def _figure(self, value: float) -> str:
        return self._told(_figure(value))

    def _burn_down(self, width: int) -> list[Line]:
        cost = "  ".join(
            f"{self._told(str(one.get('amount')))} {one.get('currency')}"
            for one in self._of.get("cost_today") or ()
        )
        lines: list[Line] = [
            ((self._say("Spent today") + "  ", "title"), (cost or self._say("nothing"), "")),
        ]
        room = max(8, min(24, width - 44))
        for one in self._of.get("burn_down") or ():
            used = one.get("used")
            share = float(used) if isinstance(used, int | float) else None
            role = (
                "bad"
                if share is not None and share >= 1
                else "warn"
                if share is not None and share >= 0.8
                else "good"
            )
            percent = "-" if share is None else self._told(f"{share * 100:.0f}%")
            left = None if one.get("in_time", True) else one.get("ends_in_s")
            lines.append(
                (
                    (f"  {_left(clean(str(one.get('id', '-')))[:18], 18)} ", ""),
                    (spark.bar(share, room, ascii_only=self._ascii), role),
                    (f" {percent:>5}", role),
                    (
                        f"  {self._say('gone in {span}', span=view.span(left))}" if left is not None else "",
                        "warn",
                    ),
                )
            )
        return lines

    def _gates(self) -> list[Line]:
        lines: list[Line] = [((self._say("Gates"), "title"),)]
        for one in self._of.get("gates") or ():
            serving = bool(one.get("serving"))
            lines.append(
                (
                    (f"  {_left(clean(str(one.get('name'))), 20)} ", ""),
                    (
                        self._say("serves") if serving else self._say("not in bundles"),
                        "good" if serving else "warn",
                    ),
                    (f"  {self._say('seen {when}', when=view.moment(one.get('seen_at')))}", "muted"),
                )
            )
        return lines


def beside(left: Sequence[Line], right: Sequence[Line], width: int) -> list[Line]:
    """Two columns, the left one ``width`` cells wide."""
    lines: list[Line] = []
    for number in range(max(len(left), len(right))):
        one: tuple[Piece, ...] = left[number] if number < len(left) else ()
        other: tuple[Piece, ...] = right[number] if number < len(right) else ()
        space = " " * max(1, width + 3 - cell_len(plain(one)))
        lines.append((*one, (space, ""), *other) if other else one)
    return lines


def _role(word: str) -> str:
    state = state_of(word)
    return str(state) if state is not None else ""


def _left(text: str, width: int) -> str:
    return text + " " * max(0, width - cell_len(text))


def _figure(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:.1f}M"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def leads(key: str, label: str, word: str, cli: str) -> Action:
    """A key that goes to where more is known of a part of this picture, as ``:word`` does."""

    def go(room: Room, _records: Sequence[Record]) -> None:
        room.run_worker(jumping.go(room, word), group="move")

    return Action(
        f"overview.{word}", key, label, "GET", f"/{word}", cli, Role.VIEWER, opens=go, row=False, bulk=False
    )


LEADS: Final = (
    leads("w", t("Workers"), "workers", "meshctl worker list"),
    leads("i", t("Incidents"), "incidents", "meshctl incident list"),
    leads("b", t("Budgets"), "budgets", "meshctl budget list"),
    leads("v", t("Receipts"), "receipts", "meshctl receipt list"),
    leads("p", t("Apps"), "apps", "meshctl app list"),
    leads("e", t("Databases"), "databases", "meshctl db list"),
    leads("o", t("Sidecars"), "sidecars", "meshctl sidecar list"),
)

SECTION: Final = Section(
    "overview",
    "Overview",
    "O",
    (
        OwnPane("overview", t("Overview"), OverviewView, LEADS, topic="overview", cli="meshctl status"),
        AUDIT,
    ),
    about=t("How the pool is, at a glance, and how that went in the last minute."),
    page="operations.md",
)
