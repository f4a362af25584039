"""The gate's summaries beside sumy's LexRank, TextRank and LSA: articles a second, and how far they agree.

``python -m tests.bench.summarize``; one process, one core, no wire. sumy's own tokenizer wants NLTK data that
has to be downloaded, so it is given the same sentences and words as ours; its stemmer and stop words are its
own. Where sumy is not installed only ours is shown.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qgate.capability.nlp import sentences
from qgate.capability.nlp.summary import summarize
from qgate.capability.nlp.words import words

ARTICLES = Path(__file__).with_name("articles.txt")
WORDS = 400
TAKEN = 3

Summarizer = Callable[[str], list[str]]


def articles() -> list[str]:
    """The articles as they were written, of about 300 words each."""
    return [part.strip() for part in ARTICLES.read_text(encoding="utf-8").split("===")]


def variants(count: int, seed: int = 7) -> list[str]:
    """``count`` different articles of about `WORDS` words: some sentences of two."""
    chance = random.Random(seed)
    parts = [[text[a:b] for a, b in sentences.spans(text)] for text in articles()]
    made: list[str] = []
    for _ in range(count):
        one, two = chance.sample(parts, 2)
        mixed = [*one, *two]
        chosen: list[str] = []
        size = 0
        for sentence in mixed:
            if chance.random() < 0.3:
                continue
            chosen.append(sentence)
            size += len(sentence.split())
            if size >= WORDS:
                break
        made.append(" ".join(chosen))
    return made


def ours(text: str) -> list[str]:
    """The gate's own."""
    return [str(one["text"]) for one in summarize(text, sentences=TAKEN)["sentences"]]


def lead(text: str) -> list[str]:
    """The first sentences: what every summary has to beat."""
    return [text[a:b] for a, b in sentences.spans(text)[:TAKEN]]


def sumys() -> dict[str, Summarizer]:
    """sumy's summarizers by name; none where it is not installed."""
    try:
        from sumy.nlp.stemmers import Stemmer
        from sumy.parsers.plaintext import PlaintextParser
        from sumy.summarizers.lex_rank import LexRankSummarizer
        from sumy.summarizers.lsa import LsaSummarizer
        from sumy.summarizers.text_rank import TextRankSummarizer
        from sumy.utils import get_stop_words
    except ImportError:
        return {}

    class Tokenizer:
        language = "english"

        def to_sentences(self, text: str) -> tuple[str, ...]:
            return tuple(text[a:b] for a, b in sentences.spans(text))

        def to_words(self, text: str) -> tuple[str, ...]:
            return tuple(words(text))

    def of(kind: Any) -> Summarizer:
        made = kind(Stemmer("english"))
        made.stop_words = get_stop_words("english")
        tokenizer = Tokenizer()

        def run(text: str) -> list[str]:
            document = PlaintextParser.from_string(text, tokenizer).document
            return [str(one) for one in made(document, TAKEN)]

        return run

    kinds = {"LexRank": LexRankSummarizer, "TextRank": TextRankSummarizer, "LSA": LsaSummarizer}
    return {f"sumy {name}": of(kind) for name, kind in kinds.items()}


def timed(run: Summarizer, texts: Sequence[str]) -> list[float]:
    """CPU seconds of each text."""
    taken = []
    for text in texts:
        began = time.process_time()
        run(text)
        taken.append(time.process_time() - began)
    return taken


def agreement(one: Summarizer, two: Summarizer, texts: Sequence[str]) -> float:
    """Mean share of the words of ``two``'s choice that ``one``'s has too (ROUGE-1 recall between them)."""
    shares = []
    for text in texts:
        mine, theirs = words(" ".join(one(text))), words(" ".join(two(text)))
        left = list(mine)
        common = 0
        for word in theirs:
            if word in left:
                left.remove(word)
                common += 1
        shares.append(common / max(1, len(theirs)))
    return statistics.mean(shares)


def main() -> int:
    """Measure in rounds, contenders taking turns; print a table or, with --json, the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=60, help="articles of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    contenders: dict[str, Summarizer] = {"qgate": ours, **sumys()}
    texts = variants(chosen.articles)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(texts[0])
    for _ in range(chosen.rounds):
        round_of = {name: timed(run, texts) for name, run in contenders.items()}
        for name, seconds in round_of.items():
            taken[name] += seconds
            ratios[name].append(sum(seconds) / sum(round_of["qgate"]))
    written = [*articles(), *texts]
    rows = []
    for name, run in contenders.items():
        ranked = sorted(taken[name])
        rows.append(
            {
                "summarizer": name,
                "articles_per_second": round(len(ranked) / sum(ranked), 1),
                "p50_ms": round(statistics.median(ranked) * 1e3, 2),
                "p99_ms": round(ranked[int(len(ranked) * 0.99)] * 1e3, 2),
                "times_our_cost": round(statistics.median(ratios[name]), 1),
                "shared_with_ours": round(agreement(ours, run, written), 2),
            }
        )
    rows.append({"summarizer": "lead 3", "shared_with_ours": round(agreement(ours, lead, written), 2)})
    if chosen.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    heads = list(rows[0])
    sys.stdout.write("| " + " | ".join(head.replace("_", " ") for head in heads) + " |\n")
    sys.stdout.write("|" + "---|" * len(heads) + "\n")
    for row in rows:
        sys.stdout.write("| " + " | ".join(str(row.get(head, "")) for head in heads) + " |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
