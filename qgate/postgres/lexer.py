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

# White space between the parts of one string constant: it holds a line break.
_CONTINUED: Final = r"(?:[ \t\f\v]|--[^\r\n]*+)*+[\r\n](?:[ \t\n\r\f\v]|--[^\r\n]*+[\r\n])*+"
# A word begins with a letter or anything beyond ASCII, and goes on with digits and dollars too.
_TEMPLATE: Final = r"""
  (?P<space>[ \t\n\r\f\v]+|--[^\r\n]*)
| (?P<comment>/\*)
| (?P<escape>[eE]'(?:[^'\\]++|\\.|''|'CONTINUED')*+(?:'|\\?\Z))
| (?P<string>[bBxX]'[^']*(?:'|\Z)|(?:[nN]|[uU]&)?'PLAIN(?:'|\\?\Z))
| (?P<quoted>(?:[uU]&)?"(?:[^"]++|"")*+(?:"|\Z))
| (?P<parameter>\$[0-9]+)
| (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_\x80-\U0010ffff]*)?\$)
| (?P<number>
      # Before PostgreSQL 16 these were a number and a word, whose dollar opens no string.
      (?:0[xXoObB]|[0-9]+_)[0-9A-Za-z_$\x80-\U0010ffff]*
    | (?:[0-9]+(?:\.(?!\.)[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9][0-9_]*)?)
| (?P<word>[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_$\x80-\U0010ffff]*)
| (?P<operator>(?:(?!--|/\*)[-+*/<>=~!@\#%^&|`?:])+)
| (?P<other>.)
""".replace("CONTINUED", _CONTINUED)
_STANDARD_STRING: Final = "(?:[^']++|'')*+"
_BACKSLASH_STRING: Final = rf"(?:[^'\\]++|\\.|''|'{_CONTINUED}')*+"
# Rows of plain literals, and lists of them, make long statements long. None of these can be read in two ways.
_ATOM: Final = (
    r"(?>[-+]?[0-9]+(?:\.[0-9]+)?(?![\w.$])|\$[0-9]+(?![\w$])|'[^'\\]*+(?:''[^'\\]*+)*+'"
    r"|(?i:null|true|false|default)(?![\w$]))"
)
_LIST: Final = rf"(?>{_ATOM}(?:\s*+,\s*+{_ATOM})*+)"
_FOLDED: Final = rf"""
  (?P<rows>\(\s*+{_LIST}\s*+\)(?:\s*+,\s*+\(\s*+{_LIST}\s*+\))*+)
| (?P<list>{_ATOM}(?:\s*+,\s*+{_ATOM})++)
| """
_PATTERNS: Final = {
    (backslash, folded): re.compile(
        (_FOLDED if folded else "")
        + _TEMPLATE.replace("PLAIN", _BACKSLASH_STRING if backslash else _STANDARD_STRING),
        re.VERBOSE | re.DOTALL,
    )
    for backslash in (False, True)
    for folded in (False, True)
}
_SIGN_KEEPERS: Final = frozenset("~!@#%^&|`?")
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")


def tokens(text: str, *, backslash_escapes: bool = False, fold: bool = False) -> Iterator[tuple[str, str]]:
    """``(kind, text)`` of every token; kinds are this module's constants, punctuation is its own kind.

    ``backslash_escapes`` reads plain strings as with ``standard_conforming_strings`` off. ``fold`` gives one
    number for a list of plain literals, and one row for many of them.
    """
    pattern = _PATTERNS[backslash_escapes, fold]
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
            yield OPERATOR, token
            for sign in match[0][len(token) :]:  # only + and - are left, each an operator of its own
                yield OPERATOR, sign
        elif kind == "other":
            yield match[0], match[0]
        elif kind == "rows":
            yield "(", "("
            yield NUMBER, "0"
            yield ")", ")"
        elif kind == "list":
            yield NUMBER, "0"
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
