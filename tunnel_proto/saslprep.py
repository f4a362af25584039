"""SASLprep as PostgreSQL applies it to passwords (RFC 4013, with PostgreSQL's fallback).

PostgreSQL never refuses a password for its characters: where SASLprep would prohibit it, or where it is not
UTF-8 at all, the bytes are used as they are. Both ends must agree on that or a password set elsewhere fails
here.
"""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)


def saslprep(password: bytes) -> bytes:
    """The password's SASLprep form in UTF-8, or ``password`` itself where SASLprep has none."""
    if password.isascii() and password.decode("ascii").isprintable():
        return password
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if (
        not prepared
        or any(check(char) for char in prepared for check in _PROHIBITED)
        or not _bidi_ok(prepared)
    ):
        return password
    return prepared.encode("utf-8")


def _bidi_ok(text: str) -> bool:
    """RFC 3454 section 6: right-to-left text is so at both ends and holds no left-to-right character."""
    if not any(stringprep.in_table_d1(char) for char in text):
        return True
    if any(stringprep.in_table_d2(char) for char in text):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
