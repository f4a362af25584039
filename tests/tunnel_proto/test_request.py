"""The `qg://` request: what parses, what it means, where an error points, and that nothing crashes it."""

from __future__ import annotations

import dataclasses
import json
import re
import string
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel_proto import request as grammar
from tunnel_proto.request import (
    TASKS,
    CapabilityRequest,
    RequestSyntaxError,
    canonical,
    instruction,
    is_request,
    parse,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "request.md"
SCHEMA = '{"type":"object","properties":{"b":{"type":"string"},"a":{"type":"integer"}}}'


def refused(text: str) -> RequestSyntaxError:
    with pytest.raises(RequestSyntaxError) as caught:
        parse(text)
    return caught.value


def test_the_simplest_request() -> None:
    assert parse("qg://task=summarize;prefer=speed") == CapabilityRequest("summarize", prefer="speed")


def test_every_key_reaches_its_field() -> None:
    text = (
        "qg://task=chat;prefer=quality;model=llama-3@8f3a;language=de-de;schema="
        + SCHEMA
        + ";max_tokens=256;temperature=0.25;seed=7;deadline=1.5s;budget=0.002;pool=north;worker=gpu-1"
        ";data=local-only;isolation=dedicated;reuse=true;move=kindred"
    )
    assert parse(text) == CapabilityRequest(
        "chat",
        prefer="quality",
        model="llama-3@8f3a",
        language="de-DE",
        schema=SCHEMA,
        max_tokens=256,
        temperature=0.25,
        seed=7,
        deadline_s=1.5,
        budget=Decimal("0.002"),
        pool="north",
        worker="gpu-1",
        data="local-only",
        isolation="dedicated",
        reuse=True,
        move="kindred",
    )
    assert canonical(parse(text)) == text.replace("de-de", "de-DE").replace("1.5s", "1500ms")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("task=summarize", "qg://task=summarize"),
        ("QG://TASK=Summarize;Prefer=SPEED", "qg://task=summarize;prefer=speed"),
        ("  qg:// prefer = speed ; task = summarize ; ", "qg://task=summarize;prefer=speed"),
        ("task=tokens;deadline=90S", "qg://task=tokens;deadline=90s"),
        ("task=tokens;deadline=1m", "qg://task=tokens;deadline=60s"),
        ("task=tokens;deadline=0.5s", "qg://task=tokens;deadline=500ms"),
        ("task=tokens;budget=1.50", "qg://task=tokens;budget=1.5"),
        ("task=tokens;budget=100", "qg://task=tokens;budget=100"),
        ("task=chat;temperature=1", "qg://task=chat;temperature=1"),
        ("task=chat;temperature=0.000001", "qg://task=chat;temperature=0.000001"),
        ("task=chat;reuse=false", "qg://task=chat"),
        ("task=chat;model=a b=c/d:e", "qg://task=chat;model=a b=c/d:e"),
        ("task=chat;model=%61%25%3b", "qg://task=chat;model=a%25%3B"),
        ("task=classify;labels=R&D, a%2Cb ,日本", "qg://task=classify;labels=R&D,a%2Cb,日本"),
        ("task=chat;language=ZH-hant-tw", "qg://task=chat;language=zh-Hant-TW"),
        ('task=chat;schema={ "type": "object" }', 'qg://task=chat;schema={"type":"object"}'),
        ('task=chat;schema={"pattern":"%5E[%25%3B]"}', 'qg://task=chat;schema={"pattern":"^[%25%3B]"}'),
    ],
)
def test_one_meaning_has_one_canonical_form(text: str, same: str) -> None:
    assert canonical(parse(text)) == same
    assert parse(same) == parse(text)


