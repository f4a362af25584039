"""What each task of the gate's own engine says of a text, and that docs/nlp.md shows just that."""

from __future__ import annotations

import gc
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from qgate.capability.nlp import jobs, sentences
from qgate.capability.nlp.catalogue import QUALITY
from qgate.capability.nlp.form import as_text
from qgate.capability.nlp.identifiers import iban_holds, luhn
from qgate.capability.nlp.unsuited import Unsuited
from qgate.capability.nlp.vectors_shape import DIMENSIONS
from tunnel_proto.request import TASKS, parse

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nlp.md"
ARTICLES = (Path(__file__).resolve().parents[1] / "bench" / "articles.txt").read_text().split("===\n")


def run(task: str, text: str, **options: Any) -> Any:
    return jobs.perform(task, options, [text])[0]


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences.spans(text)]


# --- the documentation


def examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", PAGE.read_text(), re.DOTALL)]


@pytest.mark.parametrize("example", examples(), ids=lambda example: parse(example["request"]).task)
def test_the_page_shows_what_the_engine_says(example: dict[str, Any]) -> None:
    request = parse(example["request"])
    options = {"sentences": request.sentences, "words": request.words, "labels": list(request.labels)}
    texts = example["input"] if isinstance(example["input"], list) else [example["input"]]
    result = jobs.perform(request.task, options, texts)
    result = result if request.task == "similarity" else result[0]
    assert json.loads(json.dumps(result)) == example["result"]
    assert as_text(request.task, result) == example["text"]


def test_the_page_and_the_catalogue_know_the_same_tasks() -> None:
    assert set(QUALITY) == jobs.TASK_NAMES
    assert set(QUALITY) <= set(TASKS)
    shown = {parse(example["request"]).task for example in examples()}
    assert shown | {"embed"} == jobs.TASK_NAMES
    page = PAGE.read_text()
    for task, prior in QUALITY.items():
        assert f"### {task}\n" in page
        row = re.search(rf"^\| `{task}` \| ([0-9.]+) \|", page, re.MULTILINE)
        assert row is not None, task
        assert float(row[1]) == prior


