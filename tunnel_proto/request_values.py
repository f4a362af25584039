"""Values of a `qg://` request that need more than a pattern: JSON schemas, language tags, durations."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final

SCHEMA_MAX: Final = 16_384
"""Characters of a JSON schema in canonical form."""
SCHEMA_DEPTH_MAX: Final = 32
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_LANGUAGE: Final = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?P<rest>(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*)"
)
_LANGUAGE_MAX: Final = 35  # RFC 5646, section 4.4.1: what an implementation must be able to hold
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Unfit(Exception):  # noqa: N818 - reads as what it is
    """A value that its key does not take.

    ``offset`` counts characters from the value's first, None where the value as a whole is wrong.
    """

    def __init__(
        self, problem: str, *, code: str = "bad_value", hint: str = "", offset: int | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.code = code
        self.hint = hint
        self.offset = offset


def lowered(value: str) -> str:
    """ASCII letters in lower case; other text stays, so that no look-alike (U+212A) reads as a keyword."""
    return value.lower() if value.isascii() else value


def language_tag(value: str) -> str:
    """A BCP 47 tag (language, script, region, variants) in the case that RFC 5646, section 2.1.1, advises."""
    found = _LANGUAGE.fullmatch(lowered(value)) if len(value) <= _LANGUAGE_MAX else None
    if found is None:
        raise Unfit(f'"{value[:40]}" is not a language tag', hint="write it as de, pt-BR or zh-Hant")
    tag = found["language"]
    if found["script"]:
        tag += "-" + found["script"].title()
    if found["region"]:
        tag += "-" + found["region"].upper()
    return tag + found["rest"]


def whole_milliseconds(milliseconds: Decimal, *, most_s: int) -> int:
    """A duration as an integer of milliseconds, 1 to ``most_s`` seconds."""
    if milliseconds != milliseconds.to_integral_value():
        raise Unfit("a deadline has no part finer than 1 ms", hint="round it to milliseconds")
    if not 1 <= milliseconds <= most_s * 1000:
        raise Unfit(f"a deadline is 1ms to {most_s // 3600}h", hint="leave the key out for the gate's own")
    return int(milliseconds)


def canonical_schema(text: str) -> str:
    """A JSON schema as compact JSON text, members in the order they were given in.

    The order is kept because engines write an object's properties in the schema's order. References must stay
    inside the schema, so that no engine is sent to fetch one. Raises `Unfit`.
    """
    try:
        schema = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if not isinstance(schema, dict):
            raise Unfit("a JSON schema is an object", hint='write {"type":"object",...}')
        _check_schema(schema, 1)
        written = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except json.JSONDecodeError as error:
        raise Unfit(
            f"not JSON: {error.msg} (character {error.pos + 1} of the schema)",
            hint="check it with a JSON tool; inside a request, ; is written %3B and % is written %25",
        ) from None
    except RecursionError:
        raise Unfit(f"the schema is nested deeper than {SCHEMA_DEPTH_MAX} levels") from None
    except ValueError as error:  # a number that no double or no int holds
        raise Unfit(f"not JSON that an engine can use: {error}") from None
    if len(written) > SCHEMA_MAX:
        raise Unfit(
            f"the schema has {len(written)} characters; {SCHEMA_MAX} are allowed",
            hint="send it in the request's response_format instead",
        )
    if _SURROGATE.search(written):
        raise Unfit("the schema holds half a character (a lone surrogate)")
    return written


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unfit(f"{twice[:40]!a} stands twice in one JSON object", hint="keep one of the two")
    return members


def _constant(name: str) -> Any:
    raise Unfit(f"{name} is not JSON")


def _check_schema(value: Any, depth: int) -> None:
    if depth > SCHEMA_DEPTH_MAX:
        raise Unfit(f"the schema is nested deeper than {SCHEMA_DEPTH_MAX} levels")
    if isinstance(value, list):
        for one in value:
            _check_schema(one, depth + 1)
    elif isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise Unfit('"$ref" leads out of the schema', hint='put the definition under "$defs"')
        kind = value.get("type")
        if depth == 1 and isinstance(kind, str) and kind not in _TYPES:
            raise Unfit(f'there is no type "{kind[:40]}" in JSON schema', hint=", ".join(sorted(_TYPES)))
        for one in value.values():
            _check_schema(one, depth + 1)
