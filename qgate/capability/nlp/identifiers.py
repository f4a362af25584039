"""Finds what identifies a person or opens a door: addresses, numbers with a check, keys.

Each expression begins at a token's start and repeats within bounds, so that a text costs time in proportion
to its length. A number with a checksum counts only when the checksum holds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qgate.capability.nlp.words import listed

REGIONS: Final = {
    "en": "US",
    "de": "DE",
    "fr": "FR",
    "es": "ES",
    "it": "IT",
    "pt": "PT",
    "nl": "NL",
    "ja": "JP",
    "pl": "PL",
    "sv": "SE",
}
"""Where a phone number without a country code is taken to be from, by language."""


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """``text[start:end]`` is a ``type``; ``value`` is its normal form."""

    start: int
    end: int
    type: str
    value: str


_EMAIL: Final = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_URL: Final = re.compile(
    r"\b(?:https?|ftp|wss?)://[^\s<>\"'`{}|\\^]{1,2000}|(?<![\w@.-])www\.[^\s<>\"'`]{3,500}"
)
_IPV4: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?(?![\w]|\.\d)")
_IPV6: Final = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:]{0,4}:)[0-9A-Fa-f:]{2,39}(?:\d{1,3}(?:\.\d{1,3}){3})?(?:/\d{1,3})?(?![\w:])"
)
_MAC: Final = re.compile(
    r"(?<![\w:-])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])"
)
_CARD: Final = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w-]|\.\d)")
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN: Final = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_PHONE: Final = re.compile(r"(?<![\w.,/#-])(?:\+|\(|00)?\d(?:[ ().\-/]{0,3}\d){5,16}(?![\w-]|[.,]\d)")
_PEM: Final = re.compile(
    r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:[A-Za-z0-9+/=\s:,.()]|-(?!----)){0,20000}+(?:-----END \1-----)?"
)
_KEY: Final = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,200}"
    r"|qg_[A-Za-z0-9_-]{43}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,300}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{8,2000}"
    r")(?![\w-])"
)
_ASSIGNED: Final = re.compile(
    r"(?i)(?<![a-z0-9])(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|token|bearer)"
    r"(?:\s{0,3}(?::|=|\bis\b)\s{0,3}|\s)[\"']?([^\s\"',;]{8,200})"
)
_USERINFO: Final = re.compile(r"(?<=://)[^\s/:@]{1,100}:([^\s/@]{1,200})@")
_TRAILING: Final = ".,;:!?)]}'\"»”’"
_SECRET_LIKE: Final = re.compile(r"[0-9]|[^\w\s]")

IBAN_LENGTHS: Final = {
    country: int(length) for length, countries in listed("iban.txt").items() for country in countries
}
"""ISO 13616: characters of an IBAN, by country."""


def luhn(digits: str) -> bool:
    """Whether a string of digits carries ISO/IEC 7812's check digit."""
    total = 0
    for at, character in enumerate(reversed(digits)):
        value = int(character) * (1 + at % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_holds(iban: str) -> bool:
    """Whether an IBAN without blanks has its country's length and the check digits of ISO 7064."""
    if len(iban) != IBAN_LENGTHS.get(iban[:2]):
        return False
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def emails(text: str) -> Iterator[Found]:
    """E-mail addresses."""
    if "@" in text:
        for found in _EMAIL.finditer(text):
            if not found[0].startswith(".") and ".@" not in found[0] and ".." not in found[0]:
                yield Found(found.start(), found.end(), "email", found[0].lower())


def urls(text: str) -> Iterator[Found]:
    """Web addresses, without punctuation that ends the sentence."""
    if "://" in text or "www." in text:
        for found in _URL.finditer(text):
            value = found[0].rstrip(_TRAILING)
            if value.count("(") > value.count(")") and found[0][len(value) : len(value) + 1] == ")":
                value += ")"
            if not value.endswith("://"):
                yield Found(found.start(), found.start() + len(value), "url", value)


def addresses(text: str) -> Iterator[Found]:
    """IPv4, IPv6 and MAC addresses."""
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            raw = found[0].rstrip(":") if pattern is _IPV6 and not found[0].endswith("::") else found[0]
            try:
                value = str(ipaddress.ip_interface(raw) if "/" in raw else ipaddress.ip_address(raw))
            except ValueError:
                continue
            if raw != "::":
                yield Found(found.start(), found.start() + len(raw), "ip_address", value)
    for found in _MAC.finditer(text):
        yield Found(found.start(), found.end(), "mac_address", found[0].lower().replace("-", ":"))


def cards(text: str) -> Iterator[Found]:
    """Payment card numbers: 12 to 19 digits that Luhn's check accepts and that begin as issued ones do."""
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if digits[0] in "23456" and len(set(digits)) > 1 and luhn(digits):
            yield Found(found.start(), found.end(), "card", digits)


def ibans(text: str) -> Iterator[Found]:
    """IBANs whose country, length and check digits hold."""
    for found in _IBAN.finditer(text):
        raw = found[0]
        while len(raw) >= 15:  # a word in capitals may follow the number
            value = raw.replace(" ", "")
            if iban_holds(value):
                yield Found(found.start(), found.start() + len(raw), "iban", value)
                break
            raw = raw[:-1].rstrip()


def social_numbers(text: str) -> Iterator[Found]:
    """US social security numbers as they are written with hyphens."""
    for found in _SSN.finditer(text):
        yield Found(found.start(), found.end(), "ssn", found[0])


def phones(text: str, language: str | None = None) -> Iterator[Found]:
    """Phone numbers that libphonenumber's metadata calls valid.

    A number without a country code is judged by the region of ``language`` (`REGIONS`; en-GB names GB).
    """
    import phonenumbers

    base, _, rest = (language or "en").partition("-")
    region = rest if len(rest) == 2 else REGIONS.get(base, "US")
    for found in _PHONE.finditer(text):
        raw = found[0]
        if raw.isdigit() and not raw.startswith("0"):
            continue  # any number; a phone number without a mark is not told from it
        if raw.count("(") != raw.count(")"):
            continue
        try:
            number = phonenumbers.parse("+" + raw[2:] if raw.startswith("00") else raw, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            value = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
            yield Found(found.start(), found.end(), "phone", value)


def keys(text: str) -> Iterator[Found]:
    """Private keys, tokens in known forms, and what stands behind "password:" and its like."""
    for found in _PEM.finditer(text):
        yield Found(found.start(), found.end(), "key", found[1].lower())
    for found in _KEY.finditer(text):
        yield Found(found.start(), found.end(), "key", found[0])
    for pattern in (_ASSIGNED, _USERINFO):
        for found in pattern.finditer(text):
            value = found[1].rstrip(_TRAILING) if pattern is _ASSIGNED else found[1]
            if pattern is _USERINFO or (len(value) >= 8 and _SECRET_LIKE.search(value)):
                yield Found(found.start(1), found.start(1) + len(value), "key", value)


def without_overlaps(found: list[Found], order: Callable[[Found], int]) -> list[Found]:
    """The finds in the order of the text; of two that overlap the one with the lower ``order`` stays."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda item: (item.start, -item.end)):
        while kept and kept[-1].end > one.start and order(one) < order(kept[-1]):
            kept.pop()
        if not kept or kept[-1].end <= one.start:
            kept.append(one)
    return kept
