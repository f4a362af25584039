"""How long a decision takes with 1,000 workers of 50 models each, while reports come in.

Between two decisions a worker reports (its load and two changed models), an attempt begins and one ends, so
that every decision reads columns that have just changed. Requests take turns: a named model, a pinned one,
any model of the task, with a policy of patterns, local-only, with a deadline, and an explanation. The aim is
1 ms for a decision at the 99th percentile. Times are CPU time of the thread, since a decision never waits;
what passes on the clock is shown beside it and holds whatever else the machine did.

    python -m tests.bench.scheduler
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial

from qgate.capability.candidate import Candidate, NlpEngine, ProviderModel
from qgate.capability.demand import demand_of
from qgate.capability.inventory import Inventory
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.scheduler import Plan, Scheduler
from qgate.capability.work import Price, Reservation, Usage, Verdict, Work
from qgate.governance.directory import App
from qgate.governance.policy import CapabilityPolicy
from tunnel_proto.messages import Hardware, ModelState, Report
from tunnel_proto.request import parse

AIM_S = 0.001


class FreeLedger:
    """Budgets that allow everything and ask for some care."""

    def verdict(self, work: Work, candidate: Candidate) -> Verdict:
        """Every fourth model is to be spared."""
        del work
        return Verdict("prefer-local", "burning fast", 0.3) if len(candidate.model) % 4 == 0 else Verdict()

    def reserve_at_once(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation | None:
        """Nothing is reserved here."""
        raise NotImplementedError

    async def reserve(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation:
        """Nothing is reserved here."""
        raise NotImplementedError

    def upper_bound(self, work: Work, candidate: Candidate, max_tokens: int | None = None) -> Decimal:
        """As if nothing cost anything."""
        del work, candidate, max_tokens
        return Decimal(0)

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Nothing is settled here."""

    def price(self, candidate: Candidate) -> Price | None:
        """As it is listed."""
        return candidate.price


def model(number: int, seed: random.Random, *, changed: float = 0.0) -> ModelState:
    """One model of a worker, resident on one worker in five."""
    resident = seed.random() < 0.2
    return ModelState(
        name=f"model-{number:02}",
        sha256=f"{number:064x}",
        family=f"family-{number // 5}",
        quant="Q4_K_M",
        size=4_000_000_000,
        params=8_000_000_000,
        context=8192 if number % 3 else 32_768,
        tokenizer_sha=f"{number // 5:064x}",
        template_sha=f"{number:064x}",
        kinds=("chat", "completion"),
        engine_build="b1",
        state="resident" if resident else "stored",
        memory_needed=6_000_000_000,
        tps_predicted=10 + 40 * seed.random() + changed,
        prefill_tps=300.0,
        slots=4,
        running=seed.randrange(4) if resident else 0,
        load_s=8.0,
    )


def full(worker: int, models: int, seed: random.Random) -> Report:
    """A worker's first report."""
    return Report(
        worker=f"worker-{worker:04}",
        seq=0,
        full=True,
        hardware=Hardware(memory=64_000_000_000),
        models=tuple(model(number, seed) for number in range(models)),
        jobs_running=seed.randrange(4),
        slots=16,
    )


def delta(worker: int, models: int, seed: random.Random) -> Report:
    """What changes in two seconds: the load, and two models."""
    numbers = seed.sample(range(models), 2)
    changed = tuple(model(number, seed, changed=seed.random()) for number in numbers)
    return Report(
        worker=f"worker-{worker:04}", seq=1, models=changed, jobs_running=seed.randrange(8), slots=16
    )


