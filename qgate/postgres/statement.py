"""What kind of statement a text holds: the classes that policy and audit speak of.

Text can be fooled (a function called in a SELECT may write), so a class is a fence for honest mistakes and a
label for the audit; what must hold is held by the upstream role's privileges. Where a text is ambiguous, it
gets the classes of every reading.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Final

from qgate.postgres.lexer import QUOTED, WORD, tokens

STATEMENT_CLASSES: Final = frozenset(
    {
        "select",
        "insert",
        "update",
        "delete",
        "merge",
        "copy",
        "ddl",
        "call",
        "role",
        "listen",
        "maintenance",
        "other",
        "transaction",
        "session",
    }
)
ALWAYS_ALLOWED: Final = frozenset({"transaction", "session"})
"""No driver works without BEGIN, SET and SHOW; SET ROLE and SET SESSION AUTHORIZATION are class ``role``."""

_BY_WORD: Final = {
    word: name
    for name, words in {
        "select": "select table values",
        "insert": "insert",
        "update": "update",
        "delete": "delete",
        "merge": "merge",
        "copy": "copy",
        "ddl": "create alter drop comment grant revoke truncate refresh security import reassign",
        "call": "call do",
        "listen": "listen notify unlisten",
        "maintenance": "vacuum analyze analyse cluster checkpoint reindex load",
        "transaction": "begin start commit end rollback abort savepoint release",
        "session": "set reset show discard deallocate execute fetch move close lock",
    }.items()
    for word in words.split()
}
_WRITES: Final = frozenset({"insert", "update", "delete", "merge"})
_LONG: Final = 4096
"""Characters from which on rows of literals are folded while they are read."""
MAX_TOKENS: Final = 50_000
"""Tokens of a text that are looked at, folded rows counted as one: the event loop waits for it meanwhile."""
_Token = tuple[str, str]


class TooLongError(Exception):
    """A text of more than `MAX_TOKENS` tokens."""


_SECOND_BYTE: Final = re.compile(r"(?<=[\x80-\U0010ffff])[@\[\\\]^`{|}~]")
"""What in client encodings like SJIS may be the second half of a character."""


def classes_of(text: str) -> frozenset[str]:
    """Classes of every statement in ``text``; empty for a text that holds none.

    Raises TooLongError for more than `MAX_TOKENS` tokens.
    """
    found = _readings(text)
    if _SECOND_BYTE.search(text) is not None:
        found |= _readings(_SECOND_BYTE.sub("x", text))
    return frozenset(found)


def _readings(text: str) -> set[str]:
    fold = len(text) > _LONG
    found = _classes(tokens(text, fold=fold))
    if "\\'" in text:
        found |= _classes(tokens(text, backslash_escapes=True, fold=fold))
    return found


def _classes(stream: Iterable[_Token]) -> set[str]:
    found: set[str] = set()
    statement: list[_Token] = []
    for number, token in enumerate(stream):
        if number >= MAX_TOKENS:
            raise TooLongError
        if token[0] == ";":
            _classify(statement, found)
            statement = []
        else:
            statement.append((token[0], token[1].lower() if token[0] == WORD else token[1]))
    _classify(statement, found)
    return found


def _classify(statement: Sequence[_Token], found: set[str]) -> None:
    """Add the classes of one statement, lower-cased tokens without its semicolon."""
    at = 0
    while at < len(statement) and statement[at][0] == "(":
        at += 1
    if at == len(statement):
        return
    kind, first = statement[at]
    if kind != WORD:
        found.add("other")
        return
    if first == "explain":
        _classify(_after_explain(statement[at + 1 :]), found)
    elif first == "prepare" and _word(statement, at + 1) != "transaction":
        _classify(_after_word(statement[at + 1 :], "as"), found)
    elif first == "declare":
        found.add("session")
        _classify(_after_word(statement[at + 1 :], "for"), found)
    elif first == "prepare":
        found.add("transaction")
    elif first in {"set", "reset"} and _changes_role(statement[at + 1 :]):
        found.add("role")
    elif first == "with":
        found |= _nested(statement, "select")
    elif first == "select":
        found |= _nested(statement, "select")
        if _creates_table(statement):
            found.add("ddl")
    elif first == "copy":
        found |= _nested(statement, "copy")
    else:
        found.add(_BY_WORD.get(first, "other"))


def _nested(statement: Sequence[_Token], outer: str) -> set[str]:
    """``outer`` and the writes inside its parentheses or after its common table expressions."""
    found = {outer}
    for (before, _), (kind, text) in itertools.pairwise(statement):
        if kind == WORD and text in _WRITES and before in {"(", ")"}:
            found.add(text)
    return found


def _after_explain(rest: Sequence[_Token]) -> Sequence[_Token]:
    if rest and rest[0][0] == "(" and _word(rest, 1) not in {"select", "with", "values", "table"}:
        depth = 0
        for at, (kind, _) in enumerate(rest):
            depth += (kind == "(") - (kind == ")")
            if depth == 0:
                return rest[at + 1 :]
        return ()
    at = 0
    while _word(rest, at) in {"analyze", "analyse", "verbose"}:
        at += 1
    return rest[at:]


def _after_word(rest: Sequence[_Token], word: str) -> Sequence[_Token]:
    for at in range(len(rest)):
        if rest[at] == (WORD, word):
            return rest[at + 1 :]
    return ((QUOTED, "?"),)


def _changes_role(rest: Sequence[_Token]) -> bool:
    words = [text for kind, text in rest[:3] if kind == WORD]
    if words[:1] in (["session"], ["local"]):
        words = words[1:]
    return words[:1] in (["role"], ["authorization"], ["session_authorization"])


def _creates_table(statement: Sequence[_Token]) -> bool:
    depth = 0
    for kind, text in statement:
        depth += (kind == "(") - (kind == ")")
        if depth == 0 and kind == WORD and text == "into":
            return True
    return False


def _word(statement: Sequence[_Token], at: int) -> str:
    return statement[at][1] if at < len(statement) and statement[at][0] == WORD else ""
