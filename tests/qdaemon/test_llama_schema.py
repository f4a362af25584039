"""Schemas as grammars: what the grammar takes fits the schema, and what cannot be enforced is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdaemon.runtimes.llama import gbnf
from qdaemon.runtimes.llama.job import JobProblem
from qdaemon.runtimes.llama.schema import grammar_of
from tests.qdaemon.llama import model_path, needs_model

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number"}, "z": {"type": "null"}},
    "required": ["y"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["v"],
        }
    },
    "$ref": "#/$defs/node",
}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (True, [1, "a", None, {"a": [1, {}]}, [], True], []),
    ({"type": "string"}, ["", "a\"b\\c\n", "é😀"], [1, None]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é😀b"], ["a", "abcd"]),
    ({"type": "integer"}, [0, -1, 123456789], [1.5, "1"]),
    ({"type": "integer", "minimum": -12, "maximum": 105}, [-12, -1, 0, 9, 10, 99, 100, 105], [-13, 106]),
    ({"type": "integer", "exclusiveMinimum": 5}, [6, 10, 99999], [5, 0, -7]),
    ({"type": "integer", "maximum": -3}, [-3, -10, -999], [-2, 0, 5]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1, 0.25], [1.5, -0.5, 2]),
    ({"type": "number", "minimum": -2, "maximum": 10}, [-2, -1.5, 0.5, 9.75, 10], [-2.5, 10.5, 11]),
    ({"enum": ["red", 3, None]}, ["red", 3, None], ["green", 4]),
    ({"const": {"a": "b"}}, [], ["b"]),
    ({"type": ["string", "null"]}, ["a", None], [1]),
    ({"anyOf": [{"type": "boolean"}, {"type": "integer"}]}, [True, 7], ["a"]),
    (POINT, [{"y": 1.5}, {"x": 1, "y": 2}, {"y": 2, "z": None}], [{}, {"x": 1}, {"y": 1, "w": 2}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "b"}]),
    ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}, [[None]], [[], [None] * 3]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]}, [[1, None]], [[1]]),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d+(a|b)?$"}, ["AB-1", "XY-123b"], ["A-1", "AB-", "AB-1c"]),
    ({"type": "string", "pattern": "needle"}, ["needle", "a needle b"], ["needl"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "tomorrow"]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2024-02-29"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 0}}}]},
     [{"a": 1}, {"a": 1, "b": 0}], [{}, {"b": 0}]),
    (TREE, [{"v": 1}, {"v": 1, "kids": [{"v": 2}, {"v": 3, "kids": []}]}], [{"kids": []}]),
]  # fmt: skip
REFUSED: list[tuple[str, Any]] = [
    ("unsupported_schema", {"not": {"type": "string"}}),
    ("unsupported_schema", {"type": "number", "multipleOf": 0.5}),
    ("unsupported_schema", {"type": "number", "minimum": 0.5}),
    ("unsupported_schema", {"type": "number", "exclusiveMinimum": 0}),
    ("unsupported_schema", {"type": "array", "uniqueItems": True}),
    ("unsupported_schema", {"type": "object", "patternProperties": {"a": {}}}),
    ("unsupported_schema", {"type": "object", "properties": {"a": {}}, "required": ["b"]}),
    ("unsupported_schema", {"type": "string", "maxLength": 100_000}),
    ("unsupported_schema", {"type": "string", "pattern": "(?=a)"}),
    ("unsupported_schema", {"type": "string", "pattern": "a\\b"}),
    ("unsupported_schema", {"type": "string", "pattern": "a{2000}"}),
    ("unsupported_schema", {"type": "string", "pattern": '"'}),
    ("unsupported_schema", {"$ref": "https://example.org/schema"}),
    ("unsupported_schema", {"$ref": "#"}),
    ("unsupported_schema", {"oneOf": [{"type": "string"}], "dependentRequired": {}}),
    ("invalid_schema", {"$ref": "#/$defs/none"}),
    ("invalid_schema", {"type": "wizard"}),
    ("invalid_schema", {"type": []}),
    ("invalid_schema", {"enum": []}),
    ("invalid_schema", {"anyOf": "x"}),
    ("invalid_schema", False),
    ("invalid_schema", [1]),
    ("invalid_schema", {"type": "integer", "minimum": 5, "maximum": 4}),
    ("invalid_schema", {"type": "array", "minItems": "x"}),
]


@pytest.fixture(scope="module")
def matcher() -> Iterator[Any]:
    """Says whether llama.cpp's grammar takes a text, by walking its tokens."""
    from qdaemon.runtimes.llama.library import Model
    from qdaemon.runtimes.llama.sampler import Grammar

    path = model_path()
    assert path is not None
    model = Model(str(path), vocabulary_only=True)

    def takes(grammar_text: str, text: str) -> bool:
        grammar = Grammar(model, grammar_text)
        try:
            for token in model.tokenize(text):
                if not grammar.allows(token):
                    return False
                grammar.accept(token)
            return grammar.allows(model.eos)
        finally:
            grammar.close()

    yield takes
    model.log.close()


