"""Why a deployment was not taken, in words; and which error a request gets when none is left. Pure."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

import numpy as np

from qgate.capability import columns
from qgate.capability.columns import Bits, Floats, Ints
from qgate.capability.work import Problem
from tunnel_proto.tasks import TASKS

if TYPE_CHECKING:
    from qgate.capability.demand import Demand
    from qgate.capability.inventory import Inventory

PASSING: Final = columns.DEAD | columns.DRAINING | columns.BREAKER | columns.FULL | columns.TRIED
PASSING_TOO: Final = columns.BROKEN | columns.REFUTED
"""Faults that time or another attempt may mend."""

FORBIDDEN: Final = columns.POLICY | columns.PROVIDER | columns.LOCAL | columns.SHARED | columns.DEDICATED

NAMES_COMPARED_MAX: Final = 1000
"""Names of models that a mistyped one is compared with; comparing takes 20 µs each."""

RETRY_S: Final = 2.0
"""Retry-After where nothing says when a node will be back."""

_TEXTS: Final = {
    columns.CHAT: "it does not chat",
    columns.COMPLETION: "it does not complete text",
    columns.EMBEDDING: "it makes no embeddings",
    columns.ANALYSIS: "it does no analysis",
    columns.OBEYS: "it obeys no instructions, turns, tools or schemas",
    columns.LOCAL: "content would leave the company, and data=local-only",
    columns.SHARED: "its engine does not declare that it keeps clients apart",
    columns.DEDICATED: "it cannot give the request a child of its own",
    columns.FITS: "the model needs more memory than the node has",
    columns.DEAD: "the node is not connected",
    columns.DRAINING: "the node is draining",
    columns.BREAKER: "its circuit breaker is open",
    columns.REFUTED: "the node refused this model although it lists it",
    columns.BROKEN: "the model could not be loaded there",
    columns.FULL: "as many requests are under way there as it may have",
    columns.MODEL: "another model was asked for",
    columns.TASK: "it does not do this task",
    columns.POLICY: "the app's policy does not allow it",
    columns.PROVIDER: "the app's policy does not allow this provider",
    columns.POOL: "another pool was asked for",
    columns.WORKER: "another worker was asked for",
    columns.CONTEXT: "its context is too short",
    columns.BUDGET: "a budget does not allow it",
    columns.DEADLINE: "it would not be done by the deadline",
    columns.TRIED: "it was tried already",
    columns.MOVE: "a stream that has begun cannot go on there",
}


def words(inventory: Inventory, demand: Demand, row: int, bad: int, seconds: float) -> tuple[str, ...]:
    """Each fault of one row as a phrase."""
    found = []
    for bit, text in _TEXTS.items():
        if not bad & bit:
            continue
        deployment = inventory.deployments.get(row)
        if bit == columns.CONTEXT:
            text += f" ({int(inventory.rows.context[row])} tokens, the request needs {demand.room})"
        elif bit == columns.DEADLINE and demand.deadline_s is not None:
            text += f" ({seconds:.1f} s predicted, {demand.deadline_s:.1f} s are left)"
        elif deployment is not None and bit == columns.BREAKER:
            why = deployment.breaker.reason or deployment.node.breaker.reason
            text += f" ({why})" if why else ""
        elif deployment is not None and deployment.state is not None:
            if bit == columns.BROKEN and deployment.state.problem:
                text += f" ({deployment.state.problem})"
            elif bit == columns.FITS:
                text += f" ({deployment.state.memory_needed / 2**30:.1f} GiB)"
            elif bit == columns.SHARED:
                text += " (state its isolation in qdaemon.toml)"
        found.append(text)
    return tuple(found)


def refusal(
    inventory: Inventory,
    demand: Demand,
    rows: Ints,
    bad: Bits,
    seconds: Floats,
    now: float,
    budget: str = "",
) -> Problem:
    """The error for a request that nothing can take: what would have to change for the nearest candidate.

    `budget` is what a budget says of the one that would have been taken.
    """
    request = demand.work.request
    alive = np.fromiter((int(row) in inventory.deployments for row in rows), np.bool_, len(rows))
    rows, bad, seconds = rows[alive], bad[alive], seconds[alive]
    if not rows.size:
        if request.model is not None:
            return Problem(
                f"there is no model {request.model!r}",
                code="model_not_found",
                param="model",
                hint=_near(inventory, demand)
                + "GET /v1/models lists what there is; meshctl model list as an administrator",
            )
        return Problem(
            "no worker, provider or engine is connected",
            code="unavailable",
            retry_after_s=RETRY_S,
            hint="meshctl worker list shows the workers; meshctl provider add adds a provider",
        )
    if demand.work.kind != "analysis" and all(
        inventory.deployments[int(row)].node.kind == "nlp" for row in rows
    ):
        return Problem(
            "no model is here that could do this: no worker that is connected has one, and no provider",
            code="unavailable",
            retry_after_s=RETRY_S,
            hint=_simpler(demand)
            + "meshctl worker list shows the workers, meshctl model add gives them a model; "
            "meshctl provider add adds a provider",
        )
    able = bad & ~np.uint32(PASSING | PASSING_TOO)
    reasons = _summary(inventory, demand, rows, bad, seconds)
    if not able.all():
        waiting = bad[able == 0]
        if (waiting & columns.BROKEN).all():
            return Problem(
                "the model could not be loaded on any worker: " + "; ".join(reasons),
                code="unavailable",
                retry_after_s=30.0,
                detail={"reasons": reasons},
            )
        return Problem(
            "nothing that could do this is free or reachable now: " + "; ".join(reasons),
            code="unavailable",
            retry_after_s=_next_probe(inventory, now),
            detail={"reasons": reasons},
        )
    for faults, code, text in (
        (columns.BUDGET, "budget_exceeded", "the budget does not allow this request"),
        (columns.DEADLINE, "deadline_exceeded", "nothing would be done by the deadline"),
        (
            columns.CONTEXT,
            "context_length_exceeded",
            "the input is too long for every model that may be used",
        ),
        (FORBIDDEN, "permission_denied", "the app's policy allows nothing that could do this"),
    ):
        if not (able & ~np.uint32(faults)).all():
            fastest = (
                f" (the fastest needs {float(seconds.min()):.1f} s)" if code == "deadline_exceeded" else ""
            )
            told = budget if code == "budget_exceeded" and budget else "; ".join(reasons)
            return Problem(
                f"{text}{fastest}: {told}",
                code=code,
                param="messages" if code == "context_length_exceeded" else None,
                detail={"reasons": reasons},
                hint=_LESS if code == "budget_exceeded" else _EXPLAIN,
            )
    return Problem(
        "nothing in the mesh can do this: " + "; ".join(reasons),
        code="no_candidate",
        detail={"reasons": reasons},
        hint=_simpler(demand) + _EXPLAIN,
    )


_EXPLAIN = "meshctl route explain shows every candidate and why it was not taken"
_LESS = "a smaller max_tokens lowers what it may cost; meshctl budget list shows the budgets"


def _simpler(demand: Demand) -> str:
    """How the gate's own engine could do it, where that is only kept from it by instructions."""
    if demand.work.kind == "chat" and TASKS[demand.work.request.task].kind == "analysis":
        return "leave out the system prompt, turns, tools and response_format for the gate's own engine; "
    return ""