@pytest.mark.parametrize(
    ("text", "code", "position", "hint"),
    [
        ("", "empty", 0, "task=summarize"),
        ("qg://", "empty", 5, "task=summarize"),
        ("qg://tsk=summarize", "unknown_key", 5, '"task"'),
        ("task=chat;max-tokens=5", "unknown_key", 10, '"max_tokens"'),
        ("task=chat;zzzz=5", "unknown_key", 10, "known keys: task, prefer"),
        ("tas\u212a=chat", "unknown_key", 0, '"task"'),
        ("task=sumarise", "unknown_task", 5, '"summarize"'),
        ("task=xyzzy", "unknown_task", 5, "tasks: chat, complete"),
        ("task=summarize&prefer=speed", "unknown_task", 5, "; between keys"),
        ("qg://summarize", "no_value", 5, "task=summarize"),
        ("qg://summarize?prefer=speed", "unknown_key", 5, "task=summarize"),
        ("task=chat;prefer", "no_value", 10, "prefer=..."),
        ("task=chat;prefer=", "no_value", 17, "leave the key out"),
        ("task=chat;=5", "no_key", 10, "task=summarize"),
        ("task=chat;;prefer=cost", "empty_pair", 10, 'extra ";"'),
        (";task=chat", "empty_pair", 0, 'extra ";"'),
        ("prefer=speed", "missing_task", 12, "task=summarize"),
        ("model=llama-3", "missing_task", 13, "task=chat"),
        ("task=chat;TASK=embed", "repeated_key", 10, "keep one"),
        ("task=chat;prefer=sped", "bad_value", 17, '"speed"'),
        ("task=chat;max_tokens=0", "bad_value", 21, ""),
        ("task=chat;max_tokens=1000001", "bad_value", 21, ""),
        ("task=chat;max_tokens=-1", "bad_value", 21, ""),
        ("task=chat;max_tokens=1e3", "bad_value", 21, ""),
        ("task=chat;max_tokens=\u0661", "bad_value", 21, ""),
        ("task=chat;seed=4294967295", "bad_value", 15, ""),
        ("task=chat;temperature=2.1", "bad_value", 22, "0.7"),
        ("task=chat;temperature=nan", "bad_value", 22, "0.7"),
        ("task=chat;budget=0", "bad_value", 17, "0.002"),
        ("task=chat;budget=5 USD", "bad_value", 17, "no currency"),
        ("task=chat;deadline=2", "bad_value", 19, "500ms"),
        ("task=chat;deadline=0s", "bad_value", 19, ""),
        ("task=chat;deadline=2h", "bad_value", 19, ""),
        ("task=chat;deadline=0.5ms", "bad_value", 19, "round"),
        ("task=chat;worker=a b", "bad_value", 17, "63 letters"),
        ("task=chat;model=qg://task=chat", "bad_value", 16, "alias"),
        ("task=chat;language=english", "bad_value", 19, "de, pt-BR"),
        ("task=chat;reuse=yes", "bad_value", 16, ""),
        ("task=chat;data=local", "bad_value", 15, '"local-only"'),
        ("task=chat;model=a%zz", "bad_encoding", 17, "%25"),
        ("task=chat;model=a%", "bad_encoding", 17, "%25"),
        ("task=chat;model=é%C3%A9%FF", "bad_encoding", 23, "UTF-8"),
        ("task=chat;model=\ud800", "bad_character", 16, "Unicode"),
        ("task=chat;\x00", "bad_character", 10, "%00"),
        ("task=chat;\nprefer=cost", "bad_character", 10, "%0A"),
        ("task=summarize;labels=a,b", "misplaced_key", 15, "classify"),
        ("task=chat;sentences=3", "misplaced_key", 10, "summarize"),
        ("task=embed;temperature=1", "misplaced_key", 11, "chat, complete, summarize"),
        ("task=classify", "missing_key", 13, "labels=bug"),
        ("task=translate", "missing_key", 14, "language=de"),
        ("task=extract", "missing_key", 12, "schema="),
        ("task=summarize;words=50;sentences=3", "conflict", 24, "keep one"),
        ("task=classify;labels=a", "bad_value", 14, "two"),
        ("task=classify;labels=a, a", "bad_value", 24, "keep one"),
        ("task=classify;labels=a,,b", "bad_value", 23, ""),
        ("task=classify;labels=a,b%zz", "bad_encoding", 24, "%25"),
        ("task=chat;schema={", "bad_value", 17, "%3B"),
        ("task=chat;schema=[1]", "bad_value", 17, "object"),
        ('task=chat;schema={"a":1,"a":2}', "bad_value", 17, "keep one"),
        ('task=chat;schema={"a":1e999}', "bad_value", 17, ""),
        ('task=chat;schema={"a":NaN}', "bad_value", 17, ""),
        ('task=chat;schema={"$ref":"http://a/b"}', "bad_value", 17, "$defs"),
        ('task=chat;schema={"type":"strin"}', "bad_value", 17, "string"),
        ('task=chat;schema={"a":"\\ud800"}', "bad_value", 17, ""),
        ("task=chat;schema=" + '{"a":' * 40 + "1" + "}" * 40, "bad_value", 17, ""),
        ("task=chat;schema=" + "[" * 60_000, "bad_value", 17, ""),
        ('task=chat;schema={"a":"' + "x" * 17_000 + '"}', "bad_value", 17, "response_format"),
        ('task=chat;schema={"a":' + "9" * 5000 + "}", "bad_value", 17, ""),
    ],
)
def test_an_error_points_at_its_character(text: str, code: str, position: int, hint: str) -> None:
    error = refused(text)
    assert (error.code, error.position) == (code, position), error.message
    assert hint in error.hint
    assert f"(character {position + 1})" in error.message
    error.message.encode()  # can be sent on, whatever was in the request


