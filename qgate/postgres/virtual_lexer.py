"""SQL of the virtual database to tokens with their content, dollar quotes and E strings included. Pure.

`qgate.postgres.lexer` finds where literals are in any SQL; this one reads what little is understood here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qgate.postgres.virtual_values import error

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+|--[^\r\n]*)
    | (?P<comment>/\*)
    | (?P<escape>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<parameter>\$[0-9]+)
    | (?P<dollar>\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][\w]*)?)\$(?P<inside>.*?)\$(?P=tag)\$)
    | (?P<number>[0-9]+(?:\.[0-9]+)?)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$]*)
    | (?P<operator>::|->>|->|[-+*/<>=~!@\#%^&|`?(),;.\[\]:]) """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Token:
    """``kind``: word (folded), quoted, string, parameter, number, or an operator as it is written."""

    kind: str
    text: str


def tokens(sql: str) -> Iterator[Token]:
    """Cut ``sql``; 42601 where it cannot be read. Comments and white space are dropped."""
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            if sql[at] in "'\"$" or sql[at : at + 2].lower() == "e'":
                raise error("a quoted text does not end", "42601")
            raise error(f'syntax error at or near "{sql[at]}"', "42601")
        kind = match.lastgroup or ""
        at = match.end()
        if kind == "comment":
            at = _after_comment(sql, at)
        elif kind == "word":
            yield Token("word", match[0].lower())
        elif kind == "string":
            yield Token("string", match[0][1:-1].replace("''", "'"))
        elif kind == "escape":
            yield Token("string", _unescaped(match[0][2:-1]))
        elif match["dollar"] is not None:
            yield Token("string", match["inside"])
        elif kind == "quoted":
            yield Token("quoted", match[0][1:-1].replace('""', '"'))
        elif kind == "operator":
            yield Token(match[0], match[0])
        elif kind != "space":
            yield Token(kind, match[0])


def _after_comment(sql: str, at: int) -> int:
    depth = 1
    for edge in re.finditer(r"/\*|\*/", sql[at:]):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return at + edge.end()
    raise error("a comment does not end", "42601")


def _unescaped(body: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[0] == "''":
            return "'"
        letter = match[1]
        if letter in "ux" or letter.isdigit():
            raise error("numeric escapes in E'...' are not read here", "0A000", hint="Send the text as $1.")
        return _ESCAPES.get(letter, letter)

    return re.sub(r"\\(.)|''", one, body, flags=re.DOTALL)
