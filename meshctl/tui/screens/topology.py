"""Topology: the pool as a graph that lives, its nodes and lines as lists, and the last hour again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widgets import Static

from meshctl import cluster_view, view, worker_view
from meshctl.tui import jumping, sections, spark
from meshctl.tui.declare import Column, OwnPane, Record, Section, TablePane, columns_of
from meshctl.tui.describe import DocumentView
from meshctl.tui.fields import t
from meshctl.tui.layout import clean, warning
from meshctl.tui.pager import Line, Pager
from meshctl.tui.pane import PaneView
from meshctl.tui.screens import graph
from meshctl.tui.screens.graph import Picture, Sight
from tunnel_proto.errors import MeshError

DRAWN_MAX: Final = 36
"""Nodes up to which layers with lines draw well; beyond, a tree."""
NARROWEST: Final = 60
HISTORY_S: Final = 3600
FRAMES: Final = 720
PLAY_S: Final = 0.25
"""A frame of five seconds is shown so long: twenty times as fast as it was."""

PLACES: Final[Mapping[str, str]] = {
    "worker": "workers",
    "pool": "federation",
    "database": "databases",
    "minigate": "sidecars",
    "provider": "providers",
}
"""The section that knows more of a kind of node."""


class GraphPager(Pager, inherit_bindings=False):
    """The picture: arrows go from node to node instead of from line to line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pagedown,ctrl+f", "page(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
    ]

    def reveal(self, line: int) -> None:
        """Scroll so far that a line is seen."""
        top, height = round(self.scroll_y), max(1, self.size.height)
        if line < top + 1:
            self.scroll_to(y=max(0, line - 1), animate=False)
        elif line > top + height - 2:
            self.scroll_to(y=line - height + 2, animate=False)


