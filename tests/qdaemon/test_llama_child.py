"""A child process with the real model: what it answers, how it batches, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qdaemon.runtimes.llama.job import JobProblem, LlamaJob, Sampling
from qdaemon.runtimes.llama.settings import LlamaSettings
from tests.qdaemon.llama import GREEDY, SEA, Recorder, chat, child, completion, needs_model, run

pytestmark = needs_model


async def test_it_loads_with_progress_and_says_what_it_is() -> None:
    shares: list[float] = []
    async with child(on_progress=shares.append, slots=3) as model:
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert model.alive
        assert model.slots == 3
        assert model.context == 512
        assert model.context_train == 8192
        assert "kernels" in model.build
        assert "chunk 32" in model.build
        assert model.isolation == "wiped"
        assert model.memory_used > 100 << 20


async def test_chat_streams_tokens_and_text() -> None:
    async with child() as model:
        sink = await run(model, chat(SEA))
        assert sink.problem is None
        assert sink.reason in {"stop", "length"}
        assert sink.text.startswith("The sea is")
        assert sink.usage.completion_tokens == len(sink.ids) > 20
        assert sink.usage.prompt_tokens == 37
        assert sink.usage.cached_tokens == 0
        # The last token is chosen and not evaluated, unless one that ends the answer came after it.
        assert sink.usage.evaluated_tokens == 37 + len(sink.ids) - (sink.reason == "length")
        assert 0 < sink.timing.first_token_s < sink.timing.first_token_s + sink.timing.decode_s


async def test_a_completion_and_its_log_probabilities() -> None:
    sampling = replace(GREEDY, max_tokens=4, logprobs=3)
    async with child() as model:
        sink = await run(model, completion("The capital of France is", sampling=sampling))
        assert sink.text.startswith(" Paris")
        assert sink.reason == "length"
        assert [one.id for one in sink.logprobs] == sink.ids
        first = sink.logprobs[0]
        assert first.piece == b" Paris"
        assert first.top[0] == (first.id, b" Paris", first.logprob)
        assert len(first.top) == 3
        assert -1 < first.logprob < 0
        assert sum(math.exp(value) for _, _, value in first.top) <= 1


async def test_embeddings_are_unit_vectors_and_near_where_texts_are() -> None:
    inputs = ["The cat sleeps on the sofa.", "A cat is sleeping on a couch.", "Interest rates rose again."]
    async with child() as model:
        job = LlamaJob("e", "app", "embedding", inputs=[*inputs, "word " * 200])
        sink = await run(model, job)
        assert sink.problem is None
        vectors = [np.frombuffer(one, dtype="<f4") for one in sink.vectors_told]
        assert [len(one) for one in vectors] == [576] * 4
        assert all(abs(float(np.linalg.norm(one)) - 1) < 1e-3 for one in vectors)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
        again = await run(model, replace(job, job="again", inputs=inputs[:1]))
        assert again.vectors_told[0] == sink.vectors_told[0]


async def test_four_requests_at_once_get_what_each_gets_alone() -> None:
    prompts = ["Count to ten.", "Name three colours.", "What is water?", "Why is the sky blue?"]
    async with child(slots=4) as model:
        alone = [(await run(model, chat(prompt))).ids for prompt in prompts]
        sinks = [Recorder() for _ in prompts]
        for prompt, sink in zip(prompts, sinks, strict=True):
            model.submit(chat(prompt), sink)
        together = [(await sink.end()).ids for sink in sinks]
        assert together == alone


async def test_more_requests_than_sequences_wait_their_turn() -> None:
    async with child(LlamaSettings(queue=2), slots=1) as model:
        sinks = [Recorder() for _ in range(3)]
        for sink in sinks:
            model.submit(chat("Say hello.", sampling=replace(GREEDY, max_tokens=6)), sink)
        with pytest.raises(JobProblem) as caught:
            model.submit(chat("One too many."), Recorder())
        assert caught.value.code == "busy"
        assert caught.value.retriable
        ended = [await sink.end() for sink in sinks]
        assert {sink.text for sink in ended} == {ended[0].text}
        assert sorted(sink.queue for sink in ended if sink.queue is not None) == [0, 1, 2]


async def test_a_cancelled_request_says_nothing_more_and_frees_its_sequence() -> None:
    async with child(slots=1) as model:
        sink, waiting = Recorder(), Recorder()
        running = model.submit(chat(SEA, sampling=Sampling(max_tokens=400, temperature=0)), sink)
        model.submit(chat("Say hello.", sampling=replace(GREEDY, max_tokens=4)), waiting)
        await sink.until(5)
        running.cancel()
        seen = len(sink.ids)
        await waiting.end()
        assert waiting.reason == "length"
        assert len(sink.ids) == seen
        assert not sink.ended.is_set()


async def test_a_paused_request_rests_while_its_neighbour_runs() -> None:
    async with child(slots=2) as model:
        slow, quick = Recorder(), Recorder()
        running = model.submit(chat(SEA), slow)
        await slow.until(3)
        running.pause()
        model.submit(chat("Say hello."), quick)
        await quick.end()
        assert not slow.ended.is_set()
        running.resume()
        await slow.end()
        assert slow.ids == (await run(model, chat(SEA))).ids


async def test_a_long_prompt_does_not_stall_who_generates() -> None:
    async with child(slots=2, context=1024) as model:
        talking, reading = Recorder(), Recorder()
        model.submit(
            completion("Once upon a time", sampling=Sampling(max_tokens=300, temperature=0)), talking
        )
        await talking.until(5)
        before = len(talking.ids)
        model.submit(completion("word " * 700, sampling=replace(GREEDY, max_tokens=1)), reading)
        await reading.end()
        # 700 tokens are 22 chunks; the other request got a token between any two of them.
        assert len(talking.ids) - before >= 20


async def test_a_seed_repeats_an_answer_and_another_does_not() -> None:
    hot = Sampling(max_tokens=24, temperature=1.0, seed=7)
    async with child() as model:
        once, again = await run(model, chat(SEA, sampling=hot)), await run(model, chat(SEA, sampling=hot))
        other = await run(model, chat(SEA, sampling=replace(hot, seed=8)))
        assert once.ids == again.ids
        assert once.ids != other.ids


async def test_stop_strings_end_an_answer_before_they_show() -> None:
    async with child() as model:
        sink = await run(model, completion("1, 2, 3, 4,", sampling=replace(GREEDY, stop=(" 7", "nothing"))))
        assert sink.reason == "stop"
        assert sink.text == " 5, 6,"


async def test_biases_and_penalties_change_what_is_chosen() -> None:
    async with child() as model:
        prompt = "The capital of France is"
        plain = await run(model, completion(prompt, sampling=replace(GREEDY, max_tokens=1)))
        biased = replace(GREEDY, max_tokens=1, logit_bias={plain.ids[0]: -100.0})
        assert (await run(model, completion(prompt, sampling=biased))).ids != plain.ids
        words = "yes yes yes yes yes yes yes yes"
        again = await run(model, completion(words, sampling=replace(GREEDY, max_tokens=12)))
        penalised = replace(GREEDY, max_tokens=12, frequency_penalty=2.0, presence_penalty=2.0)
        varied = await run(model, completion(words, sampling=penalised))
        assert len(set(varied.ids)) > len(set(again.ids))
        repeated = replace(GREEDY, max_tokens=12, repeat_penalty=1.5)
        assert len(set((await run(model, completion(words, sampling=repeated))).ids)) > len(set(again.ids))


async def test_an_answer_fits_its_schema() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 20},
            "age": {"type": "integer", "minimum": 18, "maximum": 65},
            "colour": {"enum": ["red", "green"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
        },
        "required": ["name", "age", "colour"],
    }
    async with child() as model:
        for temperature in (0.0, 1.0):
            sampling = Sampling(max_tokens=120, temperature=temperature, seed=3)
            job = chat("Describe a person in JSON.", sampling=sampling, response_format=json.dumps(schema))
            sink = await run(model, job)
            assert sink.problem is None
            found = json.loads(sink.text)
            assert 18 <= found["age"] <= 65
            assert found["colour"] in {"red", "green"}
            assert 1 <= len(found["name"]) <= 20
        anything = await run(model, chat("Give me JSON.", response_format="json", sampling=Sampling(seed=1)))
        if anything.reason == "stop":
            assert isinstance(json.loads(anything.text), dict)


async def test_an_answer_ends_where_its_sequence_is_full() -> None:
    async with child(context=256, slots=1) as model:
        sink = await run(model, completion("Once upon a time", sampling=Sampling(temperature=1.0, seed=1)))
        if sink.reason == "length":
            assert sink.usage.prompt_tokens + sink.usage.completion_tokens == model.context


BAD: list[tuple[str, LlamaJob]] = [
    ("context_length_exceeded", completion("word " * 600)),
    ("context_length_exceeded", completion("x" * 100_000_000)),
    ("context_length_exceeded", chat("x" * 100_000_000)),
    ("context_length_exceeded", completion("hello", emitted=tuple(range(100, 611)))),
    ("empty_prompt", completion("")),
    ("invalid_text", completion("\ud800 alone")),
    ("invalid_text", chat("\udfff alone")),
    ("invalid_messages", chat([])),
    ("invalid_messages", chat([{"role": "wizard", "content": "x"}])),
    ("invalid_messages", chat([{"role": "user", "content": 7}])),
    ("unsupported", chat([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])),
    ("unsupported", chat("hello", tool_choice="required")),
    ("unsupported", chat("hello", tool_choice={"type": "function", "function": {"name": "f"}})),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, temperature=float("nan")))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, top_p=1.5))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, top_k=-1))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, max_tokens=0))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, logit_bias={10**6: 1.0}))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, logit_bias={1: float("inf")}))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, stop=("",)))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, stop=("a",) * 17))),
    ("invalid_sampling", completion("x", sampling=replace(GREEDY, logprobs=50_000))),
    ("replay_mismatch", completion("x", emitted=(10**9,))),
    ("replay_mismatch", completion("x", emitted=(-1,))),
    ("invalid_schema", completion("x", response_format="{not json")),
    ("invalid_schema", completion("x", response_format='{"type": "wizard"}')),
    ("unsupported_schema", completion("x", response_format='{"not": {}}')),
    ("unsupported_schema", completion("x", response_format='{"a": ' * 40_000)),
    ("invalid_request", LlamaJob("none", "app", "embedding", inputs=())),
    ("empty_input", LlamaJob("empty", "app", "embedding", inputs=("",))),
    ("context_length_exceeded", LlamaJob("long", "app", "embedding", inputs=("ok", "word " * 600))),
]


async def test_bad_requests_are_refused_one_by_one_and_the_child_goes_on() -> None:
    async with child(slots=1) as model:
        for code, job in BAD:
            sink = await run(model, job)
            assert sink.problem is not None, code
            assert (sink.problem.code, sink.problem.retriable) == (code, False), sink.problem.message
            assert sink.problem.blame == "request"
        assert model.alive
        assert (await run(model, chat(SEA))).problem is None


async def test_a_deadline_ends_a_request_that_runs_or_waits() -> None:
    async with child(slots=1) as model:
        long = Sampling(max_tokens=450, temperature=0)
        sinks = [Recorder(), Recorder()]
        for sink in sinks:
            model.submit(completion("Once upon a time", sampling=long, deadline_s=0.3), sink)
        for sink in sinks:
            await sink.end()
            assert sink.problem is not None
            assert sink.problem.code == "deadline_exceeded"
        assert (await run(model, chat("Say hello."))).problem is None


async def test_text_that_no_decoder_made_is_taken_as_it_is() -> None:
    async with child() as model:
        for text in ("\x00\x01\x02", "😀" * 20, "\ue000 private", "<|im_end|>" * 10):
            sink = await run(model, chat(text, sampling=replace(GREEDY, max_tokens=2)))
            assert sink.problem is None, text


async def test_an_unload_waits_for_what_runs_and_takes_nothing_new() -> None:
    async with child() as model:
        sink = Recorder()
        model.submit(chat(SEA), sink)
        await sink.until(3)
        assert not await model.unload(0.01)
        assert model.alive
        unloading = asyncio.create_task(model.unload(30))
        await asyncio.sleep(0)
        with pytest.raises(JobProblem) as caught:
            model.submit(chat("late"), Recorder())
        assert caught.value.code == "draining"
        assert await unloading
        assert sink.reason in {"stop", "length"}
        assert not model.alive
