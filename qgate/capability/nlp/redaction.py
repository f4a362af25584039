"""Takes personal data and secrets out of a text and puts typed placeholders in.

What has a form is found: addresses, numbers, keys. Names, places and what only a reader understands are not;
docs/nlp.md says so where the result is described.
"""

from __future__ import annotations

from typing import Any, Final

from qgate.capability.nlp import identifiers
from qgate.capability.nlp.identifiers import Found

ORDER: Final = ("key", "iban", "card", "email", "ssn", "ip_address", "mac_address", "phone")
"""Types, the one that wins where two overlap first."""


def redact(text: str, *, language: str | None = None) -> dict[str, Any]:
    """``text`` with placeholders like ``[EMAIL_1]``; one value has one placeholder throughout.

    Spans count characters of the text as it was given. The values themselves are not repeated.
    """
    found = identifiers.without_overlaps(
        [
            *identifiers.keys(text),
            *identifiers.ibans(text),
            *identifiers.cards(text),
            *identifiers.emails(text),
            *identifiers.social_numbers(text),
            *identifiers.addresses(text),
            *identifiers.phones(text, language),
        ],
        _order,
    )
    numbers: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    redactions: list[dict[str, Any]] = []
    pieces: list[str] = []
    at = 0
    for one in found:
        known = (one.type, one.value)
        if known not in numbers:
            counts[one.type] = counts.get(one.type, 0) + 1
            numbers[known] = f"[{one.type.upper()}_{counts[one.type]}]"
        pieces += (text[at : one.start], numbers[known])
        redactions.append(
            {"type": one.type, "placeholder": numbers[known], "start": one.start, "end": one.end}
        )
        at = one.end
    pieces.append(text[at:])
    return {"text": "".join(pieces), "redactions": redactions, "counts": dict(sorted(counts.items()))}


def _order(found: Found) -> int:
    return ORDER.index(found.type)
