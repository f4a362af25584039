"""The fleet as it shows itself: by reports of workers, lists of providers, and how requests fared.

What a daemon says is believed within bounds (`estimates`) and only until the gate knows better: speeds that
were measured replace those that were claimed, and a model that a node claims but refuses to serve is left
alone for a while that doubles each time. What was learned of a node outlives its connection, so that a new
one does not clear a bad record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from qgate.capability import columns
from qgate.capability.breaker import BreakerLimits
from qgate.capability.candidate import (
    NLP_MODEL,
    NLP_NODE,
    Candidate,
    NlpEngine,
    ProviderModel,
    exact_class,
    prior_of,
)
from qgate.capability.claims import claimed_speed, fits, isolated, isolation_of, load_cost
from qgate.capability.deployment import Deployment, bound
from qgate.capability.estimates import PREFILL_CLAIM_MAX, SPEED_CLAIM_MAX, plausible
from qgate.capability.fleet import Fleet
from qgate.capability.work import Kind, NodeKind, Price
from tunnel_proto.messages import ModelState

if TYPE_CHECKING:
    from tunnel_proto.messages import Report as InventoryReport

__all__ = ["Candidate", "Inventory", "NlpEngine", "ProviderModel"]

MODELS_PER_WORKER: Final = 512
"""Models of one worker that are looked at; a daemon that lists more is not believed about the rest."""

CRASH_S: Final = 1.0
"""Attempts whose process, link or provider is lost within such a time of each other saw the same loss."""

REFUTED_FIRST_S: Final = 60.0
REFUTED_MOST_S: Final = 3600.0
CONTEXT_MAX: Final = 2**31 - 1

_KINDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "chat": columns.CHAT | columns.OBEYS,
        "completion": columns.COMPLETION,
        "embedding": columns.EMBEDDING,
        "analysis": columns.ANALYSIS,
    }
)


class Inventory(Fleet):
    """The fleet as reports, providers and requests show it. `pool` is this gate's own."""

    def __init__(self, *, pool: str = "", limits: BreakerLimits | None = None) -> None:
        super().__init__(pool=pool, limits=limits)
        self._watchers: list[Callable[[str], None]] = []

    def on_draining(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the name of each worker that begins to drain."""
        self._watchers.append(callback)

    # --- workers

    def workers_changed(
        self,
        name: str,
        report: InventoryReport,
        now: float = 0.0,
        *,
        kind: NodeKind = "worker",
        distance_s: float = 0.0,
        price: Price | None = None,
    ) -> None:
        """Take a worker's report: with `full` its models are all there are, else those that changed.

        Another pool (`kind` "pool") is taken for one worker, a round trip of `distance_s` away, that may
        want `price` for each of its models.
        """
        node = self._node(kind, name)
        node.distance_s = distance_s
        self._priced(node, price)
        if report.hardware is not None:
            node.hardware = report.hardware
        came = not node.live
        drains = report.draining and not node.draining
        node.live = True
        node.draining = report.draining
        node.reported = report.jobs_running + report.jobs_queued
        node.capacity = report.slots
        seen: set[tuple[str, str]] = set()
        node.truncated = max(0, len(report.models) - MODELS_PER_WORKER)
        for model in report.models[:MODELS_PER_WORKER]:
            key = (model.name, model.sha256)
            seen.add(key)
            deployment = node.deployments.get(key)
            if deployment is None:
                if not report.full:
                    # The same name with other bytes replaces what had it.
                    self._drop_named(node, model.name)
                if len(node.deployments) >= MODELS_PER_WORKER and not report.full:
                    node.truncated += 1
                    continue
                deployment = self._add(node, model.name, model.sha256)
            if deployment.price != price:
                deployment.price, deployment.offer, deployment.shown = price, None, None
            self._describe(deployment, model)
            self._refresh(deployment, now)
        if report.full:
            for key in [key for key in node.deployments if key not in seen]:
                self._remove(node.deployments[key])
        else:
            for gone in report.gone:
                self._drop_named(node, gone)
        if came:
            for deployment in node.deployments.values():
                self._refresh(deployment, now)
        self._weigh(node)
        for callback in self._watchers if drains else ():
            callback(name)

    def learned(self, name: str, model: str, version: str, *, speed: float, prefill: float) -> None:
        """What another pool measured of a worker of its own counts as one observation, where we have none."""
        node = self.nodes.get(("worker", name))
        deployment = node.deployments.get((model, version)) if node is not None else None
        if deployment is None or deployment.estimate.speed.count:
            return
        if speed := plausible(speed, SPEED_CLAIM_MAX):
            deployment.estimate.speed.observe(speed)
        if prefill := plausible(prefill, PREFILL_CLAIM_MAX):
            deployment.estimate.prefill.observe(prefill)
        self._refresh(deployment, 0.0)

    def load_progress(self, name: str, model: str, share: float, now: float = 0.0) -> None:
        """A load goes on: what is left of it costs less."""
        node = self.nodes.get(("worker", name))
        for deployment in node.deployments.values() if node else ():
            if deployment.group.name == model and not deployment.resident and deployment.state is not None:
                self.rows.load[deployment.row] = load_cost(deployment.state, deployment.estimate, share)
                deployment.shown = None
        del now

    def worker_away(self, name: str, kind: NodeKind = "worker") -> None:
        """It is silent: it takes no new work until its next report."""
        node = self.nodes.get((kind, name))
        if node is not None:
            node.live = False
            self._weigh(node)

    def worker_gone(self, name: str, kind: NodeKind = "worker") -> None:
        """Its connection is over; what was learned of it stays."""
        node = self.nodes.get((kind, name))
        if node is None:
            return
        node.live = False
        for deployment in list(node.deployments.values()):
            self._remove(deployment)
        self._weigh(node)

    def _describe(self, deployment: Deployment, model: ModelState) -> None:
        """Write down what a worker says of one model."""
        rows, row, before = self.rows, deployment.row, deployment.state
        deployment.state = model
        deployment.reported = model.running + model.queued
        deployment.mine_reported = deployment.mine
        if before is not None and before == model:
            return
        deployment.slots = model.slots
        deployment.resident = model.state in {"resident", "external"}
        deployment.broken = model.state == "failed"
        deployment.engine = model.engine
        deployment.isolation = isolation_of(model)
        deployment.fingerprint = exact_class(model)
        deployment.tokenizer = model.tokenizer_sha if model.engine == "llama" else ""
        deployment.kinds = frozenset(cast("Kind", kind) for kind in model.kinds if kind in _KINDS)
        can = sum(_KINDS[kind] for kind in deployment.kinds) | isolated(deployment.isolation)
        can |= columns.LOCAL if deployment.node.local else 0
        # Our own runtime gives a request a child of its own where it is asked to.
        can |= columns.DEDICATED if model.engine == "llama" else 0
        can |= columns.FITS if deployment.resident or fits(model, deployment.node.hardware) else 0
        rows.can[row] = can
        rows.context[row] = min(model.context or model.context_train or CONTEXT_MAX, CONTEXT_MAX)
        if deployment.node.kind != "pool":  # a stream may go on after it, and never at it
            rows.fingerprint[row] = columns.token(deployment.fingerprint)
            rows.tokenizer[row] = columns.token(deployment.tokenizer)
        left = 0.0 if deployment.resident else load_cost(model, deployment.estimate, model.progress)
        rows.load[row] = left
        if before is None:
            group = deployment.group
            group.kinds |= deployment.kinds
            if len(group.deployments) == 1 or not group.quality:
                self._qualify(group, prior_of(model.params, model.quant), None)

    # --- the gate's own engine, and providers

    def nlp_changed(self, engine: NlpEngine | None) -> None:
        """The gate's own engine came, changed, or went."""
        node = self._node("nlp", NLP_NODE)
        for deployment in list(node.deployments.values()):
            self._remove(deployment)
        self.nlp = None
        node.live = engine is not None
        if engine is not None:
            deployment = self._add(node, NLP_MODEL, engine.version)
            deployment.kinds = frozenset(
                {"analysis", "embedding"} if "embed" in engine.quality else {"analysis"}
            )
            deployment.isolation = "dedicated"
            deployment.quality = dict(engine.quality)
            deployment.slots = engine.parallel
            node.capacity = engine.parallel
            if not deployment.estimate.service.count:
                deployment.estimate.service.value = engine.parallel / engine.per_second
            rows, row = self.rows, deployment.row
            rows.can[row] = columns.LOCAL | columns.SHARED | columns.DEDICATED | columns.FITS
            rows.can[row] |= sum(_KINDS[kind] for kind in deployment.kinds)
            rows.context[row] = min(CONTEXT_MAX, engine.input_max)
            deployment.group.kinds = deployment.kinds
            self.nlp = deployment
            rows.decode[row] = rows.prefill[row] = rows.queue[row] = 0.0
            self._refresh(deployment, 0.0)
        self._weigh(node)

    def providers_changed(self, models: Sequence[ProviderModel]) -> None:
        """Every model of every provider, as it is now; what is missing is gone."""
        wanted: dict[tuple[str, str, str], ProviderModel] = {
            (one.provider, one.model, one.version): one for one in models
        }
        for node in [node for node in self.nodes.values() if node.kind == "provider"]:
            for (name, version), deployment in list(node.deployments.items()):
                if (node.name, name, version) not in wanted:
                    self._remove(deployment)
            node.live = bool(node.deployments)
        for one in wanted.values():
            node = self._node("provider", one.provider)
            node.live = True
            node.local = one.local
            deployment = node.deployments.get((one.model, one.version)) or self._add(
                node, one.model, one.version
            )
            deployment.kinds = one.kinds
            deployment.isolation = one.isolation
            deployment.price = one.price
            deployment.offer = None
            deployment.slots = one.max_parallel
            rows, row = self.rows, deployment.row
            rows.can[row] = columns.FITS | columns.PROVIDED | isolated(one.isolation)
            rows.can[row] |= (columns.LOCAL if one.local else 0) | sum(_KINDS[kind] for kind in one.kinds)
            rows.context[row] = min(one.context or CONTEXT_MAX, CONTEXT_MAX)
            deployment.group.kinds = one.kinds
            self._qualify(deployment.group, one.quality, one.price)
            self._refresh(deployment, 0.0)
        for node in self.nodes.values():
            if node.kind == "provider":
                self._weigh(node)

    # --- what requests show

    def began(self, candidate: Candidate, now: float) -> None:
        """An attempt starts there."""
        deployment = self.find(candidate)
        if deployment is not None:
            deployment.mine += 1
            deployment.node.running += 1
            deployment.breaker.began()
            deployment.node.breaker.began()
            self._crowd(deployment, now)

    def ended(self, candidate: Candidate, now: float) -> None:
        """An attempt is over there, however it went."""
        deployment = self.find(candidate)
        if deployment is not None:
            deployment.mine = max(0, deployment.mine - 1)
            deployment.node.running = max(0, deployment.node.running - 1)
            deployment.breaker.abandoned()
            deployment.node.breaker.abandoned()
            self._crowd(deployment, now)

    def observed(
        self,
        candidate: Candidate,
        now: float,
        *,
        first_token_s: float | None = None,
        prompt_tokens: int = 0,
        decode: tuple[int, float] | None = None,
        service_s: float | None = None,
    ) -> None:
        """An attempt succeeded there; what it showed replaces what was claimed. Times in seconds."""
        deployment = self.find(candidate)
        if deployment is None:
            return
        slow = float(self.node_columns.slow[deployment.node.index])
        alone = (decode[0], decode[1] / slow) if decode is not None else None
        prefill = (prompt_tokens, first_token_s / slow) if first_token_s and not deployment.busy > 1 else None
        estimate = deployment.estimate
        estimate.observe(now, first_token_s=first_token_s, decode=alone, prefill=prefill, service_s=service_s)
        if deployment.state is not None and alone is not None and estimate.speed.count:
            deployment.node.trust.observe(estimate.speed.value, claimed_speed(deployment.state))
        deployment.breaker.succeeded()
        deployment.node.breaker.succeeded()
        deployment.node.refusals.pop((candidate.model, candidate.version), None)
        self._refresh(deployment, now)
        self._weigh(deployment.node)

    def failed(
        self,
        candidate: Candidate,
        now: float,
        reason: str,
        *,
        whole_node: bool = False,
        retry_after_s: float | None = None,
        crashed: bool = False,
    ) -> None:
        """An attempt failed there through no fault of its own; `crashed`: a process died, and all in it."""
        deployment = self.find(candidate)
        if deployment is None:
            return
        apart_s = CRASH_S if crashed or whole_node else 0.0
        deployment.breaker.failed(now, reason, retry_after_s=retry_after_s, apart_s=apart_s)
        if whole_node:
            deployment.node.breaker.failed(now, reason, retry_after_s=retry_after_s, apart_s=apart_s)
        self._refresh(deployment, now)
        self._weigh(deployment.node)

    def refuted(self, candidate: Candidate, now: float) -> None:
        """The node refused a model that it claims to have, or served another in its place."""
        node = self.nodes.get((candidate.kind, candidate.node))
        if node is None:
            return
        key = (candidate.model, candidate.version)
        count = node.refusals.get(key, (0, 0.0))[0] + 1
        pause = min(REFUTED_FIRST_S * 2.0 ** min(count - 1, 16), REFUTED_MOST_S)
        bound(node.refusals)
        node.refusals[key] = (count, now + pause)
        deployment = node.deployments.get(key)
        if deployment is not None:
            self._refresh(deployment, now)
