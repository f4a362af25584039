"""An answer cut anywhere goes on in another child with the very tokens that were to come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdaemon.runtimes.llama.job import Sampling
from tests.qdaemon.llama import GREEDY, SEA, Recorder, chat, child, completion, model_path, needs_model, run

pytestmark = needs_model

EVERY = 13
LONG = "Here is a long story about a village by the sea. " * 9
SCHEMA = (
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 30}, '
    '"items": {"type": "array", "items": {"type": "integer"}, "maxItems": 6}}, "required": ["name", "items"]}'
)
CASES = {
    "greedy": chat(SEA),
    "greedy after a prompt of several chunks": completion(LONG),
    "greedy with penalties": completion(
        LONG, sampling=replace(GREEDY, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.3)
    ),
    "seeded": chat(SEA, sampling=Sampling(max_tokens=48, temperature=1.0, seed=11)),
    "greedy under a grammar": chat("Make JSON with a name and items.", response_format=SCHEMA),
    "seeded under a grammar": chat(
        "Make JSON with a name and items.",
        response_format=SCHEMA,
        sampling=Sampling(max_tokens=60, temperature=1.2, seed=5),
    ),
    "emoji": completion(
        "Emoji: 😀 😃 😄 😁 😆 😅 😂 🤣 😊 😇 🙂 🙃 😉 😌", sampling=replace(GREEDY, max_tokens=30)
    ),
    "with a stop string": completion("1, 2, 3, 4, 5, 6,", sampling=replace(GREEDY, stop=(" 12, 13",))),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_cut_answer_goes_on_as_if_uncut(name: str) -> None:
    job = CASES[name]
    async with child() as first, child() as second:
        whole = await run(first, replace(job, job="whole"))
        assert whole.problem is None
        for cut in range(1, len(whole.ids) + 1, EVERY):
            ids = tuple(whole.ids[:cut])
            rest = await run(second, replace(job, job=f"from{cut}", emitted=ids))
            assert rest.problem is None, rest.problem
            assert ([*ids, *rest.ids], rest.reason) == (whole.ids, whole.reason), cut
            assert rest.usage.completion_tokens == len(whole.ids)


@pytest.mark.parametrize("name", ["emoji", "with a stop string"])
async def test_text_of_a_stream_cut_in_its_middle_joins_without_a_seam(name: str) -> None:
    """Cut as a death cuts: at whatever had been told by then, less what was held back."""
    job = CASES[name]
    async with child() as first, child() as second:
        told: list[tuple[int, str]] = []
        whole = Recorder(on_tokens=lambda one: told.append((len(one.ids), one.text)))
        first.submit(replace(job, job="whole"), whole)
        await whole.end()
        for count, text in told[1:-1:3]:
            rest = await run(second, replace(job, job=f"from{count}", emitted=tuple(whole.ids[:count])))
            assert text + rest.text == whole.text, count


async def test_an_answer_that_had_ended_ends_again_without_a_token() -> None:
    async with child() as model:
        stopped = completion("1, 2, 3, 4,", sampling=replace(GREEDY, stop=(" 7",)))
        whole = await run(model, stopped)
        again = await run(model, replace(stopped, job="again", emitted=tuple(whole.ids)))
        assert (again.reason, again.ids, again.text) == ("stop", [], "")
        full = completion("Once upon a time", sampling=replace(GREEDY, max_tokens=5))
        whole = await run(model, full)
        again = await run(model, replace(full, job="full", emitted=tuple(whole.ids)))
        assert (again.reason, again.ids, again.text) == ("length", [], "")


async def test_ids_that_the_grammar_could_not_have_let_through_are_refused() -> None:
    async with child() as model:
        other = await run(model, completion("Once upon a time"))
        job = chat("Make JSON.", response_format=SCHEMA, emitted=tuple(other.ids[:5]))
        sink = await run(model, job)
        assert sink.problem is not None
        assert sink.problem.code == "replay_mismatch"
        assert (await run(model, chat(SEA))).problem is None


async def test_under_load_a_continued_answer_is_the_one_begun_alone() -> None:
    async with child(slots=4) as first, child(slots=4) as second:
        whole = (await run(first, chat(SEA))).ids
        neighbours = [Recorder() for _ in range(3)]
        for number, sink in enumerate(neighbours):
            prompt = f"Tell me {number + 2} facts about rivers."
            second.submit(chat(prompt, sampling=Sampling(max_tokens=80, temperature=1.0)), sink)
        await neighbours[0].until(5)
        rest = await run(second, chat(SEA, emitted=tuple(whole[:20])))
        assert whole[:20] + rest.ids == whole


def test_a_batch_that_llama_would_abort_for_never_reaches_it() -> None:
    from qdaemon.runtimes.llama.library import Context, Model

    model = Model(str(model_path()))
    context = Context(model, size=256, slots=2, threads=1, batch=16)
    good = (100, 0, 0, True)
    for batch in (
        [],
        [(100, at, 0, False) for at in range(17)],
        [(model.n_vocab, 0, 0, True)],
        [(-1, 0, 0, True)],
        [(100, context.size, 0, True)],
        [(100, -1, 0, True)],
        [(100, 0, 2, True)],
        [(100, 0, -1, True)],
    ):
        with pytest.raises(ValueError, match=r"batch of|out of range"):
            context.decode(batch)
    assert context.decode([good]) == 0
    context.close()
    model.log.close()


async def test_a_batch_that_cannot_be_evaluated_fails_its_requests_and_no_others() -> None:
    """A defect on purpose: the batcher is made to believe in a longer sequence than there is."""
    from qdaemon.runtimes.llama.batcher import Batcher
    from qdaemon.runtimes.llama.library import Context, Model
    from qdaemon.runtimes.llama.request import Controls, Request
    from qdaemon.runtimes.llama.wiping import Wiper

    model = Model(str(model_path()))
    context = Context(model, size=256, slots=2, threads=1, batch=16)
    model.log.close()
    batcher = Batcher(
        model,
        context,
        Wiper(context, plain=True),
        Controls([]),
        chunk=16,
        replay_batch=16,
        reuse_ttl_s=0,
        clock=lambda: 0.0,
    )
    sampling = replace(GREEDY, max_tokens=3)
    for name in ("bad", "good"):
        batcher.add(Request(name, "a", "completion", "Once upon", (), False, "", (), sampling, 1, "", False))
    batcher.step()
    next(one for one in batcher._running.values() if one.request.job == "bad").position = 999
    told = []
    while batcher.busy:
        told += batcher.step()
        batcher.tidy()
    ends = {frame["job"]: frame for frame in told if frame["t"] in {"failed", "done"}}
    assert (ends["bad"]["code"], ends["bad"]["retriable"]) == ("engine_failed", True)
    context.close()


def test_shapes_up_to_a_chunk_round_alike() -> None:
    """Why replay is exact here: one token, sixteen and a chunk give the same logits, bit for bit."""
    from qdaemon.runtimes.llama.library import Context, Model

    path = model_path()
    assert isinstance(path, Path)
    model = Model(str(path))
    context = Context(model, size=512, slots=2, threads=1, batch=64)
    ids = model.tokenize(LONG)[:96]

    def last_logits(size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        context.clear()
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            batch = [(token, at + index, 1, at + index == len(ids) - 1) for index, token in enumerate(part)]
            assert context.decode(batch) == 0
        return context.logits(len(part) - 1).copy()

    one = last_logits(1)
    for size in (2, 4, 16, 32):
        assert np.array_equal(last_logits(size), one), size
    context.close()
    model.log.close()
