"""JSON in turns: a long body is read piece by piece, so that everything else goes on in between. Pure.

The C decoder reads a document in one go and holds the interpreter for as long, a thread of its own included.
Here Python walks through the containers and leaves single values, runs of numbers and pieces of long strings
to C. What takes the decoder 80 ms takes several times that, in turns of a millisecond or two; documents of
long texts take no longer. What is read is the same: RFC 8259, the last of equal keys, no NaN.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Generator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final

TURN: Final = 1_000
"""Values of one turn; a piece of a string counts for as many as take its time."""

PIECE: Final = 64 * 1024
"""Characters of a string, or of a run of numbers, that are read at once."""

BYTES: Final = 1024 * 1024
"""Bytes that are decoded, or searched, at once."""

DEPTH_MAX: Final = 500
NUMBER_MAX: Final = 5_000
"""Digits of a number; Python takes no whole number of more than 4,300."""

_FIRST: Final = 256
_COST: Final = 64
"""Characters of a string that take as long as one value."""

_space: Final = re.compile(r"[ \t\n\r]*").match
_plain: Final = re.compile(r'[^"\\\x00-\x1f]*').match
_scalars: Final = re.compile(r"[-+.0-9eEtrufalsn, \t\n\r]*").match
_number: Final = re.compile(r"[-+.0-9eE]*").match
_HIGH: Final = frozenset({"d8", "d9", "da", "db"})

Turns = Generator[None, None, Any]
Step = Generator[None, None, tuple[Any, int]]


def decoded(data: bytes) -> Generator[None, None, str]:
    """UTF-8 in turns. UnicodeDecodeError, with the place in ``data``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    parts: list[str] = []
    for at in range(0, len(data), BYTES):
        try:
            parts.append(decoder.decode(data[at : at + BYTES], at + BYTES >= len(data)))
        except UnicodeDecodeError as error:
            before = at - (len(error.object) - len(data[at : at + BYTES]))
            raise UnicodeDecodeError(
                "utf-8", b"", before + error.start, before + error.end, error.reason
            ) from None
        yield
    return "".join(parts)


def counted(data: bytes, marks: tuple[bytes, ...], most: int) -> Generator[None, None, int]:
    """How many of ``marks``, all of one length, are in ``data``; counting ends beyond ``most``."""
    count = 0
    beyond = len(marks[0]) - 1
    for at in range(0, len(data), BYTES):
        count += sum(data.count(mark, at, at + BYTES + beyond) for mark in marks)
        if count > most:
            break
        yield
    return count


