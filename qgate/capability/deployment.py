"""What the inventory keeps of each model on each node, beside its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.capability import columns
from qgate.capability.breaker import Breaker
from qgate.capability.candidate import Candidate
from qgate.capability.claims import tasks_of
from qgate.capability.columns import Rows
from qgate.capability.estimates import Estimate, Trust
from qgate.capability.work import Kind, NodeKind, Price
from tunnel_proto.messages import Hardware, ModelState

REMEMBERED: Final = 1024
"""Deployments of one node whose measurements are kept."""


@dataclass(slots=True, eq=False)
class Deployment:
    """One model on one node: its row, what is claimed of it, and what was seen."""

    node: Place
    group: Group
    row: int
    estimate: Estimate
    breaker: Breaker
    kinds: frozenset[Kind] = frozenset()
    isolation: str = "declared-none"
    engine: str = ""
    fingerprint: str = ""
    tokenizer: str = ""
    resident: bool = True
    broken: bool = False
    state: ModelState | None = None  # as a worker last reported it
    quality: Mapping[str, float] = field(default_factory=dict)  # by task, of the gate's own engine
    price: Price | None = None
    offer: Candidate | None = None  # as it was when a budget first looked at it
    shown: Candidate | None = None  # as it is, until something changes
    slots: int = 0  # requests at once; 0: no bound known
    reported: int = 0  # running and queued, as the node said
    mine: int = 0  # this gate's own attempts under way
    mine_reported: int = 0  # the same when the node last spoke

    @property
    def busy(self) -> int:
        """Requests there now: what the node said, and what we have sent since."""
        return max(self.mine, self.reported + self.mine - self.mine_reported)

    @property
    def charged(self) -> bool:
        """As `Candidate.charged`."""
        return self.node.kind == "provider" or (self.node.kind == "pool" and self.price is not None)

    def candidate(self, rows: Rows, quality: float) -> Candidate:
        """What it looks like to those who place a request on it."""
        row, node, group = self.row, self.node, self.group
        local = bool(rows.can.item(row) & columns.LOCAL)
        decode, prefill = rows.decode.item(row), rows.prefill.item(row)
        return Candidate(
            kind=node.kind,
            node=node.name,
            model=group.name,
            version=group.version,
            kinds=self.kinds,
            tasks=frozenset(self.quality) if self.quality else tasks_of(self.kinds),
            context=rows.context.item(row),
            resident=self.resident,
            load_cost_s=0.0 if self.resident else rows.load.item(row),
            queue_s=rows.queue.item(row),
            speed=1 / decode if decode else 0.0,
            prefill=1 / prefill if prefill else 0.0,
            quality=quality,
            price=self.price,
            isolation=self.isolation,
            fingerprint=self.fingerprint,
            tokenizer=self.tokenizer,
            local=local,
            data_levels=frozenset({"any", "local-only"} if local else {"any"}),
            pool=node.pool,
            engine=self.engine,
        )


@dataclass(slots=True, eq=False)
class Group:
    """A model's exact version, on however many nodes."""

    index: int
    name: str
    version: str
    kinds: frozenset[Kind] = frozenset()
    quality: float = 0.5
    deployments: dict[int, Deployment] = field(default_factory=dict)  # by row
    ordered: Any = None  # their rows as an array, until one comes or goes


@dataclass(slots=True, eq=False)
class Place:
    """A worker, the gate's engine, a provider or another pool; it stays known when its connection ends."""

    index: int
    kind: NodeKind
    name: str
    pool: str
    breaker: Breaker
    live: bool = False
    draining: bool = False
    local: bool = True
    distance_s: float = 0.0  # the round trip to another pool
    hardware: Hardware | None = None
    deployments: dict[tuple[str, str], Deployment] = field(default_factory=dict)  # by (model, version)
    estimates: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    refusals: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)  # how often, until when
    trust: Trust = field(default_factory=Trust)
    reported: int = 0  # requests of every model, as the node said
    running: int = 0  # this gate's own attempts
    capacity: int = 0
    truncated: int = 0  # models beyond the bound, not looked at
    ordered: Any = None  # its rows as an array, until one comes or goes


def bound(kept: dict[Any, Any]) -> None:
    """Make room for one more of what is remembered: the oldest goes."""
    if len(kept) >= REMEMBERED:
        del kept[next(iter(kept))]
