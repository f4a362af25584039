"""Questions to the system catalogue, whose tables are empty here: what columns has the answer? Pure.

Tools ask in long statements that nobody here understands; their select list tells the names of the columns,
and whether they count, which gives one row even over nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from qgate.postgres.virtual_lexer import Token
from qgate.postgres.virtual_statement import Catalogue
from qgate.postgres.virtual_values import INT8, TEXT

DEPTH_MAX: Final = 16
"""Queries within queries that are looked into."""

_AGGREGATES: Final[Mapping[str, int]] = {
    "count": INT8,
    **dict.fromkeys(
        ("min", "max", "sum", "string_agg", "array_agg", "bool_and", "bool_or", "json_agg"), TEXT
    ),
}
_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema"})

Tokens = Sequence[Token]


def catalogue(tokens: Tokens, depth: int = 0) -> Catalogue | None:
    """The answer to a query about the catalogue; None where it is about something else, or no query."""
    if depth > DEPTH_MAX or not tokens:
        return None
    whole = _inside(tokens, 0)
    if whole is not None and len(whole) == len(tokens) - 2:
        return catalogue(whole, depth + 1)
    first = tokens[0].text if tokens[0].kind == "word" else ""
    select = _find(tokens, "select", 0)
    if select is None or first not in {"select", "with"}:
        return None
    source = _find(tokens, "from", select)
    if source is None:
        return None
    items = list(_items(tokens[select + 1 : source]))
    relation = tokens[source + 1 :]
    inner = _inside(relation, 0)
    within = None if inner is None else catalogue(inner, depth + 1)
    if first == "with":
        if not any(_names_catalogue(tokens[at:]) for at in range(len(tokens))):
            return None
    elif within is None and not _names_catalogue(relation):
        return None
    if within is not None and [_text(item) for item in items] in (["*"], [f"{_alias(relation)}.*"]):
        return within
    counted = [_aggregate(item) for item in items]
    grouped = _find(tokens, "group", source) is not None
    if items and not grouped and all(oid is not None for oid in counted):
        row = tuple(0 if oid == INT8 else None for oid in counted)
        return Catalogue(
            tuple((_label(item), oid or TEXT) for item, oid in zip(items, counted, strict=True)), row
        )
    return Catalogue(tuple((_label(item), TEXT) for item in items))


def _find(tokens: Tokens, word: str, begin: int) -> int | None:
    """Where a word stands outside of all parentheses."""
    depth = 0
    for at in range(begin, len(tokens)):
        token = tokens[at]
        depth += (token.kind == "(") - (token.kind == ")")
        if depth == 0 and token.kind == "word" and token.text == word:
            return at
    return None


def _inside(tokens: Tokens, at: int) -> Tokens | None:
    """What stands in the parentheses that open at ``at``; None where none do, or they do not close."""
    if at >= len(tokens) or tokens[at].kind != "(":
        return None
    depth = 0
    for end in range(at, len(tokens)):
        depth += (tokens[end].kind == "(") - (tokens[end].kind == ")")
        if depth == 0:
            return tokens[at + 1 : end]
    return None


def _items(tokens: Tokens) -> Iterator[Tokens]:
    """A select list, cut at its commas."""
    depth = begin = 0
    for at, token in enumerate(tokens):
        depth += (token.kind == "(") - (token.kind == ")")
        if depth == 0 and token.kind == ",":
            yield tokens[begin:at]
            begin = at + 1
    yield tokens[begin:]


def _names_catalogue(tokens: Tokens) -> bool:
    """Whether a relation's name stands here that is of the catalogue."""
    names = [token.text for token in tokens[:2] if token.kind in {"word", "quoted"} or token.kind == "."]
    if not names or tokens[0].kind not in {"word", "quoted"}:
        return False
    if names[0] in _SCHEMAS:
        return names[1:] == ["."]
    return names[0].startswith("pg_") and (len(tokens) < 2 or tokens[1].kind != "(")


def _alias(relation: Tokens) -> str:
    inner = _inside(relation, 0)
    rest = relation[len(inner) + 2 :] if inner is not None else ()
    if rest and rest[0].text == "as":
        rest = rest[1:]
    return rest[0].text if rest else ""


def _text(item: Tokens) -> str:
    return "".join(token.text for token in item)


def _label(item: Tokens) -> str:
    """The name of a column, as well as it can be told without its meaning."""
    depth, last = 0, "?column?"
    for token in item:
        depth += (token.kind == "(") - (token.kind == ")")
        if depth == 0 and token.kind in {"word", "quoted"}:
            last = token.text
    return last


def _aggregate(item: Tokens) -> int | None:
    """The type of an aggregate over nothing; None for anything else."""
    if not item or item[0].kind != "word" or (oid := _AGGREGATES.get(item[0].text)) is None:
        return None
    inside = _inside(item, 1)
    rest = item[len(inside) + 3 :] if inside is not None else item
    plain = not rest or rest[0].text == "as" or (len(rest) == 1 and rest[0].kind in {"word", "quoted"})
    return oid if inside is not None and plain else None
