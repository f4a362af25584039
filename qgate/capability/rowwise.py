"""Judging one row at a time: what `Scheduler.judge` does by columns, for the few candidates of a small fleet.

A call of numpy costs about a microsecond however short its columns are, and judging by columns makes some
fifty; for a handful of rows plain arithmetic is ten times as fast. The operations are the same, in the same
order, on 64-bit floats, so that both forms come to the same bits: which one judged never shows. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qgate.capability import columns

if TYPE_CHECKING:
    from qgate.capability.columns import Bits, Floats
    from qgate.capability.demand import Demand
    from qgate.capability.inventory import Inventory
    from qgate.capability.preferences import Weights
    from qgate.capability.work import Ledger

FEW: Final = 24
"""Candidates up to which one at a time is faster than by columns."""


@dataclass(slots=True)
class Lines:
    """What was judged, by position: `bad` are faults (0: may be used), the rest as in `Judged`."""

    rows: Sequence[int]
    bad: list[int]
    score: list[float]
    seconds: list[float]
    money: list[float]
    quality: list[float]

    def possible(self) -> list[int]:
        """Positions of what may be used, the best first and the lower position first of equals."""
        score = self.score
        found = [at for at, faults in enumerate(self.bad) if not faults and score[at] < math.inf]
        found.sort(key=score.__getitem__)
        return found


def judge(
    inventory: Inventory,
    demand: Demand,
    rows: Sequence[int],
    *,
    need: int,
    waived: int,
    weights: Weights,
    group_bad: Bits,
    rank: Floats | None,
) -> Lines:
    """Filters and score of `rows`, budgets aside (`charge`).

    `need` are ability bits, of which providers are spared `waived`; `group_bad` are faults and `rank` the
    seconds of each group.
    """
    table, nodes, prices = inventory.rows, inventory.node_columns, inventory.group_columns
    work = demand.work
    policy, request = work.app.policy, work.request
    providers = policy.providers if policy is not None else None
    here = columns.POOL if elsewhere(inventory, demand) else 0
    input_tokens, output_tokens, room = demand.input_tokens, demand.output_tokens, demand.room
    deadline_s, tried = demand.deadline_s, demand.tried
    moves = bool(demand.fingerprint or demand.tokenizer or demand.version)
    nlp = inventory.nlp
    own = nlp.quality.get(request.task) if nlp is not None else None
    own_group = nlp.group if nlp is not None and own is not None else None
    lines = Lines(rows, [], [], [], [], [])
    for row in rows:
        deployment = inventory.deployments[row]
        node, group = deployment.node, deployment.group
        at, of = node.index, group.index
        can = table.can.item(row)
        if can & columns.PROVIDED:
            can |= waived
        bad = need & ~can
        bad |= table.bad.item(row) | nodes.bad.item(at) | group_bad.item(of)
        if node.kind != "pool":
            bad |= here
        elif abroad(demand, node.name):
            bad |= columns.POOL
        if request.worker is not None and (node.kind != "worker" or node.name != request.worker):
            bad |= columns.WORKER
        if providers is not None and node.kind == "provider" and node.name not in providers:
            bad |= columns.PROVIDER
        if table.context.item(row) < room:
            bad |= columns.CONTEXT

        seconds = input_tokens * table.prefill.item(row)
        seconds += output_tokens * table.decode.item(row)
        seconds *= nodes.slow.item(at)
        seconds += table.queue.item(row)
        seconds += table.load.item(row)
        if deadline_s is not None and seconds > deadline_s:
            bad |= columns.DEADLINE

        money = input_tokens * prices.input.item(of) + output_tokens * prices.output.item(of)
        quality = own if own is not None and group is own_group else prices.quality.item(of)
        fixed = weights.quality * (1.0 - quality) + weights.money * money
        if rank is not None:
            fixed = fixed + rank.item(of)
        score = weights.time * seconds
        score += fixed
        if node.kind == "pool":
            fee = input_tokens * nodes.input.item(at) + output_tokens * nodes.output.item(at)
            money += fee
            score += weights.money * fee
        if weights.abroad:
            score += weights.abroad * nodes.abroad.item(at)

        if moves:
            if demand.fingerprint:
                same = deployment.fingerprint == demand.fingerprint
            elif demand.tokenizer:
                same = deployment.tokenizer == demand.tokenizer
            else:
                same = group.version == demand.version
            if node.kind == "pool" and not demand.version:
                same = False
            bad |= 0 if same else columns.MOVE
        if tried and (node.kind, node.name, group.name, group.version) in tried:
            bad |= columns.TRIED
        lines.bad.append(bad)
        lines.score.append(score)
        lines.seconds.append(seconds)
        lines.money.append(money)
        lines.quality.append(quality)
    return lines


def elsewhere(inventory: Inventory, demand: Demand) -> bool:
    """Whether another pool than this one is wanted, or this one is not allowed."""
    request, policy, own = demand.work.request, demand.work.app.policy, inventory.pool
    if not own:
        return request.pool is not None and ("pool", request.pool) in inventory.nodes
    pools = policy.pools if policy is not None else None
    return (request.pool is not None and request.pool != own) or (pools is not None and own not in pools)


def abroad(demand: Demand, pool: str) -> bool:
    """Whether the request wants another pool than that one, or its app is not let there."""
    request, policy = demand.work.request, demand.work.app.policy
    pools = policy.pools if policy is not None else None
    return request.pool not in {None, pool} or (pools is not None and pool not in pools)


def charge(inventory: Inventory, ledger: Ledger, demand: Demand, lines: Lines, weights: Weights) -> str:
    """Ask the ledger about every model that costs money and is still possible.

    Returns why the one that would have been taken was held back; "" where that was none of them.
    """
    shift, favourite = "", -1
    for at, row in enumerate(lines.rows):
        deployment = inventory.deployments[row]
        if lines.bad[at] or not deployment.charged or not deployment.node.live:
            continue
        verdict = ledger.verdict(demand.work, inventory.offer(deployment))
        if verdict.action == "ok":
            continue
        if favourite < 0:
            favourite = next(iter(lines.possible()), -1)
        if verdict.action == "refused":
            lines.bad[at] |= columns.BUDGET
        elif verdict.action == "prefer-local":
            lines.score[at] += weights.pressure * max(0.05, min(1.0, verdict.pressure or 1.0))
        if at == favourite:
            shift = verdict.reason
    return shift
