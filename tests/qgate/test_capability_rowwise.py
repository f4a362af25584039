"""Judging row by row and by columns: one score, to the bit, on whatever fleet, settings and demand."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.candidate import NlpEngine
from qgate.capability.demand import Demand, demand_of
from qgate.capability.inventory import Inventory
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.scheduler import Plan, Scheduler
from qgate.capability.work import Price, Verdict
from qgate.governance.policy import CapabilityPolicy
from tests.qgate.capability import APP, FakeLedger, model, provided, report, work
from tunnel_proto.messages import Hardware, ModelState

NODES = ("w0", "w1", "w2", "w3")
NAMES = ("m0", "m1", "m2")
CLOUDS = ("c0", "c1")
CLAIMS = st.floats(0.0, allow_nan=False, allow_infinity=False)

MODELS = st.builds(
    lambda name, weights, **changes: model(name, sha256=f"{weights:064x}", **changes),
    name=st.sampled_from(NAMES),
    weights=st.integers(0, 2),
    params=st.sampled_from((0, 135_000_000, 8_000_000_000)),
    state=st.sampled_from(("resident", "stored", "loading", "failed")),
    kinds=st.sampled_from((("chat", "completion"), ("embedding",), ("chat",))),
    engine=st.sampled_from(("llama", "ollama")),
    isolation=st.sampled_from(("", "dedicated", "declared-wiped", "declared-none")),
    context=st.sampled_from((64, 2048, 131_072)),
    tps_predicted=CLAIMS,
    tps_measured=st.sampled_from((0.0, 33.3)),
    prefill_tps=CLAIMS,
    load_s=CLAIMS,
    memory_needed=st.sampled_from((0, 1 << 30, 64 << 30)),
    slots=st.integers(0, 4),
    running=st.integers(0, 6),
    queued=st.integers(0, 6),
    engine_build=st.sampled_from(("b1", "b2")),
    tokenizer_sha=st.sampled_from(("", "ee" * 32)),
)


@st.composite
def fleets(draw: st.DrawFn) -> Inventory:
    """Workers, other pools, providers and the gate's own engine, with a history of attempts."""
    inventory = Inventory(pool=draw(st.sampled_from(("", "main"))))
    for name in draw(st.lists(st.sampled_from(NODES), max_size=6)):
        models: dict[tuple[str, str], ModelState] = {}
        for one in draw(st.lists(MODELS, max_size=4)):
            models[one.name, one.sha256] = one
        told = report(
            name,
            *models.values(),
            full=draw(st.booleans()),
            draining=draw(st.booleans()),
            jobs_running=draw(st.integers(0, 8)),
            hardware=Hardware(memory=16 << 30),
        )
        inventory.workers_changed(name, told, 0.0)
    for name in draw(st.lists(st.sampled_from(("other", "third")), unique=True)):
        offered = {(one.name, one.sha256): one for one in draw(st.lists(MODELS, max_size=4))}
        away_s = draw(st.floats(0.0, 2.0))
        told = report(name, *offered.values(), hardware=None)
        price = Price(Decimal(draw(st.integers(0, 3))), Decimal(1)) if draw(st.booleans()) else None
        inventory.workers_changed(name, told, 0.0, kind="pool", distance_s=away_s, price=price)
    inventory.providers_changed(
        [
            provided(
                name,
                quality=draw(st.floats(0.0, 1.0)),
                local=draw(st.booleans()),
                isolation=draw(st.sampled_from(("declared-none", "declared-shared"))),
                max_parallel=draw(st.integers(0, 2)),
                kinds=frozenset({"chat"}) if draw(st.booleans()) else frozenset({"embedding"}),
            )
            for name in draw(st.lists(st.sampled_from(CLOUDS), unique=True))
        ]
    )
    if draw(st.booleans()):
        inventory.nlp_changed(NlpEngine({"summarize": 0.45, "embed": 0.25}, parallel=2, per_second=900.0))
    for candidate in inventory.candidates():
        act = draw(st.sampled_from(("", "began", "observed", "failed", "refuted", "away")))
        if act == "began":
            inventory.began(candidate, 1.0)
        elif act == "observed":
            inventory.observed(candidate, 1.0, first_token_s=0.3, decode=(50, 1.7), service_s=2.1)
        elif act == "failed":
            for at in range(draw(st.integers(1, 4))):
                inventory.failed(candidate, float(at), "it broke", whole_node=draw(st.booleans()))
        elif act == "refuted":
            inventory.refuted(candidate, 1.0)
        elif act == "away":
            inventory.worker_away(candidate.node, candidate.kind)
    return inventory


