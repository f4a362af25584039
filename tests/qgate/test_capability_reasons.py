"""What a person is told where nothing can take a request: what is missing, and what to do about it."""

from __future__ import annotations

from dataclasses import replace

from qgate.capability.inventory import NlpEngine
from qgate.capability.work import Problem, Work
from qgate.governance.policy import CapabilityPolicy
from tests.qgate.capability import APP, model, report, work
from tests.qgate.test_capability_scheduler import Placing

ENGINE = NlpEngine({"summarize": 0.45})


def refused(it: Placing, request: Work) -> Problem:
    problem = it.plan(request).problem
    assert problem is not None
    return problem


def test_a_gate_without_a_model_says_so_and_asks_to_come_again() -> None:
    problem = refused(Placing(nlp=ENGINE), work("task=chat"))
    assert (problem.code, problem.status) == ("unavailable", 503)
    assert problem.retry_after_s is not None
    assert "no worker that is connected has one" in problem.message
    assert "meshctl model add" in problem.hint


def test_what_the_gates_own_engine_cannot_do_is_still_told_as_before() -> None:
    problem = refused(Placing(report("w1", model(kinds=("embedding",))), nlp=ENGINE), work("task=chat"))
    assert problem.code == "no_candidate"


def test_a_name_that_was_mistyped() -> None:
    it = Placing(report("w1", model("smollm2"), model("qwen3-8b")))
    problem = refused(it, work("task=chat;model=smolm2"))
    assert problem.code == "model_not_found"
    assert problem.hint.startswith('did you mean "smollm2"? ')
    assert "did you mean" not in refused(it, work("task=chat;model=nothing-like-it")).hint


def test_no_name_is_betrayed_that_the_app_may_not_know() -> None:
    app = replace(APP, policy=CapabilityPolicy(models=("qwen*",)))
    it = Placing(report("w1", model("secret-model")))
    problem = refused(it, work("task=chat;model=secret-mode", app=app))
    assert "secret-model" not in f"{problem} {problem.hint} {dict(problem.detail)}"
