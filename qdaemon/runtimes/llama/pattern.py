"""Regular expressions of a JSON schema as grammar: the common part of ECMA 262's notation. Pure."""

from __future__ import annotations

from typing import Final

from qdaemon.runtimes.llama.gbnf import repeated

MAX_REPEAT: Final = 1000
_CLASSES: Final = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
_LITERAL_ESCAPES: Final = frozenset(".^$*+?()[]{}|/-_@#%&=:;,!<>~'` ")
_FORBIDDEN: Final = frozenset('"\\')


class PatternError(ValueError):
    """A pattern outside what is supported; the text says where."""


class Pattern:
    """Translates one pattern. What it matches is the inside of a JSON string, without escapes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def grammar(self) -> str:
        """The notation. PatternError for what is not supported."""
        text = self._text
        anchored_start = text.startswith("^")
        anchored_end = text.endswith("$") and not text.endswith("\\$")
        self._at = 1 if anchored_start else 0
        self._end = len(text) - 1 if anchored_end else len(text)
        body = self._alternatives()
        if self._at != self._end:
            raise self._error("an unexpected character")
        if "|" in body and not (anchored_start and anchored_end):
            body = f"({body})"
        parts = ["" if anchored_start else "char*", f"({body})", "" if anchored_end else "char*"]
        return " ".join(part for part in parts if part)

    def _alternatives(self) -> str:
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        return " | ".join(options)

    def _sequence(self) -> str:
        items: list[str] = []
        while (character := self._peek()) and character not in "|)":
            items.append(self._quantified(self._atom(character)))
        return " ".join(items) or '""'

    def _atom(self, character: str) -> str:
        self._at += 1
        match character:
            case "(":
                if self._text.startswith("?:", self._at):
                    self._at += 2
                elif self._peek() == "?":
                    raise self._error("a look-around or named group")
                inside = self._alternatives()
                if self._peek() != ")":
                    raise self._error("a group without its end")
                self._at += 1
                return f"({inside})"
            case "[":
                return self._class()
            case ".":
                return '[^"\\\\\\x7F\\x00-\\x1F]'
            case "\\":
                return self._escape()
            case "^" | "$" | "*" | "+" | "?" | "{" | "}" | "]":
                raise self._error(f"{character} in this place")
        return f"[{self._in_class(character)}]"

    def _escape(self) -> str:
        character = self._peek()
        self._at += 1
        if character in _CLASSES:
            return f"[{_CLASSES[character]}]"
        if character in _LITERAL_ESCAPES and character:
            return f"[{self._in_class(character)}]"
        raise self._error(f"the escape \\{character}")

    def _class(self) -> str:
        negated = self._peek() == "^"
        if negated:
            self._at += 1
        inside = ""
        while (character := self._peek()) != "]":
            if not character:
                raise self._error("a class without its end")
            self._at += 1
            if character == "\\":
                escaped = self._peek()
                self._at += 1
                if escaped in _CLASSES:
                    inside += _CLASSES[escaped]
                elif escaped and escaped in _LITERAL_ESCAPES:
                    inside += self._in_class(escaped)
                else:
                    raise self._error(f"the escape \\{escaped}")
            elif character == "-" and inside and self._peek() != "]":
                inside += "-"
            else:
                inside += self._in_class(character)
        self._at += 1
        if not inside:
            raise self._error("an empty class")
        return f'[^{inside}"\\\\\\x7F\\x00-\\x1F]' if negated else f"[{inside}]"

    def _in_class(self, character: str) -> str:
        if character in _FORBIDDEN or not character.isprintable():
            raise self._error("a character that JSON escapes")
        return "\\" + character if character in "]^-[" else character

    def _quantified(self, atom: str) -> str:
        match self._peek():
            case "*":
                self._at += 1
                found = repeated(atom, 0, None)
            case "+":
                self._at += 1
                found = repeated(atom, 1, None)
            case "?":
                self._at += 1
                found = repeated(atom, 0, 1)
            case "{":
                found = self._counted(atom)
            case _:
                return atom
        if self._peek() in {"?", "+", "*", "{"}:
            raise self._error("a second quantifier")
        return found

    def _counted(self, atom: str) -> str:
        end = self._text.find("}", self._at, self._end)
        low, comma, high = self._text[self._at + 1 : max(end, 0)].partition(",")
        if end < 0 or not low.isdecimal() or not (high == "" or high.isdecimal()):
            raise self._error("a repetition")
        self._at = end + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise self._error(f"a repetition (at most {MAX_REPEAT})")
        return repeated(atom, least, most)

    def _peek(self) -> str:
        return self._text[self._at] if self._at < self._end else ""

    def _error(self, what: str) -> PatternError:
        return PatternError(f"the pattern {self._text[:80]!r} has {what} near character {self._at}")
