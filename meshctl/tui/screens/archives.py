"""Archives of logs, for pools that no network joins: written, carried, taken, and the receipt back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshctl.tui.carrying import carried, write_pieces, write_text
from meshctl.tui.declare import Action, Record
from meshctl.tui.fields import Field, Form, Kind, readable, t
from meshctl.tui.layout import clean

if TYPE_CHECKING:
    from meshctl.client import Gate
    from meshctl.tui.room import Room


def _export(room: Room, logs: Sequence[Record]) -> None:
    room.run_worker(_exported(room, logs[0]), group="act")


async def _exported(room: Room, log: Record) -> None:
    pool = str(log["pool"])
    form = Form(
        t("Export what a pool lacks of our log"),
        (
            Field("whole", t("All of it"), Kind.BOOL, default=False, option="--whole"),
            Field("out", t("File"), default=f"{pool}.qglog", required=True, option="--out"),
        ),
        t("It is sealed: that pool alone can read it."),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> tuple[Path, int]:
        query = {"whole": "true"} if values.get("whole") else None
        path = f"/logs/{quote(pool, safe='')}/archive"
        return write_pieces(values["out"], lambda: gate.pieces(path, query))

    done = await carried(room, EXPORT, form, work, record=log)
    if done is not None:
        place, size = done
        room.tell(room.say("{size} bytes in {path}. There: meshctl pool import", size=size, path=place))


def _import(room: Room, _records: Sequence[Record]) -> None:
    room.run_worker(_imported(room), group="act")


async def _imported(room: Room) -> None:
    form = Form(
        t("Take an archive, or the receipt of one"),
        (
            Field(
                "file",
                t("File"),
                Kind.FILE,
                required=True,
                option="",
                help=t("as it was carried here; it can be dropped"),
            ),
        ),
        t("All of it is taken, or nothing. The receipt is written beside it."),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Path | None]:
        file = readable(str(values["file"]))
        reply = gate.send_file("/logs/import", file)
        if reply.get("kind") != "archive":
            return reply, None
        return reply, write_text(file.with_name(f"{file.name}.receipt"), f"{reply['receipt']}\n")

    done = await carried(room, IMPORT, form, work)
    if done is None:
        return
    reply, receipt = done
    pool = clean(str(reply.get("pool")))
    if receipt is None:
        room.tell(room.say("{pool} has all up to entry {number}.", pool=pool, number=reply.get("head")))
    else:
        room.tell(
            room.say(
                "{count} new entries of {pool}. Carry the receipt back: {path}",
                count=reply.get("new"),
                pool=pool,
                path=receipt,
            )
        )
    if (pane := room.pane) is not None:
        pane.reload()


EXPORT: Final = Action(
    "log.export",
    "f",
    t("Export"),
    "GET",
    "/logs/{pool}/archive",
    "meshctl pool export --to {pool}",
    against=lambda log: t("It is this pool's own log.") if log.get("own") else "",
    opens=_export,
    bulk=False,
    name="pool",
)
IMPORT: Final = Action(
    "log.import",
    "i",
    t("Import"),
    "PUT",
    "/logs/import",
    "meshctl pool import",
    opens=_import,
    row=False,
)
