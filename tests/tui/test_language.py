"""Languages: nothing on the screen that translators do not have, and numbers as the language writes them."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

import meshctl
import qgate
from meshctl.tui import declare, sections, words
from meshctl.tui.branded import TOKENS
from meshctl.tui.declare import Action, Column, Pane, TablePane
from meshctl.tui.describe import DocumentView
from meshctl.tui.fields import Form, Kind
from meshctl.tui.figures import NARROW
from meshctl.tui.preferences import Preferences
from meshctl.tui.room import Launch
from meshctl.tui.table import TableView
from qgate.governance.registry import SETTINGS
from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate, listed, setting
from tests.tui.messages import ROOT, messages, problems
from tests.tui.pseudo import NAME, Heard, documents, speak
from tests.tui.visit import Visit, visiting

OTHERS: Final = [one for one in words.languages() if one != words.ENGLISH]
PRESENT: Final = [sections.load(entry) for entry in sections.present()]
MACHINE: Final = frozenset({("configuration", "document"), ("documentation", "pages")})
"""Panes of texts that are no screen's: a document in YAML, pages in English."""
SAME: Final = frozenset({"meshctl", "qgate", "mesh", "alice", "local", "master", *TOKENS})
"""Words that are drawn in every language: commands, the product, and whom the tests look in as,
and a stream called as a kind of key is."""


MIGRATIONS: Final = Path(qgate.__file__).parent / "store" / "migrations"
PROTOCOL: Final = frozenset({"sslmode", "tls", "target", "compression"})
"""Fields whose values are words of a protocol."""
EXAMPLE: Final = re.compile(r"^(?:[a-z]+://\S+|(?:\d+[smhd][, ]*)+)$")
"""What only shows how something is written: an address, durations."""


