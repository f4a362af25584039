"""Which quantization of a family fits a machine: predicted and measured speed, loss, memory, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from meshctl import view, worker_view
from meshctl.tui.declare import Action, Call, Column, Record, Role, TablePane
from meshctl.tui.describe import DocumentView
from meshctl.tui.fields import Field, Form, Kind, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import Form as Shape
from meshctl.tui.model_orders import LOAD_S, failures
from meshctl.tui.table import TableView

if TYPE_CHECKING:
    from meshctl.tui.room import Room

PREFER: Final = ("balanced", "speed", "quality")


def rows_of(reply: Any) -> list[Record]:
    """A row each quantization at each worker; the one that is best there carries a mark."""
    found: list[Record] = []
    for item in reply.get("items", ()):
        if not item.get("ok"):
            continue
        result = item["result"]
        found += [
            {
                **row,
                "id": f"{item['worker']} {row['name']}",
                "worker": item["worker"],
                "family": result["family"],
                "best": "*" if row["name"] == result.get("best") else "",
                "at_once": f"{result['slots']} x {result['context']}",
                "model": row["name"],
            }
            for row in result["rows"]
        ]
    return found


class FitView(TableView):
    """The table of one family. ``family`` "": the first that there is."""

    PANE: ClassVar[TablePane]

    def __init__(self, family: str = "", *, crumb: str = "") -> None:
        super().__init__(self.PANE, crumb=crumb)
        self.asked: dict[str, Any] = {"family": family, "prefer": PREFER[0]}
        self.families: tuple[str, ...] = ()

    async def load(self) -> None:
        """Ask every worker."""
        models = (await self.room.desk.get("/models", {"limit": 1000}))["items"]
        self.families = tuple(sorted({str(one["family"]) for one in models if one.get("family")}))
        if not self.asked["family"]:
            if not self.families:
                self._take({"items": []})
                return
            self.asked["family"] = self.families[0]
        body = {name: value for name, value in self.asked.items() if value is not None}
        reply = await self.room.desk.send(Call("POST", "/models/fit", body))
        self._take(reply)
        for line in failures(reply):
            self.room.warn(line)

    def _tell(self) -> None:
        super()._tell()
        if self.loaded and self.records and not self.problem:
            line = self.query_one(".table--line")
            asked = "  ".join(str(value) for value in self.asked.values() if value is not None)
            line.update(f"{len(self.grid.rows)} / {len(self.records)}  {asked}")  # type: ignore[attr-defined]

    def describe(self, record: Record, form: Shape = Shape.PERSON) -> None:
        """Show all of a row; there is nothing more to ask for."""
        shown = DocumentView(replace(self.PANE, every=0.0), crumb=self.name_of(record))
        shown.document = record
        shown.form = form
        self.room.descend(shown)

    def ask(self) -> None:
        """Ask for another family, or how it is to be served."""
        self.room.run_worker(self._ask(), group="act")

    async def _ask(self) -> None:
        form = Form(
            t("Which quantization fits?"),
            (
                Field(
                    "family",
                    t("Family"),
                    Kind.CHOICE if self.families else Kind.TEXT,
                    default=self.asked["family"] or None,
                    choices=self.families,
                    required=True,
                    option="",
                ),
                Field(
                    "prefer",
                    t("Prefer"),
                    Kind.CHOICE,
                    default=self.asked["prefer"],
                    choices=PREFER,
                    option="--prefer",
                ),
                Field(
                    "context",
                    t("Context"),
                    Kind.INTEGER,
                    default=self.asked.get("context"),
                    minimum=1,
                    maximum=10_000_000,
                    option="--context",
                    help=t("tokens of one request"),
                ),
                Field(
                    "slots",
                    t("Slots"),
                    Kind.INTEGER,
                    default=self.asked.get("slots"),
                    minimum=1,
                    maximum=256,
                    option="--slots",
                    help=t("requests at once"),
                ),
            ),
        )

        def draft(values: Any) -> Call:
            return Call("POST", "/models/fit", cli=" ".join(["meshctl model fit", *form.words(values)]))

        answer = await self.room.push_screen_wait(
            FormScreen(form, title=self.room.say(form.title), preview=draft)
        )
        if isinstance(answer, dict):
            self.asked = dict(answer)
            self.reload()


def _asked(room: Room, _records: Sequence[Record]) -> None:
    if isinstance(room.pane, FitView):
        room.pane.ask()


def _shown(room: Room, records: Sequence[Record]) -> None:
    family = str(records[0].get("family") or records[0]["name"])
    room.descend(FitView(family, crumb=room.say("Fit")))


def _not_stored(row: Record) -> str:
    if not row.get("stored"):
        return t("No worker has such a file yet.")
    return "" if row.get("fits") else t("It does not fit there.")


fit_screen: Final = Action(
    "model.fit",
    "f",
    t("Fit"),
    "POST",
    "/models/fit",
    "meshctl model fit {family}",
    Role.VIEWER,
    opens=_shown,
    bulk=False,
)

FitView.PANE = TablePane(
    "fit",
    t("Fit"),
    "/models/fit",
    (
        Column("", "best", lambda mark: str(mark or "")),
        Column("MODEL", "name", most=30),
        Column("QUANT", "quant"),
        Column("WORKER", "worker", least=76, most=16),
        Column("STORED", "stored", least=100),
        Column("NEEDS", "memory", view.size, right=True),
        Column("FITS", "fits"),
        Column("PREDICTED", "predicted", worker_view.speed, right=True, least=70),
        Column("MEASURED", "measured", worker_view.speed, right=True, least=100),
        Column("LOSS", "loss", right=True),
        Column("SIZE", "size", view.size, right=True, least=120),
        Column("ON GPU", "gpu_layers", right=True, least=130),
        Column("FOR", "at_once", least=140),
        Column("WHY NOT", "reason", least=110, most=40),
    ),
    (
        Action(
            "model.fit",
            "o",
            t("Options"),
            "POST",
            "/models/fit",
            "meshctl model fit",
            Role.VIEWER,
            opens=_asked,
            row=False,
        ),
        Action(
            "model.load",
            "t",
            t("Load"),
            "POST",
            "/models/load",
            "meshctl model load {model} --worker {worker}",
            Role.OPERATOR,
            body=lambda row, _: {"model": row["model"], "worker": row["worker"]},
            against=_not_stored,
            done=t("{name} is in memory."),
            bulk=False,
            timeout_s=LOAD_S,
        ),
    ),
    key="id",
    items=rows_of,
    cli="meshctl model fit",
    empty=t("No models whose quantizations could be compared. Upload one first."),
)