def test_the_caret_stands_under_the_character() -> None:
    for text in ("task=chat;prefer=sped", "x" * 300 + "=1", "task=chat;model=日本語;foo=1"):
        error = refused(text)
        _, shown, caret = error.message.split("\n")
        columns = 0
        for character in shown:
            if columns == caret.index("^"):
                assert character == text[error.position]
                break
            columns += 2 if character in "日本語" else 1


def test_a_request_of_a_megabyte_is_refused_at_its_bound() -> None:
    error = refused("task=chat;model=" + "a" * 1_000_000)
    assert (error.code, error.position) == ("too_long", grammar.TEXT_MAX)
    assert len(error.message) < 400


def test_what_names_a_model_is_told_from_a_request() -> None:
    assert is_request("qg://task=chat")
    assert is_request("QG://")
    assert not is_request("qg:task=chat")
    assert not is_request("gpt-4o")


def test_each_task_knows_its_keys_and_its_instruction() -> None:
    keys = set(grammar._FIELDS)
    for task in TASKS.values():
        assert task.keys <= keys
        assert task.required <= task.keys
        assert task.kind in {"chat", "completion", "embedding", "analysis"}
        assert task.result
    assert {field for field, _ in grammar._FIELDS.values()} == {
        one.name for one in dataclasses.fields(CapabilityRequest)
    }


def test_an_instruction_is_filled_from_the_request() -> None:
    assert "a, b?" in instruction(parse("task=classify;labels=a:first {x},b"))
    assert "at most 50 words" in instruction(parse("task=summarize;words=50"))
    assert "1 sentence." in instruction(parse("task=summarize;sentences=1"))
    assert SCHEMA in instruction(parse("task=extract;schema=" + SCHEMA))
    assert instruction(parse("task=chat")) == ""


def optional(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text == text.strip() and not is_request(text)
)
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)
schemas = st.fixed_dictionaries({"enum": st.lists(json_values, max_size=4), "description": plain}).map(
    lambda schema: json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
)


