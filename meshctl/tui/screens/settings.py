"""Advanced settings: the whole registry as typed forms, the options of qgate.toml, and every change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from meshctl import view
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    Record,
    Role,
    Section,
    TablePane,
    filled,
)
from meshctl.tui.fields import Field, Form, Kind, Values, t

PATH: Final = "/settings/{name}"
KINDS: Final = {"bool": Kind.BOOL, "int": Kind.INTEGER, "float": Kind.NUMBER, "str": Kind.TEXT}


def declared(reply: Any) -> list[Record]:
    """What the registry declares: it alone has choices."""
    return [row for row in reply.get("items", ()) if "choices" in row]


def in_file(reply: Any) -> list[Record]:
    """The options of qgate.toml."""
    return [row for row in reply.get("items", ()) if "choices" not in row]


def form_of(setting: Record) -> Form:
    """A setting's form, of its type and within its bounds."""
    choices = tuple(str(one) for one in setting.get("choices") or ())
    kind = Kind.CHOICE if choices else KINDS.get(str(setting.get("type")), Kind.TEXT)
    bounds = [
        f"{word} {setting[key]:,g}"
        for word, key in (("from", "minimum"), ("to", "maximum"))
        if setting.get(key) is not None
    ]
    unit = f" {setting['unit']}" if setting.get("unit") else ""
    default = Field("value", "", kind).shown(setting.get("default")) or "-"
    note = "  ".join([f"default {default}{unit}", *bounds])
    fields = (
        Field(
            "value",
            t("Value"),
            kind,
            default=setting.get("value"),
            required=kind is not Kind.TEXT,
            help=note,
            minimum=setting.get("minimum"),
            maximum=setting.get("maximum"),
            choices=choices,
            option="",
        ),
        Field("reason", t("Reason"), help=t("for the history; it may stay empty")),
    )
    restart = " Needs a restart." if setting.get("restart_needed") else ""
    return Form(t("Change"), fields, f"{setting.get('description') or ''}{restart}")


def body(_setting: Record, values: Values) -> dict[str, Any]:
    """The new value, in its type; an empty text is one."""
    value = values.get("value")
    return {"value": "" if value is None else value}


def _back(setting: Record, _values: Values, _reply: Any) -> Call:
    name = str(setting["name"])
    if setting.get("source") == "default":
        command = f"meshctl settings reset {name}"
        return Call("DELETE", filled(PATH, setting), cli=command, label=t("Change a setting"))
    value = setting.get("value")
    command = f"meshctl settings set {name} {value if isinstance(value, str) else json.dumps(value)}"
    return Call("PUT", filled(PATH, setting), {"value": value}, cli=command, label=t("Change a setting"))


def _by_file(setting: Record) -> str:
    return "" if "choices" in setting else t("It belongs to qgate.toml of each gate.")


def _is_default(setting: Record) -> str:
    return t("It is at its default.") if setting.get("source") == "default" else ""


def history_of(setting: Record) -> TablePane:
    """The changes of one setting."""
    return TablePane(
        "history",
        t("Changes"),
        "/settings/history",
        tuple(replace(one, least=0) for one in CHANGES if one.key != "name"),
        key="version",
        name="version",
        about=("setting",),
        query={"name": setting["name"]},
        cli=f"meshctl settings history {setting['name']}",
        empty=t("It was never changed."),
    )


CHANGES: Final = (
    Column("AT", "at", view.moment),
    Column("NAME", "name"),
    Column("BEFORE", "before", most=24),
    Column("AFTER", "after", most=24),
    Column("BY", "by"),
    Column("REASON", "reason", least=100),
)

COLUMNS: Final = (
    Column("NAME", "name"),
    Column("VALUE", "value", most=24),
    Column("DEFAULT", "default", most=24, least=110),
    Column("SOURCE", "source", state=True),
    Column("CHANGED BY", "changed_by", least=100),
    Column("RESTART", "restart_needed", least=130),
    Column("DESCRIPTION", "description", most=70, least=100),
)

SET: Final = Action(
    "setting.set",
    "e",
    t("Change"),
    "PUT",
    PATH,
    "meshctl settings set {name}",
    form=form_of,
    body=body,
    query=("reason",),
    against=_by_file,
    undo=_back,
    done=t("{name} is changed."),
    bulk=False,
)
RESET: Final = Action(
    "setting.reset",
    "delete",
    t("Reset"),
    "DELETE",
    PATH,
    "meshctl settings reset {name}",
    confirm=Confirm.ASK,
    question=t("Reset {name} to its default?"),
    against=lambda setting: _by_file(setting) or _is_default(setting),
    undo=_back,
    done=t("{name} is at its default again."),
)


def _open_history(room: Any, records: Any) -> None:
    from meshctl.tui.pane import view_of

    room.descend(view_of(history_of(records[0]), crumb=str(records[0]["name"])))


HISTORY: Final = Action(
    "setting.history",
    "i",
    t("History"),
    "GET",
    "/settings/history",
    "meshctl settings history {name}",
    Role.VIEWER,
    opens=_open_history,
    against=_by_file,
    bulk=False,
)

SECTION: Final = Section(
    "settings",
    "Advanced settings",
    "S",
    (
        TablePane(
            "registry",
            t("Settings"),
            "/settings",
            COLUMNS,
            (SET, RESET, HISTORY),
            about=("setting",),
            items=declared,
            cli="meshctl settings list",
            sort="name",
            says="description",
        ),
        TablePane(
            "file",
            t("In qgate.toml"),
            "/settings",
            (
                Column("NAME", "name"),
                Column("VALUE", "value", most=40),
                Column("DEFAULT", "default", most=30, least=100),
                Column("SOURCE", "source", state=True),
                Column("DESCRIPTION", "description", most=70, least=100),
            ),
            items=in_file,
            cli="meshctl settings list --all",
            sort="name",
            says="description",
        ),
        TablePane(
            "changes",
            t("Changes"),
            "/settings/history",
            CHANGES,
            key="version",
            name="name",
            about=("setting",),
            cli="meshctl settings history",
            empty=t("Nothing was ever changed."),
        ),
    ),
    about=t(
        "Everything that can be set while the mesh runs: value, default, source, who changed it, and reset."
    ),
    page="settings.md",
)
