"""The engine as its surfaces see it: events, errors, cancelling, moving, money, receipts and the audit."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from decimal import Decimal

import pytest

from qgate.capability.candidate import NlpEngine
from qgate.capability.work import Begun, Chunk, Failure, Finished, Moved, Problem, Usage
from qgate.governance.policy import CapabilityPolicy
from tests.qgate.capability import (
    APP,
    FakeLedger,
    Held,
    Scripted,
    Stage,
    listen,
    mesh,
    model,
    provided,
    report,
    work,
)


async def test_a_request_runs_on_a_worker() -> None:
    def play(held: Held) -> None:
        held.sink.accepted()
        held.tokens(1, 2)
        held.tokens(3)
        held.done()

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    heard = await listen(it.engine.run(work()))
    assert heard.names == ["Begun", "Chunk", "Chunk", "Finished"]
    assert heard.events[0] == Begun("small", "ab" * 32, "w1", "worker")
    finished = heard.events[-1]
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(5, 3, 0, 5)
    assert finished.receipt.id == "rcpt_1"
    (event,) = it.events
    assert (event.kind, event.app, event.sidecar, event.outcome) == ("capability", "web", "laptop", "ok")
    assert event.detail["node"] == "w1"
    assert event.detail["completion_tokens"] == 3
    assert it.engine.figures.requests == {"ok": 1}


async def test_nothing_of_the_content_is_recorded() -> None:
    canary = "zebra-4711"

    def play(held: Held) -> None:
        held.sink.chunk(Chunk(canary, (1,)))
        held.sink.failed(Failure("odd", f"failed on {canary}", retriable=False))

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    await listen(it.engine.run(work(text=canary)))
    assert canary not in repr(it.events)
    assert canary not in repr(it.receipts.outcomes)


async def test_a_stream_goes_on_elsewhere_without_losing_a_token() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", model()), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.tokens(1, 2)
    first.tokens(3)
    first.lose()
    second = await stage.next(2)
    assert second.attempt.candidate.node != first.attempt.candidate.node
    assert second.attempt.emitted == (1, 2, 3)
    assert second.attempt.emitted_text == "1 2 3 "
    assert second.attempt.max_tokens == first.attempt.max_tokens - 3
    first.tokens(99)  # what a dead attempt says is not heard
    second.tokens(4, 5)
    second.done()
    heard = await listening
    assert heard.ids == [1, 2, 3, 4, 5]
    assert heard.names == ["Begun", "Chunk", "Chunk", "Moved", "Chunk", "Finished"]
    moved = heard.events[3]
    assert isinstance(moved, Moved)
    assert (moved.how, moved.reason) == ("exact", "node_lost")
    (outcome,) = it.receipts.outcomes
    assert [hop.node for hop in outcome.hops] == [first.attempt.candidate.node, second.attempt.candidate.node]
    assert outcome.usage.completion_tokens == 5
    assert it.engine.figures.moves == {"exact": 1}


async def test_a_stream_does_not_move_to_another_build() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", model(engine_build="b2")), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.tokens(1)
    first.lose()
    heard = await listening
    assert heard.problem is not None
    assert heard.problem.code == "stream_interrupted"
    assert "Finished" not in heard.names
    assert len(stage.attempts) == 1


async def test_a_stream_moves_to_kindred_weights_where_both_allow_it() -> None:
    kin = model("kin", sha256="cd" * 32)
    app = replace(APP, policy=CapabilityPolicy(kindred=True))
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", kin), executors={"worker": stage})
    request = work("task=chat;move=kindred;worker=w1", app=app)
    listening = asyncio.create_task(listen(it.engine.run(request)))
    first = await stage.next(1)
    first.tokens(1)
    first.lose()
    heard = await listening
    assert heard.problem is not None  # worker=w1 allows no other
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", kin), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work("task=chat;move=kindred", app=app))))
    first = await stage.next(1)
    first.tokens(1)
    first.lose()
    second = await stage.next(2)
    assert second.attempt.emitted == (1,)
    second.tokens(2)
    second.done()
    heard = await listening
    assert heard.ids == [1, 2]
    assert any(isinstance(event, Moved) and event.how == "kindred" for event in heard.events)


async def test_what_was_not_given_on_restarts_on_anything() -> None:
    stage = Stage()
    it = mesh(
        report("w1", model()),
        report("w2", model("other", sha256="cd" * 32, tokenizer_sha="")),
        executors={"worker": stage},
    )
    listening = asyncio.create_task(listen(it.engine.run(work("task=chat", stream=False))))
    first = await stage.next(1)
    first.tokens(1, 2)
    first.lose()
    second = await stage.next(2)
    assert second.attempt.emitted == ()
    second.tokens(7)
    second.done()
    heard = await listening
    assert heard.ids == [7]
    begun = heard.events[0]
    assert isinstance(begun, Begun)
    assert begun.node == second.attempt.candidate.node


async def test_a_cloud_stream_that_is_cut_is_an_error() -> None:
    def play(held: Held) -> None:
        held.sink.accepted()
        held.sink.chunk(Chunk(raw=b'{"choices":[{"delta":{"content":"a"}}]}'))
        held.sink.failed(
            Failure("provider_error", "the connection was cut", retriable=True, blame="provider")
        )

    it = mesh(
        providers=[provided(), provided("second")],
        executors={"provider": Scripted(play)},
    )
    heard = await listen(it.engine.run(work("task=chat;model=large")))
    assert heard.problem is not None
    assert heard.problem.code == "stream_interrupted"
    assert [hold.settled for hold in it.ledger.holds] == [[None]]


async def test_a_provider_that_fails_at_once_is_replaced() -> None:
    def play(held: Held) -> None:
        if held.attempt.candidate.node == "a":
            held.sink.failed(
                Failure("rate_limited", "too many", True, retry_after_s=30.0, blame="provider", status=429)
            )
        else:
            held.sink.chunk(Chunk(raw=b"{}"))
            held.done(raw=b"{}")

    it = mesh(providers=[provided("a"), provided("b")], executors={"provider": Scripted(play)})
    heard = await listen(it.engine.run(work("task=chat;model=large")))
    assert heard.problem is None
    assert [hold.settled for hold in it.ledger.holds] == [[Usage()], [Usage(5, 0, 0, 5)]]
    # Its Retry-After keeps the first away from the next request.
    heard = await listen(it.engine.run(work("task=chat;model=large")))
    begun = heard.events[0]
    assert isinstance(begun, Begun)
    assert begun.node == "b"


async def test_cancelling_reaches_the_executor_at_once() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), executors={"worker": stage})
    events = it.engine.run(work())
    listening = asyncio.create_task(anext(events))
    held = await stage.next(1)
    held.tokens(1)
    assert isinstance(await listening, Begun)
    await events.aclose()
    assert [held.cancelled] == [True]
    assert it.engine.figures.requests == {"cancelled": 1}
    assert it.engine.figures.in_flight == 0
    held.tokens(2)
    held.done()
    assert len(it.events) == 1


async def test_cancelling_the_task_reaches_the_executor() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work())))
    held = await stage.next(1)
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    assert held.cancelled


async def test_money_that_comes_too_late_is_given_back() -> None:
    ledger = FakeLedger()
    ledger.wait = asyncio.Event()
    stage = Stage()
    it = mesh(providers=[provided()], executors={"provider": stage}, ledger=ledger)
    events = it.engine.run(work("task=chat;model=large"))
    listening = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await events.aclose()
    ledger.wait.set()
    await asyncio.gather(*it.engine._tasks)
    assert [hold.settled for hold in ledger.holds] == [[Usage()]]
    assert not stage.attempts


async def test_a_budget_that_is_used_up_says_so() -> None:
    it = mesh(providers=[provided()], executors={"provider": Stage()}, ledger=FakeLedger(Decimal(0)))
    heard = await listen(it.engine.run(work("task=chat;model=large")))
    assert heard.problem is not None
    assert (heard.problem.code, heard.problem.status) == ("budget_exceeded", 402)


async def test_a_slow_client_stops_the_source() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), executors={"worker": stage})
    events = it.engine.run(work())
    listening = asyncio.create_task(anext(events))
    held = await stage.next(1)
    for number in range(40):
        held.sink.chunk(Chunk("x" * 10_000, (number,)))
    assert held.heard == ["pause"]
    await listening
    for _ in range(38):
        await anext(events)
    assert held.heard == ["pause", "resume"]
    await events.aclose()


async def test_a_cold_load_waits_a_bounded_time() -> None:
    stage = Stage()
    it = mesh(report("w1", model(state="stored")), executors={"worker": stage}, load_wait_s=0.05)
    listening = asyncio.create_task(listen(it.engine.run(work())))
    held = await stage.next(1)
    held.sink.accepted(queue=0, state="loading")
    held.sink.progress("loading", 0.25, 7.5)
    heard = await listening
    assert heard.problem is not None
    assert (heard.problem.code, heard.problem.status) == ("model_loading", 503)
    assert heard.problem.retry_after_s == 7.5
    assert heard.problem.detail["progress"] == 0.25
    assert heard.problem.detail["node"] == "w1"
    assert held.cancelled
    assert not heard.events


async def test_a_load_that_takes_too_long_is_left_for_one_that_is_ready() -> None:
    stage = Stage()
    it = mesh(report("w1", model(state="loading")), executors={"worker": stage}, load_wait_s=0.05)
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.sink.accepted(state="loading")
    it.inventory.workers_changed("w2", report("w2", model()), 0.0)
    second = await stage.next(2)
    assert first.cancelled
    assert second.attempt.candidate.node == "w2"
    second.tokens(1)
    second.done()
    assert (await listening).ids == [1]


async def test_a_node_that_was_left_for_its_queue_takes_the_stream_when_the_next_one_dies() -> None:
    stage = Stage()
    it = mesh(
        report("w1", model()),
        report("w2", model(tps_predicted=90.0)),
        executors={"worker": stage},
        queue_wait_s=0.05,
    )
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.sink.accepted(queue=3)
    second = await stage.next(2)
    assert first.cancelled
    second.tokens(1, 2)
    second.lose()
    third = await stage.next(3)
    assert third.attempt.candidate.node == first.attempt.candidate.node
    assert third.attempt.emitted == (1, 2)
    third.tokens(3)
    third.done()
    assert (await listening).ids == [1, 2, 3]


async def test_a_node_that_was_full_is_asked_again_when_another_has_died() -> None:
    stage = Stage()
    it = mesh(
        report("w1", model()),
        report("w2", model(tps_predicted=90.0)),
        executors={"worker": stage},
        attempts=4,
    )
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.sink.failed(Failure("queue_full", "full", retriable=True, usage=Usage()))
    second = await stage.next(2)
    assert second.attempt.candidate.node != first.attempt.candidate.node
    second.lose()
    third = await stage.next(3)
    assert third.attempt.candidate.node == first.attempt.candidate.node
    third.tokens(3)
    third.lose()
    fourth = await stage.next(4)
    assert fourth.attempt.candidate.node == second.attempt.candidate.node
    fourth.tokens(4)
    fourth.done()
    assert (await listening).ids == [3, 4]


async def test_a_draining_worker_loses_its_streams_to_another() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", model()), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.tokens(1)
    node = first.attempt.candidate.node
    it.inventory.workers_changed(node, report(node, model(), draining=True), 0.0)
    second = await stage.next(2)
    assert first.cancelled
    assert second.attempt.emitted == (1,)
    second.tokens(2)
    second.done()
    assert (await listening).ids == [1, 2]


async def test_a_draining_worker_keeps_what_nobody_else_can_take() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.tokens(1)
    it.inventory.workers_changed("w1", report("w1", model(), draining=True), 0.0)
    first.tokens(2)
    first.done()
    assert (await listening).ids == [1, 2]
    assert not first.cancelled


async def test_a_poisonous_request_is_refused_and_its_neighbours_go_on() -> None:
    """Whoever works on "poison" dies, and everything that it works on with it."""
    nodes: dict[str, list[Held]] = {}
    crashes = 0

    def play(held: Held) -> None:
        node = nodes.setdefault(held.attempt.candidate.node, [])
        node.append(held)
        asyncio.get_running_loop().call_soon(step, held)

    def step(held: Held) -> None:
        nonlocal crashes
        node = nodes[held.attempt.candidate.node]
        if held not in node or held.cancelled:
            return
        if held.attempt.work.body["messages"][0]["content"] == "poison":
            crashes += 1
            batch, node[:] = list(node), []
            for one in batch:
                one.crash()
            return
        said = len(held.attempt.emitted) + getattr(held, "said", 0)
        if said == 5:
            node.remove(held)
            held.done()
            return
        held.tokens(said)
        held.said = getattr(held, "said", 0) + 1  # type: ignore[attr-defined]
        asyncio.get_running_loop().call_later(0.002, step, held)

    it = mesh(
        *(report(f"w{one}", model()) for one in range(3)), executors={"worker": Scripted(play)}, attempts=10
    )
    runs = [it.engine.run(work(text="poison" if one == 3 else f"neighbour {one}")) for one in range(8)]
    heard = await asyncio.gather(*(listen(run) for run in runs))
    assert crashes == 2
    for number, one in enumerate(heard):
        if number == 3:
            assert one.problem is not None
            assert (one.problem.code, one.problem.status) == ("poison_request", 422)
        else:
            assert one.problem is None, one.problem
            assert one.ids == [0, 1, 2, 3, 4]


async def test_attempts_are_bounded() -> None:
    it = mesh(
        *(report(f"w{one}", model()) for one in range(9)),
        executors={"worker": Scripted(Held.lose)},
        attempts=3,
    )
    heard = await listen(it.engine.run(work()))
    assert heard.problem is not None
    assert heard.problem.code == "node_failed"
    assert it.engine.figures.attempts == {"worker": 3}


async def test_a_deadline_ends_it() -> None:
    stage = Stage()
    it = mesh(report("w1", model(tps_predicted=2000.0)), executors={"worker": stage})
    deadline = asyncio.get_running_loop().time() + 0.3
    listening = asyncio.create_task(listen(it.engine.run(work(deadline=deadline))))
    held = await stage.next(1)
    assert held.attempt.deadline_s is not None
    assert 0 < held.attempt.deadline_s <= 0.3
    heard = await listening
    assert heard.problem is not None
    assert (heard.problem.code, heard.problem.status) == ("deadline_exceeded", 504)
    assert held.cancelled


async def test_a_silent_node_is_left() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", model()), executors={"worker": stage}, stall_s=0.05)
    listening = asyncio.create_task(listen(it.engine.run(work())))
    first = await stage.next(1)
    first.tokens(1)
    second = await stage.next(2)
    assert first.cancelled
    second.tokens(2)
    second.done()
    assert (await listening).ids == [1, 2]


async def test_an_executor_that_raises_is_a_failed_attempt() -> None:
    def play(held: Held) -> None:
        raise RuntimeError("a defect")

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    heard = await listen(it.engine.run(work()))
    assert heard.problem is not None
    assert heard.problem.code == "internal_error"


async def test_an_app_waits_for_its_turn_and_not_for_ever() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), executors={"worker": stage}, in_flight=1, queue=1, queue_timeout_s=0.05)
    first = asyncio.create_task(listen(it.engine.run(work())))
    held = await stage.next(1)
    second = asyncio.create_task(listen(it.engine.run(work(text="second"))))
    await asyncio.sleep(0)
    third = await listen(it.engine.run(work(text="third")))
    assert third.problem is not None
    assert (third.problem.code, third.problem.status) == ("queue_full", 429)
    assert third.problem.retry_after_s
    heard = await second
    assert heard.problem is not None
    assert heard.problem.code == "queue_full"
    held.done()
    assert (await first).problem is None
    assert it.engine.waiting == 0


async def test_the_gates_own_engine_does_an_analysis() -> None:
    def play(held: Held) -> None:
        held.sink.done("stop", Usage(4, 2), result={"summary": "short"})

    it = mesh(report("w1", model()), executors={"nlp": Scripted(play), "worker": Stage()})
    it.inventory.nlp_changed(NlpEngine({"summarize": 0.45}))
    heard = await listen(it.engine.run(work("task=summarize;prefer=speed", kind="analysis", stream=False)))
    finished = heard.events[-1]
    assert isinstance(finished, Finished)
    assert finished.result == {"summary": "short"}


async def test_a_model_does_an_analysis_when_told_how() -> None:
    def play(held: Held) -> None:
        attempted = held.attempt.work
        assert attempted.kind == "chat"
        assert [one["role"] for one in attempted.body["messages"]] == ["system", "user"]
        held.sink.chunk(Chunk("Negative.", (9,)))
        held.done()

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    heard = await listen(it.engine.run(work("task=sentiment", kind="analysis", stream=False)))
    finished = heard.events[-1]
    assert isinstance(finished, Finished)
    assert finished.result == {"label": "negative", "score": None}


async def test_vectors_move_to_identical_weights_only() -> None:
    stage = Stage()
    embedder = model("embedder", kinds=("embedding",))
    it = mesh(
        report("w1", embedder),
        report("w2", replace(embedder, sha256="cd" * 32)),
        report("w3", embedder, jobs_running=3),
        executors={"worker": stage},
    )
    request = work("task=embed;model=embedder", kind="embedding", stream=False)
    listening = asyncio.create_task(listen(it.engine.run(request)))
    first = await stage.next(1)
    first.lose()
    second = await stage.next(2)
    assert second.attempt.candidate.version == first.attempt.candidate.version
    second.lose()
    heard = await listening
    assert heard.problem is not None
    assert len(stage.attempts) == 2


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        ("task=chat;model=nothing", "model_not_found"),
        ("task=chat;model=small;worker=w9", "no_candidate"),
        ("task=embed;model=small", "no_candidate"),
        ("task=chat;model=small;max_tokens=9000", "context_length_exceeded"),
    ],
)
async def test_what_cannot_be_placed_says_why(request_text: str, code: str) -> None:
    it = mesh(report("w1", model()), executors={"worker": Stage()})
    kind = "embedding" if "embed" in request_text else "chat"
    heard = await listen(it.engine.run(work(request_text, kind=kind)))  # type: ignore[arg-type]
    assert isinstance(heard.problem, Problem)
    assert heard.problem.code == code
    assert it.engine.figures.requests == {code: 1}
