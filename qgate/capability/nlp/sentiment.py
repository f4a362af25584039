"""Sentiment of English text by VADER's lexicon and rules (Hutto and Gilbert 2014), sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from qgate.capability.nlp import sentences
from qgate.capability.nlp.language import is_foreign
from qgate.capability.nlp.unsuited import Unsuited

THRESHOLD: Final = 0.05  # VADER's own
PIECE_MAX: Final = 400
"""Characters that VADER is given at once: its cost grows with the square of their feelings."""
EMOJI_MAX: Final = 40
"""Emoji of one piece that count; its score is at its bound long before."""


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
    total = score = positive = neutral = negative = 0.0
    for piece in _pieces(text):
        judged = _analyzer().polarity_scores(piece)
        weight = float(len(piece))
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


def _pieces(text: str) -> Iterator[str]:
    """Sentences, long ones cut at blanks, without more emoji than count."""
    for start, end in sentences.spans(text):
        while end - start > PIECE_MAX:
            at = text.rfind(" ", start + 1, start + PIECE_MAX)
            at = start + PIECE_MAX if at < 0 else at
            yield _sobered(text[start:at])
            start = at
        yield _sobered(text[start:end])


def _sobered(piece: str) -> str:
    if piece.isascii():
        return piece
    emoji = _analyzer().emojis
    left = EMOJI_MAX
    kept: list[str] = []
    for character in piece:
        if character in emoji:
            left -= 1
            if left < 0:
                continue
        kept.append(character)
    return "".join(kept)


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
