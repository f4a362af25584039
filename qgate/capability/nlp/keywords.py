"""Key phrases by C-value (Frantzi and others 2000) over RAKE's candidates (Rose and others 2010).

Candidates are runs of words without a small word, a number or punctuation in between, and the parts of those
runs. A phrase counts by its length and its occurrences beyond those inside longer phrases.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any, Final

from qgate.capability.nlp.words import small_words, stem

KEYWORDS: Final = 10
PHRASE_MAX: Final = 3  # words
SPANS_MAX: Final = 20
_TOKEN: Final = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]|\n")
_LETTER: Final = re.compile(r"[^\W\d_]")

Phrase = tuple[str, ...]
Place = tuple[int, int]


def keywords(text: str, *, language: str | None = None) -> dict[str, Any]:
    """The ten best phrases, best first; ``score`` is a share of the best one's, spans count characters."""
    places = _candidates(text, language)
    inside: defaultdict[Phrase, int] = defaultdict(int)
    around: defaultdict[Phrase, int] = defaultdict(int)
    for phrase, found in places.items():
        for part in _parts(phrase):
            inside[part] += len(found)
            around[part] += 1
    length = max(1, len(text))
    scored: list[tuple[float, int, Phrase]] = []
    for phrase, found in places.items():
        count = len(found) - (inside[phrase] / around[phrase] if around[phrase] else 0.0)
        use = sum(len(places[(term,)]) for term in phrase) / len(phrase)
        early = 1.0 + 0.5 * (1.0 - found[0][0] / length)
        score = math.log2(1 + len(phrase)) * count * math.sqrt(use) * early
        if score > 0.0:
            scored.append((score, found[0][0], phrase))
    scored.sort(key=lambda one: (-one[0], one[1]))
    chosen = _chosen(scored, places)
    return {
        "keywords": [
            {
                "text": " ".join(text[places[phrase][0][0] : places[phrase][0][1]].split()),
                "score": round(score / chosen[0][0], 4),
                "count": len(places[phrase]),
                "spans": [list(place) for place in places[phrase][:SPANS_MAX]],
            }
            for score, phrase in chosen
        ]
    }


def _chosen(
    scored: list[tuple[float, int, Phrase]], places: dict[Phrase, list[Place]]
) -> list[tuple[float, Phrase]]:
    """The best phrases that have no word in common; one that returns takes the place of its parts."""
    chosen: list[tuple[float, Phrase]] = []
    for score, _, phrase in scored:
        own = set(phrase)
        shared = [at for at, (_, other) in enumerate(chosen) if own & set(other)]
        if not shared:
            if len(chosen) < KEYWORDS:
                chosen.append((score, phrase))
        elif len(places[phrase]) > 1 and all(own > set(chosen[at][1]) for at in shared):
            chosen[shared[0]] = (chosen[shared[0]][0], phrase)
            for at in reversed(shared[1:]):
                del chosen[at]
    return chosen


def _candidates(text: str, language: str | None) -> dict[Phrase, list[Place]]:
    """Every phrase with its places, by stems, in the order of the text."""
    tokens = [(found[0], found.start(), found.end()) for found in _TOKEN.finditer(text)]
    small = small_words([token.lower() for token, _, _ in tokens[:300] if token[0].isalnum()], language)
    known: dict[str, str] = {}
    places: defaultdict[Phrase, list[Place]] = defaultdict(list)
    run: list[tuple[str, int, int]] = []
    for token, start, end in [*tokens, ("\n", len(text), len(text))]:
        lower = token.lower()
        if len(lower) > 1 and lower not in small and _LETTER.match(lower):
            if lower not in known:
                known[lower] = stem(lower)
            run.append((known[lower], start, end))
            if len(run) >= PHRASE_MAX:
                _note(run[-PHRASE_MAX:], places)
            continue
        for at in range(max(0, len(run) - PHRASE_MAX + 1), len(run)):
            _note(run[at:], places)
        run = []
    return places


def _note(run: list[tuple[str, int, int]], places: defaultdict[Phrase, list[Place]]) -> None:
    """Note the phrases that begin with the first of ``run``."""
    for size in range(1, len(run) + 1):
        places[tuple(term for term, _, _ in run[:size])].append((run[0][1], run[size - 1][2]))


def _parts(phrase: Phrase) -> set[Phrase]:
    size = len(phrase)
    return {phrase[a:b] for a in range(size) for b in range(a + 1, size + 1) if b - a < size}
