"""Extractive summary: TextRank over TF-IDF vectors of sentences, then a choice that repeats itself little.

Sentences are nodes, cosines of their TF-IDF vectors the weights of edges, and a sentence's rank is its share
of a random walk (Mihalcea and Tarau 2004) that restarts rather at early sentences, which carry more of most
articles. Up to `DENSE_MAX` sentences the walk is solved as a linear system; beyond, by power iteration over
the sparse vectors, so that a megabyte costs no square of its sentences.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qgate.capability.nlp import sentences as sentence_spans
from qgate.capability.nlp.words import roots, small_words, words_within

DAMPING: Final = 0.85
DENSE_MAX: Final = 160  # sentences
ITERATIONS: Final = 40
SENTENCES_DEFAULT: Final = 3
REDUNDANCY: Final = 0.5
"""Share of its rank that a sentence loses for each chosen one, times their cosine; above 0.8 it loses all."""
EARLY: Final = 6.0
"""Sentences after which the restart weight of a position has halved."""
SHORT: Final = 4  # words that carry meaning; a sentence with fewer is ranked lower, in proportion

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Vectors:
    """TF-IDF vectors of ``count`` sentences over ``terms`` terms, each of length 1.

    Few sentences have ``cosines`` (zeros on the diagonal); many have their vectors as coordinates.
    """

    count: int
    terms: int
    lengths: Floats  # words that carry meaning, by sentence
    cosines: Floats | None = None
    rows: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: Floats = field(default_factory=lambda: np.zeros(0))

    def alike(self, index: int) -> Floats:
        """Cosines of every sentence with number ``index``."""
        if self.cosines is not None:
            row: Floats = self.cosines[index]
            return row
        first, last = np.searchsorted(self.rows, (index, index + 1))
        vector = np.zeros(self.terms)
        vector[self.columns[first:last]] = self.weights[first:last]
        summed = np.bincount(self.rows, self.weights * vector[self.columns], minlength=self.count)
        return summed.astype(np.float64)


def summarize(
    text: str, *, sentences: int | None = None, most_words: int | None = None, language: str | None = None
) -> dict[str, Any]:
    """The sentences of ``text`` that say most, in the order of the text.

    ``sentences`` says how many (default 3); ``most_words`` instead bounds their words, though the first
    choice is always taken. Spans count characters of ``text`` from 0, scores are shares of the best rank.
    """
    spans = sentence_spans.spans(text)
    parts = [text[start:end] for start, end in spans]
    wanted = len(parts) if most_words is not None else (sentences or SENTENCES_DEFAULT)
    if len(parts) <= 1:
        ranks = np.ones(len(parts))
        chosen = list(range(len(parts)))
    else:
        vectors = vectorize(words_within(text, spans), language)
        ranks = rank(vectors)
        chosen = _choose(parts, vectors, ranks, min(wanted, len(parts)), most_words)
    taken = [
        {
            "text": parts[index],
            "start": spans[index][0],
            "end": spans[index][1],
            "score": round(float(ranks[index]), 4),
        }
        for index in sorted(chosen)
    ]
    return {
        "summary": " ".join(" ".join(parts[index].split()) for index in sorted(chosen)),
        "sentences": taken,
        "of": len(parts),
    }


def vectorize(spoken: Sequence[list[str]], language: str | None = None) -> Vectors:
    """TF-IDF vectors of sentences, given their words: term frequency × ln(sentences / with the term)."""
    lead: list[str] = []
    for found in spoken:
        lead += found
        if len(lead) > 120:
            break
    small = small_words(lead, language)
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    columns: list[int] = []
    lengths: list[int] = []
    for found in spoken:
        carried = roots(found, small)
        columns += map(index.__getitem__, carried)
        lengths.append(len(carried))
    count, terms = len(spoken), max(1, len(index))
    sizes = np.array(lengths)
    cells = np.repeat(np.arange(count), sizes) * terms + np.array(columns, np.int64)
    if count <= DENSE_MAX:
        table = np.bincount(cells, minlength=count * terms).reshape(count, terms)
        table = table * np.log((1.0 + count) / (0.5 + (table > 0).sum(axis=0)))
        cosines: Floats = table @ table.T
        norms = np.sqrt(cosines.diagonal())
        norms[norms == 0.0] = 1.0
        cosines /= norms
        cosines /= norms[:, None]
        cosines.flat[:: count + 1] = 0.0
        return Vectors(count, terms, sizes, cosines)
    cells, frequencies = np.unique(cells, return_counts=True)
    rows, at_column = np.divmod(cells, terms)
    weights = frequencies * np.log((1.0 + count) / (0.5 + np.bincount(at_column, minlength=terms)))[at_column]
    norms = np.sqrt(np.bincount(rows, weights * weights, minlength=count))
    return Vectors(count, terms, sizes, None, rows, at_column, weights / norms[rows])


def rank(vectors: Vectors) -> Floats:
    """Each sentence's rank, the best 1. Every entry is above 0, so an order always exists."""
    carried = np.minimum(1.0, (1.0 + vectors.lengths) / (1.0 + SHORT))
    restart = _early(vectors.count) * carried
    restart /= restart.sum()
    ranks = _walked(vectors, restart) if vectors.cosines is None else _solved(vectors.cosines, restart)
    ranks *= carried
    best: Floats = ranks / ranks.max()
    return best


