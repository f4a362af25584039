"""SQL text to tokens, as PostgreSQL's scanner cuts it: enough to tell literals from everything else.

Source: PostgreSQL 18 documentation, "Lexical Structure". Comments and white space are dropped. What is not
terminated (a string, a comment, a dollar quote) extends to the end of the text, so that a literal can never
be taken for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

WORD: Final = "word"
QUOTED: Final = "quoted"
STRING: Final = "string"
NUMBER: Final = "number"
PARAMETER: Final = "parameter"
OPERATOR: Final = "operator"

_HEAD: Final = r"""
  (?P<space>\s+|--[^\r\n]*)
| (?P<comment>/\*)
| (?P<escape>[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z))
| (?P<string>(?:[bBxXnN]|[uU]&)?'%s(?:'|\Z))
| (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*(?:"|\Z))
| (?P<parameter>\$\d+)
| (?P<dollar>\$(?:[^\W\d]\w*)?\$)
| (?P<number>0[xXoObB][0-9a-fA-F_]+|(?:\d[\d_]*(?:\.(?!\.)[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?)
| (?P<word>[^\W\d][\w$]*)
| (?P<operator>(?:(?!--|/\*)[-+*/<>=~!@\#%%^&|`?:])+)
| (?P<other>.)
"""
_STANDARD: Final = re.compile(_HEAD % r"(?:[^']|'')*", re.VERBOSE | re.DOTALL)
_BACKSLASH: Final = re.compile(_HEAD % r"(?:[^'\\]|\\.|'')*", re.VERBOSE | re.DOTALL)
_SIGN_KEEPERS: Final = frozenset("~!@#%^&|`?")
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")


def tokens(text: str, *, backslash_escapes: bool = False) -> Iterator[tuple[str, str]]:
    """``(kind, text)`` of every token; kinds are this module's constants, punctuation is its own kind.

    ``backslash_escapes`` reads plain strings as with ``standard_conforming_strings`` off.
    """
    pattern = _BACKSLASH if backslash_escapes else _STANDARD
    at, end = 0, len(text)
    while at < end:
        match = pattern.match(text, at)
        assert match is not None  # the last alternative takes any character
        kind = match.lastgroup
        at = match.end()
        if kind == "space":
            continue
        if kind == "comment":
            at = _after_comment(text, at)
        elif kind == "dollar":
            close = text.find(match[0], at)
            at = end if close < 0 else close + len(match[0])
            yield STRING, ""
        elif kind in {"string", "escape"}:
            yield STRING, match[0]
        elif kind == "operator":
            token = _operator(match[0])
            at = match.start() + len(token)
            yield OPERATOR, token
        elif kind == "other":
            yield match[0], match[0]
        else:
            assert kind is not None
            yield kind, match[0]


def _operator(run: str) -> str:
    """What of ``run`` is one operator: a trailing sign belongs to it only beside certain characters."""
    if run[-1] in "+-" and len(run) > 1 and not _SIGN_KEEPERS.intersection(run):
        return run.rstrip("+-") or run[0]
    return run


def _after_comment(text: str, at: int) -> int:
    """Index after the block comment whose opening ends at ``at``; comments nest."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)
