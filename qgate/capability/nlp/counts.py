"""Sentences and words as such: where they are and how many."""

from __future__ import annotations

import re
from typing import Any, Final

from qgate.capability.nlp import sentences as sentence_spans
from qgate.capability.nlp.words import spans

ITEMS_MAX: Final = 10_000
_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*+\n\s*+")


def sentences(text: str) -> dict[str, Any]:
    """Every sentence with its span; the first ten thousand of more."""
    found = sentence_spans.spans(text)
    return {
        "sentences": [
            {"text": text[start:end], "start": start, "end": end} for start, end in found[:ITEMS_MAX]
        ],
        "count": len(found),
        "truncated": len(found) > ITEMS_MAX,
    }


def tokens(text: str) -> dict[str, Any]:
    """Counts, and the words with their spans. ``estimated_tokens`` is what `estimated` says."""
    found = spans(text)
    return {
        "characters": len(text),
        "bytes": len(text.encode("utf-8", "surrogatepass")),
        "words": len(found),
        "sentences": len(sentence_spans.spans(text)),
        "paragraphs": len([part for part in _PARAGRAPH.split(text) if part.strip()]),
        "estimated_tokens": estimated(text),
        "tokens": [{"text": text[start:end], "start": start, "end": end} for start, end in found[:ITEMS_MAX]],
        "truncated": len(found) > ITEMS_MAX,
    }


def estimated(text: str) -> int:
    """About how many tokens a language model reads: a quarter of the UTF-8 bytes, rounded up."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4