@st.composite
def demands(draw: st.DrawFn, inventory: Inventory) -> Demand:
    """A request of any kind, as an app of any policy makes it, at its first place or at a later one."""
    task, kind = draw(st.sampled_from((("chat", "chat"), ("embed", "embedding"), ("summarize", "analysis"))))
    pairs = [f"task={task}"]
    for key, values in {
        "prefer": ("speed", "quality", "cost", "privacy"),
        "model": (*NAMES, "large", f"m0@{1:064x}", "qgate-nlp"),
        "worker": (*NODES, "w9"),
        "pool": ("main", "other"),
        "data": ("local-only",),
        "isolation": ("shared", "dedicated"),
    }.items():
        if draw(st.integers(0, 3)) == 0:
            pairs.append(f"{key}={draw(st.sampled_from(values))}")
    policy = draw(
        st.sampled_from(
            (
                None,
                *[CapabilityPolicy()] * 4,
                CapabilityPolicy(models=("m1*", "large"), providers=frozenset({"c1"})),
                CapabilityPolicy(tasks=frozenset({"chat"}), pools=frozenset({"main"})),
                CapabilityPolicy(pools=frozenset({"other"})),
            )
        )
    )
    asked = work(
        ";".join(pairs),
        kind=kind,  # type: ignore[arg-type]
        text="word " * draw(st.integers(0, 900)),
        app=replace(APP, policy=policy),
        deadline=draw(st.sampled_from((None, 3.0, 60.0))),
    )
    demand = demand_of(asked, ScheduleSettings(), now=2.0)
    known = inventory.candidates()
    changes: dict[str, Any] = {}
    later: bool = draw(st.booleans())
    if known and later:
        one = draw(st.sampled_from(known))
        changes["tried"] = frozenset({one.key, ("worker", "w9", "gone", "")})
        how = draw(st.sampled_from(("", "fingerprint", "tokenizer", "version")))
        if how:
            changes[how] = getattr(one, how)
    return replace(demand, **changes)


SETTINGS = st.builds(
    ScheduleSettings,
    quality_s=st.floats(0.0, 1e5),
    money_s=st.floats(0.0, 1e7),
    pressure_s=st.floats(0.0, 1e5),
    tolerance=st.floats(0.0, 1.0),
    undeclared=st.sampled_from(("deny", "providers", "any")),
)

VERDICTS = st.builds(
    Verdict,
    st.sampled_from(("ok", "prefer-local", "refused")),
    st.sampled_from(("burns fast", "is used up")),
    st.floats(0.0, 1.0),
)


def shown(plan: Plan) -> tuple[object, ...]:
    """A plan with its problem in words."""
    problem = plan.problem
    said = None
    if problem is not None:
        said = (problem.message, problem.code, problem.retry_after_s, dict(problem.detail))
    return (plan.candidates, plan.seconds, plan.shift, plan.soon, said)


@given(st.data())
def test_both_forms_come_to_the_same_bits(data: st.DataObject) -> None:
    inventory = data.draw(fleets())
    demand, settings = data.draw(demands(inventory)), data.draw(SETTINGS)
    ledger = FakeLedger()
    ledger.verdicts = {name: data.draw(VERDICTS) for name in (*CLOUDS, "other", "third")}
    rows = Scheduler(inventory, ledger, few=1000)
    columns = Scheduler(inventory, ledger, few=-1)
    seed = data.draw(st.none() | st.integers(0, 99))
    one, two = (
        by.plan(demand, settings, now=2.0, random=None if seed is None else random.Random(seed))
        for by in (rows, columns)
    )
    assert shown(one) == shown(two)
    # What is explained is what was judged.
    explained = columns.explain(demand, settings, now=2.0)
    taken = {item.candidate: item.seconds for item in explained.items if item.verdict != "refused"}
    assert dict(zip(one.candidates, one.seconds, strict=True)).items() <= taken.items()
    if seed is None:
        assert explained.chosen == (one.candidates[0] if one.candidates else None)
    # And every score of every row, those that were refused too.
    weights = settings.weights(demand.work.request.prefer)
    few = rows._few(demand.work.request.model)
    assert few is not None
    lines, _ = rows._judge_few(few, demand, settings, weights, 2.0)
    judged, _ = columns.judge(demand, settings, now=2.0)
    by_row = {
        int(row): (int(bad), float(score), float(seconds), judged.quality_at(at))
        for at, (row, bad, score, seconds) in enumerate(
            zip(judged.rows, judged.bad, judged.score, judged.seconds, strict=True)
        )
    }
    for at, row in enumerate(lines.rows):
        assert (lines.bad[at], lines.score[at], lines.seconds[at], lines.quality[at]) == by_row[row]
    assert {row for row in by_row if row in inventory.deployments} == set(lines.rows)


def test_what_is_shown_follows_every_change() -> None:
    """A candidate is made once and kept until something of it changes."""
    inventory = Inventory()
    inventory.workers_changed("w0", report("w0", model("m0", state="stored", load_s=8.0)), 0.0)
    (row,) = inventory.deployments
    first = inventory.candidate(row)
    assert inventory.candidate(row) is first
    inventory.load_progress("w0", "m0", 0.75)
    assert inventory.candidate(row).load_cost_s == 2.0
    for _ in range(4):
        inventory.began(first, 0.0)
    assert inventory.candidate(row).queue_s > 0
    assert inventory.candidate(row, 0.9).quality == 0.9
    inventory.workers_changed("w0", report("w0", model("m0", context=4096)), 0.0)
    assert (inventory.candidate(row).resident, inventory.candidate(row).context) == (True, 4096)
