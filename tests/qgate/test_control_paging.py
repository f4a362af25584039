"""Pages, filters and orders of lists."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.control.paging import Asked, Fields, page
from qgate.control.problems import ProblemError

FIELDS = Fields(key="name", search=("name", "note"), filters=("state", "tags", "on", "load.cpu", "labels.*"))

LYON = {"site": "lyon", "example.org/rack": "b2"}

ROWS: list[dict[str, Any]] = [
    {"name": "ada", "state": "ok", "n": 3, "on": True, "tags": ["x"], "note": None, "labels": LYON},
    {"name": "bob", "state": "away", "n": 1, "on": False, "tags": ["x", "y"], "note": "Ädel"},
    {"name": "cyd", "state": "ok", "n": None, "on": True, "tags": [], "load": {"cpu": 0.5}},
    {"name": "dan", "state": "gone", "n": "many", "on": False, "tags": ["z"]},
]


def names(reply: dict[str, Any]) -> str:
    return " ".join(row["name"] for row in reply["items"])


def ask(**asked: Any) -> dict[str, Any]:
    return page(ROWS, Asked(**asked), FIELDS)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "ada bob cyd dan"),
        ({"q": "A"}, "ada dan"),
        ({"q": "ädel"}, "bob"),
        ({"q": "!a"}, "bob cyd"),
        ({"q": "!"}, "ada bob cyd dan"),
        ({"values": {"state": ("ok",)}}, "ada cyd"),
        ({"values": {"state": ("!ok",)}}, "bob dan"),
        ({"values": {"state": ("ok", "gone")}, "q": "a"}, "ada dan"),
        ({"values": {"tags": ("y", "z")}}, "bob dan"),
        ({"values": {"on": ("true",)}}, "ada cyd"),
        ({"values": {"load.cpu": ("0.5",)}}, "cyd"),
        ({"q": "bo ädel"}, "bob"),
        ({"q": "!bo ädel"}, "ada cyd dan"),
        ({"q": "bo dan"}, ""),
        ({"values": {"labels.site": ("lyon",)}}, "ada"),
        ({"values": {"labels.site": ("!lyon",)}}, "bob cyd dan"),
        ({"values": {"labels.site": ("!",)}}, "ada"),
        ({"values": {"labels.example.org/rack": ("b2",)}}, "ada"),
        ({"sort": (("n", False),)}, "cyd bob ada dan"),
        ({"sort": (("n", True),)}, "dan ada bob cyd"),
        ({"sort": (("state", False), ("name", True))}, "bob dan cyd ada"),
        ({"sort": (("load.cpu", True),)}, "cyd ada bob dan"),
    ],
)
def test_rows_are_found_and_ordered(asked: dict[str, Any], found: str) -> None:
    reply = ask(**asked)
    assert names(reply) == found
    assert reply["total"] == len(reply["items"])
    assert reply["next"] is None


@pytest.mark.parametrize("asked", [{}, {"sort": (("state", True),)}, {"sort": (("n", False), ("on", True))}])
def test_pages_follow_each_other_though_rows_come_and_go(asked: dict[str, Any]) -> None:
    whole = names(ask(**asked))
    got, after = [], None
    while True:
        reply = ask(limit=1, after=after, **asked)
        assert reply["total"] == len(ROWS)
        got.append(names(reply))
        if (after := reply["next"]) is None:
            break
    assert " ".join(got) == whole
    # the row that the cursor stands on goes: the next page is the same
    first = ask(limit=2, **asked)
    left = [row for row in ROWS if row["name"] != first["items"][-1]["name"]]
    reply = page(left, Asked(after=first["next"], **asked), FIELDS)
    assert names(reply) == " ".join(whole.split()[2:])


@pytest.mark.parametrize(
    "asked",
    [
        {"values": {"nothing": ("1",)}},
        {"values": {"state": ("ok",) * 51}},
        {"sort": (("nothing", False),)},
        {"after": "%%"},
        {"after": "aGVsbG8"},
        {"after": ""},
        {"after": base64.urlsafe_b64encode(json.dumps(["n", 1, "ada"]).encode()).decode()},
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ProblemError) as caught:
        ask(**asked)
    assert (caught.value.status, caught.value.code) == (422, "invalid")


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=8), st.lists, max_leaves=8))
def test_no_cursor_breaks_a_list(value: Any) -> None:
    made = base64.urlsafe_b64encode(json.dumps(["n", value, value]).encode()).decode().rstrip("=")
    assert set(ask(after=made, sort=(("n", False),))) == {"items", "next", "total"}