@lru_cache(maxsize=DENSE_MAX)
def _early(count: int) -> Floats:
    """What the position of each of so many sentences is worth."""
    return 1.0 + 1.0 / (1.0 + np.arange(count) / EARLY)


def _solved(cosines: Floats, restart: Floats) -> Floats:
    out = cosines.sum(axis=1)
    alone = out <= 0.0
    isolated = bool(alone.any())
    if isolated:
        out[alone] = 1.0
    steps = cosines / out[:, None]
    if isolated:
        steps[alone] = restart  # a sentence without neighbours restarts
    system = steps.T * -DAMPING
    system.flat[:: len(restart) + 1] += 1.0
    return np.linalg.solve(system, (1.0 - DAMPING) * restart).astype(np.float64, copy=False)


def _walked(vectors: Vectors, restart: Floats) -> Floats:
    rows, columns, weights = vectors.rows, vectors.columns, vectors.weights
    own = np.bincount(rows, weights * weights, minlength=vectors.count)

    def neighbours(values: Floats) -> Floats:
        by_term = np.bincount(columns, weights * values[rows], minlength=vectors.terms)
        summed = np.bincount(rows, weights * by_term[columns], minlength=vectors.count)
        return np.maximum(summed - own * values, 0.0)

    out = neighbours(np.ones(vectors.count))
    alone = out <= 1e-12
    share = np.where(alone, 0.0, 1.0 / np.where(alone, 1.0, out))
    ranks = restart.copy()
    for _ in range(ITERATIONS):
        lost = ranks[alone].sum()
        stepped = DAMPING * (neighbours(ranks * share) + lost * restart) + (1.0 - DAMPING) * restart
        moved = float(np.abs(stepped - ranks).sum())
        ranks = stepped
        if moved < 1e-9:
            break
    return ranks


def _choose(
    parts: Sequence[str], vectors: Vectors, ranks: Floats, wanted: int, most_words: int | None
) -> list[int]:
    """Indices of the best sentences; one that repeats a chosen sentence has to be better by as much."""
    gains = ranks.copy()
    words_of = [0 if most_words is None else part.count(" ") + 1 for part in parts]
    chosen: list[int] = []
    left = math.inf if most_words is None else most_words
    while len(chosen) < wanted:
        best = int(np.argmax(gains))
        if gains[best] <= 0.0:
            break
        gains[best] = -1.0
        if words_of[best] > left and chosen:
            if left < min(words_of):
                break
            continue
        chosen.append(best)
        left -= words_of[best]
        if len(chosen) == wanted:
            break
        alike = vectors.alike(best)
        gains *= np.where(alike > 0.8, 1e-3, 1.0 - REDUNDANCY * alike)  # what is chosen stays below 0
    return chosen
