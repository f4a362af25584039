"""What a gate refuses is said in the person's language, with what to do next."""

from __future__ import annotations

import re
from typing import Final

import pytest

from meshctl.errors import GateError
from meshctl.tui import words
from meshctl.tui.fields import FieldError
from tests.tui.pseudo import documents
from tests.tui.refusals import PLACE, refusals

OTHERS: Final = [one for one in words.languages() if one != words.ENGLISH]

GENERAL: Final = frozenset(
    {"{first}; {rest}", "there is no {what} {name}", "{name} is {state} already", "{app} is {owner}'s"}
)
"""Lines that fit much: another text that only they fit still needs one of its own."""

UNSEEN: Final = {
    "a gate already listens on 7": "said as a gate starts",
    "the store is not empty, and a restore replaces nothing": "a restore is a command on the gate's machine",
    "restore into a new state directory or database": "a restore is a command on the gate's machine",
    "the 7 7: 7": "each of its forms has a line",
    "the question names no session": "a gate tells another gate",
    "the question lacks when the session would have ended": "a gate tells another gate",
    "--hard 50": "options of a command, the same in every language",
    "--models '*'": "options of a command, the same in every language",
    "--url http://HOST:PORT/v1": "options of a command, the same in every language",
}
"""Texts that the control room never shows as they are, and why."""


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_refused_has_its_translation(language: str) -> None:
    """Found in the source: an error, or its next step, that is new fails here."""
    made = [
        {
            key: {text: said for text, said in value.items() if text not in GENERAL}
            if key == "problem"
            else value
            for key, value in document.items()
        }
        for _, document in documents(language)
    ]
    spoken = words.put_together(language, made)
    said = refusals()
    known = {*UNSEEN, *(re.sub(r"\{\w+\}", PLACE, text) for text in GENERAL)}
    missing = {
        text: home for text, home in said.items() if text not in known and spoken.problem(text) == text
    }
    assert not missing, f'{language}: add to [problem] in errors.toml, with "{{names}}" for {missing}'
    assert not [text for text in UNSEEN if text not in said], "take it out: it is said nowhere any more"


@pytest.mark.parametrize("language", OTHERS)
def test_no_line_stands_behind_one_that_takes_its_text(language: str) -> None:
    lines = [text for _, document in documents(language) for text in document.get("problem", {})]
    spoken = words.put_together(language, [{"problem": {text: f"line {n}" for n, text in enumerate(lines)}}])
    samples = [re.sub(r"\{\w+\}", PLACE, text) for text in lines]
    assert [lines[n] for n, one in enumerate(samples) if spoken.problem(one) != f"line {n}"] == []


@pytest.mark.parametrize(
    ("english", "french"),
    [
        ("there is no app 'shop'", "il n'y a pas d'application 'shop'"),
        (
            "this needs the role admin; bob is viewer here",
            "il faut le rôle administrateur ; bob est ici lecteur",
        ),
        (
            'did you mean "shop"? choose from a, b',
            "vouliez-vous dire « shop » ? choisissez parmi a, b",
        ),
        (
            "apps.0.name must not be empty; days must be 5 or less",
            "apps.0.name ne doit pas être vide ; days doit valoir 5 ou moins",
        ),
        ("settings: there is no setting x.y", "settings : il n'y a pas de réglage x.y"),
        (
            "the app shop is not what you saw: bob changed it at noon (update: note)",
            "cet objet (app shop) n'est plus ce que vous avez vu : bob l'a modifié le noon (update: note)",
        ),
        (
            "the app shop is gone: nobody noted why",
            "cet objet (app shop) n'existe plus : personne n'a noté pourquoi",
        ),
        ("meshctl app list", "meshctl app list"),
        ("a worker's own words", "a worker's own words"),
    ],
)
def test_places_are_filled_and_what_stands_in_them_is_said_too(english: str, french: str) -> None:
    assert words.catalogue("fr").problem(english) == french
    assert words.catalogue("en").problem(english) == english


def test_an_error_is_told_with_its_next_step() -> None:
    error = GateError("there is no worker gpu-7", status=404, hint="name one: --worker NAME")
    spoken = words.catalogue("fr")
    assert spoken.told(error) == "il n'y a pas de worker gpu-7\nnommez-en un : --worker NAME"
    assert spoken.told(GateError("no worker is connected", status=404)) == "aucun worker n'est connecté"
    fault = FieldError("{path} is not a file.", path="/tmp")
    assert spoken.told(fault) == spoken.say(fault.message, path="/tmp") != fault.message
