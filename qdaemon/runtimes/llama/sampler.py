"""Choosing the next token: biases and penalties, llama.cpp's sampler chain, a grammar checked afterwards.

Every choice is a function of the logits, the tokens so far, the seed and the number of the token: no hidden
state, so a request that goes on elsewhere draws the very numbers that it would have drawn here. The draw of
token n uses a generator seeded by a mix of seed and n.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, cast

import llama_cpp
import numpy as np
import numpy.typing as npt

from qdaemon.runtimes.llama.job import JobProblem, Sampling, TokenLogprob
from qdaemon.runtimes.llama.library import Model, Row

REPEAT_WINDOW: Final = 64
"""Tokens of prompt and answer that `repeat_penalty` looks at, as in llama.cpp."""
GRAMMAR_SECONDS: Final = 0.5
"""A grammar that takes longer over one token ends its request: neighbours wait for it."""
GRAMMAR_FIRST: Final = 512
"""Candidates that a grammar looks at before it looks at all: the whole vocabulary costs 8 to 19 ms."""
_BLOCKS: Final = 64

_CANDIDATE: Final = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_MASK64: Final = (1 << 64) - 1


class Candidates:
    """Room for one vocabulary's worth of `llama_token_data`, used again for every token."""

    def __init__(self, n_vocab: int) -> None:
        self._template = np.zeros(n_vocab, dtype=_CANDIDATE)
        self._template["id"] = np.arange(n_vocab, dtype=np.int32)
        self.data = self._template.copy()
        self.array = cast(Any, llama_cpp.llama_token_data_array())
        self.array.data = self.data.ctypes.data_as(llama_cpp.llama_token_data_p)
        self.reference = ctypes.byref(self.array)

    def fill(self, row: Row, ids: npt.NDArray[np.intp] | None = None) -> None:
        """Hold every token of the vocabulary with its logit, or only those in ``ids``."""
        if ids is None:
            np.copyto(self.data, self._template)
            self.data["logit"] = row
            size = len(row)
        else:
            size = len(ids)
            self.data["id"][:size] = ids
            self.data["logit"][:size] = row[ids]
            self.data["p"][:size] = 0.0
        self.array.size = size
        self.array.selected = -1
        self.array.sorted = False

    def chosen(self) -> int:
        """Id of the selected candidate."""
        return int(self.data["id"][self.array.selected])

    def alive(self) -> int:
        """How many candidates a grammar has left; they are moved to the front."""
        size = self.array.size
        kept = np.flatnonzero(self.data["logit"][:size] != -np.inf)
        if len(kept) < size:
            self.data[: len(kept)] = self.data[kept]
            self.array.size = len(kept)
        return len(kept)


class Grammar:
    """A grammar and how far an answer has come in it. ``text`` was proved in a disposable process before."""

    def __init__(self, model: Model, text: str) -> None:
        self._pointer = llama_cpp.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not self._pointer:
            raise ValueError("llama.cpp refused the grammar")
        self._one: Any = llama_cpp.llama_token_data(0, 0.0, 0.0)
        self._array = cast(Any, llama_cpp.llama_token_data_array())
        self._array.data = ctypes.pointer(self._one)

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        self._one.id, self._one.logit = token, 1.0
        self._array.size, self._array.selected, self._array.sorted = 1, -1, False
        llama_cpp.llama_sampler_apply(self._pointer, ctypes.byref(self._array))
        return not math.isinf(self._one.logit)

    def filter(self, candidates: Candidates) -> int:
        """Drop every candidate that may not come next; how many are left."""
        llama_cpp.llama_sampler_apply(self._pointer, candidates.reference)
        return candidates.alive()

    def accept(self, token: int) -> None:
        """Go on by ``token``, which `allows` must have let through: llama.cpp aborts otherwise."""
        llama_cpp.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        if self._pointer:
            llama_cpp.llama_sampler_free(self._pointer)
            self._pointer = None


