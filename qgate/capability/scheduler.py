"""Where a request goes: filters, one score, an order. Pure; docs/scheduler.md has the formula.

Every deployment is judged by one function, `Scheduler.judge`, over columns: which filters refuse it (bits),
and what it would cost in seconds (predicted time, and quality, money and distance turned into seconds by the
request's preference). Where only few rows can matter `rowwise` does the same, one row at a time, to the same
bits. Placing takes the lowest; `explain` shows the very same numbers with the reasons in words. Among
candidates that are as good as the best, two are drawn and the better is taken (Mitzenmacher's power of two
choices), so that several gates with reports of the same age do not all pick the same node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from qgate.capability import columns, rowwise
from qgate.capability.candidate import MODEL_TASKS, Candidate
from qgate.capability.columns import Bits, Floats, Ints, Places
from qgate.capability.reasons import refusal, words
from qgate.capability.work import Ledger, Problem

if TYPE_CHECKING:
    from qgate.capability.demand import Demand
    from qgate.capability.deployment import Group
    from qgate.capability.inventory import Inventory
    from qgate.capability.preferences import ScheduleSettings, Weights

ORDERED: Final = 6
"""Candidates of a plan: more than a request is ever tried on."""

SLACK_S: Final = 0.01
"""Candidates this close to the best are as good as it, whatever the tolerance."""

RANK_S: Final = 10_000.0
"""Between two embedding models: vectors of different models do not compare, so load never decides."""

CACHED: Final = 64
"""Kinds of request whose groups are kept."""

ALL_MODELS: Final = ("*",)


class Randomness(Protocol):
    """What is drawn from; `random.Random` is one."""

    def randrange(self, stop: int, /) -> int:
        """A number from 0 to `stop` - 1."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Columns over the rows that were looked at: faults (0: may be used), score and its parts.

    `money` and `quality` are by group; `group` says which is a row's.
    """

    rows: Ints
    bad: Bits
    score: Floats
    seconds: Floats
    group: Places
    money: Floats
    quality: Floats

    def quality_at(self, at: int) -> float:
        """The quality of what is at this position."""
        return float(self.quality[self.group[at]])


@dataclass(frozen=True, slots=True)
class Plan:
    """Candidates in the order in which to try them, with their predicted seconds; or why there is none.

    `shift` says which budget kept the request from what would have been taken otherwise. `soon`: some are
    only held back by a breaker or by their bound, so that waiting a little may help.
    """

    candidates: tuple[Candidate, ...] = ()
    seconds: tuple[float, ...] = ()
    problem: Problem | None = None
    shift: str = ""
    soon: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of an explanation. `verdict` is "chosen", "possible" or "refused"; money per request."""

    candidate: Candidate
    verdict: str
    score: float
    seconds: float
    price: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every candidate with its score and why it was or was not taken, the best first."""

    items: tuple[Judgement, ...]
    weights: Weights
    demand: Demand
    chosen: Candidate | None = None
    problem: Problem | None = None
    total: int = 0
    equals: int = 0  # how many are as good as the best


@dataclass(slots=True)
class _Groups:
    """What one kind of request finds in every group; good until a group comes or goes."""

    epoch: int
    bad: Bits
    rank: Floats | None = None
    _layout: int = -1
    _by_row: Bits | None = None

    def by_row(self, inventory: Inventory) -> Bits:
        """The faults of every row's group; good until a row comes or goes."""
        if self._by_row is None or self._layout != inventory.layout:
            self._by_row = self.bad.take(inventory.rows.group[: inventory.rows.high])
            self._layout = inventory.layout
        return self._by_row


