from __future__ import annotations

import pytest

from meshctl import view
from meshctl.render import plain, print_table
from meshctl.terminal import note, uncontrolled


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0, "0"),
        (1.50, "1.5"),
        ([], "-"),
        (["a", "b"], "a, b"),
        ({"max_connections": 5, "queue": None}, "max_connections=5"),
        ({}, "-"),
    ],
)
def test_any_value_has_a_cell(value: object, shown: str) -> None:
    assert view.text(value) == shown


def test_times_are_utc_whatever_their_form() -> None:
    assert view.moment(0) == "1970-01-01 00:00:00Z"
    assert view.moment("2026-01-02T03:04:05+01:00") == "2026-01-02 02:04:05Z"
    assert view.moment(None) == "-"
    assert view.moment("soon") == "soon"


def test_sizes_spans_and_ratios() -> None:
    assert [view.size(n) for n in (None, 0, 1023, 1536, 3 << 20, 5 << 30)] == [
        "-",
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert [view.span(n) for n in (None, 0, 59, 3600, 90061)] == ["-", "0s", "59s", "1h", "1d 1h"]
    assert (view.ratio(300, 100), view.ratio(1, 0)) == ("3.0x", "-")
    assert view.milliseconds(0.0123) == "12.3 ms"


def test_hosts_in_each_form() -> None:
    assert view.hosts([["db1", 5432], {"host": "db2", "port": 5433}, "x:1"]) == "db1:5432, db2:5433, x:1"
    assert view.hosts(None) == "-"


def test_plain_tables_align_and_never_cut() -> None:
    table = view.Table(("A", "N"), (("long value", "1"), ("x\ny", "22")), frozenset({1}), "t")
    assert plain(table) == "t\nA            N\nlong value   1\nx y         22"


def test_a_title_longer_than_its_table_stays_on_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(view.Table(("A",), (("1",),), frozenset(), "one query through the wire, 54 ms"))
    assert capsys.readouterr().out.splitlines()[0] == "one query through the wire, 54 ms"


def test_an_empty_status_is_shown_not_raised() -> None:
    (head,) = view.status({})
    assert ("store", "DOWN: - (-, PostgreSQL -)") in head.rows


def test_status_adds_both_directions_up() -> None:
    session = {"node": "dev", "connected": True, "rtt_s": 0.001, "streams": 2, "resumes": 0, "address": "::1"}
    session |= {"bytes_app_in": 100, "bytes_app_out": 300, "bytes_wire_in": 50, "bytes_wire_out": 50}
    _, links = view.status({"sessions": [session], "streams": []})
    assert dict(zip(links.columns, links.rows[0], strict=True))["RATIO"] == "4.0x"
    assert dict(zip(links.columns, links.rows[0], strict=True))["LINK"] == "up"


def test_no_escape_sequence_reaches_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = view.card({"cpu": "Epyc\x1b]0;owned\x07\u202e 9654\nsecond line"})
    assert plain(table) == "cpu  Epyc·]0;owned·· 9654 second line"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(table)
    note("the worker said \x9b2J, and went on:\n\tso")
    shown, told = capsys.readouterr()
    assert "Epyc·]0;owned·· 9654" in shown
    assert told == "the worker said ·2J, and went on:\n\tso\n"


def test_a_models_words_bring_no_control_sequence_to_a_terminal() -> None:
    assert uncontrolled("\x1b]0;title\x07a\tb\n\x9b2J") == "·]0;title·a\tb\n·2J"
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN} naïve 漢字"
    assert uncontrolled(family) == family