# --- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith went to the U.S. in 1999. He left.", ["Dr. Smith went to the U.S. in 1999.", "He left."]),
        (
            'He said "Go." Then left. (See fig. 3.) Ok?!',
            ['He said "Go."', "Then left.", "(See fig. 3.)", "Ok?!"],
        ),
        ("Mr. J. R. Tolkien wrote it, i.e. all.", ["Mr. J. R. Tolkien wrote it, i.e. all."]),
        ("Title\n\nBody here\n- one\n- two", ["Title", "Body here", "- one", "- two"]),
        ("これは文です。次の文です！", ["これは文です。", "次の文です！"]),
        ("i went home. then i slept.", ["i went home.", "then i slept."]),
        ("i ran! then i fell. why?", ["i ran!", "then i fell.", "why?"]),
        ('"Go!" said he. We went.', ['"Go!" said he.', "We went."]),
        ("It costs $3.50 at example.com today", ["It costs $3.50 at example.com today"]),
        ("wait... what is that? Yes", ["wait... what is that?", "Yes"]),
        ("  one. \r\n\r\n Two  ", ["one.", "Two"]),
        ("We saw Lt. Dan and Sgt. Pepper. They sang.", ["We saw Lt. Dan and Sgt. Pepper.", "They sang."]),
        ("The rank is Lt. and no more. Go.", ["The rank is Lt. and no more.", "Go."]),
        ("He does what he can. Nobody will. I do.", ["He does what he can.", "Nobody will.", "I do."]),
        ("", []),
        (" \n\t ", []),
        (".", ["."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_a_sentence_without_an_end_is_cut() -> None:
    for text in ("word " * 100_000, "x" * 500_000):
        found = sentences.spans(text)
        assert all(end - start <= sentences.SENTENCE_MAX for start, end in found)
        assert "".join(text[start:end] for start, end in found).replace(" ", "") == text.replace(" ", "")


def test_nothing_of_a_text_stays_in_the_splitter() -> None:
    text = "He met J. Qzyxwv of Zorbl Corp. Then X. Yzzyx of the Zzyxq Inc. Board came. See fig. Zyxar."
    with mock.patch.object(sentences._Judge, "forget"):
        split(text)
    assert any("zyx" in word for word in _words_within(sentences._model())), (
        "else this looks in the wrong place"
    )
    split(text)
    assert not [word for word in _words_within(sentences._model()) if "zyx" in word]


def _words_within(root: object) -> Iterator[str]:
    """Every text that can be reached from an object, through its fields, its closures and their modules."""
    seen, todo = {id(root)}, [root]
    while todo:
        for one in gc.get_referents(todo.pop()):
            if id(one) in seen or isinstance(one, ModuleType | type):
                continue
            seen.add(id(one))
            if isinstance(one, str):
                yield one
            else:
                todo.append(one)


# --- summarize


@pytest.mark.parametrize("article", ARTICLES)
def test_a_summary_is_made_of_the_text_s_sentences_in_their_order(article: str) -> None:
    result = run("summarize", article, sentences=4)
    assert len(result["sentences"]) == 4
    starts = [one["start"] for one in result["sentences"]]
    assert starts == sorted(starts)
    for one in result["sentences"]:
        assert article[one["start"] : one["end"]] == one["text"]
        assert 0 < one["score"] <= 1
    assert result == run("summarize", article, sentences=4)


def test_a_summary_keeps_to_its_words() -> None:
    result = run("summarize", ARTICLES[0], words=60)
    assert 0 < len(result["summary"].split()) <= 60
    assert len(run("summarize", ARTICLES[0], words=1)["sentences"]) == 1
    assert run("summarize", ARTICLES[0])["of"] == len(split(ARTICLES[0]))
    everything = run("summarize", ARTICLES[0], sentences=200)
    assert len(everything["sentences"]) == everything["of"]


def test_a_summary_does_not_say_the_same_twice() -> None:
    same = "The harbour bridge is closed for repairs until the summer."
    text = f"{same} Ferries replace it. {same} The council pays for bridge repairs and ferries. {same}"
    chosen = [one["text"] for one in run("summarize", text, sentences=3)["sentences"]]
    assert chosen.count(same) == 1


@pytest.mark.parametrize("text", ["", "   ", "One", "\x00", "!!!", "One. Two.", "。", "1 2 3. 4 5 6. 7 8."])
def test_a_text_with_little_in_it_still_has_a_summary(text: str) -> None:
    result = run("summarize", text, sentences=2)
    assert set(result) == {"summary", "sentences", "of"}
    assert len(result["sentences"]) == min(2, result["of"])


def test_many_sentences_are_ranked_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from qgate.capability.nlp import summary

    few = [summary.summarize(article, sentences=5) for article in ARTICLES]
    monkeypatch.setattr(summary, "DENSE_MAX", 0)
    many = [summary.summarize(article, sentences=5) for article in ARTICLES]
    for one, two in zip(few, many, strict=True):
        assert one["summary"] == two["summary"]
        for left, right in zip(one["sentences"], two["sentences"], strict=True):
            assert left["score"] == pytest.approx(right["score"], abs=2e-3)


# --- the others


def test_keywords_name_what_a_text_is_about() -> None:
    found = [one["text"].lower() for one in run("keywords", ARTICLES[2])["keywords"]]
    assert any("night train" in one for one in found)
    assert len(found) == len(set(found)) <= 10
    for one in run("keywords", ARTICLES[2])["keywords"]:
        assert all(ARTICLES[2][start:end] for start, end in one["spans"])
    assert run("keywords", "the of and")["keywords"] == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The bridge will be closed on Monday for repairs.", "en"),
        ("Le pont sera fermé lundi pour des réparations.", "fr"),
        ("El puente estará cerrado el lunes por reparaciones.", "es"),
        ("Мост будет закрыт в понедельник на ремонт.", "ru"),
        ("橋は月曜日に修理のため閉鎖されます。", "ja"),
        ("12345 67 !!", "und"),
        ("", "und"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert run("language", text)["language"] == language


def test_sentiment_is_english_and_says_so() -> None:
    assert run("sentiment", "I love it. It is wonderful!")["label"] == "positive"
    assert run("sentiment", "A terrible, ugly failure. I hate it.")["label"] == "negative"
    assert run("sentiment", "The train leaves at nine.")["label"] == "neutral"
    assert run("sentiment", "")["label"] == "neutral"
    with pytest.raises(Unsuited, match="English") as caught:
        run("sentiment", "Das Essen war schrecklich und die Bedienung unfreundlich.")
    assert caught.value.hint == "add language=de, so that a model does it"
    assert "Essen" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("on 2024-02-29 it", "date", "2024-02-29"),
        ("on 3rd of March, 2025 it", "date", "2025-03-03"),
        ("am 3. März 2025 war", "date", "2025-03-03"),
        ("on December 24 we", "date", "--12-24"),
        ("in May 2024 we", "date", "2024-05"),
        ("on 03.04.2021 we", "date", "2021-04-03"),
        ("on 03/04/2021 we", "date", ""),
        ("it cost $1,234.50 then", "money", "USD 1234.50"),
        ("it cost 1.234,50 € then", "money", "EUR 1234.50"),
        ("it cost £3 million then", "money", "GBP 3000000.00"),
        ("it cost CHF 20 then", "money", "CHF 20.00"),
        ("it cost 5 euros then", "money", "EUR 5.00"),
        ("it rose 4.5 % then", "percent", "4.5 %"),
        ("call +49 30 901820 now", "phone", "+4930901820"),
        ("see https://a.example/x(1). Then", "url", "https://a.example/x(1)"),
        ("mail A.B+c@Example.com now", "email", "a.b+c@example.com"),
        ("at 10.1.2.3 now", "ip_address", "10.1.2.3"),
        ("at 2001:DB8::1 now", "ip_address", "2001:db8::1"),
        ("then Dr. Ada Marsh spoke", "person", "Ada Marsh"),
        ("then Acme Corp sold", "organization", "Acme Corp"),
        ("he lived in Lisbon then", "place", "Lisbon"),
    ],
)
def test_entities(text: str, kind: str, value: str) -> None:
    found = [one for one in run("entities", text)["entities"] if one["type"] == kind]
    assert [one["value"] for one in found] == [value]
    assert text[found[0]["start"] : found[0]["end"]] == found[0]["text"]


@pytest.mark.parametrize("text", ["on 2023-02-30 it", "of 1.2.3.4.5 it", "it may 3 times", "version 12.5.1"])
def test_what_only_looks_like_an_entity_is_none(text: str) -> None:
    assert run("entities", text)["entities"] == []


SECRETS = [
    ("email", "ada@example.com"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("ssn", "078-05-1120"),
    ("phone", "+1 415-555-2671"),
    ("phone", "(415) 555-2671"),
    ("phone", "0049 30 901820"),
    ("ip_address", "192.168.17.4"),
    ("ip_address", "fe80::1"),
    ("mac_address", "00:1a:2b:3c:4d:5e"),
    ("key", "sk-abcdefghijklmnopqrstuvwxyz123456"),
    ("key", "ghp_" + "a1B2" * 9),
    ("key", "AKIA" + "ABCDEFGH12345678"),
    ("key", "qg_" + "a-B_c" * 8 + "xyz"),
    ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4"),
    ("key", "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_redact_takes_it_out(kind: str, secret: str) -> None:
    text = f"Before {secret} after, and {secret}."
    result = run("redact", text)
    placeholder = f"[{kind.upper()}_1]"
    assert result["text"] == f"Before {placeholder} after, and {placeholder}."
    assert result["counts"] == {kind: 1}  # different values
    for one in result["redactions"]:
        assert text[one["start"] : one["end"]] == secret
    assert secret not in json.dumps(result)


def test_redact_takes_out_what_is_called_a_secret() -> None:
    assert run("redact", "password: hunter2!x, ok")["text"] == "password: [KEY_1], ok"
    assert run("redact", "postgres://ada:s3cret@db/x")["text"] == "postgres://ada:[KEY_1]@db/x"


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111 1111 1111 1112 of 2024",  # Luhn fails
        "DE88 3704 0044 0532 0130 00",  # check digits fail
        "In 1999 there were 1,234,567 of 30 12 1999",
        "Section 1.2.3 and version 2.0.1",
        "The token was given to the password committee",
        "pages 100-200, ratio 16:9, at 12:30:45",
    ],
)
def test_redact_leaves_what_only_looks_like_it(text: str) -> None:
    assert run("redact", text)["text"] == text


def test_checksums() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert iban_holds("FR1420041010050500013M02606")
    assert not iban_holds("FR1420041010050500013M02607")
    assert not iban_holds("ZZ1420041010050500013M02606")


def test_classify_is_honest_about_no_match() -> None:
    labels = ["bug: crash error broken", "praise: love great thanks", "billing: invoice price refund"]
    assert run("classify", "The app crashes with an error.", labels=labels)["label"] == "bug"
    assert run("classify", "Thanks, I love it!", labels=labels)["label"] == "praise"
    nothing = run("classify", "zzz qqq", labels=labels)
    assert nothing["label"] is None
    assert [one["score"] for one in nothing["scores"]] == [0.0, 0.0, 0.0]
    assert as_text("classify", nothing) == ""


def test_vectors_have_length_one_and_compare_wording() -> None:
    for text in ("A bridge.", "", "\x00", "日本語の文章です", "x" * 100_000):
        (raw,) = jobs.perform("embed", {}, [text])
        vector = array("f", raw)
        assert len(vector) == DIMENSIONS
        assert sum(one * one for one in vector) == pytest.approx(1.0, abs=1e-5)
    pairs = jobs.perform("similarity", {}, ["the red bridge", "a red bridge", "financial reports"])["pairs"]
    assert [(one["a"], one["b"]) for one in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert pairs[0]["score"] > 0.5 > pairs[1]["score"]


def test_similarity_splits_one_text_and_needs_two() -> None:
    assert len(jobs.perform("similarity", {}, ["one\n---\ntwo\r\n---\r\nthree"])["pairs"]) == 3
    with pytest.raises(Unsuited, match="2 to 64"):
        jobs.perform("similarity", {}, ["only one"])
    with pytest.raises(Unsuited):
        jobs.perform("similarity", {}, ["x"] * 65)


def test_tokens_and_sentences_are_bounded() -> None:
    result = run("tokens", "a b " * 10_000)
    assert (result["words"], len(result["tokens"]), result["truncated"]) == (20_000, 10_000, True)
    assert run("sentences", "No! " * 20_000)["truncated"]


def test_every_result_has_a_text_form() -> None:
    for task in jobs.TASK_NAMES - {"embed", "similarity"}:
        result = run(task, ARTICLES[0], labels=["a", "b"])
        assert isinstance(as_text(task, result), str)
        assert as_text(task, {"results": [result, result]}).count("\n\n") >= 1
    assert as_text("extract", {"a": 1}) == '{"a": 1}'
    assert as_text("summarize", {"strange": 1}) == '{"strange": 1}'
