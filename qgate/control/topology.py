"""The pool as a graph: pools, gates, workers, minigates, providers and databases, and what flows between.

    GET /topology            as it is
    GET /topology/history    as it was: a frame each `FRAME_S` for an hour, in memory

A frame is small: while nobody comes or goes it shares the list of nodes with the frame before and holds one
byte of state a node and one number an edge. Of kinds with more than ``collapse`` nodes one node stands for
all, so that a pool of ten thousand workers stays a picture.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from qgate.control.whereabouts import is_elsewhere

if TYPE_CHECKING:
    from qgate.capability.workers import WorkerView
    from qgate.gate import Gate
    from tunnel_proto.link import SessionStats

FRAME_S: Final = 5.0
HISTORY_S: Final = 3600.0
COLLAPSE: Final = 50
COLLAPSE_MAX: Final = 5000

STATES: Final = ("ok", "busy", "draining", "suspect", "away", "gone")
"""From best to worst."""

KINDS: Final = ("pool", "gate", "worker", "minigate", "provider", "database")


class NodeReply(BaseModel):
    """One node. ``count`` is how many it stands for; ``pool`` is empty for this pool's own."""

    id: str
    kind: str
    label: str
    state: str
    pool: str = ""
    count: int = 1
    detail: dict[str, Any] = {}