class GraphView(PaneView):
    """Draws the document of /topology, or a frame of its history."""

    DEFAULT_CSS: ClassVar[str] = """
    GraphView > .graph--line { height: 1; padding: 0 1; color: $text-muted; background: $surface; }
    GraphView > .graph--line.-past { background: $warning 30%; color: $text; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "by(1)", show=False),
        Binding("up,k", "by(-1)", show=False),
        Binding("left,h", "aside(-1)", show=False),
        Binding("right,l", "aside(1)", show=False),
        Binding("home,g", "end(0)", show=False),
        Binding("end", "end(-1)", show=False),
        Binding("enter", "open", show=False),
        Binding("t", "form", show=False),
        Binding("o", "troubled", show=False),
        Binding("p", "play", show=False),
        Binding("b", "step(-1)", show=False),
        Binding("f", "step(1)", show=False),
        Binding("e", "live", show=False),
    ]
    narrows = True

    def __init__(self, pane: OwnPane) -> None:
        super().__init__(pane)
        self.document: Mapping[str, Any] | None = None
        self.chosen_id = ""
        self.sought = ""
        self.only_troubled = False
        self.as_tree: bool | None = None
        self.unfolded: set[str] = set()
        self.frames: Sequence[Mapping[str, Any]] = ()
        self.number = 0
        self.picture = Picture((), {}, {})
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """What time it is there and how all are; the picture; the node that is chosen."""
        yield Static(classes="graph--line", id="when")
        yield GraphPager()
        yield Static(classes="graph--line", id="what")

    async def load(self) -> None:
        """Ask for the graph as it is."""
        self.document = await self.room.desk.get("/topology")
        self._show()

    def told(self, topic: str, data: Any) -> None:
        """The document comes with the news."""
        if isinstance(data, Mapping) and "nodes" in data:
            self.document = data
            if not self.frames:
                self._show()
        elif not self.frames:
            self.reload()

    def on_resize(self) -> None:
        """Another width, another layout."""
        self._show()

    # --- what is shown

    @property
    def past(self) -> bool:
        """Whether what was is shown, instead of what is."""
        return bool(self.frames)

    @property
    def sight(self) -> Sight:
        """The document that is shown, as it is looked at."""
        shown = self.frames[self.number] if self.frames else self.document or {}
        return Sight(shown, self.sought, self.only_troubled, self.room.catalogue.shown)

    def is_tree(self, sight: Sight) -> bool:
        """Whether a tree is drawn: by choice, or because there are too many nodes or too few columns."""
        if self.as_tree is not None:
            return self.as_tree
        return len(sight.nodes) > DRAWN_MAX or self.size.width < NARROWEST

    def _show(self) -> None:
        if not self.is_mounted or not self.children or (self.document is None and not self.frames):
            return
        sight, ascii_only = self.sight, self.room.ascii_only
        width = max(NARROWEST, self.size.width - 4)
        if self.chosen_id not in sight.nodes and not self.chosen_id.startswith("group:"):
            gate = next(iter(sight.of("gate")), None)
            self.chosen_id = str(gate["id"]) if gate is not None else ""
        if self.is_tree(sight):
            self.picture = graph.tree(
                sight, width, self.chosen_id, self.unfolded, self.say, ascii_only=ascii_only
            )
        else:
            self.picture = graph.layered(sight, width, self.chosen_id, self.say, ascii_only=ascii_only)
        lines: list[Line] = [graph.legend(list(sight.nodes.values()), self.say, ascii_only=ascii_only)]
        lines += warning(self.problem, width) if self.problem and not self.frames else [()]
        self.pager.fill([*lines, *self.picture.lines])
        if (place := self.picture.places.get(self.chosen_id)) is not None:
            self.pager.reveal(place + len(lines))
        self._tell(sight)

    @property
    def pager(self) -> GraphPager:
        """The picture's widget."""
        return self.query_one(GraphPager)

    def _tell(self, sight: Sight) -> None:
        when = self.query_one("#when", Static)
        when.set_class(self.past, "-past")
        when.update(clean(self._when()))
        self.query_one("#what", Static).update(clean(self._what(sight)))

    def _when(self) -> str:
        parts = []
        if self.frames:
            frame, last = self.frames[self.number], self.frames[-1]
            before = max(0.0, float(last["at"]) - float(frame["at"]))
            parts.append(
                self.say(
                    "{when}  {span} ago  frame {number} of {count}",
                    when=view.moment(frame["at"]),
                    span=view.span(before),
                    number=self.number + 1,
                    count=len(self.frames),
                )
            )
            parts.append(self._trouble_line())
        else:
            parts.append(self.say("as it is now"))
        if self.sought:
            parts.append(f"/{self.sought}")
        if self.only_troubled:
            parts.append(self.say("only what is in trouble"))
        return "  ".join(parts)

    def _trouble_line(self) -> str:
        """How many were in trouble, over the time that is kept, with the place of the frame that is shown."""
        width = max(8, min(30, self.size.width - 54))
        count = len(self.frames)
        values = []
        for cell in range(width):
            first, past = cell * count // width, max((cell + 1) * count // width, cell * count // width + 1)
            part = self.frames[first:past]
            values.append(float(max((_troubled(one) for one in part), default=0)))
        drawn = spark.sparkline(values, width, ascii_only=self.room.ascii_only)
        place = min(width - 1, self.number * width // count)
        return f"{drawn[:place]}|{drawn[place + 1 :]}"

    def _what(self, sight: Sight) -> str:
        node = sight.nodes.get(self.chosen_id)
        if node is None:
            return self.say("enter folds and unfolds") if self.chosen_id else ""
        detail = {
            name: value
            for name, value in (node.get("detail") or {}).items()
            if value not in (None, "", {}) and name != "this"
        }
        words = self.room.catalogue
        said = "  ".join(
            f"{words.label(name.replace('_', ' '))} {words.fact(name, view.text(value))}"
            for name, value in detail.items()
        )
        kind, state = self.say(str(node["kind"])), self.say(str(node["state"]))
        return f"{node['label']}  {kind}  {state}  {sight.rate(self.chosen_id)}  {said}"

    # --- going about

    def _order(self) -> list[str]:
        return sorted(self.picture.places, key=lambda id_: self.picture.places[id_])

    def _go(self, id_: str) -> None:
        self.chosen_id = id_
        self._show()
        self.room.refresh_bars()

    def action_by(self, by: int) -> None:
        """To the next or the previous node of this layer."""
        columns = self.picture.columns
        here = columns.get(self.chosen_id, 0)
        beside = [id_ for id_ in self._order() if columns[id_] == here]
        if beside:
            at = beside.index(self.chosen_id) if self.chosen_id in beside else 0
            self._go(beside[max(0, min(len(beside) - 1, at + by))])

    def action_aside(self, by: int) -> None:
        """To the nearest node of the layer beside."""
        columns, places = self.picture.columns, self.picture.places
        here = columns.get(self.chosen_id, 0)
        ahead = sorted({one for one in columns.values() if (one - here) * by > 0}, key=lambda one: one * by)
        if ahead:
            line = places.get(self.chosen_id, 0)
            there = [id_ for id_ in places if columns[id_] == ahead[0]]
            self._go(min(there, key=lambda id_: abs(places[id_] - line)))

    def action_end(self, place: int) -> None:
        """To the first node or the last."""
        if order := self._order():
            self._go(order[place])

    def action_open(self) -> None:
        """Into the section that knows more of the node; where there is none, describe it."""
        if self.chosen_id.startswith("group:"):
            self.unfolded ^= {self.chosen_id.removeprefix("group:")}
            self._show()
            return
        if (node := self.front()) is None:
            return
        place = "" if graph.is_own(node) else PLACES.get(str(node["kind"]), "")
        if not place or sections.named(place) is None:
            found = DocumentView(self.pane, crumb=clean(str(node["label"])))
            found.document = {**node, "edges": self._edges(str(node["id"]))}
            self.room.descend(found)
            return
        name = "" if str(node["id"]).endswith(":*") else str(node["label"])
        self.room.run_worker(jumping.go(self.room, f"{place} {name}".strip()), group="move")

    def _edges(self, id_: str) -> list[Mapping[str, Any]]:
        return [one for one in self.sight.document.get("edges") or () if id_ in {one["from"], one["to"]}]

    def action_form(self) -> None:
        """Layers or a tree."""
        self.as_tree = not self.is_tree(self.sight)
        self.chosen_id = self.chosen_id if not self.chosen_id.startswith("group:") else ""
        self._show()

    def action_troubled(self) -> None:
        """Only what is in trouble, or all."""
        self.only_troubled = not self.only_troubled
        self._show()

    def narrow(self, text: str) -> None:
        """Show only what holds a text, or with `!` what does not; the gates stay."""
        self.sought = text
        self._show()

    # --- what was

    def action_step(self, by: int) -> None:
        """A frame back or forward; the first step back asks for what is kept."""
        self._stop()
        if not self.frames:
            if by < 0:
                self.run_worker(self._recall(play=False), group="past", exclusive=True)
            return
        self._frame(self.number + by)

    def action_play(self) -> None:
        """Play what was from where it is, or from the beginning; again to hold it."""
        if self._timer is not None:
            self._stop()
        elif self.frames:
            if self.number >= len(self.frames) - 1:
                self.number = 0
            self._play()
        else:
            self.run_worker(self._recall(play=True), group="past", exclusive=True)

    async def _recall(self, *, play: bool) -> None:
        try:
            reply = await self.room.desk.get("/topology/history", {"seconds": HISTORY_S, "limit": FRAMES})
        except MeshError as error:
            self.room.fail(error)
            return
        frames = reply.get("items") or ()
        if not frames:
            self.room.warn(self.say("Nothing is kept yet: a frame is taken every five seconds."))
            return
        self.frames = frames
        self.number = 0 if play else len(frames) - 1
        if play:
            self._play()
        self._show()
        self.room.refresh_bars()

    def _play(self) -> None:
        self._timer = self.set_interval(PLAY_S, self._next)

    def _next(self) -> None:
        if not self.room.in_front(self):
            return
        if self.number >= len(self.frames) - 1:
            self._stop()
        else:
            self._frame(self.number + 1)

    def _frame(self, number: int) -> None:
        self.number = max(0, min(len(self.frames) - 1, number))
        self._show()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def action_live(self) -> None:
        """Back to what is."""
        self._stop()
        self.frames = ()
        self._show()
        self.room.refresh_bars()
        self.reload()

    # --- what others ask

    def chosen(self) -> Sequence[Record]:
        """The node that is chosen."""
        node = self.sight.nodes.get(self.chosen_id) if self.document or self.frames else None
        return (node,) if node is not None else ()

    def hints(self) -> Sequence[tuple[str, str]]:
        """Its own keys."""
        past = (("p", t("play")), ("b f", t("step")), ("e", t("now"))) if self.past else ()
        replay = () if self.past else (("p", t("replay")), ("b", t("step back")))
        return (*past, *replay, ("t", t("layers or tree")), ("o", t("trouble only")))

    def leave(self) -> bool:
        """What was, a filter, and what hides others, in that order."""
        if self.frames:
            self.action_live()
        elif self.sought:
            self.narrow("")
        elif self.only_troubled:
            self.action_troubled()
        else:
            return False
        return True

    def extract(self) -> tuple[str, str]:
        """As it is drawn."""
        return "topology", self.pager.text() + "\n"

    def became_stale(self) -> None:
        """Say why it is not current."""
        if self.document is None and self.children:
            self.pager.fill(warning(self.problem, self.size.width - 4))
        self._show()

    def became_current(self) -> None:
        """Draw it anew."""
        self._show()


def _troubled(frame: Mapping[str, Any]) -> int:
    return sum(one["state"] in graph.TROUBLES for one in frame.get("nodes") or ())


def _named(edge: Record) -> Record:
    return {**edge, "id": f"{edge['from']} {edge['to']}"}


def _measured(edge: Record) -> Record:
    """A line with what flows in its own unit: bytes a second, or connections that are in use."""
    counted = edge.get("kind") == "postgres"
    return {
        **edge,
        "bytes_s": None if counted else edge.get("rate"),
        "connections": edge.get("rate") if counted else None,
    }


SECTION: Final = Section(
    "topology",
    "Topology",
    "T",
    (
        OwnPane("picture", t("Picture"), GraphView, topic="topology", cli="meshctl topology"),
        TablePane(
            "nodes",
            t("Nodes"),
            "/topology",
            columns_of(
                cluster_view.NODE_COLUMNS, pool={"least": 90}, count={"least": 100}, detail={"most": 100}
            ),
            key="id",
            name="label",
            topic="topology",
            items=lambda reply: reply.get("nodes", ()),
            sort="kind",
            cli="meshctl topology",
        ),
        TablePane(
            "lines",
            t("Lines"),
            "/topology",
            (
                *columns_of(cluster_view.EDGE_COLUMNS[:-1]),
                Column("RATE", "bytes_s", worker_view.rate, right=True),
                Column("IN USE", "connections", right=True),
            ),
            key="id",
            name="id",
            topic="topology",
            items=lambda reply: [_named(one) for one in reply.get("edges", ())],
            flat=_measured,
            sort="-bytes_s",
            cli="meshctl topology --lines",
        ),
    ),
    about=t(
        "The pool as a graph: what is joined to what, how it is, what flows, and how that was for an hour."
    ),
    page="control-api.md",
)