class Reading:
    """One document. ``constant`` is called with NaN and its like, and has to raise. ``halves`` says whether
    the document escapes halves of surrogate pairs, which have to be two and two.
    """

    def __init__(self, text: str, constant: Callable[[str], Any], *, halves: bool) -> None:
        decoder = json.JSONDecoder(parse_constant=constant)
        self._text = text
        self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
        self._decode = decoder.decode
        self._halves = halves
        self._names: dict[str, str] = {}
        self._done = 0

    def value(self) -> Turns:
        """The document's value.

        Raises json.JSONDecodeError, ValueError for a number that is none, UnicodeEncodeError for half of a
        surrogate pair, RecursionError.
        """
        text = self._text
        stack: list[tuple[dict[str, Any] | list[Any] | None, str]] = []
        holder: dict[str, Any] | list[Any] | None = None
        name = ""
        root: Any = None
        at = self._skip(0)
        while True:
            self._done += 1
            if self._done >= TURN:
                self._done = 0
                yield
            begun = text[at : at + 1]
            value: Any
            opened = begun in ("{", "[")
            if opened:
                if len(stack) >= DEPTH_MAX:
                    raise RecursionError
                value = {} if begun == "{" else []
                after = self._skip(at + 1)
            elif begun == '"':
                value, after = yield from self._string(at + 1)
            elif type(holder) is list and (run := self._run(at)) is not None:
                values, at = run
                holder += values
                self._done += len(values) // 8
                continue
            else:
                value, after = self._scalar(at)
            if holder is None:
                root = value
            elif type(holder) is list:
                holder.append(value)
            else:
                holder[name] = value  # type: ignore[call-overload]
            at = after
            if opened:
                stack.append((holder, name))
                holder = value
                if text[at : at + 1] != ("}" if begun == "{" else "]"):
                    if begun == "{":
                        name, at = yield from self._name(at)
                    continue
            while True:  # what comes after a value
                at = self._skip(at)
                mark = text[at : at + 1]
                if holder is None:
                    if mark:
                        raise self._fault("Extra data", at)
                    return root
                if mark == ",":
                    at = self._skip(at + 1)
                    if type(holder) is dict:
                        name, at = yield from self._name(at)
                    break
                if mark != ("}" if type(holder) is dict else "]"):
                    raise self._fault("Expecting ',' delimiter", at)
                at += 1
                holder, name = stack.pop()

    def _name(self, at: int) -> Step:
        """A member's name, and where its value begins."""
        if self._text[at : at + 1] != '"':
            raise self._fault("Expecting property name enclosed in double quotes", at)
        name, at = yield from self._string(at + 1)
        at = self._skip(at)
        if self._text[at : at + 1] != ":":
            raise self._fault("Expecting ':' delimiter", at)
        return self._names.setdefault(name, name), self._skip(at + 1)

    def _string(self, at: int) -> Step:
        """The string whose first character is at ``at``, and where it is over."""
        text = self._text
        end = _plain(text, at, at + PIECE).end()  # type: ignore[union-attr]
        if text[end : end + 1] == '"':
            self._done += (end - at) // _COST
            return text[at:end], end + 1
        parts: list[str] = []
        size = _FIRST
        while True:
            stop = self._whole(at, at + size)
            piece, read = self._piece(at, stop)
            parts.append(piece)
            if at + read - 1 < stop:
                return "".join(parts), at + read
            if stop >= len(text):
                raise self._fault("Unterminated string starting at", at)
            at = stop
            size = min(size * 4, PIECE)
            self._done += len(piece) // _COST
            if self._done >= TURN:
                self._done = 0
                yield

    def _piece(self, at: int, stop: int) -> tuple[str, int]:
        try:
            piece, read = scanstring(self._text[at:stop] + '"', 0, True)
        except json.JSONDecodeError as error:
            raise self._fault(error.msg, at + error.pos) from None
        if self._halves:
            piece.encode()
        return piece, read

    def _whole(self, at: int, stop: int) -> int:
        """The first place from ``stop`` on that is neither in an escape nor between those of one pair."""
        text = self._text
        last = text.rfind("\\", max(at, stop - 12), stop)
        if last < 0:
            return min(stop, len(text))
        before = text[at : last + 1]
        if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
            return min(stop, len(text))  # it was escaped itself
        over = last + 2
        if text[last + 1 : last + 2] == "u":
            over += 4
            if over >= stop and text[last + 2 : last + 4].lower() in _HIGH and text[over : over + 2] == "\\u":
                over += 6
        return min(max(stop, over), len(text))

    def _run(self, at: int) -> tuple[list[Any], int] | None:
        """Numbers and words of a list up to a comma, and where the next value begins; None for a few."""
        text = self._text
        comma = text.rfind(",", at, _scalars(text, at, at + PIECE // 8).end())  # type: ignore[union-attr]
        if comma - at < 2 * _COST:
            return None
        try:
            values = self._decode(f"[{text[at:comma]}]")
        except json.JSONDecodeError as error:
            raise self._fault(error.msg, at + error.pos - 1) from None
        if not values:
            raise self._fault("Expecting value", at)
        return values, self._skip(comma + 1)

    def _scalar(self, at: int) -> tuple[Any, int]:
        end = _number(self._text, at, at + NUMBER_MAX).end()  # type: ignore[union-attr]
        if end - at == NUMBER_MAX:
            raise ValueError(f"a number of more than {NUMBER_MAX} digits")
        try:
            return self._scan(self._text, at)
        except StopIteration:
            raise self._fault("Expecting value", at) from None

    def _skip(self, at: int) -> int:
        end = _space(self._text, at, at + BYTES).end()  # type: ignore[union-attr]
        if end - at == BYTES:
            raise self._fault("A mebibyte of white space", at)
        return end

    def _fault(self, message: str, at: int) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._text, min(at, len(self._text)))