def _near(inventory: Inventory, demand: Demand) -> str:
    """A question about a name that was mistyped: the nearest of those that the app may know of."""
    policy, asked = demand.work.app.policy, demand.work.request.model or ""
    names = {name for name, _, _ in inventory.models() if policy is None or policy.allows_model(name)}
    near = difflib.get_close_matches(asked, sorted(names)[:NAMES_COMPARED_MAX], 1)
    return f'did you mean "{near[0]}"? ' if near else ""


def _summary(
    inventory: Inventory, demand: Demand, rows: Ints, bad: Bits, seconds: Floats, most: int = 4
) -> list[str]:
    """The reasons of the candidates that lack least; counts and no names, for they go to apps."""
    del inventory, demand, seconds
    faults = np.zeros(rows.size, np.int32)
    for bit in _TEXTS:
        faults += (bad & np.uint32(bit)) != 0
    nearest = bad[faults == faults.min()]
    counted = [(int(((nearest & np.uint32(bit)) != 0).sum()), text) for bit, text in _TEXTS.items()]
    counted = sorted((one for one in counted if one[0]), key=lambda one: -one[0])[:most]
    return [text if count == 1 else f"{text} ({count} candidates)" for count, text in counted]


def _next_probe(inventory: Inventory, now: float) -> float:
    times = inventory.reopenings()
    return max(0.5, min(times) - now) if times else RETRY_S
