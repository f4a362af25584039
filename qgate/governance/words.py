"""What the gate itself writes to people, mails and notifications, in the language of the pool.

A language is a file ``words_CODE.toml`` beside this one. The English text is the key, and what is said where
a catalogue has no word for it; letters, which are long, have names and are in each file. What stands in
braces is kept as it is.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

LANGUAGES: Final = ("en", "fr")
LANGUAGE: Final = "notification.language"
"""The setting."""

LETTERS: Final = "letters"


@functools.cache
def catalogue(language: str) -> Mapping[str, Any]:
    """English texts and what they are in that language, and its letters by name."""
    known = language if language in LANGUAGES else LANGUAGES[0]
    text = resources.files("qgate.governance").joinpath(f"words_{known}.toml").read_text("utf-8")
    return tomllib.loads(text)


def said(language: str, text: str, /, **values: object) -> str:
    """A text in that language, with what stands in its braces."""
    return str(catalogue(language).get(text, text)).format(**values)


def letter(language: str, which: str, /, **values: object) -> str:
    """The text of a letter in that language."""
    return str(catalogue(language)[LETTERS][which]).format(**values)
