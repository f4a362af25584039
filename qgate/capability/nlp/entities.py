"""Entities by rule: what has a form (dates, money, addresses), and names by their capitals.

Capitals tell that something is a name; a title, a legal form or a preposition tells what kind. Where nothing
does, the type is "name". In German, where every noun has a capital, names are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Any, Final

from qgate.capability.nlp import identifiers, sentences
from qgate.capability.nlp.identifiers import Found
from qgate.capability.nlp.words import listed, small_words, words

ITEMS_MAX: Final = 10_000
_ORDER: Final = (
    "url", "email", "iban", "card", "ip_address", "mac_address", "date", "money", "percent", "phone", "time",
    "person", "organization", "place", "name",
)  # fmt: skip
_MONTHS: Final = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar janvier enero gennaio janeiro januari",
            "february feb februar février febrero febbraio fevereiro februari",
            "march mar märz mars marzo março maart",
            "april apr avril abril aprile",
            "may mai mayo maggio maio mei",
            "june jun juni juin junio giugno junho",
            "july jul juli juillet julio luglio julho",
            "august aug août agosto augustus",
            "september sep sept septembre septiembre settembre setembro",
            "october oct oktober octobre octubre ottobre outubro",
            "november nov novembre noviembre novembro",
            "december dec dezember décembre diciembre dicembre dezembro",
        ),
        1,
    )
    for name in names.split()
}
_MONTH: Final = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
_DATES: Final = (
    re.compile(r"(?<![\w-])(?P<y>\d{4})-(?P<m>0[1-9]|1[0-2])-(?P<d>0[1-9]|[12]\d|3[01])(?![\w-])"),
    re.compile(
        rf"(?i)(?<!\w)(?P<d>{_DAY})(?:\.|st|nd|rd|th|er|º)?\s(?:of\s|de\s)?(?P<n>{_MONTH})\.?(?:,?\s(?:de\s)?(?P<y>\d{{4}}))?(?!\w)"
    ),
    re.compile(rf"(?i)(?<!\w)(?P<n>{_MONTH})\.?\s(?P<d>{_DAY})(?:st|nd|rd|th)?(?:,?\s(?P<y>\d{{4}}))?(?!\w)"),
    re.compile(rf"(?<![\w.])(?P<d>{_DAY})\.(?P<m>0?[1-9]|1[0-2])\.(?P<y>\d{{4}})(?!\w)"),
    re.compile(r"(?<![\w/])\d{1,2}/\d{1,2}/\d{4}(?![\w/])"),  # whose first is it? no value
    re.compile(rf"(?i)(?<!\w)(?P<n>{_MONTH})\s(?P<y>\d{{4}})(?!\w)"),
)
_CURRENCIES: Final = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB", "₩": "KRW"}
_NAMED: Final = {
    "dollar": "USD", "dollars": "USD", "euro": "EUR", "euros": "EUR", "pound": "GBP", "pounds": "GBP",
    "yen": "JPY", "rupees": "INR", "francs": "CHF", "franken": "CHF",
}  # fmt: skip
_CODES: Final = "USD|EUR|GBP|JPY|CHF|CAD|AUD|CNY|INR|SEK|NOK|DKK|PLN|CZK|BRL|MXN|KRW|ZAR"
_SCALES: Final = {
    "thousand": 1e3, "k": 1e3, "million": 1e6, "millions": 1e6, "m": 1e6, "mio": 1e6, "billion": 1e9,
    "bn": 1e9, "billions": 1e9, "trillion": 1e12, "millionen": 1e6, "milliarden": 1e9,
}  # fmt: skip
_AMOUNT: Final = r"\d{1,3}(?:[.,' ]\d{3}){1,5}(?:[.,]\d{1,2})?(?!\d)|\d{1,15}(?:[.,]\d{1,4})?"
_SCALE: Final = rf"(?:\s?(?P<s>{'|'.join(sorted(_SCALES, key=len, reverse=True))})(?!\w))?"
_MONEY: Final = (
    re.compile(rf"(?i)(?<!\w)(?P<c>[$€£¥₹₽₩]|(?-i:{_CODES})\s)\s?(?P<a>{_AMOUNT}){_SCALE}"),
    re.compile(
        rf"(?i)(?<![\w.,])(?P<a>{_AMOUNT}){_SCALE}\s?(?P<c>[$€£¥₹₽₩]|(?:(?-i:{_CODES})|{'|'.join(_NAMED)})(?!\w))"
    ),
)
_PERCENT: Final = re.compile(r"(?i)(?<![\w.,])\d{1,9}(?:[.,]\d{1,6})?\s?(?:%|percent\b|per cent\b|prozent\b)")
_TIME: Final = re.compile(
    r"(?i)(?<![\w:.])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.?m\.?)?(?![\w:])"
)

_CAPITAL: Final = r"(?:[A-ZÀ-ÖØ-ÞĀ-Ž][\w’'-]{0,40}|[A-Z]\.)"
_NAME: Final = re.compile(
    rf"(?<![\w.@/-]){_CAPITAL}(?:\s(?:(?:de|da|del|della|di|du|van|von|der|den|la|le|&)\s){{0,2}}{_CAPITAL}){{0,6}}"
)
_OF: Final = re.compile(rf"\s(?:of|for)(?:\sthe)?\s{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}")
_BEFORE: Final = re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Rev|Sen|Gov|Gen|Col|Capt|Lt|Sgt|Hon)\.\s\Z")
_TITLES: Final = re.compile(
    r"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Sir|Lady|Lord|President|Senator|Judge|Captain|King|Queen|Herr|Frau)\.?\s"
)
_LEGAL: Final = listed("names.txt")["organizations"]
_PLACES: Final = listed("names.txt")["places"]
_NOT_NAMES: Final = listed("names.txt")["never"]
_AT: Final = re.compile(r"(?:\b(?:in|from|near|at|to|across|outside|toward|towards)\s)\Z")
_SAYS: Final = re.compile(r"\s(?:said|says|told|wrote|asked|added|argued|explained|replied|was born|who)\b")


def entities(text: str, *, language: str | None = None) -> dict[str, Any]:
    """What the rules find, in the order of the text; ``value`` is a normal form, "" where there is none."""
    found: list[Found] = [
        *identifiers.urls(text),
        *identifiers.emails(text),
        *identifiers.ibans(text),
        *identifiers.cards(text),
        *identifiers.addresses(text),
        *identifiers.phones(text, language),
        *_dates(text),
        *_money(text),
        *(Found(one.start(), one.end(), "percent", one[0]) for one in _PERCENT.finditer(text)),
        *(Found(one.start(), one.end(), "time", one[0]) for one in _TIME.finditer(text)),
        *_names(text, language),
    ]
    kept = identifiers.without_overlaps(found, lambda one: _ORDER.index(one.type))
    return {
        "entities": [
            {
                "type": one.type,
                "text": text[one.start : one.end],
                "start": one.start,
                "end": one.end,
                "value": one.value,
            }
            for one in kept[:ITEMS_MAX]
        ],
        "truncated": len(kept) > ITEMS_MAX,
    }


def _dates(text: str) -> Iterator[Found]:
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            month = int(parts["m"]) if parts.get("m") else _MONTHS.get((parts.get("n") or "").lower(), 0)
            value = ""
            if month and parts.get("d"):
                value = f"{month:02d}-{int(parts['d']):02d}"
                if parts.get("y"):
                    value = f"{parts['y']}-{value}"
                    try:
                        date.fromisoformat(value)
                    except ValueError:
                        continue
                else:
                    value = f"--{value}"
            elif month and parts.get("y"):
                value = f"{parts['y']}-{month:02d}"
            if (
                parts.get("n", "x").lower() == "may"
                and not match[0].strip()[0].isdigit()
                and not parts.get("y")
            ):
                continue  # "may 3 of them": a verb
            yield Found(match.start(), match.end(), "date", value)


def _money(text: str) -> Iterator[Found]:
    for pattern in _MONEY:
        for match in pattern.finditer(text):
            sign = match["c"].strip()
            code = _CURRENCIES.get(sign) or _NAMED.get(sign.lower()) or sign
            amount = _number(match["a"]) * _SCALES.get((match["s"] or "").lower(), 1.0)
            yield Found(match.start(), match.end(), "money", f"{code} {amount:.2f}")


def _number(written: str) -> float:
    plain = written.replace(" ", "").replace("'", "")
    last = max(plain.rfind("."), plain.rfind(","))
    if last < 0:
        return float(plain)
    decimals = plain[last + 1 :]
    whole = re.sub(r"[.,]", "", plain[:last])
    if len(decimals) == 3 and plain[last] not in plain[:last].translate({ord(plain[last]): ""}):
        return float(whole + decimals) if whole != "0" else float(f"0.{decimals}")
    return float(f"{whole or '0'}.{decimals}")


def _names(text: str, language: str | None) -> Iterator[Found]:
    sample = words(text[:4000])
    small = small_words(sample, language)
    if (language or "").startswith("de") or (language is None and small is listed("stopwords.txt")["de"]):
        return
    starts = {start for start, _ in sentences.spans(text)}
    inner = {  # words that have their capital also inside a sentence
        match[0].partition(" ")[0]
        for match in _NAME.finditer(text)
        if not _begins(text, match.start(), starts)
    }
    for match in _NAME.finditer(text):
        start, found = match.start(), match[0]
        if title := _TITLES.match(found):
            start, found = start + title.end(), found[title.end() :]
        titled = title is not None or _BEFORE.search(text, max(0, start - 8), start) is not None
        if not titled and _begins(text, match.start(), starts):
            first, _, rest = found.partition(" ")
            if first.lower() in small or (first not in inner and (not rest or not rest[0].isupper())):
                skip = len(first) + 1
                start, found = start + skip, found[skip:]
        while found and (lead := found.split(" ", 1)[0]).lower() in small | _NOT_NAMES and len(lead) > 1:
            start, found = start + len(lead) + 1, found[len(lead) + 1 :]
        while " " in found and not found.rsplit(" ", 1)[1][:1].isupper():
            found = found.rsplit(" ", 1)[0]
        found = found.removesuffix("'s").removesuffix("’s")
        if {found.lower().partition(" ")[0], found.lower().rpartition(" ")[2]} & (_LEGAL | _PLACES):
            more = _OF.match(text, start + len(found))
            found += more[0] if more is not None else ""
        if (
            len(found) < 2
            or not found[0].isupper()
            or found.lower() in _MONTHS
            or found.lower() in _NOT_NAMES
        ):
            continue
        yield Found(start, start + len(found), _kind(text, start, found, titled), found)


def _begins(text: str, at: int, starts: set[int]) -> bool:
    while at > 0 and text[at - 1] in "\"'“‘«(":
        at -= 1
    return at in starts


def _kind(text: str, start: int, found: str, titled: bool) -> str:
    parts = found.lower().replace(".", "").split()
    if titled:
        return "person"
    if _LEGAL & {parts[-1], parts[0]} or (found.isupper() and 2 < len(found) < 7 and found.isalpha()):
        return "organization"
    if _PLACES & {parts[-1], parts[0]}:
        return "place"
    if _SAYS.match(text, start + len(found)):
        return "person"
    if _AT.search(text, max(0, start - 12), start) and len(parts) < 4:
        return "place"
    return "name"
