"""A long body in turns is read as a short one is at once, and no turn is long."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.work import Problem
from qgate.http import bodies, json_turns

CHARACTERS = st.sampled_from(
    [*'ab"\\/\n\t,:[]{}', "\u00e9", "\u20ac", "\U0001f600", "\ud83d", "\ude00", "\x00"]
)
TEXTS = st.text(CHARACTERS, max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXTS, inner, max_size=8),
    max_leaves=40,
)


@pytest.fixture(scope="module", autouse=True)
def _small_turns() -> Iterator[None]:
    """Cuts everywhere, as a body of megabytes has them."""
    with patch.multiple(json_turns, TURN=3, PIECE=16, BYTES=64, _FIRST=2, _COST=1):
        yield


def read(data: bytes) -> Any:
    """What turns give, or the problem's code."""
    reading = bodies.parse_in_turns(data)
    try:
        while True:
            next(reading)
    except StopIteration as done:
        return done.value
    except Problem as problem:
        return problem.code


def at_once(data: bytes) -> Any:
    try:
        return bodies.parse(data)
    except Problem as problem:
        return problem.code


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 1]))
def test_turns_read_what_the_decoder_reads(value: Any, plain: bool, indent: int | None) -> None:
    text = json.dumps({"a": value, "b": [1, 2, 3] * 40}, ensure_ascii=not plain, indent=indent)
    data = text.encode("utf-8", "surrogatepass")
    assert read(data) == at_once(data)


@given(VALUES, st.data())
def test_what_is_no_json_is_refused_by_both(value: Any, data: st.DataObject) -> None:
    text = json.dumps({"a": value, "n": [10, -2.5e3, True] * 9})
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(st.text(st.sampled_from('"\\u0dD8,:[]{} 1-eEtn\x01'), max_size=3))
    gone = data.draw(st.integers(0, 3))
    damaged = (text[:at] + put + text[at + gone :]).encode("utf-8", "surrogatepass")
    assert read(damaged) == at_once(damaged)


EDGES = r"""
{ } {"a" {"a": {"a":1 {"a":1, {"a":1,} {"a":[1,]} {"a":[,1]} [1] {"a":1}x {"a":NaN} {"a":-Infinity} {'a':1}
{"a":"\ud800"} {"a":"\ud800\ude00"} {"a":"\x"} {"a":"\ {"a":"\u12 {"a":01} {"a":1.} {"a":+1} {"a":tru}
{"a":1,"a":2} {"":{"":[]}} {"a" 1} {"a":1 "b":2} {"a":[1 2]} {"a":]} {"a":[} {"a":"b"c} {"a":1e400} {1:2}
"""

PAIRS = r"\ud83d\ude00" * 50

LONG = (
    '{"a":[' + "1,," * 200 + "]}",
    '{"a":[' + "1," * 200 + "]}",
    '{"a":' + "9" * 4000 + "}",
    '{"a":' + "9" * 6000 + "}",
    '{"a":' + "[" * 3000 + "]" * 3000 + "}",
    '{"a":"' + "\\\\" * 99 + '"}',
    '{"a":"' + "\\\\" * 99 + '\\"}',
    '{"a":"' + PAIRS + '"}',
    '{"a":"x' + PAIRS + '\\ud83d"}',
    '{"a":"xy' + PAIRS.upper().replace("U", "u") + '"}',
    '{"a":"\x01"}',
    "",
    " ",
)


@pytest.mark.parametrize("text", [*EDGES.split(), *LONG])
def test_edges_are_those_of_the_decoder(text: str) -> None:
    assert read(text.encode()) == at_once(text.encode())


@pytest.mark.parametrize(
    "data", [b'{"a":"\xff"}', b'{"a":"' + "é".encode() * 40 + b'\xc3"}', b"\xed\xa0\x80"]
)
def test_what_is_no_utf_8_is_refused_with_its_place(data: bytes) -> None:
    messages = []
    for reader in (bodies.parse, read_or_raise):
        with pytest.raises(Problem) as refused:
            reader(data)
        messages.append(refused.value.message)
    assert messages[0] == messages[1]


def read_or_raise(data: bytes) -> Any:
    return [None for _ in bodies.parse_in_turns(data)]


def test_too_many_values_are_refused_before_they_are_read() -> None:
    with patch.object(bodies, "VALUES_MAX", 100):
        assert read(b'{"a":[' + b"1," * 200 + b"1]}") == "payload_too_large"


def test_white_space_without_end_is_no_body() -> None:
    assert read(b'{"a":' + b" " * 200 + b"1}") == "invalid_json"


@pytest.mark.parametrize(
    "data",
    [
        b"{" + b",".join(b'"k%d":1' % number for number in range(100_000)) + b"}",
        b'{"a":["' + b'","'.join(b"t%d" % number for number in range(100_000)) + b'"]}',
        b'{"a":[' + b",".join([b"{}"] * 60_000) + b"]}",
        b'{"a":"' + b"\\n" * 2_000_000 + b'"}',
    ],
    ids=["names", "texts", "objects", "escapes"],
)
def test_no_turn_is_long(data: bytes) -> None:
    with patch.multiple(json_turns, TURN=1000, PIECE=64 * 1024, BYTES=1024 * 1024, _FIRST=256, _COST=64):
        reading = bodies.parse_in_turns(data)
        turns, spent = 0, []
        value = None
        while value is None:
            began = time.thread_time()
            try:
                next(reading)
            except StopIteration as done:
                value = done.value
            spent.append(time.thread_time() - began)
            turns += 1
    assert value == bodies.parse(data)
    assert turns > 20
    # Of CPU time, so that a busy machine does no harm; the collector may run in a few of them.
    assert sorted(spent)[-5] < 0.02
