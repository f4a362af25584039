"""Tables: filter, order, marks, actions about many, and pages at the gate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from meshctl.tui.filtering import parse, scattered
from meshctl.tui.grid import Grid
from meshctl.tui.table import natural
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate, listed, worker


def test_a_filter_knows_words_their_inverse_and_labels() -> None:
    row = ("gpu-lyon-1", "present")
    record = {"name": "gpu-lyon-1", "labels": {"site": "lyon"}, "draining": False}
    for text, found in {
        "": True,
        "LYON": True,
        "gl1": True,
        "present lyon": True,
        "paris": False,
        "!paris": True,
        "!lyon": False,
        "-l site=lyon": True,
        "-l site=paris": False,
        "-l draining=no,site=lyon": True,
        "!-l site=lyon": False,
        "-l nothing=": False,
        "! ": True,
    }.items():
        assert parse(text).matches(row, record) is found, text
    assert scattered("abc", "a-b-c")
    assert not scattered("cba", "a-b-c")


def test_names_with_numbers_are_sorted_as_people_count() -> None:
    names = ["gpu-10", "GPU-9", "gpu", "10/12+0", "9/12+3", "a" * 30 + "1" * 40]
    assert sorted(names, key=natural) == ["9/12+3", "10/12+0", "a" * 30 + "1" * 40, "gpu", "GPU-9", "gpu-10"]


async def test_the_filter_shows_as_it_is_typed_and_escape_takes_it_away(visit: Open) -> None:
    async with visit("workers") as at:
        await at.sees("3 of 3")
        await at.type("/old")
        await at.sees("1 of 3")
        await at.press("escape")
        await at.sees("3 of 3")
        await at.type("/none")
        await at.sees("0 of 3", "esc takes the filter away")
        await at.press("escape")
        await at.sees("3 of 3")
        await at.type("/!gpu")
        await at.press("enter")
        await at.sees("1 of 3", "/!gpu", "old-3")
        await at.press("escape")
        await at.sees("3 of 3")
        await at.type("/-l state=away")
        await at.press("enter")
        await at.sees("1 of 3", "gpu-2")


async def test_order_by_column_and_turned_around_keeps_the_cursor(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /workers"] = listed(
        *(worker(f"w{n}", load={"cpu": n / 10, "gpus": []}) for n in (3, 1, 2))
    )
    async with visit("workers") as at:
        await at.sees("▸ w1", "NAME ▲")
        await at.press("s")
        await at.sees("▸ w1", "NAME ▼")
        lines = [line for line in at.text().splitlines() if "present" in line]
        assert [line.split()[0] for line in lines] == ["w3", "w2", "▸"]
        await at.press("greater_than_sign", "greater_than_sign")
        await at.sees("CPU ▲")


async def test_marked_rows_are_done_together_and_taken_back_one_by_one(visit: Open, gate: RoomGate) -> None:
    for name in ("gpu-1", "old-3"):
        gate.answer(f"POST /workers/{name}/drain", {"running": 1})
        gate.answer(f"POST /workers/{name}/undrain", {})
    async with visit("workers") as at:
        await at.sees("3 of 3")
        await at.press("asterisk")
        await at.sees("3 marked")
        await at.press("t")
        await at.told("2 takes no more jobs.")
        drained = [one.call for one in gate.calls("POST")]
        assert sorted(drained) == ["POST /workers/gpu-1/drain", "POST /workers/old-3/drain"]
        await at.press("u")
        await at.sees("Take back: Drain?", "POST /workers/old-3/undrain", "meshctl worker undrain old-3")
        await at.press("y")
        await at.told("Taken back: Drain")
        assert gate.calls("POST")[-1].call == "POST /workers/old-3/undrain"
        await at.press("escape")
        await at.sees_no("marked")


async def test_what_cannot_be_undone_wants_the_name(visit: Open, gate: RoomGate) -> None:
    gate.answer("DELETE /sidecars/gpu-1", None, 204)
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("delete")
        await at.sees("Revoke gpu-1?", "DELETE /sidecars/gpu-1", "meshctl worker revoke gpu-1")
        await at.press("y", "enter")
        await at.told("nothing was done")
        assert not gate.calls("DELETE")
        await at.type("gpu-1")
        await at.press("enter")
        await at.told("gpu-1 is revoked.")
        assert len(gate.calls("DELETE")) == 1


async def test_a_failure_says_the_gates_next_step(visit: Open, gate: RoomGate) -> None:
    gate.problem("POST /workers/gpu-1/drain", 409, "it drains already", "meshctl worker show gpu-1")
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("t")
        await at.told("it drains already")
        await at.told("meshctl worker show gpu-1")
        await at.press("u")
        await at.told("There is nothing to take back.")


def pages(count: int) -> Any:
    """Workers by pages, filtered and sorted as the control API does it."""
    rows = [worker(f"w{n:05d}", labels={"site": ("lyon", "paris")[n % 2]}) for n in range(count)]

    def answer(query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        found = [row for row in rows if query.get("q", "") in row["name"]]
        found = [row for row in found if query.get("state", row["state"]) == row["state"]]
        for site in [query["labels.site"]] if "labels.site" in query else []:
            inverse, wanted = site.startswith("!"), site.removeprefix("!")
            found = [row for row in found if (row["labels"]["site"] == wanted) is not inverse]
        if query.get("sort") == "-name":
            found.reverse()
        start, limit = int(query.get("after", 0)), int(query["limit"])
        more = str(start + limit) if start + limit < len(found) else None
        return 200, {"items": found[start : start + limit], "next": more, "total": len(found)}

    return answer


async def test_ten_thousand_rows_are_one_page_at_a_time(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /workers"] = pages(10_000)
    async with visit("workers") as at:
        await at.sees("1 to 1000 of 10000", "w00000")
        await at.press("G")
        await at.sees("▸ w00999")
        await at.press("j")
        await at.sees("1001 to 2000 of 10000", "▸ w01000")
        await at.press("k")
        await at.sees("1 to 1000 of 10000", "▸ w00999")
        await at.type("/w0999")
        await at.press("enter")
        await at.sees("10 of 10", "w09990")
        assert gate.last("GET /workers").query["q"] == "w0999"
        await at.press("escape")
        await at.sees("1 to 1000 of 10000")
        await at.press("s")
        await at.sees("w09999")
        assert gate.last("GET /workers").query["sort"] == "-name"
        assert len(at.room.query_one(Grid).rows) == 1000


async def test_labels_and_the_inverse_are_asked_of_the_gate_beyond_a_page(
    visit: Open, gate: RoomGate
) -> None:
    gate.answers["GET /workers"] = pages(3000)
    async with visit("workers") as at:
        await at.sees("1 to 1000 of 3000")
        for text, total, asked in (
            ("-l site=paris", 1500, {"labels.site": "paris"}),
            ("!-l site=paris", 1500, {"labels.site": "!paris"}),
            ("-l site=lyon w0002", 5, {"labels.site": "lyon", "q": "w0002"}),
            ("-l state=present", 3000, {"state": "present"}),
        ):
            await at.type(f"/{text}")
            await at.press("enter")
            await at.sees(f" of {total}  /{text}")
            query = gate.last("GET /workers").query
            assert {key: query[key] for key in query.keys() & {"q", "state", "labels.site"}} == asked
            await at.press("escape")
            await at.until(lambda: at.text().splitlines()[-2].strip() == "1 to 1000 of 3000")
        await at.type("/!w0001 lyon")
        await at.press("enter")
        await at.sees("(in this page)")


async def test_a_filter_at_the_gate_is_left_at_once(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /sidecars"] = pages(1500)
    async with visit("api") as at:
        await at.type(":sidecars")
        await at.press("enter")
        await at.sees("1 to 1000 of 1500")
        await at.type("/w0149")
        await at.press("enter")
        await at.sees("10 of 10", "w01499")
        await at.press("escape")
        await at.sees("1 to 1000 of 1500")


async def test_a_thousand_rows_are_filled_and_amended_quickly(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /workers"] = listed(*(worker(f"w{n:04d}") for n in range(1000)))
    async with visit("workers") as at:
        await at.sees("1000 of 1000")
        grid = at.room.query_one(Grid)
        rows = list(grid.rows)
        began = time.thread_time()
        for _ in range(10):
            grid.fill(list(rows))
        assert (time.thread_time() - began) / 10 < 0.05


async def test_two_of_one_name_are_two_rows(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /workers"] = listed(worker("local"), worker("local", state="away"))
    async with visit("workers") as at:
        await at.sees("present", "away", "2 of 2")


async def test_text_of_others_cannot_command_the_terminal(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /workers"] = listed(worker("\x1b[2Jevil\u202e", resident=["\x1b]52;c;x\x07"]))
    async with visit("workers", size=(120, 40)) as at:
        await at.sees("[2Jevil")
        assert not any(char in at.text() for char in "\x1b\x07\u202e")
