"""A statement's fingerprint: its text without literals, so that audit can name it and count it.

Two stages, because this runs for every statement. The first is one regular expression over the bytes that
takes out plain literals; its result is the key of a bounded cache. Only what is not there meets the exact
lexer. A text where the first stage could be wrong (comments, dollar quotes, backslashes) goes to the lexer
as it is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from qgate.postgres.lexer import NUMBER, PARAMETER, STRING, WORD, tokens
from qgate.postgres.statement import classes_of

MAX_TEXT: Final = 2000
"""Characters kept of a normalised text."""
MAX_EXAMINED: Final = 32_768
"""Bytes of a statement that are looked at for its fingerprint."""
_LONG_KEY: Final = 512

_SUSPECT: Final = re.compile(rb"[\"\\$/\-]")
_HARD: Final = re.compile(rb"[\"\\]|--|/\*|\$(?![0-9])")
_UNSAFE: Final = re.compile(rb"\\|--|/\*|\$(?![0-9])")
# Both begin with a set of characters, so that the expression engine can skip to the next candidate at once.
_LITERALS: Final = re.compile(
    rb"['0-9](?:(?<=')[^']*'(?:'[^']*')*|(?<=[0-9])(?<![\w$\x80-\xff][0-9])(?:[eE][+-]?|[\w.])*)"
)
_collapse_plain: Final = _LITERALS.sub
_HIDING: Final = re.compile(rb"['\"\\]|--|/\*|\$(?![0-9])")
_OUTSIDE_QUOTES: Final = re.compile(rb"\"[^\"]*\"|" + _LITERALS.pattern)
_PLACE: Final = b" $0 "
_BEFORE_SIGN: Final = frozenset(
    {"(", ",", "=", "<", ">", "<=", ">=", "<>"}
    | {"select", "where", "and", "or", "then", "else", "limit", "offset"}
)
_SPACED: Final = frozenset(
    {
        "in",
        "values",
        "and",
        "or",
        "not",
        "as",
        "from",
        "where",
        "select",
        "on",
        "using",
        "any",
        "copy",
        "with",
    }
)
_TIGHT_BEFORE: Final = frozenset(",);.][")
_TIGHT_AFTER: Final = frozenset({"(", ".", "[", "::"})
_OWN_ENTRY: Final = frozenset({"ddl", "role"})


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """``text`` is normalised and free of literals, ``id`` 16 hex digits of it, ``classes`` the statements'.

    ``own_entry`` says that each execution deserves an audit entry of its own (DDL, a change of role).
    ``partial`` says that only the first `MAX_EXAMINED` bytes were looked at: ask `classes_within` for the
    classes of the whole.
    """

    id: str
    text: str
    classes: frozenset[str]
    own_entry: bool
    partial: bool = False


class Fingerprints:
    """Fingerprints of byte texts, with a cache of at most ``2 * capacity`` of them.

    The cache has two generations: a hit costs one dictionary look-up and nothing is moved; when the young
    generation is full the old one is dropped. ``_plain`` holds those of the young generation whose key has
    nothing in it that could hide where a literal ends. A text without a backslash that collapses to such a
    key was collapsed rightly: the first comment, quoted name or dollar quote of a text is always seen as
    such, and would stand in the key.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._plain: dict[bytes, Fingerprint] = {}
        self._young: dict[bytes, Fingerprint] = {}
        self._old: dict[bytes, Fingerprint] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, text: bytes) -> Fingerprint:
        """The fingerprint of ``text``, in whatever client encoding: what is not UTF-8 shows as U+FFFD."""
        found = self._young.get(text)
        if found is not None:
            return found
        if b"\\" not in text:
            found = self._plain.get(_collapse_plain(_PLACE, text))
            if found is not None:
                return found
        return self._look_closer(text)

    def _look_closer(self, text: bytes) -> Fingerprint:
        key = collapse(text)
        short = key if len(key) <= _LONG_KEY else hashlib.blake2b(key, digest_size=32).digest()
        found = self._young.get(short)
        if found is not None:
            return found
        found = self._old.get(short) or normalise(key)
        if len(self._young) >= self._capacity:
            self._old, self._young, self._plain = self._young, {}, {}
        self._young[short] = found
        if short is key and _HIDING.search(key) is None:
            self._plain[key] = found
        return found


def collapse(text: bytes) -> bytes:
    """``text`` with place-holders for its plain literals, or ``text`` itself where that is not safe."""
    suspect = _SUSPECT.search(text)
    if suspect is not None:
        hard = _HARD.search(text, suspect.start())
        if hard is not None:
            if hard[0] != b'"' or _UNSAFE.search(text, hard.end()) is not None:
                return text
            return _OUTSIDE_QUOTES.sub(_keep_identifier, text)
    return _LITERALS.sub(_PLACE, text)


def _keep_identifier(match: re.Match[bytes]) -> bytes:
    found = match[0]
    return found if found[0] == 0x22 else _PLACE


def normalise(text: bytes) -> Fingerprint:
    """The exact stage: lexer, lists of literals folded, words in lower case."""
    whole = text[:MAX_EXAMINED].decode("utf-8", "replace")
    out: list[str] = []
    opened: list[int] = []
    for kind, token in tokens(whole):
        if kind in {STRING, NUMBER, PARAMETER}:
            _append_literal(out)
            if kind == STRING and "\\'" in token and token[0] not in "eE":
                out.append("…")  # where this string ends depends on a setting: what follows may be literal
                break
        elif kind == "(":
            opened.append(len(out))
            out.append(token)
        elif kind == ")":
            out.append(token)
            if opened:
                _fold_row(out, opened.pop())
        else:
            out.append(token.lower() if kind == WORD else token)
    joined = _join(out)[:MAX_TEXT]
    identity = hashlib.blake2b(joined.encode("utf-8", "replace"), digest_size=8).hexdigest()
    classes = classes_of(whole)
    own_entry = bool(classes & _OWN_ENTRY)
    return Fingerprint(identity, joined, classes, own_entry, partial=len(text) > MAX_EXAMINED)


def classes_within(text: bytes) -> frozenset[str]:
    """The classes of all statements in ``text``; raises TooLongError where it has too many tokens."""
    return classes_of(text.decode("utf-8", "replace"))


def _append_literal(out: list[str]) -> None:
    if len(out) >= 2 and out[-1] in {"-", "+"} and out[-2] in _BEFORE_SIGN:
        out.pop()
    if len(out) >= 2 and out[-1] == "," and out[-2] == "?":
        out.pop()
    elif out and out[-1] == "?":
        return
    else:
        out.append("?")


def _fold_row(out: list[str], start: int) -> None:
    """Drop the parenthesised row that begins at ``start`` when it repeats the one before it."""
    length = len(out) - start
    before = start - 1 - length
    if before >= 0 and out[start - 1] == "," and out[before : start - 1] == out[start:]:
        del out[start - 1 :]


def _join(out: list[str]) -> str:
    pieces: list[str] = []
    before = "("
    for piece in out:
        closing = piece in _TIGHT_BEFORE or piece.startswith("::")
        call = piece == "(" and before[-1:].isalnum() and before not in _SPACED
        if before not in _TIGHT_AFTER and not closing and not call:
            pieces.append(" ")
        pieces.append(piece)
        before = piece
    return "".join(pieces)
