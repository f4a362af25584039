"""Forms: typed fields, faults at the field, what the gate refuses, and taking a change back."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from meshctl.tui.fields import Amendment, Field, FieldError, Form, Kind, body_of, dropped, readable
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate, incident, listed, setting


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (Field("a", "A"), " x ", "x"),
        (Field("a", "A", Kind.INTEGER, minimum=1), "12", 12),
        (Field("a", "A", Kind.NUMBER), "1.5", 1.5),
        (Field("a", "A", Kind.BOOL), "off", False),
        (Field("a", "A", Kind.LIST), "a, b,,c", ["a", "b", "c"]),
        (Field("a", "A", Kind.DURATION), "1h 30m", 5400.0),
        (Field("a", "A", Kind.CHOICE, choices=("x", "y")), "y", "y"),
        (Field("a", "A", Kind.SECRET), " kept ", " kept "),
        (Field("a", "A"), "", None),
    ],
)
def test_a_field_takes_what_fits(field: Field, text: str, value: object) -> None:
    assert field.parse(text) == value


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (Field("a", "A", required=True), "  "),
        (Field("a", "A", Kind.INTEGER), "1.5"),
        (Field("a", "A", Kind.INTEGER, minimum=5), "4"),
        (Field("a", "A", Kind.NUMBER, maximum=5), "6"),
        (Field("a", "A", Kind.NUMBER), "nan"),
        (Field("a", "A", Kind.BOOL), "maybe"),
        (Field("a", "A", Kind.CHOICE, choices=("x",)), "z"),
        (Field("a", "A", Kind.DURATION), "soon"),
        (Field("a", "A", pattern="[a-z]+"), "A1"),
    ],
)
def test_a_field_refuses_what_does_not(field: Field, text: str) -> None:
    with pytest.raises(FieldError):
        field.parse(text)


def test_values_become_a_body_and_a_command() -> None:
    form = Form(
        "F",
        (
            Field("name", "N", option=""),
            Field("limits.queue", "Q", Kind.INTEGER, option="--queue"),
            Field("models", "M", Kind.LIST, option="--model"),
            Field("read_only", "R", Kind.BOOL, option="--read-only"),
            Field("password", "P", Kind.SECRET, option="--password-file"),
        ),
    )
    values = {
        "name": "a b",
        "limits.queue": 3,
        "models": ["x", "y z"],
        "read_only": True,
        "password": "hush",
    }
    assert body_of(form.fields, values)["limits"] == {"queue": 3}
    said = " ".join(form.words(values))
    assert said == "'a b' --queue 3 --model x --model 'y z' --read-only --password-file -"
    assert "hush" not in said


def test_a_dropped_file_comes_in_many_forms_and_may_not_be_here(tmp_path: Path) -> None:
    model = tmp_path / "my model.gguf"
    model.write_bytes(b"GGUF")
    for text in (
        str(model),
        f"'{model}'",
        f'"{model}" ',
        str(model).replace(" ", "\\ "),
        "file://" + str(model).replace(" ", "%20"),
    ):
        assert readable(text) == model, text
    assert dropped("it's") == "it's"
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    for wrong, said in (
        (tmp_path, "is not a file"),
        (tmp_path / "dead", "link to nothing"),
        (tmp_path / "elsewhere", "not on this machine"),
    ):
        with pytest.raises(FieldError, match=said):
            readable(str(wrong))


async def test_a_setting_is_changed_by_a_form_of_its_type_and_taken_back(visit: Open, gate: RoomGate) -> None:
    gate.answer("PUT /settings/audit.retention_days", {"name": "audit.retention_days", "value": 30})
    gate.answer("DELETE /settings/audit.retention_days", {"name": "audit.retention_days", "value": 90})
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        await at.press("e")
        await at.sees("Change: audit.retention_days", "default 90", "from 1", "to 3,650")
        await at.press("backspace", "backspace")
        await at.type("0")
        await at.sees("= meshctl settings set audit.retention_days", "PUT /settings/audit.retention_days")
        await at.press("ctrl+s")
        await at.sees("At least 1.")
        assert not gate.calls("PUT")
        await at.press("backspace", "3", "0", "enter")
        await at.type("less to keep")
        await at.press("enter")
        await at.told("audit.retention_days is changed.")
        sent = gate.last("PUT /settings/audit.retention_days")
        assert sent.body == {"value": 30}
        assert sent.query == {"reason": "less to keep"}
        assert sent.headers["If-Match"] == '"0"'
        await at.press("u")
        await at.sees("DELETE /settings/audit.retention_days", "meshctl settings reset audit.retention_days")
        await at.press("y")
        await at.told("Taken back")


@pytest.mark.parametrize("forward", ["tab", "enter"])
async def test_what_is_typed_in_one_breath_goes_to_the_next_field(
    visit: Open, gate: RoomGate, forward: str
) -> None:
    gate.answer("PUT /settings/audit.retention_days", {"name": "audit.retention_days", "value": 30})
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        await at.press("e")
        await at.sees("Change: audit.retention_days")
        for key in ("backspace", "backspace", "3", "0", forward, *"less", "enter"):
            at.room.post_message(events.Key(key, key if len(key) == 1 else None))
        await at.told("audit.retention_days is changed.")
    sent = gate.last("PUT /settings/audit.retention_days")
    assert (sent.body, sent.query) == ({"value": 30}, {"reason": "less"})


async def test_a_form_comes_back_with_what_the_gate_had_against_it(visit: Open, gate: RoomGate) -> None:
    path = "PUT /settings/failover.mode"
    gate.problem(path, 422, "failover.mode must be one of auto, manual", "meshctl settings get", "invalid")
    async with visit("settings") as at:
        await at.sees("failover.mode")
        await at.press("j", "e")
        await at.sees("< auto >")
        await at.press("right")
        await at.sees("< manual >")
        await at.press("ctrl+s")
        await at.sees("must be one of auto, manual", "< manual >")
        await at.press("left")
        await at.sees("< auto >")
        await at.sees_no("must be one of")  # it was about what is not there any more
        await at.press("right")
        gate.answer(path, {"name": "failover.mode", "value": "manual"})
        await at.press("ctrl+s")
        await at.told("failover.mode is changed.")


async def test_two_who_change_the_same_thing_hear_of_each_other(visit: Open, gate: RoomGate) -> None:
    detail = "nlp.mask is True now, not what you saw: bob changed it at 2026-11-21T10:00:00+00:00"
    gate.problem("PUT /settings/nlp.mask", 412, detail, "meshctl settings get nlp.mask", "changed")
    async with visit("settings") as at:
        await at.sees("nlp.mask")
        changed = setting("nlp.mask", True, "bool", version=4, changed_by="bob", source="database")
        gate.answers["GET /settings"] = listed(changed)
        await at.press("j", "j", "e", "space", "ctrl+s")
        await at.sees("bob changed it", "What you typed is still here", "< false >")
        gate.answer("PUT /settings/nlp.mask", {})
        await at.press("ctrl+s")
        await at.told("nlp.mask is changed.")
        assert gate.last("PUT /settings/nlp.mask").headers["If-Match"] == '"4"'


async def test_what_belongs_to_the_file_says_so(visit: Open) -> None:
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        await at.press("delete")
        await at.told("It is at its default.")
        await at.press("2")
        await at.sees("listen.port")


async def test_an_incident_is_answered_with_a_note(visit: Open, gate: RoomGate) -> None:
    gate.answer("POST /incidents/7/ack", incident(7, state="acknowledged"))
    gate.answer("POST /incidents/7/resolve", incident(7, state="resolved"))
    async with visit("incidents") as at:
        await at.sees("target_dead")
        await at.press("a")
        await at.sees("It is not escalated then.", "meshctl incident ack 7")
        await at.type("on it")
        await at.press("ctrl+s")
        await at.told("Incident 7 is acknowledged.")
        assert gate.last("POST /incidents/7/ack").body == {"note": "on it"}
        gate.answers["GET /incidents"] = listed(incident(7, state="resolved"))
        await at.press("r")
        await at.sees("resolved")
        await at.press("e")
        await at.told("It is over.")


async def test_an_order_says_first_what_would_move(visit: Open, gate: RoomGate) -> None:
    def order(_query: object, body: dict[str, object]) -> tuple[int, object]:
        return 200, {"moving": ["gpu-1"], "reached": ["gpu-1"], "of": "hq", "to": "lyon", **body}

    gate.answers["POST /failover/orders"] = order
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("v")
        await at.type("lyon")
        await at.press("enter")
        await at.sees("Move: gpu-1?", "gpu-1 -> lyon", "meshctl worker move gpu-1 lyon")
        assert gate.last("POST /failover/orders").body["dry_run"] is True
        await at.press("n")
        await at.sees_no("Move: gpu-1?")
        assert len(gate.calls("POST")) == 1
        await at.press("v")
        await at.type("lyon")
        await at.press("enter")
        await at.sees("Move: gpu-1?")
        await at.press("y")
        await at.told("gpu-1 goes there.")
        sent = gate.last("POST /failover/orders").body
        assert sent == {"verb": "move", "pool": "lyon", "of": None, "nodes": ["gpu-1"]}


async def test_escape_leaves_a_form_without_a_trace(visit: Open, gate: RoomGate) -> None:
    async with visit("settings") as at:
        await at.sees("audit.retention_days")
        await at.press("e")
        await at.sees("default 90")
        await at.press("escape")
        await at.sees_no("default 90")
        await at.press("W")
        await at.sees("gpu-1")
    assert not gate.calls("PUT")


async def test_a_form_offers_what_the_gate_has_and_takes_what_it_has_not(visit: Open, gate: RoomGate) -> None:
    """Completed as it is typed, chosen from a list, or typed whole."""
    gate.answers["GET /databases"] = listed(*({"name": one} for one in ("shop", "stock", "a", "b")))
    gate.answer("POST /apps", {"name": "till"}, 201)
    async with visit("api") as at:
        await at.press("a")
        await at.sees("Make an app", "ctrl+f: shop, stock, a, ...")
        await at.type("till")
        await at.press("enter")
        await at.type("later, st")
        await at.until(lambda: "later, stock" in at.text(), "the rest of the name")
        await at.press("right", "ctrl+f")
        await at.sees("type to find", "* stock", "* later")
        await at.type("SH")
        await at.sees_no("* stock")
        await at.press("space", "enter")
        await at.sees("later, stock, shop")
        await at.press("ctrl+s")
        await at.until(lambda: bool(gate.calls("POST /apps")), "the request")
    assert gate.last("POST /apps").body["databases"] == ["later", "stock", "shop"]


async def test_a_form_says_where_the_gate_has_none(visit: Open, gate: RoomGate) -> None:
    gate.answers["GET /pools"] = listed({"name": "lyon", "health": "alive"})
    async with visit("workers") as at:
        await at.sees("gpu-1")
        await at.press("v")
        await at.sees("Move to a paired pool", "empty: home again  (ctrl+f: lyon)")
        await at.press("ctrl+f")
        await at.sees("lyon   alive", "type to find")
        await at.press("enter")
        await at.sees("= meshctl worker move gpu-1 lyon")
        await at.press("escape")
        gate.answers["GET /pools"] = listed()
        await at.press("v")
        await at.sees("there is none yet")


def test_a_command_names_what_differs_and_each_of_a_list_by_itself() -> None:
    form = Amendment(
        "Memory", (Field("g", "G", Kind.LIST, default=["a"], option=""), Field("t", "T", option="--t"))
    )
    assert form.words({"g": ["a", "!b c"], "t": None}) == ["a", "'!b c'"]
    assert form.words({"g": ["a"], "t": "1m"}) == ["--t", "1m"]
