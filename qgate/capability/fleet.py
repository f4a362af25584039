"""Everything that requests can run on: nodes, models, the deployment of each model at each node.

Each deployment has a row in columns that decisions read as they are; what changes from moment to moment
(speed, queue, faults) is computed anew where something happened, for that row alone. All times are monotonic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from qgate.capability import columns
from qgate.capability.breaker import Breaker, BreakerLimits
from qgate.capability.candidate import Candidate
from qgate.capability.claims import claimed_speed, load_cost
from qgate.capability.columns import GroupColumns, NodeColumns, Rows
from qgate.capability.deployment import Deployment, Group, Place, bound
from qgate.capability.estimates import Estimate
from qgate.capability.work import NodeKind, Price

if TYPE_CHECKING:
    from qgate.capability.work import Work

BATCH_SLOWDOWN: Final = 0.4
"""How much each further sequence in a batch slows every other: 209 tokens/s alone and 4 x 91 with four, as
llama.cpp showed on two cores."""

ANSWER_TOKENS: Final = 200
"""Tokens of an answer that is queued for, where no request of the deployment was measured."""

PROVIDER_SPEED: Final = 60.0
PROVIDER_FIRST_TOKEN_S: Final = 0.6
"""What a provider's model is taken to do (tokens/s, seconds) until one request was measured."""


