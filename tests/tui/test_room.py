"""The control room as a person sees it, over a fake gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.css.query import NoMatches

from meshctl.tui import sections
from meshctl.tui.data import Principal, in_thread
from meshctl.tui.declare import Role
from meshctl.tui.pane import PaneView
from meshctl.tui.preferences import Preferences, load
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate, incident, listed, overview, worker
from tests.tui.visit import Visit


async def test_opens_on_the_overview_and_says_where_and_as_whom(visit: Open) -> None:
    async with visit() as at:
        await at.sees("hq local", "gate-1", "alice", "owner", "requests/s", "live")
        await at.sees("Incidents  1 open", "target_dead: lyon", "node.cert ends in")


async def in_front(at: Visit, entry: sections.Entry) -> None:
    """Wait until a section is what is seen."""
    await at.until(lambda: at.room.picture == entry.id, entry.id)
    await at.sees(entry.title)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_every_section_comes_by_its_key_at_any_size(visit: Open, size: tuple[int, int]) -> None:
    async with visit(size=size) as at:
        await at.sees("requests/s")
        for entry in sections.present():
            await at.press(entry.key)
            await in_front(at, entry)


async def test_every_section_comes_by_its_name_and_the_palette(visit: Open) -> None:
    async with visit() as at:
        await at.sees("requests/s")
        for entry in sections.present():
            await at.type(f":{entry.id}")
            await at.press("enter")
            await in_front(at, entry)
        await at.press("ctrl+p")
        await at.type("Advanced")
        await at.sees("Go to this section (S)")
        await at.press("enter", "enter")
        await at.sees("audit.retention_days")


async def test_a_jump_goes_to_a_row_and_says_where_it_cannot(visit: Open) -> None:
    async with visit() as at:
        await at.type(":workers gpu-1")
        await at.press("enter")
        await at.sees("Workers › gpu-1", "EPYC 7402P")
        await at.type(":nowhere")
        await at.press("enter")
        await at.told("There is no section nowhere.")
        await at.type(":wokers")
        await at.press("enter")
        await at.told("There is no section wokers. Did you mean :workers?")
        await at.press("escape")
        await at.sees("3 of 3")
        await at.type(":wor")
        await at.press("tab")
        await at.until(lambda: at.text().splitlines()[-2].strip() == ":workers")
        await at.press("escape")
        await at.press("colon", "up", "up")
        await at.until(lambda: ":nowhere" in at.text())


async def test_the_header_says_what_may_not_be_done(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /session", {"name": "bob", "role": "viewer", "pool": "lyon", "read_only": True})
    async with visit("workers") as at:
        await at.sees("bob@lyon viewer", "read-only")
        await at.press("t")
        await at.told("This context is read-only.")
        gate.answer("GET /session", {"name": "bob", "role": "viewer", "pool": ""})
        at.room.introduce()
        await at.until(lambda: not at.room.principal.read_only)
        await at.press("t")
        await at.told("This needs the role operator; yours is viewer.")
    assert not gate.calls("POST")


async def test_help_and_menu_name_keys_commands_and_reasons(visit: Open) -> None:
    async with visit("workers", size=(120, 40)) as at:
        await at.sees("3 of 3")
        await at.press("question_mark")
        await at.sees("meshctl worker drain {name}", "Everywhere")
        await at.press("escape")
        await at.press("j", "full_stop")
        await at.sees("What can be done here", "It is not connected.", "Enroll")
        await at.press("t")
        await at.told("It is not connected.")


async def test_a_description_in_three_forms_searched_copied_and_exported(visit: Open, tmp_path: Path) -> None:
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("y")
        await at.sees("Workers › gpu-1", "connected: true")
        await at.press("J")
        await at.sees('"connected": true')
        await at.press("J")
        await at.sees("certificate ends")
        await at.type("/EPYC")
        await at.press("enter")
        await at.press("c")
        await at.told("Copied")
        assert "EPYC 7402P" in at.room.clipboard
        await at.press("x")
        await at.sees("Export what is shown")
        await at.press(*["backspace"] * 12)
        await at.type(str(tmp_path / "out.json"))
        await at.press("enter")
        await at.told("Written")
        assert json.loads((tmp_path / "out.json").read_text())["name"] == "gpu-1"


async def test_themes_ascii_and_language_are_kept(visit: Open, tmp_path: Path) -> None:
    async with visit("workers") as at:
        await at.sees("gpu-1", "▲ away")
        await at.type(":theme colour-blind")
        await at.press("enter")
        await at.until(lambda: at.room.theme == "colour-blind")
        await at.type(":ascii on")
        await at.press("enter")
        await at.sees("! away")
        assert at.text().isascii()
        await at.type(":language fr")
        await at.press("enter")
        await at.sees("proprietaire")
    assert load(tmp_path / "tui.toml") == Preferences("colour-blind", "fr", ascii_only=True)


async def test_the_mouse_selects_sorts_and_can_be_freed(visit: Open) -> None:
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.pilot.click("Grid", offset=(5, 2))
        await at.until(lambda: "▸ gpu-2" in at.text())
        await at.pilot.click("Grid", offset=(5, 0))
        await at.sees("NAME ▼")
        await at.press("m")
        await at.told("The mouse is the terminal's.")


async def test_news_change_only_what_they_are_about(visit: Open, gate: RoomGate) -> None:
    async with visit("workers") as at:
        await at.sees("gpu-1", "25%")
        await at.until(lambda: gate.topics[-1:] == ["changes,overview,workers"], "the topics")
        change = {
            "name": "gpu-1",
            "state": "present",
            "jobs_running": 3,
            "slots": 4,
            "jobs_queued": 9,
            "cpu": 0.93,
        }
        asked = len(gate.calls("GET /workers"))
        gate.tell("workers", {"items": [change], "gone": [], "more": 0, "total": 3})
        await at.sees("93%", "3/4+9")
        assert len(gate.calls("GET /workers")) - asked <= 1  # its own five seconds may have come
        gate.answer("GET /workers", {"items": [worker("gpu-1"), worker("new-9")]})
        gate.tell("workers", {"items": [worker("new-9")], "gone": ["gpu-2", "old-3"], "more": 0})
        await at.sees("new-9", "2 of 2")
        gate.tell("overview", overview(pool={"name": "lyon"}))
        await at.sees("lyon local")


async def test_the_palette_finds_what_can_be_done_in_the_section(visit: Open, gate: RoomGate) -> None:
    gate.answer("POST /workers/gpu-1/drain", {})
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("ctrl+p")
        await at.sees("Drain   t", "meshctl worker drain gpu-1")
        await at.type("worker drain")
        await at.sees("Drain   t")
        await at.press("enter", "enter")
        await at.told("gpu-1 takes no more jobs.")
        await at.press("I")
        await at.sees("target_dead")
        await at.press("ctrl+p")
        await at.type("schedule")
        await at.sees("Scheduled: Schedule")
        await at.press("enter", "enter")
        await at.sees("Have something done at a time")


async def test_the_palette_and_the_menu_are_drawn_in_ascii(visit: Open) -> None:
    async with visit("workers", liked=Preferences(ascii_only=True)) as at:
        await at.sees("gpu-1")
        await at.press("ctrl+p")
        await at.sees("search all commands", "Drain   t")
        assert at.text().isascii(), at.text()
        await at.press("escape", "full_stop")
        await at.sees("What can be done here")
        assert at.text().isascii(), at.text()


def steps(**states: str) -> dict[str, Any]:
    found = [
        {"step": name, "title": name, "state": states.get(name, "open"), "skippable": True, "next": "x"}
        for name in ("machine", "admin", "store", "database", "model", "pair")
    ]
    return {"done": False, "next": "machine", "steps": found}


async def test_a_pool_that_nobody_has_set_up_begins_at_its_first_steps(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /onboarding", steps(store="done"))
    async with visit("") as at:
        await at.sees("Onboarding", "database")
    gate.answer("GET /onboarding", steps(store="done", admin="done"))
    async with visit("") as at:
        await at.sees("requests/s", "owner")
        await at.until(lambda: any(one.call == "GET /onboarding" for one in gate.asked[-8:]))
        await at.pilot.pause()
        await at.sees("requests/s")


async def test_a_section_that_is_not_there_leaves_the_overview(visit: Open) -> None:
    async with visit("wrokers") as at:
        await at.told("There is no section wrokers.")
        await at.sees("requests/s")


async def test_the_name_of_a_pool_changes_where_it_is_shown(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /branding", {"title": "Lyon AI", "name": "Lyon AI", "colours": {}, "logo": []})
    async with visit("workers") as at:
        await at.sees("Lyon AI")
        await at.until(lambda: bool(gate.streams), "the stream of news")
        gate.answer("GET /branding", {"title": "Paris AI", "name": "Paris AI", "colours": {}, "logo": []})
        gate.tell("changes", {"names": ["branding:Paris AI"], "all": False})
        await at.sees("Paris AI")


async def test_a_lost_stream_is_taken_up_again(visit: Open, gate: RoomGate) -> None:
    async with visit() as at:
        await at.sees("live")
        await at.until(lambda: len(gate.streams) == 1)
        gate.cut()
        await at.until(lambda: len(gate.topics) >= 2 and len(gate.streams) == 1)
        gate.tell("overview", overview(requests_s=77.0))
        await at.sees("77")
        assert len(gate.streams) == 1


async def test_a_gate_without_a_stream_is_asked_once_a_second(visit: Open, gate: RoomGate) -> None:
    gate.live = False
    async with visit() as at:
        await at.sees("polling")
        gate.answer("GET /overview", overview(requests_s=55.0))
        await at.sees("55")


async def test_a_gate_that_goes_away_leaves_what_was_known(visit: Open, gate: RoomGate) -> None:
    async with visit("incidents") as at:
        await at.sees("target_dead")
        gate.problem("GET /incidents", 503, "the store is away", "meshctl doctor", "store-unavailable")
        await at.press("r")
        await at.sees("the store is away", "meshctl doctor", "target_dead")
        gate.answers["GET /incidents"] = listed(incident(7), incident(8))
        await at.press("r")
        await at.sees("2 of 2")


class Emptied(PaneView):
    """Its parts go before it does, as of all that is taken away; the answer comes between the two."""

    async def load(self) -> None:
        """Write into what is gone."""
        self.query_one("#picture")


async def test_an_answer_to_what_was_left_meanwhile_ends_nothing(visit: Open) -> None:
    async with visit("incidents") as at:
        await at.sees("1 of 1")
        assert at.room.pane is not None
        view = Emptied(at.room.pane.pane)
        await at.room.screen.mount(view)
        with pytest.raises(NoMatches):
            await view._loaded()  # there, and without its parts: a fault of its own
        view._pruning = True
        await view._loaded()


async def test_what_is_still_to_be_read_is_not_said_twice(visit: Open) -> None:
    async with visit() as at:
        await at.sees("Workers")
        for _ in range(3):
            at.room.warn("hq does not answer")
        at.room.warn("nor does lyon")
        await at.told("nor does lyon")
        assert [one.message for one in at.room._notifications] == ["hq does not answer", "nor does lyon"]


async def test_another_pool_is_asked_for_what_is_in_front(visit: Open, gate: RoomGate) -> None:
    async with visit("incidents") as at:
        await at.sees("1 of 1")
        gate.answers["GET /incidents"] = listed()
        await in_thread(lambda: at.room._moved("hq", "branch"))
        await at.told("hq does not answer; going on at branch.")
        await at.sees("nothing is wrong")


def asked_since(gate: RoomGate, before: int) -> bool:
    """Whether the overview was asked for more often than ``before``."""
    return len(gate.calls("GET /overview")) > before


async def test_an_overview_that_is_not_current_says_so_once_and_what_to_do(
    visit: Open, gate: RoomGate
) -> None:
    async with visit() as at:
        await at.sees("requests/s")
        why = "the store is away, which keeps everything that this pool knows of its apps and people"
        gate.problem("GET /overview", 503, why, "meshctl doctor", "store-unavailable")
        for _ in range(3):
            before = len(gate.calls("GET /overview"))
            await at.press("r")
            await at.until(partial(asked_since, gate, before), "the question")
        await at.sees("the store is away", "(meshctl doctor)", "requests/s")
        assert at.text().count("the store is away") == 1
        gate.answer("GET /overview", overview())
        await at.press("r")
        await at.sees_no("the store is away")


async def test_the_tail_of_the_audit_grows(visit: Open, gate: RoomGate) -> None:
    entry = {"seq": 4, "started_at": 1_790_000_000, "kind": "admin", "outcome": "ok"}
    gate.answers["GET /audit"] = lambda query, _body: listed(
        *(
            {**entry, "seq": seq, "detail": {"what": "setting.set", "name": f"n{seq}", "by": "alice"}}
            for seq in range(int(query.get("after", 0)) + 1, int(query.get("after", 0)) + 3)
        )
    )
    async with visit() as at:
        await at.press("ctrl+l")
        await at.sees("setting.set n1 alice", "n2")
        await at.sees("n4 alice")
        await at.type("/n3")
        await at.press("enter")
        await at.sees("1 entries")


async def test_whoever_is_not_logged_in_is_asked_to(visit: Open, gate: RoomGate) -> None:
    gate.problem("GET /session", 401, "Nobody is logged in.", "meshctl login", "unauthenticated")
    async with visit() as at:
        await at.told("Nobody is logged in.")  # over a socket there is nothing to log in with


def test_roles_cover_those_before() -> None:
    assert Role.OWNER.covers(Role.VIEWER)
    assert not Role.VIEWER.covers(Role.OPERATOR)
    assert Principal("a", pool="b").label == "a@b"


async def test_a_picture_of_the_screen(visit: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with visit() as at:
        await at.sees("requests/s")
        await at.press("ctrl+s")
        await at.told("Written")
    assert next(tmp_path.glob("meshctl-overview-*.svg")).read_text().startswith("<svg")


@pytest.mark.parametrize("size", [(120, 40), (200, 60)])
async def test_a_large_overview_has_charts_who_asks_most_and_where_everything_is(
    visit: Open, gate: RoomGate, size: tuple[int, int]
) -> None:
    def usage(query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        row = {"requests": 120, "cost": "1.20", "currency": "EUR"}
        return listed(*({**row, "name": f"{query['by']}-{n}"} for n in range(8)))

    gate.answers["GET /usage"] = usage
    async with visit(size=size) as at:
        await at.sees("Busiest models", "model-4", "Busiest apps", "app-4", "1.20 EUR")
        await at.sees("target_dead: lyon", "node.cert ends in", "85%", "B Branding", "P Sign-up")
        lines = at.text().splitlines()
        assert "Sign-up" in lines[-2]
        assert sum("█" in line for line in lines) > size[1] / 3
