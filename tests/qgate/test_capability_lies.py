"""Workers that claim what is not so: believed once, found out, and never paid for."""

from __future__ import annotations

import asyncio

from qgate.capability.work import Failure, Usage
from tests.qgate.capability import OTHER_SHA, Held, Scripted, Stage, listen, mesh, model, report, work


async def test_a_worker_that_serves_other_weights_is_not_believed_again() -> None:
    def play(held: Held) -> None:
        held.done(model_version="ff" * 32)

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    heard = await listen(it.engine.run(work()))
    assert heard.problem is not None
    explained = it.engine.explain(work())
    assert explained.items[0].reasons == ("the node refused this model although it lists it",)


async def test_nobody_goes_on_from_the_words_of_other_weights() -> None:
    stage = Stage()
    it = mesh(report("w1", model()), report("w2", model()), executors={"worker": stage})
    listening = asyncio.create_task(listen(it.engine.run(work(stream=False))))
    first = await stage.next(1)
    first.tokens(1, 2)
    first.done(model_version=OTHER_SHA)
    second = await stage.next(2)
    assert (second.attempt.emitted, second.attempt.emitted_text) == ((), "")
    second.tokens(7)
    second.done()
    heard = await listening
    assert heard.problem is None
    assert heard.ids == [7]

    streaming = asyncio.create_task(listen(it.engine.run(work(text="streamed"))))
    third = await stage.next(3)
    third.tokens(1, 2)
    third.done(model_version=OTHER_SHA)
    broken = await streaming
    assert broken.problem is not None
    assert broken.problem.code == "stream_interrupted"
    assert "again" in broken.problem.hint
    assert len(stage.attempts) == 3


async def test_what_a_worker_says_it_used_is_bounded_by_what_was_seen() -> None:
    def play(held: Held) -> None:
        held.tokens(1, 2, 3)
        held.sink.done("stop", Usage(10**15, 10**15, 10**15, 10**15))

    it = mesh(report("w1", model()), executors={"worker": Scripted(play)})
    await listen(it.engine.run(work()))
    (outcome,) = it.receipts.outcomes
    assert outcome.usage.completion_tokens == 3
    assert outcome.usage.prompt_tokens < 10_000
    assert outcome.usage.cached_tokens <= outcome.usage.prompt_tokens
    assert outcome.usage.evaluated_tokens <= outcome.usage.prompt_tokens + 3
    assert it.inventory.candidates()[0].speed < 10_000


async def test_a_model_that_is_refused_is_no_longer_claimed() -> None:
    def play(held: Held) -> None:
        if held.attempt.candidate.node == "liar":
            held.sink.failed(Failure("model_not_found", "no such model", retriable=True, usage=Usage()))
        else:
            held.tokens(1)
            held.done()

    it = mesh(
        report("liar", model(tps_predicted=1900.0)),
        report("w1", model(tps_predicted=20.0)),
        executors={"worker": Scripted(play)},
    )
    for turn in range(3):
        heard = await listen(it.engine.run(work(text=f"turn {turn}")))
        assert heard.problem is None
    assert it.engine.figures.attempts == {"worker": 4}  # it was believed once