@st.composite
def requests(draw: st.DrawFn) -> CapabilityRequest:
    task = draw(st.sampled_from(sorted(TASKS)))
    values = {
        "prefer": draw(optional(st.sampled_from(["speed", "quality", "cost", "privacy"]))),
        "model": draw(optional(plain)),
        "max_tokens": draw(optional(st.integers(1, grammar.TOKENS_MAX))),
        "temperature": draw(optional(st.integers(0, 2_000_000).map(lambda millionth: millionth / 1e6))),
        "seed": draw(optional(st.integers(0, grammar.SEED_MAX))),
        "language": draw(optional(st.sampled_from(["de", "pt-BR", "zh-Hant-TW", "es-419", "sl-rozaj"]))),
        "schema": draw(optional(schemas)),
        "labels": tuple(draw(st.lists(plain, min_size=2, max_size=5, unique=True))),
        "sentences": draw(optional(st.integers(1, grammar.SENTENCES_MAX))),
        "words": draw(optional(st.integers(1, grammar.WORDS_MAX))),
        "deadline": draw(optional(st.integers(1, 3_600_000).map(lambda ms: ms / 1000))),
        "budget": draw(optional(st.decimals("0.000000001", 1_000_000, places=9).filter(bool))),
        "pool": draw(optional(names)),
        "worker": draw(optional(names)),
        "data": draw(optional(st.sampled_from(["any", "local-only"]))),
        "isolation": draw(optional(st.sampled_from(["shared", "dedicated"]))),
        "reuse": draw(st.booleans()),
        "move": draw(optional(st.sampled_from(["exact", "kindred", "none"]))),
    }
    if values["sentences"] is not None:
        values["words"] = None
    required = {"language": "de", "schema": SCHEMA}
    kept = {key: value for key, value in values.items() if key in TASKS[task].keys}
    kept |= {key: required[key] for key in TASKS[task].required if kept[key] is None}
    fields = {grammar._FIELDS[key][0]: value for key, value in kept.items()}
    return CapabilityRequest(task, **fields)  # type: ignore[arg-type]


@given(requests())
def test_canonical_form_parses_back(wanted: CapabilityRequest) -> None:
    text = canonical(wanted)
    assert parse(text) == wanted
    assert canonical(parse(text)) == text
    assert len(text) <= grammar.TEXT_MAX


pieces = st.sampled_from(
    [
        "qg://",
        "task",
        "=",
        ";",
        ",",
        "%",
        "%2C",
        "%ff",
        " ",
        "\x00",
        "\ud83d",
        "é",
        "{",
        '"',
        ":",
        "[",
        "1",
        ".",
        *TASKS,
        *grammar._FIELDS,
    ]
)


@given(st.text(max_size=60) | st.lists(pieces, max_size=30).map("".join))
@example("task=chat;schema=" + "[" * 100)
def test_no_text_crashes_the_parser(text: str) -> None:
    wanted = error = None
    try:
        wanted = parse(text)
    except RequestSyntaxError as caught:
        error = caught
    if wanted is not None:
        assert parse(canonical(wanted)) == wanted
    else:
        assert error is not None
        assert 0 <= error.position <= len(text)
        assert error.message.count("\n") == 2
        assert re.fullmatch(r"[a-z_]+", error.code)


def test_every_value_at_its_bound_still_fits() -> None:
    labels = tuple("%" * 190 + str(number) for number in range(grammar.LABELS_MAX))
    wanted = CapabilityRequest("classify", model="%" * grammar.MODEL_MAX, labels=labels)
    assert parse(canonical(wanted)) == wanted
    schema = '{"a":"' + "%" * 16_000 + '"}'
    assert parse(canonical(CapabilityRequest("chat", schema=schema))).schema == schema


def test_the_specification_lists_every_key_task_and_code() -> None:
    page = PAGE.read_text()
    for key in grammar._FIELDS:
        assert f"| `{key}` |" in page, key
    for task in TASKS.values():
        row = re.search(rf"^\| `{task.name}` \| (chat|completion|embedding|analysis) \|", page, re.MULTILINE)
        assert row is not None, task.name
        assert row[1] == task.kind
    source = Path(grammar.__file__).read_text()
    for code in set(re.findall(r'(?:code=|_fail\(\s*text,\s*[^"]*?)"([a-z_]+)"', source)) | {"bad_value"}:
        assert f"| `{code}` |" in page, code


@pytest.mark.parametrize(
    "line", re.findall(r"^    (qg://.+)$", PAGE.read_text() if PAGE.exists() else "", re.MULTILINE)
)
def test_the_specification_s_examples_parse(line: str) -> None:
    assert canonical(parse(line)) == line
