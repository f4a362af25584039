"""Placing: filters with their reasons, one score for placing and explaining, lies, breakers, fairness."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.breaker import Breaker, BreakerLimits
from qgate.capability.candidate import Candidate, NlpEngine
from qgate.capability.demand import continuation, demand_of
from qgate.capability.estimates import Estimate, Trust
from qgate.capability.fairness import FairShares, QueueFullError
from qgate.capability.inventory import MODELS_PER_WORKER, Inventory
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.scheduler import Plan, Scheduler
from qgate.capability.work import Verdict, Work
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.registry import DEFAULTS
from tests.qgate.capability import APP, OTHER_SHA, SHA, FakeLedger, model, provided, report, work
from tunnel_proto.messages import Hardware

SETTINGS = ScheduleSettings()


class Placing:
    """An inventory, a ledger, and short ways to ask."""

    def __init__(self, *reports: Any, providers: Any = (), nlp: NlpEngine | None = None) -> None:
        self.inventory = Inventory(pool="main")
        for one in reports:
            self.inventory.workers_changed(one.worker, one, 0.0)
        self.inventory.providers_changed(list(providers))
        self.inventory.nlp_changed(nlp)
        self.ledger = FakeLedger()
        self.scheduler = Scheduler(self.inventory, self.ledger)

    def plan(self, request: Work, *, now: float = 0.0, **changes: Any) -> Plan:
        demand = replace(demand_of(request, SETTINGS, now=now), **changes)
        return self.scheduler.plan(demand, SETTINGS, now=now)

    def best(self, request: Work, **changes: Any) -> Candidate:
        plan = self.plan(request, **changes)
        assert plan.problem is None, plan.problem
        return plan.candidates[0]

    def reasons(self, request: Work, node: str, **changes: Any) -> str:
        settings = replace(SETTINGS, **changes)
        explained = self.scheduler.explain(demand_of(request, settings), settings, now=0.0)
        (item,) = [one for one in explained.items if one.candidate.node == node]
        return "; ".join(item.reasons)


def test_settings_and_their_declarations_agree() -> None:
    assert ScheduleSettings.read(DEFAULTS.__getitem__) == ScheduleSettings()


def test_the_faster_worker_is_taken() -> None:
    it = Placing(report("slow", model(tps_predicted=5.0)), report("fast", model(tps_predicted=80.0)))
    assert it.best(work()).node == "fast"


def test_a_resident_model_goes_before_a_load() -> None:
    it = Placing(
        report("cold", model(state="stored", load_s=20.0, tps_predicted=80.0)),
        report("warm", model(tps_predicted=40.0)),
    )
    assert it.best(work()).node == "warm"


def test_a_full_worker_costs_its_queue() -> None:
    it = Placing(
        report("busy", model(running=4, queued=8), jobs_running=4, jobs_queued=8),
        report("idle", model(tps_predicted=70.0)),
    )
    assert it.best(work()).node == "idle"


def test_what_is_under_way_counts_before_the_next_report() -> None:
    it = Placing(report("a", model()), report("b", model()))
    taken = Counter[str]()
    for _ in range(20):
        candidate = it.best(work())
        it.inventory.began(candidate, 0.0)
        taken[candidate.node] += 1
    assert taken == {"a": 10, "b": 10}


def test_preferences_change_the_choice() -> None:
    it = Placing(
        report("w1", model("tiny", params=135_000_000, tps_predicted=200.0)),
        report("w2", model("large", sha256=OTHER_SHA, params=70_000_000_000, tps_predicted=8.0)),
        providers=[provided(name="huge", quality=0.95)],
    )
    assert it.best(work("task=chat;prefer=speed")).model == "tiny"
    assert it.best(work("task=chat;prefer=quality")).model == "huge"
    assert it.best(work("task=chat;prefer=quality;data=local-only")).model == "large"
    assert it.best(work("task=chat;prefer=privacy")).local
    assert it.best(work("task=chat;prefer=cost")).price is None


def test_an_analysis_is_for_the_gates_own_engine_unless_quality_is_wanted() -> None:
    it = Placing(
        providers=[provided(quality=0.9)],
        nlp=NlpEngine({"summarize": 0.45}, parallel=2, per_second=2000),
    )
    assert it.best(work("task=summarize;prefer=speed", kind="analysis")).kind == "nlp"
    assert it.best(work("task=summarize;prefer=quality", kind="analysis")).kind == "provider"
    assert it.best(work("task=translate;language=de", kind="analysis")).kind == "provider"
    # What it cannot obey it is not asked.
    told = work("task=summarize;prefer=speed", kind="analysis", instructions="as a pirate")
    assert it.best(told).kind == "provider"


LLAMA = model()
OLLAMA = model("external", engine="ollama", sha256="", state="external", isolation="declared-none")


@pytest.mark.parametrize(
    ("request_text", "changes", "reason"),
    [
        ("task=chat;model=other", {}, "another model was asked for"),
        (f"task=chat;model=small@{OTHER_SHA[:8]}", {}, "another model was asked for"),
        ("task=chat;worker=w2", {}, "another worker was asked for"),
        ("task=chat;pool=elsewhere", {}, "another pool was asked for"),
        ("task=chat;max_tokens=4000", {}, "its context is too short"),
        ("task=embed", {"kind": "embedding"}, "it makes no embeddings"),
        ("task=similarity", {"kind": "analysis"}, "it does not do this task"),
    ],
)
def test_each_filter_has_its_reason(request_text: str, changes: dict[str, Any], reason: str) -> None:
    it = Placing(report("w1", model()))
    assert reason in it.reasons(work(request_text, **changes), "w1")
    assert it.plan(work(request_text, **changes)).problem is not None


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (CapabilityPolicy(models=("big-*",)), "the app's policy does not allow it"),
        (CapabilityPolicy(tasks=frozenset({"embed"})), "the app's policy does not allow it"),
        (None, "the app's policy does not allow it"),
        (CapabilityPolicy(pools=frozenset({"other"})), "another pool was asked for"),
    ],
)
def test_a_policy_keeps_an_app_away(policy: CapabilityPolicy | None, reason: str) -> None:
    it = Placing(report("w1", model()))
    assert reason in it.reasons(work("task=chat", app=replace(APP, policy=policy)), "w1")


def test_local_only_never_leaves_the_company() -> None:
    it = Placing(providers=[provided(), provided("house", local=True)])
    assert it.best(work("task=chat;data=local-only")).node == "house"
    bound = replace(APP, policy=CapabilityPolicy(data="local-only"))
    assert it.best(work("task=chat", app=bound)).node == "house"
    assert "content would leave the company" in it.reasons(work("task=chat", app=bound), "cloud")
    barred = replace(APP, policy=CapabilityPolicy(providers=frozenset({"house"})))
    assert "does not allow this provider" in it.reasons(work("task=chat", app=barred), "cloud")


def test_engines_that_declare_nothing_are_denied() -> None:
    it = Placing(report("w1", OLLAMA), providers=[provided()])
    request = work("task=chat")
    assert "does not declare" in it.reasons(request, "w1")
    assert it.reasons(request, "cloud") == ""
    assert "does not declare" in it.reasons(request, "cloud", undeclared="deny")
    assert it.reasons(request, "w1", undeclared="any") == ""
    declared = Placing(report("w1", replace(OLLAMA, isolation="declared-wiped")))
    assert declared.best(request).node == "w1"
    dedicated = work("task=chat;isolation=dedicated")
    assert "a child of its own" in declared.reasons(dedicated, "w1")
    assert Placing(report("w2", LLAMA)).best(dedicated).node == "w2"


def test_a_model_that_never_fits_is_not_asked_for() -> None:
    big = model(state="stored", memory_needed=64 << 30)
    it = Placing(report("w1", big, hardware=Hardware(memory=16 << 30)))
    assert "more memory than the node has (64.0 GiB)" in it.reasons(work(), "w1")


def test_a_deadline_that_nothing_meets() -> None:
    it = Placing(report("w1", model(tps_predicted=1.0)))
    plan = it.plan(work(deadline=2.0))
    assert plan.problem is not None
    assert plan.problem.code == "deadline_exceeded"
    assert "predicted" in it.reasons(work(deadline=2.0), "w1")


def test_a_budget_shifts_work_before_it_refuses_it() -> None:
    it = Placing(report("w1", model(tps_predicted=30.0)), providers=[provided(quality=0.95)])
    request = work("task=chat")
    assert it.best(request).kind == "provider"
    it.ledger.verdicts["cloud"] = Verdict("prefer-local", "app:web burns too fast", 0.5)
    plan = it.plan(request)
    assert plan.candidates[0].kind == "worker"
    assert plan.shift == "app:web burns too fast"
    it.ledger.verdicts["cloud"] = Verdict("refused", "app:web is used up")
    assert "a budget does not allow it" in it.reasons(request, "cloud")
    refused = it.plan(work("task=chat;model=large"))
    assert refused.problem is not None
    assert refused.problem.code == "budget_exceeded"


def test_embeddings_stay_with_one_model_whatever_the_load() -> None:
    embedder = model("embedder", kinds=("embedding",), params=300_000_000)
    other = model("other", sha256=OTHER_SHA, kinds=("embedding",), params=30_000_000, tps_predicted=999.0)
    it = Placing(report("w1", replace(embedder, queued=50), jobs_queued=50), report("w2", other))
    assert it.best(work("task=embed", kind="embedding")).model == "embedder"


def test_a_pin_means_exactly_these_bytes() -> None:
    it = Placing(report("w1", model()), report("w2", model(sha256=OTHER_SHA)))
    assert it.best(work(f"task=chat;model=small@{OTHER_SHA[:12]}")).node == "w2"
    both = it.plan(work("task=chat;model=small"))
    assert {one.node for one in both.candidates} == {"w1", "w2"}


def test_a_stream_continues_only_where_it_is_the_same() -> None:
    it = Placing(
        report("w1", model()),
        report("w2", model()),
        report("w3", model(engine_build="b2")),
        report("w4", model(template_sha="22" * 32)),
        report("w5", model("kin", sha256=OTHER_SHA)),
    )
    first = it.best(work("task=chat"))
    demand = demand_of(work("task=chat"), SETTINGS)
    for how, nodes in (("exact", {"w1", "w2"}), ("kindred", {"w1", "w2", "w3", "w4", "w5"})):
        plan = it.scheduler.plan(continuation(demand, first, how=how), SETTINGS, now=0.0)
        assert {one.node for one in plan.candidates} == nodes


# --- lies


def test_measured_speed_replaces_a_claim() -> None:
    it = Placing(report("liar", model(tps_predicted=1e9)), report("w1", model(tps_predicted=60.0)))
    liar = it.best(work())
    assert liar.node == "liar"
    assert liar.speed <= 2000.0
    for _ in range(3):
        it.inventory.observed(liar, 0.0, decode=(100, 20.0))  # 5 tokens/s
    assert it.best(work()).node == "w1"
    # It is not believed about its other models either, and a new connection does not clear its name.
    it.inventory.worker_gone("liar")
    again = report("liar", model(tps_predicted=1e9), model("new", sha256=OTHER_SHA, tps_predicted=1e9))
    it.inventory.workers_changed("liar", again, 0.0)
    candidates = {one.model: one for one in it.inventory.candidates() if one.node == "liar"}
    assert candidates["small"].speed == pytest.approx(5.0, rel=0.1)
    assert candidates["new"].speed < 200.0


def test_a_model_that_is_refused_is_left_alone_longer_each_time() -> None:
    it = Placing(report("w1", model()))
    candidate = it.best(work())
    it.inventory.refuted(candidate, 0.0)
    assert it.plan(work(), now=59.0).problem is not None
    it.inventory.workers_changed("w1", report("w1", model()), 59.5)  # it still claims it
    assert it.plan(work(), now=59.9).problem is not None
    assert it.best(work(), now=60.5).node == "w1"
    it.inventory.refuted(candidate, 61.0)
    assert it.plan(work(), now=150.0).problem is not None
    assert it.best(work(), now=182.0).node == "w1"


def test_a_list_without_end_is_cut() -> None:
    many = [model(f"m{one}", sha256=f"{one:064x}") for one in range(MODELS_PER_WORKER + 50)]
    it = Placing(report("w1", *many))
    assert len(it.inventory.deployments) == MODELS_PER_WORKER
    for one in range(20):
        delta = report("w1", model(f"x{one}", sha256=f"{one + 9999:064x}"), full=False)
        it.inventory.workers_changed("w1", delta, 0.0)
    assert len(it.inventory.deployments) == MODELS_PER_WORKER


def test_other_bytes_under_the_same_name_replace_what_was_there() -> None:
    it = Placing(report("w1", model()))
    it.inventory.workers_changed("w1", report("w1", model(sha256=OTHER_SHA), full=False), 0.0)
    assert [one.version for one in it.inventory.candidates()] == [OTHER_SHA]


def test_a_worker_that_is_away_or_gone_gets_nothing() -> None:
    it = Placing(report("w1", model()))
    it.inventory.worker_away("w1")
    assert "not connected" in it.reasons(work(), "w1")
    it.inventory.workers_changed("w1", report("w1", full=False), 0.0)
    assert it.best(work()).node == "w1"
    it.inventory.worker_gone("w1")
    problem = it.plan(work()).problem
    assert problem is not None
    assert problem.code == "model_not_found"
    assert not it.inventory.groups


@given(st.data())
def test_rows_follow_whatever_workers_say(data: st.DataObject) -> None:
    """After any history the inventory holds exactly what the last reports say, and a plan names only that."""
    it = Placing()
    told: dict[str, dict[str, str]] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        worker = data.draw(st.sampled_from(("w1", "w2", "w3")))
        act = data.draw(st.sampled_from(("full", "delta", "gone", "away")))
        names = data.draw(st.lists(st.sampled_from(("a", "b", "c")), unique=True))
        models = [model(name, sha256=data.draw(st.sampled_from((SHA, OTHER_SHA)))) for name in names]
        if act == "gone":
            it.inventory.worker_gone(worker)
            told.pop(worker, None)
        elif act == "away":
            it.inventory.worker_away(worker)
        else:
            it.inventory.workers_changed(worker, report(worker, *models, full=act == "full"), 0.0)
            kept = {} if act == "full" else told.get(worker, {})
            told[worker] = kept | {one.name: one.sha256 for one in models}
        held = {(one.node, one.model, one.version) for one in it.inventory.candidates()}
        assert held == {
            (worker, name, sha) for worker, models_ in told.items() for name, sha in models_.items()
        }
        plan = it.plan(work("task=chat"))
        assert all((one.node, one.model, one.version) in held for one in plan.candidates)


# --- explaining


@given(st.integers(0, 2**32), st.sampled_from(("speed", "quality", "cost", "privacy", None)))
def test_explaining_and_placing_agree(seed: int, prefer: str | None) -> None:
    draw = random.Random(seed)
    it = Placing(
        *(
            report(
                f"w{one}",
                model(f"m{one % 3}", sha256=f"{one % 3:064x}", tps_predicted=draw.uniform(1, 300)),
                jobs_running=draw.randrange(5),
            )
            for one in range(8)
        ),
        providers=[provided(f"p{one}", quality=draw.random()) for one in range(3)],
    )
    request = work("task=chat" + (f";prefer={prefer}" if prefer else ""))
    demand = demand_of(request, SETTINGS)
    explained = it.scheduler.explain(demand, SETTINGS, now=0.0)
    plan = it.scheduler.plan(demand, SETTINGS, now=0.0)
    assert explained.chosen == plan.candidates[0]
    assert [one.verdict for one in explained.items].count("chosen") == 1
    possible = [one for one in explained.items if one.verdict != "refused"]
    assert [one.candidate for one in possible][: len(plan.candidates)] == list(plan.candidates)
    assert [one.score for one in possible] == sorted(one.score for one in possible)


def test_two_choices_spread_what_is_equal() -> None:
    it = Placing(*(report(f"w{one:02}", model()) for one in range(50)))
    draw = random.Random(1)
    demand = demand_of(work(), SETTINGS)
    taken = Counter(
        it.scheduler.plan(demand, SETTINGS, now=0.0, random=draw).candidates[0].node for _ in range(300)
    )
    assert len(taken) > 30


# --- breakers, estimates, fairness


def test_a_breaker_opens_probes_and_closes() -> None:
    it = Placing(report("w1", model()))
    candidate = it.best(work())
    for at in (7.0, 8.5, 10.0):
        for _ in range(50):  # what dies with one batch counts once
            assert it.plan(work(), now=at).problem is None
            it.inventory.failed(candidate, at, "it broke", crashed=True)
            if at == 10.0:
                break
    assert "breaker is open (it broke)" in it.reasons(work(), "w1")
    problem = it.plan(work(), now=11.0).problem
    assert problem is not None
    assert (problem.code, problem.status) == ("unavailable", 503)
    assert problem.retry_after_s == pytest.approx(4.0)
    assert it.best(work(), now=15.1).node == "w1"  # half-open: one probe
    it.inventory.began(candidate, 15.1)
    assert it.plan(work(), now=15.2).problem is not None  # the probe is under way
    it.inventory.ended(candidate, 15.3)
    it.inventory.observed(candidate, 15.3)
    assert it.best(work(), now=15.4).node == "w1"


def test_a_probe_that_was_cancelled_leaves_room_for_another() -> None:
    breaker = Breaker(BreakerLimits(failures=1, pause_s=1.0))
    breaker.failed(0.0, "down")
    passes = [breaker.lets_pass]
    assert breaker.poll(1.0)
    for act in (breaker.began, breaker.abandoned, breaker.began):
        act()
        passes.append(breaker.lets_pass)
    assert passes == [False, False, True, False]
    breaker.failed(2.0, "still down")
    assert breaker.until == 4.0  # the pause doubles


def test_estimates_ignore_nonsense() -> None:
    estimate = Estimate()
    for nonsense in (float("nan"), float("inf"), -1.0):
        estimate.observe(0.0, first_token_s=nonsense, service_s=nonsense, decode=(10, nonsense))
    assert estimate.first_token.count == estimate.service.count == estimate.speed.count == 0
    assert estimate.speed_of(float("nan")) > 0
    assert estimate.speed_of(-5.0) > 0


def test_a_peak_is_taken_at_once_and_forgotten_slowly() -> None:
    estimate = Estimate()
    estimate.observe(0.0, first_token_s=0.1)
    estimate.observe(1.0, first_token_s=5.0)
    assert estimate.first_token.value == 5.0
    estimate.observe(2.0, first_token_s=0.1)
    assert 0.1 < estimate.first_token.value < 5.0


def test_trust_is_for_those_whose_claims_come_true() -> None:
    trust = Trust()
    assert trust.value == 1.0
    trust.observe(50.0, 80.0)
    assert trust.value == 1.0  # batching slows each sequence
    for _ in range(10):
        trust.observe(1.0, 1000.0)
    assert trust.value < 0.1


def test_shares_are_fair_by_weight() -> None:
    shares: FairShares[tuple[str, int]] = FairShares(parallel=1, queue=100)
    assert shares.enter(("first", 0), "first", 1)
    for one in range(30):
        assert not shares.enter(("a", one), "a", 2)
        assert not shares.enter(("b", one), "b", 1)
    order = []
    done = "first"
    while admitted := shares.leave(done):
        ((done, number),) = admitted
        order.append((done, number))
    first = Counter(app for app, _ in order[:30])
    assert first["a"] == pytest.approx(20, abs=1)
    assert [number for app, number in order if app == "a"] == list(range(30))


def test_one_apps_thousands_wait_for_themselves() -> None:
    shares: FairShares[str] = FairShares(parallel=1, queue=5)
    assert shares.enter("x0", "x", 1)
    for one in range(5):
        assert not shares.enter(f"greedy{one}", "greedy", 1)
    with pytest.raises(QueueFullError):
        shares.enter("greedy5", "greedy", 1)
    assert not shares.enter("modest", "modest", 1)
    served = shares.leave("x") + shares.leave("greedy")
    assert "modest" in served


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("enter", "leave", "withdraw", "late")))))
def test_shares_never_exceed_their_bounds(acts: list[tuple[str, str]]) -> None:
    shares: FairShares[int] = FairShares(parallel=2, queue=3)
    running: list[tuple[int, str]] = []
    waiting: dict[int, str] = {}
    for number, (app, act) in enumerate(acts):
        if act == "enter":
            try:
                if shares.enter(number, app, 1, leaves_at=5.0):
                    running.append((number, app))
                else:
                    waiting[number] = app
            except QueueFullError:
                assert sum(one == app for one in waiting.values()) == 3
        elif act == "leave" and running:
            _, gone = running.pop(0)
            running += [(one, waiting.pop(one)) for one in shares.leave(gone)]
        elif act == "withdraw" and waiting:
            one, its = waiting.popitem()
            assert shares.withdraw(one, its)
        elif act == "late":
            assert not shares.expired(1.0)
        assert len(running) == shares.running <= 2
        assert shares.waiting == len(waiting)
    assert sorted(shares.expired(9.0)) == sorted(waiting)