class Fleet:
    """Every node and deployment, and what is known of each. `pool` is this gate's own."""

    def __init__(self, *, pool: str = "", limits: BreakerLimits | None = None) -> None:
        self.pool = pool
        self.rows = Rows()
        self.node_columns = NodeColumns()
        self.group_columns = GroupColumns()
        self.nodes: dict[tuple[str, str], Place] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.by_name: dict[str, dict[str, Group]] = {}
        self.epoch = 0  # grows when a group comes or goes
        self.layout = 0  # grows when a row does
        self.deployments: dict[int, Deployment] = {}  # by row
        self.nlp: Deployment | None = None
        self.limits = limits or BreakerLimits()
        self._open: dict[int, Breaker] = {}  # by row: those that wait for their time
        self._open_nodes: dict[int, tuple[Place, Breaker]] = {}
        self._refuted: dict[int, float] = {}

    # --- questions

    def find(self, candidate: Candidate) -> Deployment | None:
        """The deployment behind a candidate, None where it is gone."""
        node = self.nodes.get((candidate.kind, candidate.node))
        return None if node is None else node.deployments.get((candidate.model, candidate.version))

    def candidate(self, row: int, quality: float | None = None) -> Candidate:
        """The deployment of `row` as a candidate, as it is now."""
        deployment = self.deployments[row]
        wanted = deployment.group.quality if quality is None else quality
        shown = deployment.shown
        if shown is None or shown.quality != wanted:
            shown = deployment.shown = deployment.candidate(self.rows, wanted)
        return shown

    def offer(self, deployment: Deployment) -> Candidate:
        """A deployment as a candidate whose changing parts may be old: what a budget looks at."""
        if deployment.offer is None:
            deployment.offer = self.candidate(deployment.row)
        return deployment.offer

    def candidates(self, work: Work | None = None) -> Sequence[Candidate]:
        """Every deployment; with `work` those of its kind. For lists: placing uses the columns."""
        found = (self.candidate(row) for row in sorted(self.deployments))
        if work is None:
            return list(found)
        return [one for one in found if work.kind in one.kinds or work.request.task in one.tasks]

    def reopenings(self) -> list[float]:
        """When each open breaker lets a probe through."""
        nodes = (breaker for _, breaker in self._open_nodes.values())
        return [breaker.until for breaker in (*self._open.values(), *nodes)]

    def models(self) -> Iterator[tuple[str, str, Group]]:
        """Every (name, version, group) that some node has."""
        for (name, version), group in sorted(self.groups.items()):
            yield name, version, group

    def worker_names(self) -> list[str]:
        """Workers that are connected, in order."""
        return sorted(node.name for node in self.nodes.values() if node.kind == "worker" and node.live)

    # --- rows

    def poll(self, now: float) -> None:
        """Let time pass: breakers whose pause is over take a probe."""
        if self._open or self._open_nodes or self._refuted:
            for row in [row for row, breaker in self._open.items() if breaker.poll(now)]:
                self._refresh(self.deployments[row], now)
            for index in [i for i, (_, breaker) in self._open_nodes.items() if breaker.poll(now)]:
                self._weigh(self._open_nodes[index][0])
            for row in [row for row, until in self._refuted.items() if now >= until]:
                self._refresh(self.deployments[row], now)

    def _node(self, kind: NodeKind, name: str) -> Place:
        node = self.nodes.get((kind, name))
        if node is None:
            index = self.node_columns.take()
            node = Place(index, kind, name, name if kind == "pool" else self.pool, Breaker(self.limits))
            node.local = kind not in {"provider", "pool"}
            self.node_columns.slow[index] = 1.0
            self.nodes[kind, name] = node
        return node

    def _add(self, node: Place, name: str, version: str) -> Deployment:
        group = self.groups.get((name, version))
        if group is None:
            group = Group(self.group_columns.take(), name, version)
            self.group_columns.input[group.index] = self.group_columns.output[group.index] = 0
            self.group_columns.quality[group.index] = group.quality
            self.groups[name, version] = group
            self.by_name.setdefault(name, {})[version] = group
            self.epoch += 1
        estimate = node.estimates.get((name, version))
        if estimate is None:
            bound(node.estimates)
            estimate = node.estimates[name, version] = Estimate()
        row = self.rows.take()
        deployment = Deployment(node, group, row, estimate, Breaker(self.limits))
        node.deployments[name, version] = deployment
        group.deployments[row] = deployment
        group.ordered = node.ordered = None
        self.layout += 1
        self.deployments[row] = deployment
        self.rows.node[row] = node.index
        self.rows.fault[row] = self.node_columns.bad[node.index]
        self.rows.slow[row] = self.node_columns.slow[node.index]
        self.rows.group[row] = group.index
        self.rows.load[row] = self.rows.fingerprint[row] = self.rows.tokenizer[row] = 0
        return deployment

    def _remove(self, deployment: Deployment) -> None:
        row, group, node = deployment.row, deployment.group, deployment.node
        del self.deployments[row], group.deployments[row], node.deployments[group.name, group.version]
        group.ordered = node.ordered = None
        self.layout += 1
        self._open.pop(row, None)
        self._refuted.pop(row, None)
        self.rows.bad[row] = columns.DEAD
        self.rows.can[row] = 0
        self.rows.free(row)
        if not group.deployments:
            del self.groups[group.name, group.version]
            versions = self.by_name[group.name]
            del versions[group.version]
            if not versions:
                del self.by_name[group.name]
            self.group_columns.free(group.index)
            self.epoch += 1

    def _drop_named(self, node: Place, name: str) -> None:
        for deployment in [one for one in node.deployments.values() if one.group.name == name]:
            self._remove(deployment)

    def _qualify(self, group: Group, quality: float, price: Price | None) -> None:
        group.quality = min(1.0, max(0.0, quality))
        table, index = self.group_columns, group.index
        table.quality[index] = group.quality
        table.input[index] = float(price.input) / 1e6 if price is not None else 0.0
        table.output[index] = float(price.output) / 1e6 if price is not None else 0.0

    def _priced(self, node: Place, price: Price | None) -> None:
        table, index = self.node_columns, node.index
        table.input[index] = float(price.input) / 1e6 if price is not None else 0.0
        table.output[index] = float(price.output) / 1e6 if price is not None else 0.0

    def _refresh(self, deployment: Deployment, now: float) -> None:
        """Recompute what changes from moment to moment: speed, queue, faults."""
        rows, row, node, state = self.rows, deployment.row, deployment.node, deployment.state
        estimate = deployment.estimate
        if node.kind == "nlp":
            rows.load[row] = estimate.service.value
            self._requeue(deployment, now)
            return
        if node.kind == "provider":
            rows.decode[row] = 1.0 / estimate.speed_of(PROVIDER_SPEED)
            rows.prefill[row] = 0.0  # within the time to its first token
            rows.load[row] = estimate.first_token.value or PROVIDER_FIRST_TOKEN_S
        else:
            trust = node.trust.value
            speed = estimate.speed_of(claimed_speed(state) if state is not None else 0.0, trust)
            prefill = state.prefill_tps if state is not None else 0.0
            rows.decode[row] = 1.0 / speed
            rows.prefill[row] = 1.0 / estimate.prefill_of(prefill, speed, trust)
            if node.kind == "pool" and state is not None:
                load = 0.0 if deployment.resident else load_cost(state, estimate, state.progress)
                rows.load[row] = load + node.distance_s
        deployment.shown = None
        self._requeue(deployment, now)

    def _crowd(self, deployment: Deployment, now: float) -> None:
        """Recompute what an attempt changes by being there."""
        self._requeue(deployment, now)
        node = deployment.node
        if node.kind == "worker" or node.breaker.state != "closed":
            self._weigh(node)

    def _requeue(self, deployment: Deployment, now: float) -> None:
        """Recompute queue and faults."""
        rows, row, node = self.rows, deployment.row, deployment.node
        slots, busy = deployment.slots, deployment.busy
        queue = 0.0
        if slots and busy >= slots:
            service = deployment.estimate.service.value or ANSWER_TOKENS * rows.decode.item(row)
            queue = (busy - slots + 1) / slots * service
        if queue != rows.queue.item(row):
            rows.queue[row] = queue
            deployment.shown = None
        bad = 0
        breaker = deployment.breaker
        if breaker.state == "closed":
            self._open.pop(row, None)
        else:
            bad |= 0 if breaker.lets_pass else columns.BREAKER
            if breaker.state == "open":
                self._open[row] = breaker
            else:
                self._open.pop(row, None)
        if node.refusals:
            refusal = node.refusals.get((deployment.group.name, deployment.group.version))
            if refusal is not None and now < refusal[1]:
                bad |= columns.REFUTED
                self._refuted[row] = refusal[1]
            else:
                self._refuted.pop(row, None)
        elif self._refuted:
            self._refuted.pop(row, None)
        if deployment.broken:
            bad |= columns.BROKEN
        if node.kind == "provider" and slots and deployment.mine >= slots:
            bad |= columns.FULL
        rows.bad[row] = bad

    def _weigh(self, node: Place) -> None:
        """Recompute a node's own columns."""
        table, index = self.node_columns, node.index
        bad = 0 if node.live else columns.DEAD
        bad |= columns.DRAINING if node.draining else 0
        if node.breaker.state != "closed" and not node.breaker.lets_pass:
            bad |= columns.BREAKER
        if node.breaker.state == "open":
            self._open_nodes[index] = (node, node.breaker)
        else:
            self._open_nodes.pop(index, None)
        slow = 1.0
        if node.kind == "worker":
            busy = max(node.running, node.reported)
            slow += BATCH_SLOWDOWN * (min(busy, node.capacity) if node.capacity else busy)
        table.abroad[index] = 0.0 if node.local else 1.0
        if bad == table.bad.item(index) and slow == table.slow.item(index):
            return
        table.bad[index], table.slow[index] = bad, slow
        if node.ordered is None:
            rows = [deployment.row for deployment in node.deployments.values()]
            node.ordered = np.array(rows, np.intp)
        self.rows.fault[node.ordered] = bad
        self.rows.slow[node.ordered] = slow
