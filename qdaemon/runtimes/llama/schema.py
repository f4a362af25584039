"""JSON schemas as llama.cpp grammars. Pure.

A keyword is enforced, or known to mean nothing here (an annotation), or refused: an answer that satisfies the
grammar satisfies the schema. Where a schema allows more than is worth generating, the grammar allows less: no
properties but the declared ones, in their order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from qdaemon.runtimes.llama import gbnf
from qdaemon.runtimes.llama.job import JobProblem
from qdaemon.runtimes.llama.pattern import Pattern, PatternError

MAX_SCHEMA: Final = 65_536
"""Characters of a schema."""
MAX_DEPTH: Final = 32
MAX_RULES: Final = 2_000
MAX_GRAMMAR: Final = 262_144
MAX_COUNT: Final = 1_000
"""Items of an array or characters of a string that may be counted."""
MAX_WAYS: Final = 512
"""Alternatives of one anyOf or enum."""
MAX_AMBIGUITY: Final = 16
"""Readings of one text that may be open at once: llama.cpp follows them all, in time that grows with their
square, and nested ambiguities multiply."""

_ANNOTATIONS: Final = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
        "$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "contentMediaType",
        "contentEncoding", "discriminator",
    }
)  # fmt: skip
_KEYWORDS: Final = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset(
        {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}
    ),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}


def grammar_of(response_format: str) -> str:
    """The grammar of "json" (any object) or of a JSON schema as text.

    JobProblem ("invalid_schema", "unsupported_schema") that names the place in the schema.
    """
    if response_format == "json":
        return _Grammar({}).text("object")
    if len(response_format) > MAX_SCHEMA:
        raise JobProblem("unsupported_schema", f"the schema has more than {MAX_SCHEMA} characters")
    try:
        schema = json.loads(response_format)
    except (ValueError, RecursionError) as error:
        raise JobProblem("invalid_schema", f"the schema is not JSON: {error}"[:300]) from None
    grammar = _Grammar(schema)
    return grammar.text(grammar.symbol(schema, "#", 0))


class _Grammar:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._open: dict[str, int] = {}  # references being built, and how many readings led there
        self._within: dict[str, int] = {}  # the most readings inside a finished reference
        self._ways = 1
        self._most = 1

    def text(self, start: str) -> str:
        """The whole grammar with ``start`` as its root."""
        lines = [f"root ::= {start}"]
        lines += [f"{name} ::= {body}" for name, body in {**gbnf.PRIMITIVES, **self._rules}.items()]
        text = "\n".join(lines) + "\n"
        if len(text) > MAX_GRAMMAR:
            raise JobProblem("unsupported_schema", "the schema is too large for a grammar")
        return text

    def symbol(self, schema: Any, path: str, depth: int) -> str:
        """Name of a rule for ``schema``, which stands at ``path``."""
        if depth > MAX_DEPTH:
            raise _refused(path, f"it is nested more than {MAX_DEPTH} levels deep")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise JobProblem("invalid_schema", f"the schema at {path} is no schema")
        if "$ref" in schema:
            return self._reference(schema, path, depth)
        return self._rule(self._body(schema, path, depth))

    def _rule(self, body: str) -> str:
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = self._fresh()
            self._rules[name] = body
        return name

    def _fresh(self) -> str:
        if len(self._rules) >= MAX_RULES:
            raise JobProblem("unsupported_schema", f"the schema needs more than {MAX_RULES} rules")
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _reference(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        self._only(schema, frozenset({"$ref"}), path)
        target = schema["$ref"]
        name = self._references.get(target) if isinstance(target, str) else None
        if name is not None:
            if target in self._open and self._ways > self._open[target]:
                raise _refused(path, "it refers to itself from within alternatives that begin alike")
            self._count_ways(self._within.get(target, 1), path)
            return name
        found = self._find(target, path)
        # Named before it is built, for a schema may refer to itself.
        name = self._references[target] = self._fresh()
        self._open[target] = self._ways
        outer, self._most = self._most, self._ways
        inner = self.symbol(found, target, depth + 1)
        self._within[target] = self._most // self._open.pop(target)
        self._most = max(outer, self._most)
        if inner == name:
            raise _refused(path, f"{target} refers to nothing but itself")
        self._rules[name] = inner
        return name

    def _count_ways(self, more: int, path: str) -> None:
        """Note that ``more`` times the present readings are open at ``path``."""
        if self._ways * more > MAX_AMBIGUITY:
            raise _refused(path, f"more than {MAX_AMBIGUITY} alternatives that begin alike are nested")
        self._most = max(self._most, self._ways * more)

    def _find(self, target: Any, path: str) -> Any:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise _refused(path, f"only references into the schema itself are followed, not {target!r}")
        found = self._root
        for part in target.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise JobProblem("invalid_schema", f"{target} at {path} does not exist")
            found = found[key]
        return found

    def _body(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        if "const" in schema:
            self._only(schema, frozenset({"const", "type"}), path)
            return gbnf.json_literal(schema["const"])
        if "enum" in schema:
            self._only(schema, frozenset({"enum", "type"}), path)
            values = schema["enum"]
            if not isinstance(values, list) or not 0 < len(values) <= MAX_WAYS:
                raise JobProblem("invalid_schema", f"the enum at {path} needs 1 to {MAX_WAYS} values")
            return " | ".join(dict.fromkeys(map(gbnf.json_literal, values)))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._any_of(schema, keyword, path, depth)
        if "allOf" in schema:
            return self.symbol(self._merged(schema, path), path, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            if not kind:
                raise JobProblem("invalid_schema", f"the type at {path} is empty")
            return " | ".join(
                dict.fromkeys(self.symbol(self._typed(schema, one), path, depth + 1) for one in kind)
            )
        if kind is None:
            kind = next((name for name, words in _KEYWORDS.items() if words & schema.keys()), None)
            if kind is None:
                self._only(schema, frozenset(), path)
                return "value"
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            raise JobProblem("invalid_schema", f"the type at {path} is unknown")
        self._only(schema, _KEYWORDS[kind] | {"type"}, path)
        match kind:
            case "object":
                return self._object(schema, path, depth)
            case "array":
                return self._array(schema, path, depth)
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return self._number(schema, kind, path)
        return kind

    @staticmethod
    def _typed(schema: Mapping[str, Any], kind: Any) -> dict[str, Any]:
        """``schema`` for one of its types: without the keywords of the others."""
        other = {word for name, words in _KEYWORDS.items() if name != kind for word in words}
        mine = _KEYWORDS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
        kept = {key: value for key, value in schema.items() if key not in other or key in mine}
        return {**kept, "type": kind}

    def _any_of(self, schema: Mapping[str, Any], keyword: str, path: str, depth: int) -> str:
        ways = schema[keyword]
        if not isinstance(ways, list) or not 0 < len(ways) <= MAX_WAYS:
            raise JobProblem("invalid_schema", f"{keyword} at {path} needs 1 to {MAX_WAYS} schemas")
        self._only(schema, frozenset({keyword, "type"}), path)
        alike = self._alike(ways, path)
        self._count_ways(alike, path)
        self._ways *= alike
        found = [self.symbol(one, f"{path}/{keyword}/{number}", depth + 1) for number, one in enumerate(ways)]
        self._ways //= alike
        # Equal alternatives are one: each would double what llama.cpp keeps track of.
        return " | ".join(dict.fromkeys(found))

    def _alike(self, ways: list[Any], path: str) -> int:
        """How many of ``ways`` may be read at once past their beginnings: objects and arrays only.

        Objects part where their first property has another name, or is a constant with another value.
        """
        groups: Counter[str] = Counter()
        anything = 0
        for one in ways:
            for _ in range(MAX_DEPTH):
                if not (isinstance(one, Mapping) and "$ref" in one):
                    break
                one = self._find(one["$ref"], path)
            if not isinstance(one, Mapping):
                anything += one is True
                continue
            kinds = one.get("type", ["object", "array"])
            if "array" in kinds:
                groups["["] += 1
            if "object" in kinds:
                properties, required = one.get("properties"), one.get("required")
                first = next(iter(properties), None) if isinstance(properties, Mapping) else None
                if first is None or not isinstance(required, list) or first not in required:
                    anything += 1
                else:
                    inner = properties[first] if isinstance(properties, Mapping) else None
                    constant = inner.get("const") if isinstance(inner, Mapping) else None
                    groups[f"{first} {json.dumps(constant)}"] += 1
        return max(1, anything + max(groups.values(), default=0))

    def _merged(self, schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """``allOf`` where it is one schema, or objects that only add properties."""
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise JobProblem("invalid_schema", f"allOf at {path} needs schemas")
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        seen = [
            self._find(one["$ref"], path) if isinstance(one, Mapping) and "$ref" in one else one
            for one in parts
        ]
        if len(seen) == 1 and not rest.keys() - _ANNOTATIONS and isinstance(seen[0], Mapping):
            return seen[0]
        result: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for one in [*seen, rest]:
            if not isinstance(one, Mapping):
                raise JobProblem("invalid_schema", f"allOf at {path} holds something else than schemas")
            self._only(one, frozenset({"type", "properties", "required", "additionalProperties"}), path)
            if one.get("type", "object") != "object":
                raise _refused(path, "allOf can join objects only")
            for name, value in one.get("properties", {}).items():
                if name in result["properties"] and result["properties"][name] != value:
                    raise _refused(path, f'allOf gives "{name}" two schemas')
                result["properties"][name] = value
            result["required"] += one.get("required", [])
        return result

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise JobProblem("invalid_schema", f"properties or required at {path} are malformed")
        if not properties and schema.get("additionalProperties") is not False:
            return self._map(schema, path, depth)
        missing = [name for name in required if name not in properties]
        if missing:
            raise _refused(path, f"required names properties that are not declared: {missing[:5]}")
        least, most = schema.get("minProperties", 0), schema.get("maxProperties", len(properties))
        if least > len(required) or most < len(properties):
            raise _refused(path, "minProperties and maxProperties cannot be enforced with properties")
        tails = {False: '"}"', True: '"}"'}
        for name, inner in reversed(list(properties.items())):
            value = self.symbol(inner, f"{path}/properties/{name}", depth + 1)
            pair = f'{gbnf.json_literal(name)} ws ":" ws {value} ws'
            after = tails[True]
            first, later = f"{pair} {after}", f'"," ws {pair} {after}'
            if name not in required:
                first, later = f"{first} | {tails[False]}", f"{later} | {tails[True]}"
            tails = {False: self._rule(first), True: self._rule(later)}
        return f'"{{" ws {tails[False]}'

    def _map(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        if schema.get("required"):
            raise _refused(path, "required names properties that are not declared")
        value = self.symbol(
            schema.get("additionalProperties", True), f"{path}/additionalProperties", depth + 1
        )
        pair = f'string ws ":" ws {value} ws'
        return self._listed("{", pair, "}", *self._counts(schema, "minProperties", "maxProperties", path))

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        low, high = self._counts(schema, "minItems", "maxItems", path)
        prefix = schema.get("prefixItems")
        if prefix is not None:
            if schema.get("items", True) not in {True, False} or not isinstance(prefix, list) or not prefix:
                raise _refused(path, "prefixItems is enforced without further items only")
            if low > len(prefix) or (high is not None and high < len(prefix)):
                raise _refused(path, "minItems and maxItems do not fit prefixItems")
            found = [
                self.symbol(one, f"{path}/prefixItems/{number}", depth + 1)
                for number, one in enumerate(prefix)
            ]
            return '"[" ws ' + ' ws "," ws '.join(found) + ' ws "]"'
        if schema.get("items") is False:
            return '"[" ws "]"'
        item = self.symbol(schema.get("items", True), f"{path}/items", depth + 1)
        return self._listed("[", f"{item} ws", "]", low, high)

    def _listed(self, start: str, item: str, end: str, low: int, high: int | None) -> str:
        """``item`` from ``low`` to ``high`` times, with commas between."""
        if high == 0:
            return f'"{start}" ws "{end}"'
        more = gbnf.repeated(f'("," ws {item})', max(low - 1, 0), None if high is None else high - 1)
        inside = item if high == 1 else f"{item} {more}"
        return f'"{start}" ws ({inside}) "{end}"' if low else f'"{start}" ws ({inside})? "{end}"'

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        low, high = self._counts(schema, "minLength", "maxLength", path)
        counted = "minLength" in schema or "maxLength" in schema
        if "pattern" in schema:
            if counted or not isinstance(schema["pattern"], str):
                raise _refused(path, "a pattern is enforced without minLength and maxLength only")
            try:
                return f'"\\"" {Pattern(schema["pattern"]).grammar()} "\\""'
            except (PatternError, RecursionError) as error:
                raise _refused(path, str(error)) from None
        form = gbnf.FORMATS_JOINED if schema.get("format") == "date-time" else None
        form = form or gbnf.FORMATS.get(str(schema.get("format")))
        if form and not counted:
            return f'"\\"" {form} "\\""'
        return f'"\\"" {gbnf.repeated("char", low, high)} "\\""' if counted else "string"

    def _number(self, schema: Mapping[str, Any], kind: str, path: str) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        if schema.get("multipleOf", 1) != 1:
            raise _refused(path, "multipleOf cannot be enforced")
        for name, step in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            bound = schema.get(name)
            if bound is None:
                continue
            if kind == "number" or not _whole(bound):
                raise _refused(path, f"{name} is enforced for whole numbers only")
            moved = int(bound) + step
            low, high = (
                (max(low, moved) if low is not None else moved, high)
                if step > 0
                else (
                    low,
                    min(high, moved) if high is not None else moved,
                )
            )
        if low is None and high is None:
            return kind
        if (low is not None and not _whole(low)) or (high is not None and not _whole(high)):
            raise _refused(path, "only whole numbers are enforced as minimum and maximum")
        least, most = (None if bound is None else int(bound) for bound in (low, high))
        if least is not None and most is not None and least > most:
            raise JobProblem("invalid_schema", f"no number is allowed at {path}")
        return (gbnf.integers if kind == "integer" else gbnf.decimals)(least, most)

    @staticmethod
    def _counts(schema: Mapping[str, Any], lowest: str, highest: str, path: str) -> tuple[int, int | None]:
        low, high = schema.get(lowest, 0), schema.get(highest)
        if not _whole(low) or low < 0 or (high is not None and (not _whole(high) or high < low)):
            raise JobProblem("invalid_schema", f"{lowest} or {highest} at {path} is no count")
        if max(int(low), int(high or 0)) > MAX_COUNT:
            raise _refused(path, f"{lowest} and {highest} are enforced up to {MAX_COUNT}")
        return int(low), None if high is None else int(high)

    @staticmethod
    def _only(schema: Mapping[str, Any], allowed: frozenset[str], path: str) -> None:
        unknown = schema.keys() - allowed - _ANNOTATIONS
        if unknown:
            raise _refused(path, f"{', '.join(sorted(unknown))} cannot be enforced here")


def _whole(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 10**18 and value == int(value)


def _refused(path: str, why: str) -> JobProblem:
    return JobProblem(
        "unsupported_schema",
        f"the schema at {path}: {why}"[:400],
        hint="leave it out of the schema, or check it after the answer",
    )