def works() -> dict[str, Work]:
    """One request of each sort."""
    app = App("web", (), frozenset(), policy=CapabilityPolicy())
    narrow = replace(app, policy=CapabilityPolicy(models=("model-1*", "model-2*"), data="local-only"))
    body = {"messages": [{"role": "user", "content": "word " * 300}]}
    kinds = {
        "named": (app, "task=chat;model=model-07"),
        "pinned": (app, f"task=chat;model=model-07@{7:064x}"),
        "any": (app, "task=chat"),
        "any, speed": (app, "task=chat;prefer=speed;deadline=60s"),
        "any, quality": (app, "task=chat;prefer=quality"),
        "patterns, local-only": (narrow, "task=chat;prefer=privacy"),
        "summarize": (app, "task=summarize;prefer=speed"),
    }
    return {
        name: Work(
            id="req_0",
            app=app,
            request=parse(request),
            kind="analysis" if "summarize" in request else "chat",
            body={"input": "word " * 400} if "summarize" in request else body,
            deadline=1e9 if "deadline" in request else None,
        )
        for name, (app, request) in kinds.items()
    }


def measured(act: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and of the clock that a call takes."""
    began, worked = time.perf_counter(), time.thread_time()
    act()
    return time.thread_time() - worked, time.perf_counter() - began


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether the aim was met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=300, help="decisions of each sort")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    seed = random.Random(7)
    inventory, settings = Inventory(pool="main"), ScheduleSettings()
    began = time.perf_counter()
    for one in range(given.workers):
        inventory.workers_changed(f"worker-{one:04}", full(one, given.models, seed), 0.0)
    filling = time.perf_counter() - began
    inventory.nlp_changed(NlpEngine({"summarize": 0.45, "keywords": 0.4}, parallel=2))
    inventory.providers_changed(
        [
            ProviderModel(f"cloud-{one}", f"cloud-model-{one}", price=Price(Decimal(3), Decimal(15)))
            for one in range(10)
        ]
    )
    scheduler = Scheduler(inventory, FreeLedger())

    def decide(work: Work, now: float) -> Plan:
        return scheduler.plan(demand_of(work, settings, now=now), settings, now=now, random=seed)

    sorts = works()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sorts}
    updates: list[tuple[float, float]] = []
    explained: list[tuple[float, float]] = []
    now = 1.0
    gc.collect()
    gc.freeze()  # what a gate that has run for a while has behind it
    for turn in range(given.rounds):
        for name, work in sorts.items():
            now += 0.002
            worker = seed.randrange(given.workers)
            report = delta(worker, given.models, seed)
            updates.append(measured(partial(inventory.workers_changed, f"worker-{worker:04}", report, now)))
            plans: list[Plan] = []
            times[name].append(measured(lambda: plans.append(decide(work, now))))  # noqa: B023 - called at once
            (plan,) = plans
            assert plan.candidates, plan.problem
            inventory.began(plan.candidates[0], now)
            if turn % 3:
                inventory.ended(plan.candidates[0], now)
    for work in sorts.values():
        demand = demand_of(work, settings, now=now)
        explanation = scheduler.explain(demand, settings, now=now)
        plan = scheduler.plan(demand, settings, now=now)
        assert explanation.chosen == plan.candidates[0], "explain and plan differ"
        explained.append(
            measured(lambda d=demand: scheduler.explain(d, settings, now=now, limit=100))  # type: ignore[misc]
        )
    rows = {
        name: {
            "p50_ms": 1e3 * statistics.median(cpu for cpu, _ in one),
            "p99_ms": 1e3 * percentile([cpu for cpu, _ in one], 0.99),
            "clock_p50_ms": 1e3 * statistics.median(clock for _, clock in one),
        }
        for name, one in {**times, "update": updates, "explain (not in the aim)": explained}.items()
    }
    worst = max(row["p99_ms"] for name, row in rows.items() if "aim" not in name)
    met = worst <= 1e3 * AIM_S
    if given.json:
        print(json.dumps({"rows": rows, "met": met, "deployments": len(inventory.deployments)}))
    else:
        print(f"{given.workers} workers x {given.models} models = {len(inventory.deployments)} deployments")
        print(f"filled in {filling:.2f} s; {given.rounds} decisions of each sort, updates between them")
        for name, row in rows.items():
            print(
                f"  {name:26} p50 {row['p50_ms']:7.3f} ms   p99 {row['p99_ms']:7.3f} ms"
                f"   p50 by the clock {row['clock_p50_ms']:7.3f} ms"
            )
        print(f"aim: p99 <= {1e3 * AIM_S:g} ms: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
