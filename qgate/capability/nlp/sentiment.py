"""Sentiment of English text by VADER's lexicon and rules (Hutto and Gilbert 2014), sentence by sentence."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from qgate.capability.nlp import sentences
from qgate.capability.nlp.language import is_foreign
from qgate.capability.nlp.unsuited import Unsuited

THRESHOLD: Final = 0.05  # VADER's own
SENTENCES_MAX: Final = 10_000


def sentiment(text: str) -> dict[str, Any]:
    """A label and VADER's compound score, -1 to 1; the shares of positive, neutral and negative sum to 1.

    A text's score is the mean of its sentences' scores, each weighted by its length. Raises `Unsuited` for a
    text in another language.
    """
    if foreign := is_foreign(text, "en"):
        raise Unsuited(
            f"sentiment is judged by an English lexicon; this text looks like another language ({foreign})",
            hint=f"add language={foreign}, so that a model does it",
        )
    spans = sentences.spans(text)[:SENTENCES_MAX]
    total = score = positive = neutral = negative = 0.0
    for start, end in spans:
        judged = _analyzer().polarity_scores(text[start:end])
        weight = float(end - start)
        total += weight
        score += weight * judged["compound"]
        positive += weight * judged["pos"]
        neutral += weight * judged["neu"]
        negative += weight * judged["neg"]
    mean = score / total if total else 0.0
    shares = positive + neutral + negative
    if shares <= 0.0:
        positive, neutral, negative, shares = 0.0, 1.0, 0.0, 1.0
    label = "positive" if mean >= THRESHOLD else "negative" if mean <= -THRESHOLD else "neutral"
    return {
        "label": label,
        "score": round(mean, 4),
        "positive": round(positive / shares, 4),
        "neutral": round(neutral / shares, 4),
        "negative": round(negative / shares, 4),
    }


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
