"""What the gate writes to people: in each language all of it, and the same in its braces."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import qgate.governance
from qgate.capability.finops.budgets import PERIODS
from qgate.governance.mail import SEVERITIES
from qgate.governance.words import LANGUAGES, LETTERS, catalogue, letter, said

FOLDER = Path(qgate.governance.__file__).parent


def spelled() -> Iterator[str]:
    """Every text that the code hands to `said`."""
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            method = isinstance(node.func, ast.Attribute)
            if (node.func.attr if method else getattr(node.func, "id", "")) != "said":  # type: ignore[attr-defined]
                continue
            text = node.args[0 if method else 1]
            for part in (text.body, text.orelse) if isinstance(text, ast.IfExp) else (text,):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def braces(text: str) -> list[str]:
    return sorted({f"{name}:{how}" for _, name, how, _ in string.Formatter().parse(text) if name})


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_text_is_in_every_language(language: str) -> None:
    words = {key: text for key, text in catalogue(language).items() if key != LETTERS}
    texts = set(spelled())
    assert len(texts) > 15
    assert texts <= words.keys()
    assert {*SEVERITIES, *PERIODS} <= words.keys()
    for english, text in words.items():
        assert braces(text) == braces(english), english
    letters, ours = catalogue(language)[LETTERS], catalogue("en")[LETTERS]
    assert letters.keys() == ours.keys()
    for name, text in letters.items():
        assert braces(text) == braces(ours[name]), name


def test_what_a_catalogue_lacks_is_said_in_english() -> None:
    assert said("fr", "They are refused until {at}.", at="x{y}") == "Elles sont refusées jusqu'à x{y}."
    assert said("fr", "nobody wrote {this}", this=1) == "nobody wrote 1"
    assert said("eo", "critical") == "critical"
    given = {"name": "Ann {", "code": "C", "email": "a@b.c"}
    for language in LANGUAGES:
        assert '{"email": "a@b.c", "code": "C"}' in letter(language, "invitation", **given)