@dataclass(slots=True)
class Scheduler:
    """Places requests on what an inventory holds. Up to `few` candidates are judged one by one."""

    inventory: Inventory
    ledger: Ledger
    few: int = rowwise.FEW
    _cache: dict[Any, _Groups] = field(default_factory=dict)

    def plan(
        self, demand: Demand, settings: ScheduleSettings, *, now: float, random: Randomness | None = None
    ) -> Plan:
        """The candidates to try, best first. Without `random` ties go to the lower row."""
        rows = self._few(demand.work.request.model)
        if rows is not None:
            return self._plan_few(rows, demand, settings, now, random)
        judged, shift = self.judge(demand, settings, now=now)
        order, _ = self._order(judged, demand, settings, random)
        if not order:
            return self._refused(judged, demand, now, shift)
        return Plan(
            candidates=tuple(
                self.inventory.candidate(int(judged.rows[at]), judged.quality_at(at)) for at in order
            ),
            seconds=tuple(float(judged.seconds[at]) for at in order),
            shift=shift,
        )

    def _plan_few(
        self,
        rows: Sequence[int],
        demand: Demand,
        settings: ScheduleSettings,
        now: float,
        random: Randomness | None,
    ) -> Plan:
        """`plan` for few rows."""
        weights = settings.weights(demand.work.request.prefer)
        lines, shift = self._judge_few(rows, demand, settings, weights, now)
        order = lines.possible()
        if not order:
            return self._refused(_as_columns(lines), demand, now, shift)
        if random is not None and len(order) > 1:
            score, best = lines.score, order[0]
            limit = score[best] + _slack(settings, weights, lines.seconds[best])
            equals = sorted(at for at in order if score[at] <= limit)
            if len(equals) > 1:
                drawn = (equals[random.randrange(len(equals))], equals[random.randrange(len(equals))])
                best = min(drawn, key=lambda at: (score[at], at))
                order.remove(best)
                order.insert(0, best)
        candidate, quality = self.inventory.candidate, lines.quality
        del order[ORDERED:]
        return Plan(
            candidates=tuple([candidate(rows[at], quality[at]) for at in order]),
            seconds=tuple([lines.seconds[at] for at in order]),
            shift=shift,
        )

    def _refused(self, judged: Judged, demand: Demand, now: float, shift: str) -> Plan:
        soon = bool(((judged.bad & ~np.uint32(columns.BREAKER | columns.FULL)) == 0).any())
        problem = refusal(self.inventory, demand, judged.rows, judged.bad, judged.seconds, now, shift)
        return Plan(problem=problem, soon=soon)

    def explain(
        self, demand: Demand, settings: ScheduleSettings, *, now: float, limit: int = 500
    ) -> Explanation:
        """Judge every deployment there is and say why; the best `limit` of them in words."""
        judged, _ = self.judge(demand, settings, now=now, everything=True)
        order, equals = self._order(judged, demand, settings, None)
        best = order[0] if order else -1
        table = self.inventory.rows
        by_score = np.lexsort((judged.rows, judged.score, judged.bad != 0))
        items = []
        for at in by_score[:limit]:
            at = int(at)
            row, bad = int(judged.rows[at]), int(judged.bad[at])
            if bad & columns.DEAD and row not in self.inventory.deployments:
                continue
            candidate = self.inventory.candidate(row, judged.quality_at(at))
            seconds = float(judged.seconds[at])
            items.append(
                Judgement(
                    candidate=candidate,
                    verdict="chosen" if at == best else "refused" if bad else "possible",
                    score=float(judged.score[at]),
                    seconds=seconds,
                    price=float(judged.money[judged.group[at]] + self._fees(demand)[table.node[row]]),
                    reasons=words(self.inventory, demand, row, bad, seconds),
                )
            )
        problem = None
        if not order:
            problem = refusal(self.inventory, demand, judged.rows, judged.bad, judged.seconds, now)
        return Explanation(
            items=tuple(items),
            weights=settings.weights(demand.work.request.prefer),
            demand=demand,
            chosen=self.inventory.candidate(int(judged.rows[best]), judged.quality_at(best))
            if order
            else None,
            problem=problem,
            total=len(self.inventory.deployments),
            equals=equals,
        )

    def judge(
        self, demand: Demand, settings: ScheduleSettings, *, now: float, everything: bool = False
    ) -> tuple[Judged, str]:
        """Filters and score of every row that can matter (`everything`: of all), and a budget's shift."""
        inventory = self.inventory
        inventory.poll(now)
        table, request = inventory.rows, demand.work.request
        weights = settings.weights(request.prefer)
        rows = self._rows(request.model, everything=everything)
        whole = rows is None
        if rows is None:
            rows = np.arange(table.high, dtype=np.int32)

        def column(values: Any) -> Any:
            return values[: table.high] if whole else values.take(rows)

        group = column(table.group)
        groups = self._groups(demand, everything=everything)
        can = column(table.can)
        need, waived = _needed(demand, settings)
        if waived:
            can = can | ((can & columns.PROVIDED) // (columns.PROVIDED // columns.SHARED))
        bad = np.uint32(need) & ~can
        bad |= column(table.bad)
        bad |= column(table.fault)
        bad |= groups.by_row(inventory) if whole else groups.bad.take(group)
        self._nodes(demand, column, bad)
        bad |= (column(table.context) < demand.room) * np.uint32(columns.CONTEXT)

        seconds = demand.input_tokens * column(table.prefill)
        seconds += demand.output_tokens * column(table.decode)
        seconds *= column(table.slow)
        seconds += column(table.queue)
        seconds += column(table.load)
        if demand.deadline_s is not None:
            bad |= (seconds > demand.deadline_s) * np.uint32(columns.DEADLINE)

        prices = inventory.group_columns
        money = demand.input_tokens * prices.input + demand.output_tokens * prices.output
        quality = self._quality(demand)
        of_group = weights.quality * (1.0 - quality) + weights.money * money
        if groups.rank is not None:
            of_group = of_group + groups.rank
        score = weights.time * seconds
        score += of_group.take(group)
        if inventory.node_columns.output.any() or inventory.node_columns.input.any():
            score += (weights.money * self._fees(demand)).take(column(table.node))
        if weights.abroad:
            score += weights.abroad * inventory.node_columns.abroad.take(column(table.node))
        if demand.fingerprint or demand.tokenizer or demand.version:
            bad |= self._elsewhere(demand, column, group)
        for kind, name, model, version in demand.tried:
            place = inventory.nodes.get((kind, name))
            deployment = place.deployments.get((model, version)) if place is not None else None
            if deployment is not None:
                bad |= (rows == deployment.row) * np.uint32(columns.TRIED)
        shift = self._budgets(demand, rows, bad, score, weights)
        return Judged(rows, bad, score, seconds, group, money, quality), shift

    def _judge_few(
        self, rows: Sequence[int], demand: Demand, settings: ScheduleSettings, weights: Weights, now: float
    ) -> tuple[rowwise.Lines, str]:
        """`judge` for few rows."""
        inventory = self.inventory
        inventory.poll(now)
        groups = self._groups(demand, everything=False)
        need, waived = _needed(demand, settings)
        lines = rowwise.judge(
            inventory,
            demand,
            rows,
            need=need,
            waived=waived,
            weights=weights,
            group_bad=groups.bad,
            rank=groups.rank,
        )
        return lines, rowwise.charge(inventory, self.ledger, demand, lines, weights)

    # --- parts of a judgement

    def _few(self, model: str | None) -> Sequence[int] | None:
        """Rows to look at where they are few, in the order of `_rows`; None: judge by columns."""
        inventory = self.inventory
        if model is None:
            return sorted(inventory.deployments) if len(inventory.deployments) <= self.few else None
        rows: list[int] = []
        for group in named(inventory, model):
            rows += group.deployments
            if len(rows) > self.few:
                return None
        return rows

    def _rows(self, model: str | None, *, everything: bool) -> Any:
        """Rows to look at, None for all of them."""
        if model is None or everything:
            return None
        found = [self._ordered(group) for group in named(self.inventory, model)]
        if not found:
            return np.zeros(0, np.int32)
        return found[0] if len(found) == 1 else np.concatenate(found)

    @staticmethod
    def _ordered(group: Group) -> Any:
        if group.ordered is None:
            group.ordered = np.fromiter(group.deployments, np.int32, len(group.deployments))
        return group.ordered

    def _nodes(self, demand: Demand, column: Callable[[Any], Any], bad: Bits) -> None:
        """Add the faults that nodes have for this request alone."""
        inventory, wanted = self.inventory, demand.work.request.worker
        policy = demand.work.app.policy
        if wanted is not None:
            place = inventory.nodes.get(("worker", wanted))
            other = column(inventory.rows.node) != (-1 if place is None else place.index)
            bad |= other * np.uint32(columns.WORKER)
        here = rowwise.elsewhere(inventory, demand)
        barred_pools = np.full(inventory.node_columns.size, columns.POOL if here else 0, np.uint32)
        for (kind, name), place in inventory.nodes.items():
            if kind == "pool":
                barred_pools[place.index] = columns.POOL if rowwise.abroad(demand, name) else 0
        if barred_pools.any():
            bad |= barred_pools.take(column(inventory.rows.node))
        if policy is not None and policy.providers is not None:
            barred = np.zeros(inventory.node_columns.size, np.uint32)
            for (kind, name), place in inventory.nodes.items():
                if kind == "provider" and name not in policy.providers:
                    barred[place.index] = columns.PROVIDER
            bad |= barred.take(column(inventory.rows.node))

    def _groups(self, demand: Demand, *, everything: bool) -> _Groups:
        """Faults of every group, kept for requests of the same kind."""
        inventory, work = self.inventory, demand.work
        policy, request = work.app.policy, work.request
        patterns = policy.models if policy is not None else ()
        key = (
            patterns,
            None if policy is None else policy.tasks,
            work.kind,
            request.task,
            request.model if everything else None,
        )
        kept = self._cache.get(key)
        if kept is not None and kept.epoch == inventory.epoch:
            return kept
        bad = np.zeros(inventory.group_columns.size, np.uint32)
        named_groups = None
        if everything and request.model is not None:
            named_groups = {group.index for group in named(inventory, request.model)}
        barred = policy is None or (policy.tasks is not None and request.task not in policy.tasks)
        for (name, _), group in inventory.groups.items():
            found = columns.POLICY if barred else 0
            if named_groups is not None and group.index not in named_groups:
                found |= columns.MODEL
            own = inventory.nlp is not None and inventory.nlp.group is group
            # The gate's own engine is no model that a pattern could mean.
            if not own and policy is not None and patterns != ALL_MODELS and not policy.allows_model(name):
                found |= columns.POLICY
            if work.kind == "analysis":
                tasks = inventory.nlp.quality if own and inventory.nlp is not None else MODEL_TASKS
                if request.task not in tasks or not (own or "chat" in group.kinds):
                    found |= columns.TASK
            bad[group.index] = found
        fresh = _Groups(inventory.epoch, bad)
        if work.kind == "embedding":
            fresh.rank = self._ranked()
        if len(self._cache) >= CACHED:
            self._cache.clear()
        self._cache[key] = fresh
        return fresh

    def _ranked(self) -> Floats:
        """Embedding models from the best prior down, by name where that is equal."""
        rank = np.zeros(self.inventory.group_columns.size)
        embedding = [group for group in self.inventory.groups.values() if "embedding" in group.kinds]
        nlp = self.inventory.nlp
        own = nlp.group if nlp is not None else None
        embedding.sort(key=lambda group: (group is own, -group.quality, group.name, group.version))
        for place, group in enumerate(embedding):
            rank[group.index] = place * RANK_S
        return rank

    def _fees(self, demand: Demand) -> Floats:
        """What each node asks for the request, beside its model's own price."""
        nodes = self.inventory.node_columns
        fees: Floats = demand.input_tokens * nodes.input + demand.output_tokens * nodes.output
        return fees

    def _quality(self, demand: Demand) -> Floats:
        quality = self.inventory.group_columns.quality
        nlp = self.inventory.nlp
        if nlp is not None and (own := nlp.quality.get(demand.work.request.task)) is not None:
            quality = quality.copy()
            quality[nlp.group.index] = own
        return quality

    def _elsewhere(self, demand: Demand, column: Callable[[Any], Any], group: Places) -> Bits:
        """Where a stream that has begun cannot go on."""
        table = self.inventory.rows
        if demand.fingerprint:
            other = column(table.fingerprint) != columns.token(demand.fingerprint)
        elif demand.tokenizer:
            other = column(table.tokenizer) != columns.token(demand.tokenizer)
        else:
            same = np.zeros(self.inventory.group_columns.size, np.bool_)
            for (_, version), one in self.inventory.groups.items():
                same[one.index] = version == demand.version
            other = ~same.take(group)
        bits: Bits = other * np.uint32(columns.MOVE)
        return bits

    def _budgets(self, demand: Demand, rows: Ints, bad: Bits, score: Floats, weights: Weights) -> str:
        """Ask the ledger about every model that costs money and is still possible.

        Returns why the one that would have been taken was held back; "" where that was none of them.
        """
        shift, favourite = "", -1
        for place in self.inventory.nodes.values():
            if place.kind not in {"provider", "pool"} or not place.live:
                continue
            for deployment in place.deployments.values():
                if not deployment.charged:
                    continue
                at = np.flatnonzero(rows == deployment.row) if len(rows) != self.inventory.rows.high else None
                index = deployment.row if at is None else int(at[0]) if at.size else -1
                if index < 0 or bad[index]:
                    continue
                verdict = self.ledger.verdict(demand.work, self.inventory.offer(deployment))
                if verdict.action != "ok" and favourite < 0:
                    favourite = int(np.where(bad == 0, score, np.inf).argmin())
                if verdict.action == "refused":
                    bad[index] |= columns.BUDGET
                elif verdict.action == "prefer-local":
                    score[index] += weights.pressure * max(0.05, min(1.0, verdict.pressure or 1.0))
                if index == favourite and verdict.action != "ok":
                    shift = verdict.reason
        return shift

    def _order(
        self, judged: Judged, demand: Demand, settings: ScheduleSettings, random: Randomness | None
    ) -> tuple[list[int], int]:
        """Positions in `judged`, best first, and how many are as good as the best."""
        if not judged.rows.size:
            return [], 0
        left = np.where(judged.bad == 0, judged.score, np.inf)
        best = int(left.argmin())
        if not np.isfinite(left[best]):
            return [], 0
        weights = settings.weights(demand.work.request.prefer)
        slack = _slack(settings, weights, float(judged.seconds[best]))
        equals = np.flatnonzero(left <= left[best] + slack)
        if random is not None and equals.size > 1:
            drawn = (int(equals[random.randrange(equals.size)]), int(equals[random.randrange(equals.size)]))
            best = min(drawn, key=lambda at: (float(left[at]), at))
        most = min(ORDERED, judged.rows.size)
        if equals.size >= most:  # the best of all are among them
            by_score = equals[left[equals].argsort(kind="stable")[: most + 1]]
            following = [int(at) for at in by_score if at != best]
            return [best, *following][:most], int(equals.size)
        order = [best]
        left[best] = np.inf
        while len(order) < most:
            at = int(left.argmin())
            if not left[at] < np.inf:
                break
            order.append(at)
            left[at] = np.inf
        return order, int(equals.size)


def _needed(demand: Demand, settings: ScheduleSettings) -> tuple[int, int]:
    """Ability bits that the request needs, and those that a provider is spared."""
    if not demand.need & columns.SHARED or settings.undeclared == "deny":
        return demand.need, 0
    if settings.undeclared == "any":
        return demand.need & ~columns.SHARED, 0
    return demand.need, columns.SHARED


def _slack(settings: ScheduleSettings, weights: Weights, seconds: float) -> float:
    """By how much a score may be worse than the best one's and still count as equal."""
    return settings.tolerance * weights.time * seconds + SLACK_S


def _as_columns(lines: rowwise.Lines) -> Judged:
    """Lines as columns, each its own group."""
    return Judged(
        np.array(lines.rows, np.int32),
        np.array(lines.bad, np.uint32),
        np.array(lines.score, np.float64),
        np.array(lines.seconds, np.float64),
        np.arange(len(lines.rows)),
        np.array(lines.money, np.float64),
        np.array(lines.quality, np.float64),
    )


def named(inventory: Inventory, model: str) -> Sequence[Group]:
    """The groups that a request's `model` means: a name, or NAME@ and the first digits of a SHA-256."""
    versions = inventory.by_name.get(model)
    if versions is not None:
        return list(versions.values())
    name, at, prefix = model.rpartition("@")
    if not at or len(prefix) < 4:
        return []
    prefix = prefix.lower()
    return [
        group
        for version, group in inventory.by_name.get(name, {}).items()
        if version.lower().startswith(prefix)
    ]