def places(text: str) -> set[str]:
    """The names of a text's places."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def entries(document: Mapping[str, Any], table: str = "") -> Iterator[tuple[str, str, str]]:
    """Every line of a file: its table, the English, the translation."""
    for key, value in document.items():
        if key == "figures":
            continue
        if isinstance(value, Mapping):
            yield from entries(value, key)
        else:
            yield table, key, value


# --- catalogues


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_has_its_translation(language: str) -> None:
    spoken = words.catalogue(language)
    known = {*spoken.texts, *spoken.values}
    missing = {text: home for text, home in messages().items() if text not in known}
    assert not missing, f"{language}: add to the files named"


@pytest.mark.parametrize("language", OTHERS)
def test_every_translation_has_the_places_of_its_text(language: str) -> None:
    wrong = [
        f"{file}: {key!r}: missing {places(key) - places(text)}, extra {places(text) - places(key)}"
        for file, document in documents(language)
        for _, key, text in entries(document)
        if places(key) != places(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("language", OTHERS)
def test_a_text_has_one_translation(language: str) -> None:
    seen: dict[tuple[str, str], str] = {}
    for file, document in documents(language):
        for table, key, text in entries(document):
            assert seen.setdefault((table, key), text) == text, f"{file}: {key}"
            assert text.strip(), f"{file}: {key} is empty"


@pytest.mark.parametrize("language", OTHERS)
def test_headings_states_and_errors_have_their_translation(language: str) -> None:
    """Found in the source: a heading, a state, a value to choose or an error that is new fails here."""
    spoken = words.catalogue(language)
    wrong = [f"heading {one}" for one in headings() if one and one not in spoken.headings]
    wrong += [f"value {one}" for one in declare.WORDS if one not in spoken.values]
    wrong += [f"value {one}" for one in (*declare.Role, "yes", "no") if one not in spoken.values]
    wrong += [f"value {one}" for one in kept() if one not in spoken.values]
    samples = {text: re.sub(r"\{\w*\}", "7", text) for text in problems()}
    wrong += [f"phrase {text}" for text, one in samples.items() if spoken.shown(one) == one]
    assert not wrong, "\n".join(wrong)


def kept() -> set[str]:
    """The words that a store takes as states, severities, roles, kinds and sources."""
    named = r"CHECK \((?:state|severity|role|kind|source|side|scope|period) IN \(([^)]*)\)"
    return {
        word
        for path in sorted(MIGRATIONS.glob("*.sql"))
        for found in re.findall(named, path.read_text(encoding="utf-8"))
        for word in re.findall(r"'(\w+)'", found)
    }


@pytest.mark.parametrize("language", OTHERS)
def test_every_setting_is_described(language: str) -> None:
    spoken = words.catalogue(language)
    described = {one.name: one.description for one in SETTINGS.values()}
    assert not [name for name, text in described.items() if text not in spoken.texts]


def headings() -> set[str]:
    """Of every column that the screen or a command declares."""
    found: set[str] = set()
    for path in [*ROOT.rglob("*.py"), *Path(meshctl.__file__).parent.glob("*view.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in {"Column", "Heading"} and str(node.args[0].value).isupper():
                    found.add(str(node.args[0].value))
    return found


# --- how a language writes


@pytest.mark.parametrize(
    ("english", "french"),
    [
        ("1.5 GiB", "1,5_Gio"),
        ("12.0 GiB / 48.0 GiB", "12,0_Gio / 48,0_Gio"),
        ("190.0 GB/s", "190,0_Go/s"),
        ("3d 4h", "3_j 4_h"),
        ("5m ago", "il y a 5_min"),
        ("25%", "25_%"),
        ("12,345", "12_345"),
        ("2027-01-31 02:00:00Z", "31/01/2027 02:00:00Z"),
        ("2027-01-31", "31/01/2027"),
        ("64.0 GiB, 32.0 GiB free", "64,0_Gio, dont 32,0_Gio libres"),
        ("logo.txt is no text.", "logo.txt n'est pas du texte."),
        *((same, same) for same in ("0.1.0", "16.4", "10.0.0.7:7443", "8B", "2027-1-31", "gpu-1", "7443")),
    ],
)
def test_what_a_command_prints_is_written_as_in_french(english: str, french: str) -> None:
    assert words.catalogue("fr").shown(english) == french.replace("_", NARROW)
    assert words.catalogue("en").shown(english) == english


def test_amounts_are_grouped_and_names_are_not() -> None:
    spoken = words.catalogue("fr")
    count, number = Column("ROWS", "rows", right=True), Column("SEQ", "seq", right=True)
    for column, text in ((count, f"12{NARROW}345"), (number, "12345")):
        assert spoken.cell("12345", 12345, words=column.words, counts=column.counts) == text
    assert spoken.cell("0.85", 0.85, words=False, counts=True) == "0,85"
    assert spoken.cell("1.25", "1.25", words=False, counts=True) == "1,25"
    assert spoken.cell("1.25", "1.25", words=False, counts=False) == "1.25"
    assert spoken.say("{count} entries", count=12345) == f"12{NARROW}345 entrées"
    assert [spoken.say("{count} rows", count=count) for count in (0, 1, 2)] == [
        "0 ligne",
        "1 ligne",
        "2 lignes",
    ]
    assert spoken.figures.typed("12 345,5") == "12345.5"
    assert words.catalogue("en").figures.typed("12,5") == "12,5"


def test_states_are_translated_and_names_are_not() -> None:
    spoken = words.catalogue("fr")
    state, name = Column("STATE", "state"), Column("NAME", "name")
    assert spoken.cell("ready", "ready", words=state.words, counts=False) == "prêt"
    assert spoken.cell("WHOLE", "whole", words=state.words, counts=False) == "ENTIER"
    assert spoken.cell("ready", "ready", words=name.words, counts=False) == "ready"
    assert spoken.cell("yes", True, words=name.words, counts=False) == "oui"
    assert spoken.fact("name", "ready") == "ready"
    assert spoken.heading("AT", "pool") != spoken.heading("AT", "created_at")
    assert spoken.choices(("viewer", "owner")) == {"viewer": "lecteur", "owner": "propriétaire"}
    assert not spoken.choices(("viewer", "gpu-1"))


def test_ascii_takes_the_accents_away() -> None:
    spoken = words.catalogue("fr", ascii_only=True)
    tables = (spoken.texts, spoken.headings, spoken.labels, spoken.values)
    assert all(text.isascii() for table in tables for text in table.values())
    assert all(one.translated.isascii() for one in (*spoken.phrases, *spoken.problems))
    assert spoken.shown("12.5 GiB") == "12,5 Gio"


async def test_a_list_is_shown_and_filtered_in_french_and_exported_for_programs(visit: Open) -> None:
    async with visit("workers", liked=Preferences(language="fr")) as at:
        await at.sees("ÉTAT", "● présent", f"25{NARROW}%", f"8,0{NARROW}Gio", "propriétaire")
        pane = at.room.pane
        assert pane is not None
        assert "present,25%" in pane.extract()[1]
        await at.type("/absent")
        await at.press("enter")
        await at.sees("1 sur 3", "gpu-2")
        heading, row = pane.extract()[1].splitlines()
        assert heading.startswith("NAME,STATE")
        assert row.startswith("gpu-2,away,-")


async def test_a_form_names_its_choices_and_takes_numbers_in_french(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /settings"] = listed(
        setting("schedule.tolerance", 0.5, "float"), setting("nlp.mask", True, "bool")
    )
    gate.answer("PUT /settings/schedule.tolerance", {})
    gate.answer("PUT /settings/nlp.mask", {})
    async with visit("settings", liked=Preferences(language="fr")) as at:
        await at.sees("nlp.mask", "oui", "0,5")
        await at.press("e")
        await at.sees("< oui >")
        await at.press("n")
        await at.sees("< non >")
        await at.press("ctrl+s")
        await at.until(lambda: any(one.call.endswith("nlp.mask") for one in gate.calls("PUT")))
        assert gate.last("PUT /settings/nlp.mask").body["value"] is False
        await at.press("down", "e")
        await at.sees("schedule.tolerance", "PUT /settings/schedule.tolerance")
        await at.press(*["backspace"] * 3)
        await at.type("0,75")
        await at.press("ctrl+s")
        await at.until(lambda: any(one.call.endswith("tolerance") for one in gate.calls("PUT")))
        assert gate.last("PUT /settings/schedule.tolerance").body["value"] == 0.75


# --- what sections declare


def texts_of(pane: Pane) -> Iterator[str]:
    """What a pane declares to be read."""
    yield pane.title
    if isinstance(pane, TablePane):
        yield pane.empty
        yield from (one.label for one in pane.switches)
    for action in pane.actions:
        yield from (action.label, action.question, action.done)
        yield from form_texts(action)


class Anything(dict[str, Any]):
    """A record that has every field, and nothing in it."""

    def __missing__(self, key: str) -> Any:
        return None


def form_of(action: Action) -> Form | None:
    """An action's form, where one comes without a real record."""
    try:
        return action.asked(Anything())
    except (TypeError, KeyError, AttributeError, ValueError):
        return None


