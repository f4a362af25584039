"""The pool as a picture of text: layers with lines between them, or a tree where there are too many. Pure.

Layers stand from left to right: who comes to the gates (other pools, minigates), the gates, what they work
with (workers, providers, databases). A state has a mark of its own beside its colour; a line to what is not
there is dashed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

from meshctl import view
from meshctl.tui.layout import clean
from meshctl.tui.pager import Line, Piece

Say = Callable[..., str]
Node = Mapping[str, Any]

STATES: Final[Mapping[str, tuple[str, str, str]]] = {
    "ok": ("●", "*", "good"),
    "busy": ("◆", "+", "busy"),
    "draining": ("▼", "v", "warn"),
    "suspect": ("▲", "!", "warn"),
    "away": ("○", "o", "off"),
    "gone": ("✖", "x", "bad"),
}
"""Mark, mark in ASCII, and colour of a state, from best to worst."""

TROUBLES: Final = frozenset({"suspect", "away", "gone"})
LAYERS: Final = (("pool", "minigate"), ("gate",), ("worker", "provider", "database"))
KINDS: Final = ("gate", "worker", "minigate", "pool", "provider", "database")
NAMES: Final[Mapping[str, str]] = {
    "pool": "Pools",
    "gate": "Gates",
    "worker": "Workers",
    "minigate": "Minigates",
    "provider": "Providers",
    "database": "Databases",
}
FOLD: Final = 12
"""A kind of more nodes shows only those in trouble until it is unfolded."""
NAME_LEAST: Final = 6
"""Cells of a name that is cut; where there are fewer, the rate goes first."""
BOX: Final = 20
BOX_WIDE: Final = 26

_LINES: Final = {
    (False, False, True, True): "─",
    (True, True, False, False): "│",
    (True, True, True, False): "┤",
    (True, True, False, True): "├",
    (False, True, True, True): "┬",
    (True, False, True, True): "┴",
    (False, True, True, False): "┐",
    (True, False, True, False): "┘",
    (False, True, False, True): "┌",
    (True, False, False, True): "└",
    (True, True, True, True): "┼",
}
"""Box drawing by the directions that are joined: up, down, left, right."""
_PLAIN: Final = str.maketrans("─│┤├┬┴┐┘┌└┼╌▸", "-|+++++++++.>")


@dataclass(frozen=True, slots=True)
class Picture:
    """Lines, and for each that can be chosen its number by the id of its node; ``column`` by id."""

    lines: Sequence[Line]
    places: Mapping[str, int]
    columns: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sight:
    """A document of /topology: ``sought`` keeps what holds that text, ``troubled`` what is unwell. ``told``
    writes a rate in the person's language.
    """

    document: Mapping[str, Any]
    sought: str = ""
    troubled: bool = False
    told: Callable[[str], str] = str
    nodes: Mapping[str, Node] = field(init=False)
    rates: Mapping[str, tuple[float, str]] = field(init=False)

    def __post_init__(self) -> None:
        nodes = {str(one["id"]): one for one in self.document.get("nodes") or ()}
        gates = {id_ for id_, one in nodes.items() if one["kind"] == "gate"}
        kept = {id_: one for id_, one in nodes.items() if id_ in gates or self._kept(one)}
        object.__setattr__(self, "nodes", kept)
        rates: dict[str, tuple[float, str]] = {}
        for edge in self.document.get("edges") or ():
            for end in (str(edge["from"]), str(edge["to"])):
                if end not in gates:
                    rates[end] = (rates.get(end, (0.0, ""))[0] + float(edge["rate"]), str(edge["kind"]))
        object.__setattr__(self, "rates", rates)

    @property
    def own(self) -> Node | None:
        """This pool itself."""
        return next((one for one in self.nodes.values() if is_own(one)), None)

    def _kept(self, node: Node) -> bool:
        if is_own(node):
            return True
        if self.troubled and node["state"] not in TROUBLES:
            return False
        words = self.sought.casefold().strip()
        wanted, inverse = words.removeprefix("!"), words.startswith("!")
        text = f"{node['label']} {node['kind']} {node['state']} {node.get('pool', '')}".casefold()
        return not wanted or (wanted in text) != inverse

    def of(self, kind: str) -> list[Node]:
        """Nodes of a kind without this pool itself, by name."""
        found = [one for one in self.nodes.values() if one["kind"] == kind and not is_own(one)]
        return sorted(found, key=lambda one: str(one["label"]))

    def rate(self, id_: str) -> str:
        """What flows to a node or from it, in words; "" for nothing."""
        rate, kind = self.rates.get(id_, (0.0, ""))
        if not rate:
            return ""
        return self.told(f"{rate:g} conn" if kind == "postgres" else f"{view.size(rate)}/s")


def is_own(node: Node) -> bool:
    """Whether a node is the pool that the picture is of."""
    return bool(node["kind"] == "pool" and not node.get("pool"))


def counted(nodes: Collection[Node]) -> dict[str, int]:
    """How many nodes are in each state, best first; a node that stands for several counts as they are."""
    found = dict.fromkeys(STATES, 0)
    for one in nodes:
        inner = (one.get("detail") or {}).get("states")
        for state, count in (inner or {str(one["state"]): one.get("count", 1)}).items():
            found[state] = found.get(state, 0) + int(count)
    return {state: count for state, count in found.items() if count}


def mark(state: str, *, ascii_only: bool) -> tuple[str, str]:
    """The mark of a state, and the role that colours it."""
    shape, plain, role = STATES.get(state, ("?", "?", "muted"))
    return (plain if ascii_only else shape), role


def legend(nodes: Collection[Node], say: Say, *, ascii_only: bool) -> Line:
    """What the marks mean, with how many there are."""
    pieces: list[Piece] = []
    for state, count in counted(nodes).items():
        shape, role = mark(state, ascii_only=ascii_only)
        pieces += [(f"{shape} ", role), (f"{count} {say(state)}   ", "")]
    return tuple(pieces)


# --- layers


@dataclass(frozen=True, slots=True)
class _Slot:
    """A line of a layer: a heading, or a node."""

    heading: str = ""
    node: Node | None = None


def layered(sight: Sight, width: int, chosen: str, say: Say, *, ascii_only: bool) -> Picture:
    """Left layer, gates, right layer, with lines and rates between; ``width`` in cells, from 60 on."""
    left, right = (_slots(sight, LAYERS[side], say) for side in (0, 2))
    gates = sight.of("gate")
    box = BOX if width < 110 else BOX_WIDE
    side = (width - box) // 2
    height = max(len(left), len(right), len(gates) + 2)
    top = (height - len(gates) - 2) // 2
    own = next((n for n, one in enumerate(gates) if (one.get("detail") or {}).get("this")), 0)
    at = top + 1 + own
    lines: list[Line] = []
    places: dict[str, int] = {}
    columns: dict[str, int] = {}
    for y in range(height):
        pieces: list[Piece] = []
        pieces += _beside(sight, left, y, side, at, chosen, ascii_only, mirrored=False)
        pieces += _middle(sight, gates, y - top, box, at - top, chosen, ascii_only)
        pieces += _beside(sight, right, y, side, at, chosen, ascii_only, mirrored=True)
        lines.append(tuple((_drawn(text, ascii_only), role) for text, role in pieces))
        for column, slots in ((0, left), (2, right)):
            if y < len(slots) and (node := slots[y].node) is not None:
                places[str(node["id"])], columns[str(node["id"])] = y, column
        if 0 < y - top <= len(gates):
            id_ = str(gates[y - top - 1]["id"])
            places[id_], columns[id_] = y, 1
    return Picture(lines, places, columns)


def _slots(sight: Sight, kinds: Sequence[str], say: Say) -> list[_Slot]:
    slots: list[_Slot] = []
    for kind in kinds:
        if nodes := sight.of(kind):
            if slots:
                slots.append(_Slot())
            slots += [_Slot(heading=say(NAMES[kind])), *(_Slot(node=one) for one in nodes)]
    return slots


def _beside(
    sight: Sight,
    slots: Sequence[_Slot],
    y: int,
    width: int,
    at: int,
    chosen: str,
    ascii_only: bool,
    *,
    mirrored: bool,
) -> list[Piece]:
    """One line of the left layer with its trunk; ``mirrored`` for the right one."""
    slot = slots[y] if y < len(slots) else _Slot()
    linked = [n for n, one in enumerate(slots) if one.node is not None]
    first, last = min([at, *linked]), max([at, *linked])
    up, down = first < y <= last, first <= y < last
    if not linked:
        return [(" " * width, "")]
    node = slot.node
    inner, outer = y == at, node is not None
    directions = (up, down, inner if mirrored else outer, outer if mirrored else inner)
    trunk: list[Piece] = [(_LINES.get(directions, "│" if up or down else " "), "muted")]
    joint: list[Piece] = [("─" if inner else " ", "muted")]
    if node is None:
        text: list[Piece] = [(set_cell_size(f"  {slot.heading}" if slot.heading else "", width - 2), "key")]
    else:
        longest = max(cell_len(clean(str(one.node["label"]))) for one in slots if one.node is not None)
        pad = min(longest, width // 2) if mirrored else 0
        text = _node(sight, node, width - 2, chosen, ascii_only, pad=pad, mirrored=mirrored)
    return [*joint, *trunk, *text] if mirrored else [*text, *trunk, *joint]


def _node(
    sight: Sight, node: Node, width: int, chosen: str, ascii_only: bool, *, pad: int, mirrored: bool
) -> list[Piece]:
    id_, state = str(node["id"]), str(node["state"])
    shape, role = mark(state, ascii_only=ascii_only)
    dash = "╌" if state in TROUBLES else "─"
    rate = sight.rate(id_)
    rate = f" {rate} " if rate and width - cell_len(rate) - 2 >= NAME_LEAST + 6 else ""
    label = clean(str(node["label"]))
    most = max(NAME_LEAST, width - cell_len(rate) - 6)
    if cell_len(label) > most:
        label = set_cell_size(label, most - 1) + "~"
    label += " " * max(0, min(pad, most) - cell_len(label))
    here = id_ == chosen
    name: list[Piece] = [
        ("▸" if here else " ", "title"),
        (f"{shape} ", role),
        (f"{label} ", "title" if here else ""),
    ]
    rest = max(0, width - 4 - cell_len(label) - cell_len(rate))
    near, far = (rest - rest // 2, rest // 2) if not mirrored else (rest // 2, rest - rest // 2)
    quiet = role if state in TROUBLES else "muted"
    line: list[Piece] = [(dash * near, quiet), (rate, "busy"), (dash * far, quiet)]
    return [*line, *name] if mirrored else [*name, *line]


def _middle(
    sight: Sight, gates: Sequence[Node], y: int, width: int, at: int, chosen: str, ascii_only: bool
) -> list[Piece]:
    """One line of the box of gates; ``y`` and ``at`` from its top."""
    last = len(gates) + 1
    if y < 0 or y > last:
        return [(" " * width, "")]
    if y == last:
        return [("└" + "─" * (width - 2) + "┘", "muted")]
    if y == 0:
        own = sight.own
        name = clean(str(own["label"])) if own is not None else ""
        name = set_cell_size(name, width - 6) if cell_len(name) > width - 6 else name
        id_ = str(own["id"]) if own is not None else ""
        role = "title" if id_ != chosen else "busy"
        return [("┌─ ", "muted"), (name, role), (" " + "─" * (width - 5 - cell_len(name)) + "┐", "muted")]
    gate = gates[y - 1]
    shape, role = mark(str(gate["state"]), ascii_only=ascii_only)
    here = str(gate["id"]) == chosen
    joined = y == at
    return [
        ("┤" if joined and _has(sight, 0) else "│", "muted"),
        ("▸" if here else " ", "title"),
        (f"{shape} ", role),
        (set_cell_size(clean(str(gate["label"])), width - 5), "title" if here else ""),
        ("├" if joined and _has(sight, 2) else "│", "muted"),
    ]


def _has(sight: Sight, layer: int) -> bool:
    return any(sight.of(kind) for kind in LAYERS[layer])


def _drawn(text: str, ascii_only: bool) -> str:
    return text.translate(_PLAIN) if ascii_only else text


# --- tree


def tree(
    sight: Sight, width: int, chosen: str, unfolded: Collection[str], say: Say, *, ascii_only: bool
) -> Picture:
    """A branch a kind; large ones show only what is in trouble, unless they are ``unfolded``."""
    own = sight.own
    lines: list[Line] = []
    places: dict[str, int] = {}
    if own is not None:
        lines.append(((f"  {clean(str(own['label']))}", "title"),))
    for kind in KINDS:
        nodes = sight.of(kind)
        if not nodes:
            continue
        group = f"group:{kind}"
        whole = len(nodes) <= FOLD or kind in unfolded
        places[group] = len(lines)
        total = sum(int(one.get("count", 1)) for one in nodes)
        here = group == chosen
        head: list[Piece] = [
            ("▸" if here else " ", "title"),
            ("├─ ", "muted"),
            (f"{say(NAMES[kind])} {total}   ", "title" if here else "key"),
        ]
        for state, count in counted(nodes).items():
            shape, role = mark(state, ascii_only=ascii_only)
            head.append((f"{shape} {count}  ", role))
        lines.append(tuple(head))
        shown = nodes if whole else [one for one in nodes if one["state"] in TROUBLES]
        for one in shown:
            places[str(one["id"])] = len(lines)
            lines.append(_leaf(sight, one, width, chosen, say, ascii_only))
        if len(shown) < len(nodes):
            text = say("and {count} that are well: enter shows them", count=len(nodes) - len(shown))
            lines.append((("  │  └─ ", "muted"), (text, "muted")))
    drawn = [tuple((_drawn(text, ascii_only), role) for text, role in line) for line in lines]
    return Picture(drawn, places, dict.fromkeys(places, 0))


def _leaf(sight: Sight, node: Node, width: int, chosen: str, say: Say, ascii_only: bool) -> Line:
    shape, role = mark(str(node["state"]), ascii_only=ascii_only)
    here = str(node["id"]) == chosen
    label = set_cell_size(clean(str(node["label"])), min(40, width - 30))
    return (
        ("▸" if here else " ", "title"),
        (" │  ├─ ", "muted"),
        (f"{shape} ", role),
        (f"{label} ", "title" if here else ""),
        (f"{say(str(node['state'])):<9}", role),
        (sight.rate(str(node["id"])), "busy"),
    )
