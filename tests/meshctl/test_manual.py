"""The documents without a network: found, read, searched, linked, and in what is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshctl import manual
from meshctl.__main__ import run
from meshctl.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_a_page_is_found_by_name_file_and_title_and_a_wrong_one_names_the_nearest() -> None:
    assert manual.page("licence").title == "Licence and branding"
    assert manual.page("docs/licence.md") == manual.page("Licence and branding") == manual.page("LICENCE")
    assert manual.page("scram").name == "decisions/scram"
    with pytest.raises(UsageError) as refused:
        manual.page("licens")
    assert "licence" in refused.value.hint


def test_a_search_wants_every_word_and_puts_headings_first() -> None:
    every = manual.pages()
    found = manual.search("Licence BRANDING", every)
    assert (found[0].page, found[0].line, found[0].text) == ("licence", 0, "Licence and branding")
    assert all("licence" in one.text.casefold() and "branding" in one.text.casefold() for one in found)
    assert manual.search("no such words anywhere", every) == manual.search("  ", every) == []


def test_every_link_between_pages_leads_to_a_page_and_a_heading() -> None:
    every = {one.name: one for one in manual.pages()}
    followed = 0
    for page in every.values():
        for link in page.links():
            if link.page.startswith(("README", "../")) or link.page not in every:
                continue
            goal = every[link.page] if link.page else page
            assert not link.anchor or goal.heading_of(link.anchor) is not None, (page.name, link)
            followed += 1
    assert followed > 20


def test_the_command_lists_shows_and_searches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["docs", "list", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"page": "licence", "title": "Licence and branding"} in rows
    assert run(["docs", "show", "licence.md"]) == 0
    assert capsys.readouterr().out.startswith("# Licence and branding\n")
    assert run(["docs", "search", "seats", "accounts"]) == 0
    assert "licence" in capsys.readouterr().out
    assert run(["docs", "show", "nowhere"]) == 2
    assert "meshctl docs list" in capsys.readouterr().err


def test_what_is_built_has_every_page(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = manual.pages(tmp_path / "meshctl" / "manual")
    assert [one.name for one in built] == [one.name for one in manual.pages()]
