"""Choosing a token: the short way comes to what llama.cpp's chain over the whole vocabulary comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdaemon.runtimes.llama.job import Sampling
from tests.qdaemon.llama import GREEDY, model_path, needs_model

pytestmark = needs_model

HOT = Sampling(temperature=1.3, top_k=40, top_p=0.95, min_p=0.02)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from qdaemon.runtimes.llama.library import Model

    one = Model(str(model_path()), vocabulary_only=True)
    yield one
    one.log.close()


def _row(seed: int, n_vocab: int) -> Any:
    return (np.random.default_rng(seed).standard_normal(n_vocab) * 4).astype(np.float32)


def _sampler(model: Any, sampling: Sampling, seed: int = 1, **options: Any) -> Any:
    from qdaemon.runtimes.llama.sampler import Candidates, Sampler

    return Sampler(sampling, seed=seed, candidates=Candidates(model.n_vocab), model=model, **options)


@pytest.mark.parametrize("top_k", [1, 5, 40, 500, 0])
def test_a_choice_is_that_of_the_chain_over_everything(model: Any, top_k: int) -> None:
    import llama_cpp

    from qdaemon.runtimes.llama.sampler import Candidates, _chain, mixed

    sampling = replace(HOT, top_k=top_k)
    whole = Candidates(model.n_vocab)
    chain = _chain(sampling)
    for seed in range(20):
        row = _row(seed, model.n_vocab)
        sampler = _sampler(model, sampling, seed)
        whole.fill(row)
        llama_cpp.llama_sampler_apply(chain, whole.reference)
        source = llama_cpp.llama_sampler_init_dist(mixed(seed, 0))
        llama_cpp.llama_sampler_apply(source, whole.reference)
        llama_cpp.llama_sampler_free(source)
        assert sampler.choose(row) == whole.chosen()
        sampler.close()
    llama_cpp.llama_sampler_free(chain)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(600, 50_000))
def test_the_likeliest_are_among_the_shortlist(seed: int, count: int, n_vocab: int) -> None:
    from qdaemon.runtimes.llama.sampler import likeliest

    row = np.round(_row(seed, n_vocab), 1)
    found = likeliest(row, count)
    if found is None:
        return
    assert len(found) >= count
    assert set(np.flatnonzero(row > np.sort(row)[-count])) <= set(found)


def test_a_grammar_looks_at_the_likeliest_first_and_chooses_as_if_at_all(model: Any) -> None:
    from qdaemon.runtimes.llama.sampler import Grammar

    digits = "root ::= [0-9] [0-9] [0-9]"
    for sampling in (GREEDY, replace(HOT, top_k=2), replace(HOT, top_k=0)):
        for seed in range(5):
            row = _row(seed, model.n_vocab)
            grammar = Grammar(model, digits)
            allowed = [token for token in range(model.n_vocab) if grammar.allows(token)]
            sampler = _sampler(model, sampling, seed, grammar=grammar)
            token = sampler.choose(row)
            assert token in allowed
            if sampling is GREEDY:
                assert row[token] == row[allowed].max()
            sampler.accept(token)
            with pytest.raises(ValueError, match="does not allow"):
                sampler.accept(model.tokenize("x")[0])
            sampler.close()


def test_draws_depend_on_seed_and_number_and_nothing_else(model: Any) -> None:
    rows = [_row(number, model.n_vocab) for number in range(8)]
    once, again = _sampler(model, HOT, 5), _sampler(model, HOT, 5)
    first = []
    for row in rows:
        first.append(once.choose(row))
        once.accept(first[-1])
    for token in first[:4]:
        again.accept(token)
    assert [_next(again, row) for row in rows[4:]] == first[4:]


def _next(sampler: Any, row: Any) -> int:
    token = int(sampler.choose(row))
    sampler.accept(token)
    return token


def test_seeds_never_become_the_one_that_means_random() -> None:
    from qdaemon.runtimes.llama.sampler import mixed

    found = {mixed(seed, number) for seed in (0, 1, 2**64 - 1) for number in range(1000)}
    assert len(found) > 2990
    assert all(0 <= value < 0xFFFFFFFF for value in found)


def test_biases_and_penalties_count_and_leave_the_logits_as_they_were(model: Any) -> None:
    row = np.zeros(model.n_vocab, dtype=np.float32)
    row[[5, 7, 9]] = [4.0, 8.0, 7.0]
    before = row.copy()

    def chosen(sampling: Sampling, accepted: tuple[int, ...] = (), recent: tuple[int, ...] = ()) -> int:
        sampler = _sampler(model, sampling, recent=recent)
        for token in accepted:
            sampler.accept(token)
        token = int(sampler.choose(row))
        assert np.array_equal(row, before)
        return token

    assert chosen(GREEDY) == 7
    assert chosen(replace(GREEDY, logit_bias={7: -100.0, 5: 3.5})) == 5
    assert chosen(replace(GREEDY, repeat_penalty=1.2), recent=(7,)) == 9
    assert chosen(replace(GREEDY, presence_penalty=1.5), (7, 7)) == 9
    assert chosen(replace(GREEDY, frequency_penalty=0.6), (7,)) == 7
    assert chosen(replace(GREEDY, frequency_penalty=0.6), (7, 7)) == 9
    everything = replace(
        GREEDY, logit_bias={9: 2.0}, repeat_penalty=1.2, presence_penalty=1.0, frequency_penalty=0.5
    )
    # 9 has (7 + 2) / 1.2 - 1.5 = 6, 7 has 8 / 1.2 = 6.7.
    assert chosen(everything, (9,), recent=(7, 9)) == 7