class EdgeReply(BaseModel):
    """One edge; ``rate`` in bytes of applications a second over the last frame (databases: connections)."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from")
    to: str
    kind: str
    state: str
    rate: float


class TopologyReply(BaseModel):
    """The graph at one moment (unix time)."""

    at: float
    nodes: list[NodeReply]
    edges: list[EdgeReply]


class HistoryReply(BaseModel):
    """Frames, oldest first. ``total`` is how many there are."""

    items: list[dict[str, Any]]
    total: int


@dataclass(slots=True)
class Graph:
    """Nodes and edges by their identity; made anew for each look."""

    at: float
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    edges: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def node(
        self, kind: str, name: str, state: str, *, label: str = "", pool: str = "", **detail: Any
    ) -> str:
        """Add a node; its id."""
        found = f"{kind}:{name}"
        self.nodes[found] = {
            "id": found,
            "kind": kind,
            "label": label or name,
            "state": state,
            "pool": pool,
            "count": 1,
            "detail": detail,
        }
        return found

    def edge(self, from_: str, to: str, kind: str, state: str, rate: float = 0.0) -> None:
        """Add an edge."""
        self.edges[from_, to] = {
            "from": from_,
            "to": to,
            "kind": kind,
            "state": state,
            "rate": round(rate, 1),
        }

    def collapsed(self, most: int) -> Graph:
        """The same with kinds of more than ``most`` nodes folded, the worst of them in front."""
        counts = Counter(one["kind"] for one in self.nodes.values())
        large = {kind for kind, count in counts.items() if count > most}
        if not large:
            return self
        folded = Graph(self.at)
        into: dict[str, str] = {}
        for found, node in self.nodes.items():
            kind = node["kind"]
            if kind not in large:
                folded.nodes[found] = node
                continue
            into[found] = f"{kind}:*"
            one = folded.nodes.setdefault(
                f"{kind}:*",
                {**node, "id": f"{kind}:*", "label": kind, "pool": "", "count": 0, "detail": {"states": {}}},
            )
            one["count"] += 1
            one["label"] = f"{one['count']} {kind}s"
            states = one["detail"]["states"]
            states[node["state"]] = states.get(node["state"], 0) + 1
            one["state"] = worst((one["state"], node["state"]))
        for (from_, to), edge in self.edges.items():
            place = into.get(from_, from_), into.get(to, to)
            held = folded.edges.get(place)
            if held is None:
                folded.edges[place] = {**edge, "from": place[0], "to": place[1]}
            else:
                held["rate"] = round(held["rate"] + edge["rate"], 1)
                held["state"] = worst((held["state"], edge["state"]))
        return folded

    def shown(self) -> dict[str, Any]:
        """As the control API shows it."""
        return {"at": self.at, "nodes": list(self.nodes.values()), "edges": list(self.edges.values())}


def _state_of(view: WorkerView) -> str:
    if view.state != "present":
        return view.state
    if view.draining:
        return "draining"
    return "busy" if 0 < view.slots <= view.jobs_running else "ok"


def _carried(stats: SessionStats) -> int:
    return stats.bytes_app_in + stats.bytes_app_out


def worst(states: Iterable[str]) -> str:
    """The worst of several states."""
    return max(states, key=STATES.index)


@dataclass(frozen=True, slots=True)
class Shape:
    """Which nodes and edges there are; frames of the same shape share it."""

    nodes: tuple[tuple[str, str, str, str], ...]  # id, kind, label, pool
    edges: tuple[tuple[str, str, str], ...]  # from, to, kind


@dataclass(frozen=True, slots=True)
class Frame:
    """The graph at one moment: states as places in `STATES`, in the order of the shape."""

    at: float
    shape: Shape
    nodes: bytes
    edges: bytes
    rates: array[float]

    def shown(self) -> dict[str, Any]:
        """As the control API shows it: like the graph, without details."""
        return {
            "at": self.at,
            "nodes": [
                {"id": id_, "kind": kind, "label": label, "state": STATES[state], "pool": pool}
                for (id_, kind, label, pool), state in zip(self.shape.nodes, self.nodes, strict=True)
            ],
            "edges": [
                {"from": from_, "to": to, "kind": kind, "state": STATES[state], "rate": round(rate, 1)}
                for (from_, to, kind), state, rate in zip(
                    self.shape.edges, self.edges, self.rates, strict=True
                )
            ],
        }


class History:
    """Frames of the last hour."""

    def __init__(self, length: int = int(HISTORY_S / FRAME_S)) -> None:
        self._frames: deque[Frame] = deque(maxlen=length)

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, graph: Graph) -> None:
        """Keep a graph."""
        shape = Shape(
            tuple((one["id"], one["kind"], one["label"], one["pool"]) for one in graph.nodes.values()),
            tuple((one["from"], one["to"], one["kind"]) for one in graph.edges.values()),
        )
        if self._frames and self._frames[-1].shape == shape:
            shape = self._frames[-1].shape
        self._frames.append(
            Frame(
                graph.at,
                shape,
                bytes(STATES.index(one["state"]) for one in graph.nodes.values()),
                bytes(STATES.index(one["state"]) for one in graph.edges.values()),
                array("f", (one["rate"] for one in graph.edges.values())),
            )
        )

    def since(self, at: float, most: int) -> Iterator[Frame]:
        """At most so many frames from unix time ``at`` on, evenly spread, oldest first."""
        frames = [one for one in self._frames if one.at >= at]
        step = max(1, -(-len(frames) // most))
        yield from frames[::-1][::step][::-1]


class Topology:
    """Draws the graph of one gate's view, and remembers it. ``siblings()`` are the pool's gates, ``views()``
    its workers.
    """

    def __init__(
        self,
        gate: Gate,
        siblings: Callable[[], list[dict[str, Any]]],
        views: Callable[[], Mapping[str, WorkerView]],
    ) -> None:
        self._gate = gate
        self._siblings = siblings
        self._views = views
        self.history = History()
        self._bytes: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._measured = 0.0

    def frame(self, now: float) -> None:
        """Measure rates since the last frame and keep one more; ``now`` is monotonic."""
        took = now - self._measured
        gate = self._gate
        counted = {one.id: _carried(one.stats) for one in gate.tunnel.sessions.values()}
        for peer in gate.parts.directory.peers():
            carriers = gate.peering.links.carriers(peer.pool_key)
            counted[f"pool {peer.name}"] = sum(_carried(one.stats) for one in carriers)
        if self._measured and took > 0:
            before = self._bytes
            self._rates = {
                id_: max(0, count - before.get(id_, count)) / took for id_, count in counted.items()
            }
        self._bytes, self._measured = counted, now
        self.history.add(self.graph(COLLAPSE).collapsed(COLLAPSE))

    def graph(self, most: int = COLLAPSE_MAX) -> Graph:
        """The graph as it is now; more than ``most`` workers are counted, and not drawn one by one."""
        gate = self._gate
        directory = gate.parts.directory
        graph = Graph(gate.administration.office.clock())
        own = directory.own_pool()
        here = graph.node("pool", own.name, "ok", kind_of=own.kind)
        state = "draining" if gate.state == "draining" else "busy" if gate.problems() else "ok"
        me = graph.node("gate", gate.settings.name, state, version=gate.version, this=True)
        graph.edge(here, me, "member", state)
        for row in self._siblings():
            if row["name"] != gate.settings.name:
                there = "ok" if row["serving"] else "gone"
                sibling = graph.node("gate", row["name"], there, seen_at=row["seen_at"], this=False)
                graph.edge(here, sibling, "member", there)
        self._add_peers(graph, me)
        self._add_nodes(graph, me, most)
        self._add_providers(graph, me)
        counts = gate.parts.front.pool.counts()
        for name in directory.routes():
            active, idle, waiting = counts.get(name, (0, 0, 0))
            pressed = "busy" if waiting else "ok"
            database = graph.node("database", name, pressed, active=active, idle=idle, waiting=waiting)
            graph.edge(me, database, "postgres", pressed, float(active))
        return graph

    def _add_peers(self, graph: Graph, me: str) -> None:
        gate = self._gate
        for peer in gate.parts.directory.peers():
            if not peer.paired:
                continue
            links = gate.peering.links
            standing = gate.peering.vitals.standing(peer.pool_key)
            up = links.up(peer.pool_key)
            state = "ok" if up else "away"
            if standing is not None and standing.state != "alive":
                state = "suspect" if standing.state == "suspect" else "gone"
            found = graph.node(
                "pool", peer.name, state, pool=peer.name, level=peer.level, rtt_s=links.rtt_s(peer.pool_key)
            )
            graph.edge(me, found, "peering", state, self._rates.get(f"pool {peer.name}", 0.0))

    def _add_nodes(self, graph: Graph, me: str, most: int) -> None:
        gate = self._gate
        label = gate.parts.directory.label
        rates: dict[str, float] = {}
        for session in gate.tunnel.sessions.values():
            role = session.peer.role
            if role not in {"client", "daemon"}:
                continue
            name = label(session.peer)
            rates[name] = rates.get(name, 0.0) + self._rates.get(session.id, 0.0)
            if role == "client":
                state = "ok" if session.connected else "away"
                pool = name.partition("/")[0] if "/" in name else ""
                node = graph.node("minigate", name, state, pool=pool, address=session.address)
                graph.edge(node, me, "tunnel", state, rates[name])
        # One that works at another pool is in that pool's picture.
        views = {name: one for name, one in self._views().items() if not is_elsewhere(one.state)}
        if len(views) > most:
            states = Counter(_state_of(view) for view in views.values())
            worker = graph.node("worker", "*", worst(states), label=f"{len(views)} workers", states=states)
            graph.nodes[worker]["count"] = len(views)
            moved = sum(rate for name, rate in rates.items() if name in views)
            graph.edge(me, worker, "tunnel", worst(states), moved)
            return
        for view in views.values():
            state = _state_of(view)
            worker = graph.node(
                "worker",
                view.name,
                state,
                pool=view.name.partition("/")[0] if "/" in view.name else "",
                jobs_running=view.jobs_running,
                jobs_queued=view.jobs_queued,
                slots=view.slots,
            )
            graph.edge(me, worker, "tunnel", state, rates.get(view.name, 0.0))

    def _add_providers(self, graph: Graph, me: str) -> None:
        places = self._gate.capabilities.inventory.nodes
        for name in self._gate.parts.directory.providers():
            place = places.get(("provider", name))
            state = "ok" if place is None or place.breaker.state == "closed" else "suspect"
            provider = graph.node(
                "provider", name, state, running=place.running if place else 0, models_known=place is not None
            )
            graph.edge(me, provider, "https", state)


def routers(
    topology: Topology, clock: Callable[[], float], refresh: Callable[[], Awaitable[None]]
) -> tuple[APIRouter, ...]:
    """The routes of the graph. ``clock`` gives unix time, ``refresh`` reads what the store knows."""
    router = APIRouter(prefix="/topology", tags=["topology"])

    @router.get("", response_model=TopologyReply)
    async def show_topology(
        collapse: Annotated[int, Query(ge=1, le=COLLAPSE_MAX)] = COLLAPSE,
    ) -> dict[str, Any]:
        """The pool as a graph; of kinds with more than ``collapse`` nodes one node stands for all."""
        await refresh()
        return topology.graph(collapse).collapsed(collapse).shown()

    @router.get("/history", response_model=HistoryReply)
    async def list_topology_history(
        seconds: Annotated[float, Query(ge=1, le=HISTORY_S)] = 300.0,
        limit: Annotated[int, Query(ge=1, le=int(HISTORY_S / FRAME_S))] = 120,
    ) -> dict[str, Any]:
        """The graph of the last ``seconds``, at most ``limit`` frames, evenly spread."""
        frames = [one.shown() for one in topology.history.since(clock() - seconds, limit)]
        return {"items": frames, "total": len(topology.history)}

    return (router,)
