"""Lexical vectors: hashed words, pairs of words and letter n-grams. They compare wording, not meaning.

Feature hashing (Weinberger and others 2009): every feature's CRC-32 names a coordinate and a sign. Counts are
damped by a square root, and a vector has length 1, so that a dot product is a cosine.
"""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qgate.capability.nlp.unsuited import Unsuited
from qgate.capability.nlp.vectors_shape import DIMENSIONS, TEXTS_MAX
from qgate.capability.nlp.words import WORD_MAX, small_words, stem, words

PAIRED_MAX: Final = 64
_WORD: Final = 1.0
_PAIR: Final = 0.6
_LETTERS: Final = 0.35
_SMALL: Final = 0.15
_NGRAM: Final = 4
_SEPARATOR: Final = "\n---\n"

Floats = NDArray[np.float32]


def vector(text: str) -> Floats:
    """``DIMENSIONS`` float32 of length 1; a text without words gives a first coordinate of 1 and zeros."""
    spoken = words(text)
    small = small_words(spoken)
    weights: dict[str, float] = {}
    for word, count in Counter(spoken).items():
        root = stem(word)
        if word in small:
            weights["w" + root] = weights.get("w" + root, 0.0) + _SMALL * count
            continue
        weights["w" + root] = weights.get("w" + root, 0.0) + _WORD * count
        padded = f" {word[:WORD_MAX]} "
        for at in range(len(padded) - _NGRAM + 1):
            gram = "g" + padded[at : at + _NGRAM]
            weights[gram] = weights.get(gram, 0.0) + _LETTERS * count
    kept = [stem(word) for word in spoken if word not in small]
    for (one, two), count in Counter(pairwise(kept)).items():
        weights[f"p{one} {two}"] = _PAIR * count
    summed = np.zeros(DIMENSIONS)
    if not weights:
        summed[0] = 1.0
        return summed.astype(np.float32)
    hashes = np.fromiter((zlib.crc32(key.encode()) for key in weights), np.int64, len(weights))
    values = np.sqrt(np.fromiter(weights.values(), np.float64, len(weights)))
    signs = np.where(hashes & 0x8000_0000, -1.0, 1.0)
    summed += np.bincount(hashes % DIMENSIONS, signs * values, minlength=DIMENSIONS)
    length = float(np.linalg.norm(summed))
    if length == 0.0:
        summed[0] = length = 1.0
    unit: Floats = (summed / length).astype(np.float32)
    return unit


def embed(texts: list[str]) -> list[bytes]:
    """A vector per text, each as little-endian float32."""
    if len(texts) > TEXTS_MAX:
        raise Unsuited(f"{len(texts)} texts; {TEXTS_MAX} at a time are allowed", hint="send several requests")
    return [vector(text).astype("<f4").tobytes() for text in texts]


def similarity(texts: list[str]) -> dict[str, Any]:
    """Cosines of all pairs of two or more texts, 0 to 1. One text is split at lines of three hyphens."""
    if len(texts) == 1:
        texts = [part.strip() for part in f"\n{texts[0]}\n".replace("\r\n", "\n").split(_SEPARATOR)]
    if not 2 <= len(texts) <= PAIRED_MAX:
        raise Unsuited(
            f"similarity compares 2 to {PAIRED_MAX} texts, and this request has {len(texts)}",
            hint="send a list of texts, or one text with a line --- between its parts",
        )
    table = np.stack([vector(text) for text in texts]).astype(np.float64)
    cosines = np.clip(table @ table.T, 0.0, 1.0)
    return {
        "pairs": [
            {"a": one, "b": two, "score": round(float(cosines[one, two]), 4)}
            for one in range(len(texts))
            for two in range(one + 1, len(texts))
        ]
    }
