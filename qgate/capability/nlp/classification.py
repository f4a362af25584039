"""Chooses among given labels by shared wording: the label's name, and its description after a colon."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np

from qgate.capability.nlp.vectors import vector
from qgate.capability.nlp.words import small_words, stem, words

_SHARED: Final = 0.7
"""How much a label's words that stand in the text count, beside the cosine of the two vectors."""

_ALIKE: Final = 0.15
"""Cosine from which a label without a shared word counts at all."""


def classify(text: str, labels: list[str]) -> dict[str, Any]:
    """Scores of 0 to 1, best first, and the best label; None where no label shares a word with the text.

    A score is no probability: it says how much of the label's wording stands in the text.
    """
    spoken = words(text)
    small = small_words(spoken)
    counts = Counter(stem(word) for word in spoken if word not in small)
    whole = vector(text)
    scores: list[tuple[float, str]] = []
    for label in labels:
        name, _, description = label.partition(":")
        name = name.strip() or label
        own = [stem(word) for word in words(name) if word not in small]
        more = [stem(word) for word in words(description) if word not in small]
        weights: dict[str, float] = dict.fromkeys(more, 1.0)
        for term in own:
            weights[term] = 2.0
        total = sum(weights.values())
        shared = sum(weight for term, weight in weights.items() if counts[term]) / total if total else 0.0
        cosine = max(0.0, float(np.dot(whole, vector(f"{name} {description}".strip()))))
        if shared:
            score = _SHARED * shared + (1.0 - _SHARED) * cosine
        else:  # spellings that are alike; what is less is chance
            score = 0.5 * (1.0 - _SHARED) * cosine if cosine >= _ALIKE else 0.0
        scores.append((round(min(1.0, score), 4), name))
    ranked = sorted(scores, key=lambda one: -one[0])
    return {
        "label": ranked[0][1] if ranked[0][0] >= 0.02 else None,
        "scores": [{"label": name, "score": score} for score, name in ranked],
    }