class Sampler:
    """Chooses tokens for one request.

    ``recent`` are the last tokens of the prompt, for `repeat_penalty`.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        seed: int,
        candidates: Candidates,
        model: Model,
        recent: Iterable[int] = (),
        grammar: Grammar | None = None,
    ) -> None:
        self.grammar = grammar
        self.rejected = 0
        """Tokens that the grammar turned down, so that another was chosen."""
        self._sampling = sampling
        self._seed = seed
        self._candidates = candidates
        self._model = model
        self._greedy = sampling.temperature <= 0
        self._window = list(recent)[-REPEAT_WINDOW:] if sampling.repeat_penalty != 1.0 else []
        self._counts: Counter[int] = Counter()
        self._count = 0
        bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < model.n_vocab}
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.intp, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self._penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._alters = bool(bias) or self._penalised or sampling.repeat_penalty != 1.0
        self._chain = None if self._greedy else _chain(sampling)

    def choose(self, row: Row) -> int:
        """Id of the next token after logits ``row`` (which is left as it was); -1 where nothing may come.

        JobProblem where the grammar takes too long.
        """
        undo = self._alter(row) if self._alters else ()
        try:
            return self._choose(row)
        finally:
            for ids, values in reversed(undo):
                row[ids] = values

    def _choose(self, row: Row) -> int:
        token = int(row.argmax()) if self._greedy else self._draw(row, 0)
        if self.grammar is None:
            return token
        started = time.perf_counter()
        if not self.grammar.allows(token):
            self.rejected += 1
            token = self._choose_allowed(row)
        self._time(started)
        return token

    def accept(self, token: int) -> None:
        """``token`` was chosen, or is replayed. ValueError where the grammar does not allow it."""
        if self.grammar is not None:
            started = time.perf_counter()
            if not self.grammar.allows(token):
                raise ValueError("the grammar does not allow this token")
            self.grammar.accept(token)
            self._time(started)
        self._count += 1
        if self._penalised:
            self._counts[token] += 1
        if self._sampling.repeat_penalty != 1.0:
            self._window = [*self._window[1 - REPEAT_WINDOW :], token]

    def _time(self, started: float) -> None:
        if time.perf_counter() - started > GRAMMAR_SECONDS:
            raise JobProblem(
                "unsupported_schema",
                "the schema is so ambiguous that following it takes too long",
                hint="give its alternatives different beginnings",
            )

    def logprob(self, row: Row, token: int, top: int) -> TokenLogprob:
        """How likely the model itself thought ``token``, and the ``top`` likeliest ones."""
        wide = row.astype(np.float64)
        highest = wide.max()
        total = highest + math.log(float(np.exp(wide - highest).sum()))
        first: list[int] = []
        if top:
            found = np.argpartition(row, -top)[-top:]
            first = [int(index) for index in found[np.argsort(-row[found], kind="stable")]]
        best = tuple((index, self._model.piece(index), float(wide[index] - total)) for index in first)
        return TokenLogprob(token, self._model.piece(token), float(wide[token] - total), best)

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
        if self.grammar is not None:
            self.grammar.close()

    def _alter(self, row: Row) -> list[tuple[npt.NDArray[np.intp], Row]]:
        """Put biases and penalties, in llama.cpp's formulas, into ``row``; where, and what was there.

        In place, because a copy of the whole vocabulary's logits costs more than all of it.
        """
        undo = []
        if len(self._bias):
            undo.append((self._bias_ids, row[self._bias_ids]))
            row[self._bias_ids] += self._bias
        repeat = self._sampling.repeat_penalty
        if repeat != 1.0 and self._window:
            ids = np.array(sorted(set(self._window)), dtype=np.intp)
            values = row[ids]
            undo.append((ids, values))
            row[ids] = np.where(values <= 0, values * repeat, values / repeat)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), dtype=np.intp, count=len(self._counts))
            often = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            undo.append((ids, row[ids]))
            row[ids] -= often * self._sampling.frequency_penalty + self._sampling.presence_penalty
        return undo

    def _draw(self, row: Row, attempt: int) -> int:
        self._candidates.fill(row, likeliest(row, self._sampling.top_k) if self._sampling.top_k else None)
        return self._pick(attempt)

    def _pick(self, attempt: int) -> int:
        """Run the chain on the candidates, and draw."""
        llama_cpp.llama_sampler_apply(self._chain, self._candidates.reference)
        source = llama_cpp.llama_sampler_init_dist(mixed(self._seed, 2 * self._count + attempt))
        llama_cpp.llama_sampler_apply(source, self._candidates.reference)
        llama_cpp.llama_sampler_free(source)
        return self._candidates.chosen()

    def _choose_allowed(self, row: Row) -> int:
        """The choice under the grammar: among the likeliest where that comes to the same."""
        assert self.grammar is not None
        need = 1 if self._greedy else self._sampling.top_k
        candidates = self._candidates
        if 0 < need <= GRAMMAR_FIRST and (first := likeliest(row, GRAMMAR_FIRST)) is not None:
            candidates.fill(row, first)
            if self.grammar.filter(candidates) >= need:
                return self._best()
        candidates.fill(row)
        if not self.grammar.filter(candidates):
            return -1
        return self._best()

    def _best(self) -> int:
        if not self._greedy:
            return self._pick(1)
        live = self._candidates.data[: self._candidates.array.size]
        highest = live["logit"].max()
        return int(live["id"][live["logit"] == highest].min())


def likeliest(row: Row, count: int) -> npt.NDArray[np.intp] | None:
    """Ids of the ``count`` highest logits and of some more, all above one value; None where that is no gain.

    The count-th highest of the maxima of columns is such a value: so many logits at least reach it. That
    reads the logits twice, where a sort or a copy of them all into candidates costs several times more.
    """
    columns = len(row) // _BLOCKS
    if count * 4 > columns * 3:
        return None
    highest = row[: columns * _BLOCKS].reshape(_BLOCKS, columns).max(axis=0)
    least = np.partition(highest, columns - count)[columns - count]
    return np.flatnonzero(row >= least)


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed for draw ``number`` of a request (SplitMix64's finaliser), never llama.cpp's "random"."""
    value = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (value ^ (value >> 31)) % 0xFFFFFFFF


def _chain(sampling: Sampling) -> Any:
    """Top-k, top-p, min-p and temperature, in llama.cpp's order."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.top_k > 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
    return chain
