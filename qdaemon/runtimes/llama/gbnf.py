"""Pieces of llama.cpp's grammar notation: literals, whole numbers in a range, patterns. Pure.

Everything is made of parts that are well formed by construction; no text of a client becomes notation.
"""

from __future__ import annotations

import json
from typing import Any, Final

PRIMITIVES: Final = {
    "ws": '| " " | "\\n" [ \\t]{0,20}',
    "hex": "[0-9a-fA-F]",
    # Never a lone surrogate: it would be JSON that is no text.
    "escape": '[\\\\] (["\\\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex))',
    "char": '[^"\\\\\\x7F\\x00-\\x1F] | escape',
    "string": '"\\"" char* "\\""',
    "digits": '"0" | [1-9] [0-9]{0,17}',
    "integer": '"-"? digits',
    "number": '"-"? digits ("." [0-9]{1,17})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ws ":" ws value',
    "object": '"{" ws (pair ws ("," ws pair ws)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
}
"""JSON itself."""

FORMATS: Final = {
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "uuid": "hex{8} " + '"-" hex{4} ' * 3 + '"-" hex{12}',
}
FORMATS_JOINED: Final = f'{FORMATS["date"]} "T" {FORMATS["time"]}'
"""date-time."""


def literal(text: str) -> str:
    """``text`` as a terminal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def json_literal(value: Any) -> str:
    """The JSON of ``value`` as a terminal."""
    return literal(json.dumps(value, ensure_ascii=False, allow_nan=False))


def repeated(item: str, low: int, high: int | None) -> str:
    """``item``, a single symbol or group, ``low`` to ``high`` times."""
    if (low, high) == (0, None):
        return f"{item}*"
    if (low, high) == (1, None):
        return f"{item}+"
    if (low, high) == (0, 1):
        return f"{item}?"
    if high is None:
        return f"{item}{{{low},}}"
    return f"{item}{{{low}}}" if low == high else f"{item}{{{low},{high}}}"


def integers(low: int | None, high: int | None) -> str:
    """Whole numbers from ``low`` to ``high``, written without leading zeros; at most 18 digits."""
    options: list[str] = []
    if low is None or low < 0:
        # -x for x from 1 (or -high) to -low
        smallest = 1 if high is None or high >= 0 else -high
        options.append('"-" ' + _group(_naturals(smallest, None if low is None else -low)))
    if high is None or high >= 0:
        options.append(_group(_naturals(max(low or 0, 0), high)))
    return " | ".join(options)


def decimals(low: int | None, high: int | None) -> str:
    """Decimal numbers without exponent between the whole numbers ``low`` and ``high``, both included."""
    fraction = '("." [0-9]{1,17})?'
    zeros = '("." "0"{1,17})?'
    options: list[str] = []
    if low is None or low < 0:
        # The sign, then a magnitude between -high (or 0) and -low.
        start = 0 if high is None or high >= 0 else -high
        options += [
            f'"-" {one}' for one in _magnitudes(start, None if low is None else -low, fraction, zeros)
        ]
    if high is None or high >= 0:
        options += _magnitudes(max(low or 0, 0), high, fraction, zeros)
    return " | ".join(options)


def _magnitudes(low: int, high: int | None, fraction: str, zeros: str) -> list[str]:
    if high is None:
        return [f"{_group(_naturals(low, None))} {fraction}"]
    options = [f"{_group(_naturals(low, high - 1))} {fraction}"] if high > low else []
    return [*options, f"{literal(str(high))} {zeros}"]


def _group(options: list[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


def _naturals(low: int, high: int | None) -> list[str]:
    """Alternatives that together are the numbers from ``low`` (at least 0) to ``high``."""
    top = 10**18 - 1
    high = top if high is None else min(high, top)
    options: list[str] = []
    for size in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (size - 1) if size > 1 else 0)
        last = min(high, 10**size - 1)
        if first <= last:
            options += _same_size(str(first), str(last))
    return options


def _same_size(low: str, high: str) -> list[str]:
    """Alternatives for the numbers between two of the same number of digits."""
    if low == high:
        return [literal(low)]
    if len(low) == 1:
        return [_digit(low, high)]
    rest = len(low) - 1
    if set(low[1:]) == {"0"} and set(high[1:]) == {"9"}:
        return [f"{_digit(low[0], high[0])} {repeated('[0-9]', rest, rest)}"]
    if low[0] == high[0]:
        return [f"{literal(low[0])} {_group(_same_size(low[1:], high[1:]))}"]
    options = [f"{literal(low[0])} {_group(_same_size(low[1:], '9' * rest))}"]
    if int(high[0]) - int(low[0]) > 1:
        middle = _digit(str(int(low[0]) + 1), str(int(high[0]) - 1))
        options.append(f"{middle} {repeated('[0-9]', rest, rest)}")
    options.append(f"{literal(high[0])} {_group(_same_size('0' * rest, high[1:]))}")
    return options


def _digit(low: str, high: str) -> str:
    return literal(low) if low == high else f"[{low}-{high}]"