def form_texts(action: Action) -> Iterator[str]:
    """Title, labels and help of its form."""
    if (form := form_of(action)) is not None:
        yield from (form.title, form.intro)
        for one in form.fields:
            yield from (one.label, one.help)


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_everything_that_a_section_declares_is_in_the_catalogue(section: declare.Section) -> None:
    french = words.catalogue("fr")
    said = [section.title, section.about, *(one for pane in section.panes for one in texts_of(pane))]
    missing = [text for text in said if text not in french.texts and french.shown(text) == text]
    missing = [text for text in missing if EXAMPLE.sub("", text)]
    for pane in section.panes:
        for column in pane.columns if isinstance(pane, TablePane) else ():
            if column.heading and column.heading not in french.headings:
                missing.append(f"heading {column.heading}")
    assert not missing, missing


@pytest.mark.parametrize("section", PRESENT, ids=lambda one: one.id)
def test_what_is_chosen_of_has_names(section: declare.Section) -> None:
    french = words.catalogue("fr")
    unnamed = [
        f"{action.id}: {one.name} {one.choices}"
        for action in section.actions()
        if (form := form_of(action)) is not None
        for one in form.fields
        if one.kind is Kind.CHOICE and one.choices and one.name not in PROTOCOL
        if not french.choices(one.choices)
    ]
    assert not unnamed, unnamed


# --- what is drawn


@pytest.fixture(scope="module")
def peopled(mesh: Mesh) -> Iterator[Mesh]:
    """A gate with something in most lists."""
    mesh.control.post("/people", {"name": "Zoe", "email": "zoe@corp.test"})
    mesh.control.put("/prices/qwen3", {"input": "1.5", "output": "2", "currency": "EUR"})
    mesh.control.put("/budgets/pool/month", {"hard": "100", "currency": "EUR"})
    yield mesh
    mesh.control.delete("/budgets/pool/month")
    mesh.control.delete("/prices/qwen3")


async def settled(at: Visit) -> None:
    """Wait until the pane in front has asked for what it shows."""

    def is_there() -> bool:
        pane = at.room.pane
        if pane is None or pane._loading:
            return False
        return not isinstance(pane, TableView) or pane.loaded or bool(pane.problem)

    await at.until(is_there, "the pane")
    await at.pilot.pause()


async def test_everything_that_is_drawn_comes_from_the_catalogue(
    peopled: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pane of every section, the description of its first row, the menu and the help, in letters that
    nobody uses: what is plain was neither said by the gate nor given to translators.
    """
    heard = Heard(speak(monkeypatch), monkeypatch)
    launch = Launch(peopled.control, "local", Preferences(language=NAME), tmp_path / "tui.toml", "overview")
    found: dict[str, list[str]] = {}

    def look(at: Visit, where: str) -> None:
        if strange := heard.unknown(at.text(), besides=SAME):
            found[where] = sorted(set(strange))

    async with visiting(launch, size=(180, 60)) as at:
        heard.take(peopled.control.get("/overview"))
        for section in PRESENT:
            for number, pane in enumerate(section.panes):
                await at.room.show_section(section.id, pane=number)
                await settled(at)
                heard.take(at.room.newest)
                if (section.id, pane.id) in MACHINE:
                    continue
                look(at, f"{section.id} {pane.id}")
                front = at.room.pane
                if isinstance(front, TableView) and (record := front.front()) is not None:
                    front.describe(record)
                    await at.until(lambda: isinstance(at.room.pane, DocumentView), "the description")
                    await settled(at)
                    look(at, f"{section.id} {pane.id}: describe")
                    await at.room.action_back()
        await at.press("question_mark")
        await at.pilot.pause()
        look(at, "help")
    assert not found, "\n".join(f"{where}: {one}" for where, strange in found.items() for one in strange)
