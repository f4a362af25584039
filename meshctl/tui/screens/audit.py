"""The audit: who did what and who was refused, the newest first, and the proof that nobody rewrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meshctl import view
from meshctl.client import API, Gate
from meshctl.proofs import checked_export
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Action, Call, Column, Record, Result, Role, Switch, TablePane, items_of
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.screens.person_files import new_file, written
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

SHOWN: Final = 200
"""Entries of a page: the newest are asked for again while they are seen."""

VERIFY_TIMEOUT_S: Final = 600.0
HEAD: Final = (
    "seq",
    "started_at",
    "ended_at",
    "kind",
    "outcome",
    "app",
    "sidecar",
    "database",
    "count",
    "rows",
)
TOLD: Final = ("what", "name", "by", "before", "after")


def newest_first(reply: Any) -> list[Record]:
    """The page, turned around."""
    return list(reversed(items_of(reply)))


def flat(entry: Record) -> Record:
    """An entry with what was done and by whom beside the rest."""
    detail = entry.get("detail") or {}
    done = " ".join(str(detail[key]) for key in ("what", "name") if detail.get(key)).replace(API, "")
    what = entry.get("fingerprint") or done or detail.get("reason") or detail.get("subject")
    if detail.get("why"):
        what = f"{what}: {detail['why']}"
    return {**entry, "what": what, "by": detail.get("by") or entry.get("app")}


def entry(record: Record) -> list[view.Table]:
    """One entry as one reads it: its head, what changed from what to what, and its place in the chain."""
    detail = record.get("detail") or {}
    times = {key: view.moment(record[key]) for key in HEAD if key.endswith("_at") and record.get(key)}
    head = {**{key: record.get(key) for key in HEAD}, **times}
    head |= {key: detail.get(key) for key in TOLD[:3]}
    tables = [view.card({key.replace("_", " "): one for key, one in head.items() if one})]
    if record.get("fingerprint"):
        tables.append(view.Table(("",), ((str(record["fingerprint"]),),), title="statement"))
    if rows := _changes(detail):
        tables.append(view.Table(("", "BEFORE", "AFTER"), rows, title="changed"))
    if rest := {key: value for key, value in detail.items() if key not in TOLD}:
        tables.append(view.card(rest, title="detail"))
    tables.append(view.card({"hash": record.get("hash")}, title="chain"))
    return tables


def _changes(detail: Record) -> tuple[tuple[str, str, str], ...]:
    if "before" not in detail and "after" not in detail:
        return ()
    before, after = detail.get("before"), detail.get("after")
    if not (isinstance(before, Mapping) or isinstance(after, Mapping)):
        return (("value", view.text(before), view.text(after)),)
    old = before if isinstance(before, Mapping) else {}
    new = after if isinstance(after, Mapping) else {}
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return tuple((str(name), view.text(old.get(name)), view.text(new.get(name))) for name in names)


def verified(reply: Record) -> Sequence[view.Table]:
    """What came of a check of the chain."""
    following = "keep this store as it is, and compare it with an export from before"
    return (view.audit_verdict(reply, following=following),)


async def export(room: Room) -> None:
    """The whole trail into a file, one JSON object a line, the signed head last."""
    call = Call("GET", "/audit/export", cli="meshctl audit export")
    form = Form(
        t("Export the whole trail"),
        (Field("path", t("File"), required=True, option="--out"),),
        t("One JSON object a line, the signed head last: anybody can check it."),
    )

    def preview(path: str) -> Call:
        return Call(call.method, call.path, cli=f"{call.cli} --out {path}" if path else call.cli)

    path = await new_file(room, form, "audit.ndjson", preview)
    if path is None:
        return

    def fetch(gate: Gate) -> int:
        return written(path, gate.pieces(call.path))

    try:
        with room.busy(room.say("Export the whole trail")):
            size = await room.desk.run(fetch)
    except MeshError as error:
        room.fail(error)
    else:
        room.tell(room.say("Written: {path}", path=path) + f"  ({view.size(size)})")


CHECK: Final = Form(
    t("Check an export"),
    (
        Field("file", t("File"), Kind.FILE, required=True, option="--file"),
        Field("pool", t("Pool"), required=True, option="--pool", help=t("its fingerprint: meshctl key show")),
    ),
    t("It is checked here; no gate is asked."),
)


async def check_file(room: Room) -> None:
    """An export against nothing but the pool's fingerprint; no gate is asked."""
    typed: dict[str, str] = {}
    problem = ""
    while True:
        screen = FormScreen(CHECK, given=typed, problem=problem, preview=_checking)
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return
        typed = screen.typed()
        try:
            found = await in_thread(partial(_checked, answer))
        except MeshError as error:
            problem = room.catalogue.told(error)
        else:
            room.show_answer(room.say("Check an export"), found, verified)
            return


def _checking(values: Values) -> Call:
    return Call("", "", cli=" ".join(["meshctl audit verify", *CHECK.words(values)]))


def _checked(values: Values) -> dict[str, Any]:
    return checked_export(readable(str(values["file"])), str(values["pool"]))


def _export(room: Room, records: Sequence[Record]) -> None:
    del records
    room.run_worker(export(room), group="act")


def _check(room: Room, records: Sequence[Record]) -> None:
    del records
    room.run_worker(check_file(room), group="act")


ACTIONS: Final = (
    Action(
        "audit.verify",
        "v",
        t("Verify"),
        "POST",
        "/audit/verify",
        "meshctl audit verify",
        Role.VIEWER,
        result=Result.DESCRIBE,
        answer=verified,
        timeout_s=VERIFY_TIMEOUT_S,
        row=False,
    ),
    Action(
        "audit.export",
        "w",
        t("Export all"),
        "GET",
        "/audit/export",
        "meshctl audit export",
        Role.VIEWER,
        opens=_export,
        row=False,
    ),
    Action(
        "audit.check",
        "f",
        t("Check an export"),
        "POST",
        "/audit/verify",
        "meshctl audit verify",
        Role.VIEWER,
        opens=_check,
        row=False,
    ),
)

AUDIT: Final = TablePane(
    "audit",
    t("Audit"),
    "/audit",
    (
        Column("SEQ", "seq", right=True),
        Column("TIME", "started_at", view.moment),
        Column("KIND", "kind", most=18),
        Column("BY", "by", most=20),
        Column("OUTCOME", "outcome", state=True, least=90),
        Column("WHAT", "what", most=70),
        Column("DATABASE", "database", least=120),
        Column("SIDECAR", "sidecar", least=140),
        Column("N", "count", right=True, least=130),
        Column("ROWS", "rows", right=True, least=130),
    ),
    ACTIONS,
    key="seq",
    name="seq",
    every=2.0,
    query={"limit": SHOWN},
    items=newest_first,
    flat=flat,
    tables=entry,
    switches=(
        Switch("o", t("only what administrators did"), {"kind": "admin"}),
        Switch("z", t("only who was refused"), {"kind": "admin.refused"}),
        Switch("b", t("only statements"), {"kind": "query"}),
    ),
    back=True,
    cli="meshctl audit tail",
    empty=t("Nothing is in the audit yet."),
)
