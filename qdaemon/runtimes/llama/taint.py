"""Keeping a client's words from being control tokens, through a chat template.

Before a template sees them, the client's strings are marked: a private-use character is put after the first
character of each control token's text that they contain, or that could arise where they touch other text.
After rendering, only unmarked texts are control tokens; the marks are removed with the text between them. The
template sees the words otherwise as they are, so that its own conditions on them hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_PRIVATE: Final = range(0xE000, 0xF8FF)
_KEYS: Final = frozenset(
    {
        "additionalProperties",
        "arguments",
        "content",
        "default",
        "description",
        "enum",
        "format",
        "function",
        "functions",
        "id",
        "items",
        "name",
        "parameters",
        "properties",
        "reasoning_content",
        "refusal",
        "required",
        "role",
        "strict",
        "text",
        "thinking",
        "title",
        "tool_call_id",
        "tool_calls",
        "type",
    }
)
"""Names of the API itself, which templates look for; all other keys are a client's words."""
_VALUES: Final = frozenset(
    {
        "array",
        "assistant",
        "boolean",
        "developer",
        "function",
        "integer",
        "null",
        "number",
        "object",
        "string",
        "system",
        "text",
        "tool",
        "user",
    }
)
"""Values of "role" and "type" that templates compare with."""
_DEPTH: Final = 64
"""Levels of a message or tool; deeper ones are refused before they reach a template."""


class Marker:
    """Marks strings for a vocabulary with control tokens ``controls``."""

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = sorted({text for text in controls if text}, key=len, reverse=True)
        self._inside = (
            re.compile("(?=(" + "|".join(map(re.escape, self._controls)) + "))") if self._controls else None
        )
        self._beginnings = {text[:size] for text in self._controls for size in range(1, len(text))}
        self._ends = {text[-size:] for text in self._controls for size in range(1, len(text))}
        self._middles = {
            text[start:end]
            for text in self._controls
            for start in range(1, len(text) - 1)
            for end in range(start + 1, len(text))
        }
        self._longest = max(map(len, self._controls), default=0)

    def mark(self, value: Any, taint: str) -> Any:
        """``value`` (JSON) with every string in it marked by ``taint``. ValueError where it is too deep."""
        return self._mark(value, taint, 0)

    def _mark(self, value: Any, taint: str, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} levels")
        if isinstance(value, str):
            return self._marked(value, taint)
        if isinstance(value, Mapping):
            return {
                key if key in _KEYS else self._marked(str(key), taint): item
                if key in {"role", "type"} and isinstance(item, str) and item in _VALUES
                else self._mark(item, taint, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self._mark(item, taint, depth + 1) for item in value]
        return value

    def _marked(self, text: str, taint: str) -> str:
        if self._inside is None or not text:
            return text
        cuts = {found.start() + 1 for found in self._inside.finditer(text)}
        reach = min(len(text), self._longest)
        # A beginning at the end, an end at the beginning, or the whole a part of one: split it too.
        cuts |= {len(text) - size + 1 for size in range(1, reach + 1) if text[-size:] in self._beginnings}
        cuts |= {size - 1 for size in range(1, reach + 1) if text[:size] in self._ends}
        if text in self._middles:
            cuts |= {0, len(text)}
        if not cuts:
            return text
        parts, at = [], 0
        for cut in sorted(cuts):
            parts.append(text[at:cut])
            at = cut
        return taint.join([*parts, text[at:]])


def choose(texts: Iterable[str]) -> str:
    """A private-use character that none of ``texts`` holds. ValueError where they hold them all."""
    used = {character for text in texts for character in text if ord(character) in _PRIVATE}
    for code in _PRIVATE:
        if chr(code) not in used:
            return chr(code)
    raise ValueError("the text uses every private-use character")


def strings(value: Any, depth: int = 0) -> Iterable[str]:
    """Every string in ``value`` (JSON), keys included."""
    if depth > _DEPTH:
        raise ValueError(f"more than {_DEPTH} levels")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from strings(item, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for item in value:
            yield from strings(item, depth + 1)
