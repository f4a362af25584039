"""Key phrases: RAKE's phrases (Rose and others 2010), scored by their words, their count and their place."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from qgate.capability.nlp.words import small_words, stem

KEYWORDS: Final = 10
PHRASE_MAX: Final = 4  # words
SPANS_MAX: Final = 20
_TOKEN: Final = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]|\n")
_LETTER: Final = re.compile(r"[^\W\d_]")


def keywords(text: str, *, language: str | None = None) -> dict[str, Any]:
    """The ten best phrases, best first; ``score`` is a share of the best one's, spans count characters.

    A phrase is a run of words with no small word, number or punctuation in between. Its score is the mean of
    its words' degree × ln(1 + count), weighted by how often and how early the phrase stands.
    """
    tokens = [(found[0], found.start(), found.end()) for found in _TOKEN.finditer(text)]
    small = small_words([token.lower() for token, _, _ in tokens[:300] if token[0].isalnum()], language)
    phrases: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    count: dict[str, int] = {}
    degree: dict[str, int] = {}
    run: list[tuple[str, int, int]] = []
    for token, start, end in [*tokens, ("\n", len(text), len(text))]:
        lower = token.lower()
        if _LETTER.match(lower) and lower not in small and len(lower) > 1:
            run.append((stem(lower), start, end))
            continue
        for at in range(0, len(run), PHRASE_MAX):
            part = run[at : at + PHRASE_MAX]
            terms = tuple(term for term, _, _ in part)
            phrases.setdefault(terms, []).append((part[0][1], part[-1][2]))
            for term in terms:
                count[term] = count.get(term, 0) + 1
                degree[term] = degree.get(term, 0) + len(terms)
        run = []
    weight = {term: degree[term] / total * math.log1p(total) for term, total in count.items()}
    length = max(1, len(text))
    scored = [
        (
            sum(weight[term] for term in terms)
            / math.sqrt(len(terms))
            * math.log1p(len(places))
            / (1.0 + places[0][0] / length),
            places,
            terms,
        )
        for terms, places in phrases.items()
    ]
    scored.sort(key=lambda one: (-one[0], one[1][0]))
    chosen: list[tuple[float, list[tuple[int, int]]]] = []
    taken: list[set[str]] = []
    for score, places, terms in scored:
        own = set(terms)
        if any(own <= other or other <= own for other in taken):
            continue
        taken.append(own)
        chosen.append((score, places))
        if len(chosen) == KEYWORDS:
            break
    best = chosen[0][0] if chosen else 1.0
    return {
        "keywords": [
            {
                "text": " ".join(text[places[0][0] : places[0][1]].split()),
                "score": round(score / best, 4),
                "count": len(places),
                "spans": [list(place) for place in places[:SPANS_MAX]],
            }
            for score, places in chosen
        ]
    }
