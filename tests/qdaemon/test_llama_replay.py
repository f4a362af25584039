"""An answer cut anywhere goes on in another child with the very tokens that were to come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdaemon.runtimes.llama.job import LlamaJob, Sampling
from qdaemon.runtimes.llama.process import LlamaChild
from tests.qdaemon.llama import GREEDY, SEA, Recorder, chat, child, completion, model_path, needs_model, run

pytestmark = needs_model

EVERY = 7
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
        for cut in range(0, len(whole.ids) + 1, EVERY):
            rest = await _cut_and_continue(first, second, job, cut)
            assert rest == (whole.ids, whole.text, whole.reason), cut


async def _cut_and_continue(
    first: LlamaChild, second: LlamaChild, job: LlamaJob, cut: int
) -> tuple[list[int], str, str]:
    """Ids and text of both parts together, and how it ended."""
    if cut == 0:
        sink = await run(second, replace(job, job="from0"))
        return sink.ids, sink.text, sink.reason
    before = await run(first, replace(job, job=f"to{cut}", sampling=replace(job.sampling, max_tokens=cut)))
    # What the first child held back as a possible stop string or half a character was not certain yet when it
    # died; told "length" it says it. So the text is compared by what the ids say, below.
    ids = tuple(before.ids[:cut])
    after = await run(second, replace(job, job=f"from{cut}", emitted=ids))
    assert after.problem is None, after.problem
    assert after.usage.completion_tokens == len(ids) + len(after.ids)
    both = [*ids, *after.ids]
    shown = before.text + after.text if not job.sampling.stop and "emoji" not in job.prompt.lower() else None
    if shown is None:
        shown = await _text_of(first, job, both, after.reason)
    return both, shown, after.reason


async def _text_of(model: LlamaChild, job: LlamaJob, ids: list[int], reason: str) -> str:
    """The whole text that a child shows for ``ids``: it is run again, uncut."""
    sink = await run(model, replace(job, job="again"))
    assert (sink.ids, sink.reason) == (ids, reason)
    return sink.text


async def test_text_and_ids_of_a_stream_cut_in_its_middle_join_without_a_seam() -> None:
    """Cut as a death cuts: at whatever had been told by then, held-back text included."""
    job = completion("1, 2, 3, 4, 5, 6,", sampling=replace(GREEDY, stop=(" 12, 13",)))
    async with child() as model:
        whole = await run(model, replace(job, job="whole"))
        told: list[tuple[int, str]] = []
        sink = Recorder(on_tokens=lambda one: told.append((len(one.ids), one.text)))
        model.submit(replace(job, job="watched"), sink)
        await sink.end()
        for count, text in told[:-1]:
            rest = await run(model, replace(job, job=f"from{count}", emitted=tuple(whole.ids[:count])))
            assert text + rest.text == whole.text, count
            assert whole.ids[:count] + rest.ids == whole.ids


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