@needs_model
@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: json.dumps(value)[:40])
def test_the_grammar_takes_what_the_schema_allows(
    matcher: Any, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    grammar = grammar_of(json.dumps(schema))
    for value in good:
        jsonschema.validate(value, schema)
        assert matcher(grammar, json.dumps(value, ensure_ascii=False)), value
        assert matcher(grammar, json.dumps(value, ensure_ascii=False, separators=(",", ":"))), value
    for value in bad:
        assert not matcher(grammar, json.dumps(value, ensure_ascii=False)), value
    assert not matcher(grammar, "Sure! Here")


@needs_model
def test_the_grammar_of_any_json_takes_objects_only(matcher: Any) -> None:
    grammar = grammar_of("json")
    assert matcher(grammar, '{"a": [1, -2.5e3, "\\u00e9\\n", true, null, {}]}')
    for text in ("[1]", '"a"', '{"a": 01}', '{"a": "\\ud800"}', "{'a': 1}", '{"a": 1,}'):
        assert not matcher(grammar, text), text


@pytest.mark.parametrize(("code", "schema"), REFUSED, ids=lambda value: json.dumps(value)[:50])
def test_what_cannot_be_enforced_is_refused_with_its_place(code: str, schema: Any) -> None:
    with pytest.raises(JobProblem) as caught:
        grammar_of(json.dumps(schema))
    assert caught.value.code == code
    assert caught.value.message


def test_schemas_that_are_too_large_are_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{n}": {"type": "integer", "minimum": n} for n in range(1500)}}
    for schema in (deep, wide, {"enum": list(range(600))}, {"title": "x" * 70_000}):
        with pytest.raises(JobProblem) as caught:
            grammar_of(json.dumps(schema))
        assert caught.value.code in {"unsupported_schema", "invalid_schema"}


bound = st.integers(min_value=-(10**7), max_value=10**7)


@needs_model
@settings(max_examples=60, deadline=None)
@given(bound, bound, st.randoms(use_true_random=False))
def test_a_range_holds_its_numbers_and_no_others(
    matcher: Any, one: int, other: int, rng: random.Random
) -> None:
    low, high = min(one, other), max(one, other)
    lines = [f"root ::= {gbnf.integers(low, high)}"]
    grammar = "\n".join(lines) + "\n"
    near = {low - 1, low, low + 1, high - 1, high, high + 1, 0, -1, 1, rng.randint(low, high)}
    for number in near:
        assert matcher(grammar, str(number)) == (low <= number <= high), number
    assert not matcher(grammar, f"0{abs(high)}")


def test_alternatives_that_begin_alike_may_not_be_nested_without_end() -> None:
    nested: dict[str, Any] = {"n0": {"type": "integer"}}
    for number in range(6):
        item = {"$ref": f"#/$defs/n{number}"}
        nested[f"n{number + 1}"] = {
            "anyOf": [{"type": "array", "items": item, "maxItems": n} for n in (2, 3, 4)]
        }
    with pytest.raises(JobProblem, match="begin alike"):
        grammar_of(json.dumps({"$defs": nested, "$ref": "#/$defs/n6"}))
    assert grammar_of(json.dumps({"$defs": nested, "$ref": "#/$defs/n2"}))
    ways = [
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    ]
    with pytest.raises(JobProblem, match="begin alike"):
        grammar_of(json.dumps({"anyOf": ways}))


def test_alternatives_told_apart_by_their_first_property_may_be() -> None:
    def node(kind: str) -> dict[str, Any]:
        properties = {"kind": {"const": kind}, "left": {"$ref": "#/$defs/node"}}
        return {"type": "object", "properties": properties, "required": ["kind"]}

    union = {"anyOf": [node(kind) for kind in ("a", "b", "c", "d", "e")]}
    assert grammar_of(json.dumps({"$defs": {"node": union}, "$ref": "#/$defs/node"}))
