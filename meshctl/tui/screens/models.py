"""LLM models: which there are and where, which fits a machine; sending, assigning, pinning, promoting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from textual import events

from meshctl import replication_view, view, worker_view
from meshctl.finops_view import ALIAS_COLUMNS
from meshctl.tui import model_orders as orders
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    OwnPane,
    Record,
    Section,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Field, Form, Known, Values, dropped, t
from meshctl.tui.fitting import FitView, fit_screen
from meshctl.tui.screens.mastership import MASTER, REVIEW, STATUS
from meshctl.tui.table import TableView
from meshctl.tui.uploading import ProgressScreen, Transfer, send, upload


class ModelsView(TableView):
    """The models of the connected workers, with the names that stand for each. A file may be dropped."""

    def __init__(self, pane: TablePane) -> None:
        super().__init__(pane)
        self.transfer: Transfer | None = None

    async def load(self) -> None:
        """Ask for the models and for the names."""
        reply = await self.room.desk.get(self.table.path, self._query())
        names = (await self.room.desk.get("/aliases"))["items"]
        self._take({**reply, "aliases": names})

    def on_paste(self, event: events.Paste) -> None:
        """A file was dropped on the terminal."""
        text = event.text.strip()
        if text and "\n" not in text and dropped(text).casefold().endswith(".gguf"):
            event.stop()
            self.send_file(text)

    def send_file(self, text: str = "") -> None:
        """Ask for a file and send it, or show the one that is under way."""
        if why := self.room.acting.reason(UPLOAD, ()):
            self.room.warn(why)
        elif self.transfer is not None and not self.transfer.over:
            self.room.push_screen(ProgressScreen(self.transfer))
        else:
            self.room.run_worker(self._send(text), group="upload")

    async def _send(self, text: str) -> None:
        transfer = await upload(self.room, dropped=text)
        if transfer is None:
            return
        self.transfer = transfer
        self.room.push_screen(ProgressScreen(transfer))
        await send(self.room, transfer)
        if self.is_attached:
            self.reload()


def _upload(room: Any, _records: Sequence[Record]) -> None:
    if isinstance(room.pane, ModelsView):
        room.pane.send_file()


UPLOAD: Final = Action(
    "model.add",
    "a",
    t("Upload"),
    "PUT",
    "/models/upload",
    "meshctl model add",
    opens=_upload,
    row=False,
)


def rows_of(reply: Any) -> list[Record]:
    """A row a model, each known by its name and the beginning of its hash, with who has it and what it is
    called besides.
    """
    rows = reply.get("items", ())
    names = [row["name"] for row in rows]
    found: list[Record] = []
    for row in rows:
        whole = f"{row['name']}@{row['sha256'][:12]}" if row.get("sha256") else row["name"]
        mine = {row["name"], whole, row.get("sha256")}
        aliases = {
            one["name"]: one["target"] for one in reply.get("aliases", ()) if one.get("target") in mine
        }
        places = row.get("workers", ())
        found.append(
            {
                **row,
                "id": whole,
                "model": whole if names.count(row["name"]) > 1 else row["name"],
                "at": [one["worker"] for one in places],
                "aliases": sorted(aliases),
                "all_aliases": {one["name"]: one["target"] for one in reply.get("aliases", ())},
                "pinned": any(one.get("pinned") for one in places),
                "needs": max((one.get("memory_needed") or 0 for one in places), default=0) or None,
                "until": _until(places),
                "speed": max((one.get("tps_measured") or 0 for one in places), default=0) or None,
            }
        )
    return found


def _until(places: Sequence[Mapping[str, Any]]) -> str:
    """How long it stays in memory, as its workers have it."""
    resident = [one for one in places if one.get("state") == "resident"]
    if not resident:
        return "-"
    if any(one.get("pinned") for one in resident):
        return "pinned"
    spans = {view.span(one["ttl_s"]) for one in resident if one.get("ttl_s")}
    return ", ".join(sorted(spans)) or "asked"


def places_of(model: Record) -> TablePane:
    """Where a model is, a row a worker; what is done here is done at that worker alone."""

    def items(reply: Any) -> list[Record]:
        for row in rows_of(reply):
            if row["id"] == model["id"]:
                return [{**one, "model": row["model"], "family": row["family"]} for one in row["workers"]]
        return []

    return TablePane(
        "places",
        t("At its workers"),
        "/models",
        (
            *columns_of(
                worker_view.PLACE_COLUMNS,
                pinned={"least": 100},
                context={"least": 60},
                memory_used={"least": 90},
                tps_predicted={"least": 100},
                running={"least": 110},
                queued={"least": 110},
                isolation={"least": 130},
            ),
        ),
        orders.HERE,
        key="worker",
        name="worker",
        every=2.0,
        items=items,
        tables=lambda one: [view.card(one)],
        cli=f"meshctl model show {model['model']}",
        empty=t("No connected worker has it any more."),
    )


MODELS: Final = TablePane(
    "models",
    t("Models"),
    "/models",
    (
        Column("NAME", "model", most=34),
        Column("STATE", "state", state=True),
        Column("QUANT", "quant", least=60),
        Column("SIZE", "size", view.size, right=True),
        Column("NEEDS", "needs", view.size, right=True, least=90),
        Column("UNTIL", "until", least=76),
        Column("TOK/S", "speed", worker_view.speed, right=True, least=70),
        Column("NAMES", "aliases", least=110),
        Column("ENGINE", "engine", least=120),
        Column("FAMILY", "family", least=130),
        Column("KINDS", "kinds", least=140),
        Column("WORKERS", "at", most=30),
        Column("SHA-256", "sha256", worker_view.short, least=160),
    ),
    (UPLOAD, *orders.MODELS, fit_screen),
    key="id",
    name="model",
    every=3.0,
    about=("alias", "node"),
    items=rows_of,
    tables=worker_view.model,
    drill=places_of,
    sort="model",
    cli="meshctl model list",
    empty=t("No models. Drop a GGUF file here, or press a to pick one."),
)


def _named_back(was: Record, _values: Values, _reply: Any) -> Call:
    return Call(
        "PUT",
        filled("/aliases/{name}", was),
        {"target": was["target"]},
        cli=f"meshctl alias set {was['name']} {was['target']}",
        label=t("Names"),
    )


TARGET: Final = Field(
    "target",
    t("Stands for"),
    required=True,
    option="",
    help=t("a model, NAME@SHA, or qg://task=..."),
    known=Known.MODELS,
)
NAMES: Final = (
    Action(
        "alias.set",
        "a",
        t("Add"),
        "PUT",
        "/aliases/{name}",
        "meshctl alias set",
        row=False,
        form=Form(
            t("Let a name stand for a model"), (Field("name", t("Name"), required=True, option=""), TARGET)
        ),
        body=lambda _, values: {"target": values["target"]},
        undo=lambda _, values, __: Call(
            "DELETE",
            filled("/aliases/{name}", values),
            cli=f"meshctl alias remove {values['name']}",
            label=t("Names"),
        ),
        done=t("The name is set."),
    ),
    Action(
        "alias.change",
        "e",
        t("Change"),
        "PUT",
        "/aliases/{name}",
        "meshctl alias set {name}",
        bulk=False,
        form=lambda row: Form(
            t("Let it stand for"),
            (replace(TARGET, default=row["target"]),),
        ),
        body=lambda _, values: {"target": values["target"]},
        undo=_named_back,
        done=t("{name} stands for something else now."),
    ),
    Action(
        "alias.remove",
        "delete",
        t("Remove"),
        "DELETE",
        "/aliases/{name}",
        "meshctl alias remove {name}",
        confirm=Confirm.ASK,
        undo=_named_back,
        done=t("{name} is removed."),
    ),
    orders.EXPLAIN_NAME,
)

SECTION: Final = Section(
    "models",
    "LLM models",
    "L",
    (
        OwnPane(
            "models",
            t("Models"),
            lambda _pane: ModelsView(MODELS),
            MODELS.actions,
            about=MODELS.about,
            cli=MODELS.cli,
        ),
        OwnPane(
            "fit",
            t("Fit"),
            lambda _pane: FitView(),
            FitView.PANE.actions,
            cli="meshctl model fit",
        ),
        TablePane(
            "names",
            t("Names"),
            "/aliases",
            columns_of(ALIAS_COLUMNS, target={"most": 60}, changed_at={"least": 100}),
            NAMES,
            about=("alias",),
            cli="meshctl alias list",
            empty=t("No names. Press a to let one stand for a model: apps ask for it, and you move it on."),
        ),
        TablePane(
            "catalogue",
            t("Catalogue"),
            "/catalogue/records",
            columns_of(
                replication_view.RECORD_COLUMNS,
                epoch={"least": 100},
                changed_at={"least": 110},
                changed_by={"least": 90},
            ),
            (*orders.CATALOGUE, MASTER),
            every=5.0,
            cli="meshctl catalog list",
            empty=t("The catalogue is empty. Its master writes it: v on a model, or p to make one."),
        ),
        STATUS,
        REVIEW,
    ),
    about=t("Models: which there are and where, which fits a machine, and what they are called."),
    page="qdaemon.md",
)
