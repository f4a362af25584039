"""Providers of models, what they cost, budgets, what was used, and the receipts of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from meshctl import finops_view, view
from meshctl.tui.declare import (
    Action,
    Call,
    Column,
    Confirm,
    Record,
    Result,
    Role,
    Switch,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Field, Form, Kind, Known, Values, t
from meshctl.tui.pane import view_of
from meshctl.tui.screens.apps import RECEIPT_COLUMNS, receipts_of
from meshctl.tui.screens.databases import CHECK_S, PROVIDER_KEY, steps_of

if TYPE_CHECKING:
    from meshctl.tui.room import Room

AMOUNT: Final = r"\d{1,12}(\.\d{1,9})?"
PRICE: Final = "/prices/{model}"
BUDGET: Final = "/budgets/{id}"
PERIODS: Final = ("month", "week", "day", "hour")


def _provider(_record: Record, values: Values) -> dict[str, Any]:
    given = ("name", "kind", "url", "key", "max_concurrent", "total_timeout_s")
    body: dict[str, Any] = {name: values[name] for name in given if values.get(name) is not None}
    if values.get("models"):
        body["models"] = [{"name": one} for one in values["models"]]
    return body | {"local": bool(values.get("local")), "check": not values.get("no_check")}


ADD: Final = Form(
    t("Register a model API"),
    (
        Field("name", t("Name"), required=True, option="", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
        Field(
            "kind",
            t("Kind"),
            Kind.CHOICE,
            default="openai",
            choices=("openai", "anthropic"),
            required=True,
            option="--kind",
        ),
        Field("url", t("Address"), option="--url", help=t("empty: the vendor's own")),
        Field("key", t("Key"), Kind.SECRET, option="--key-file", help=t("the vault keeps it")),
        Field("models", t("Models"), Kind.LIST, option="--models", help=t("empty: all that it lists")),
        Field(
            "local",
            t("Ours"),
            Kind.BOOL,
            default=False,
            option="--local",
            help=t("the company owns it: local-only content may go there"),
        ),
        Field(
            "max_concurrent",
            t("At once"),
            Kind.INTEGER,
            minimum=1,
            maximum=100_000,
            option="--max-concurrent",
        ),
        Field("total_timeout_s", t("Answer within"), Kind.DURATION, option="--timeout"),
        Field("no_check", t("Without a check"), Kind.BOOL, default=False, option="--no-check"),
    ),
    t("The gate asks it for its models, then seals the key in its vault."),
)

PROVIDERS: Final = TablePane(
    "providers",
    t("Providers"),
    "/providers",
    (
        Column("NAME", "name", most=20),
        Column("KIND", "kind"),
        Column("URL", "url", most=36),
        Column("KEY", "has_key", lambda has: "sealed" if has else "none", least=70),
        Column("LOCAL", "local", least=90),
        Column("ISOLATION", "isolation", least=110),
        Column("MODELS", "models", lambda models: str(len(models or ())), right=True),
        Column("UNPRICED", "unpriced", right=True, least=76),
    ),
    (
        Action(
            "provider.add",
            "a",
            t("Add"),
            "POST",
            "/providers",
            "meshctl provider add",
            form=ADD,
            body=_provider,
            row=False,
            done=t("The provider is registered."),
            timeout_s=CHECK_S,
        ),
        Action(
            "provider.check",
            "t",
            t("Check"),
            "POST",
            "/providers/{name}/check",
            "meshctl provider check {name}",
            Role.OPERATOR,
            result=Result.DESCRIBE,
            answer=steps_of,
            timeout_s=CHECK_S,
            bulk=False,
        ),
        PROVIDER_KEY,
        Action(
            "provider.remove",
            "delete",
            t("Remove"),
            "DELETE",
            "/providers/{name}",
            "meshctl provider remove {name}",
            confirm=Confirm.NAME,
            question=t("Forget {name} and its key?"),
            done=t("{name} is removed."),
        ),
    ),
    about=("provider", "price"),
    one="/providers/{name}",
    tables=finops_view.provider,
    sort="name",
    cli="meshctl provider list",
    empty=t("No providers: no request leaves the company. Press a to register a model API."),
)


def _price_form(record: Record, *, new: bool) -> Form:
    def field(name: str, label: str, option: str, *, required: bool = False) -> Field:
        return Field(name, label, default=record.get(name), required=required, pattern=AMOUNT, option=option)

    first = (
        Field(
            "model",
            t("Model"),
            required=True,
            option="",
            help=t("MODEL, or PROVIDER/MODEL"),
            known=Known.MODELS,
        ),
    )
    return Form(
        t("What a million tokens cost"),
        (
            *(first if new else ()),
            field("input", t("Prompts"), "--in", required=True),
            field("output", t("Answers"), "--out", required=True),
            field("cached", t("Kept prompts"), "--cached"),
            Field(
                "currency",
                t("Currency"),
                default=record.get("currency"),
                pattern="[A-Z]{3}",
                option="--currency",
            ),
            Field("source", t("Source"), default=record.get("source") or None, option="--source"),
        ),
    )


def _priced(_record: Record, values: Values) -> dict[str, Any]:
    names = ("input", "output", "cached", "currency", "source")
    return {name: values[name] for name in names if values.get(name) is not None}


def _price_back(price: Record, _values: Values, _reply: Any) -> Call:
    model = str(price["model"])
    if not price.get("own"):
        return Call(
            "DELETE", filled(PRICE, price), cli=f"meshctl provider price reset {model}", label=t("Price")
        )
    cli = f"meshctl provider price set {model} --in {price['input']} --out {price['output']}"
    return Call("PUT", filled(PRICE, price), _priced({}, price), cli=cli, label=t("Price"))


PRICES: Final = TablePane(
    "prices",
    t("Prices"),
    "/prices",
    (
        Column("MODEL", "model", most=36),
        Column("IN", "input", right=True),
        Column("OUT", "output", right=True),
        Column("CACHED", "cached", right=True, least=90),
        Column("CURRENCY", "currency", least=60),
        Column("OURS", "own"),
        Column("AS OF", "as_of", least=100),
        Column("SOURCE", "source", least=120),
    ),
    (
        Action(
            "price.set",
            "a",
            t("Add"),
            "PUT",
            PRICE,
            "meshctl provider price set",
            form=_price_form({}, new=True),
            body=_priced,
            row=False,
            done=t("The price holds at every gate."),
        ),
        Action(
            "price.change",
            "e",
            t("Change"),
            "PUT",
            PRICE,
            "meshctl provider price set {model}",
            form=lambda price: _price_form(price, new=False),
            body=_priced,
            undo=_price_back,
            name="model",
            done=t("The price of {name} is changed."),
            bulk=False,
        ),
        Action(
            "price.reset",
            "delete",
            t("Reset"),
            "DELETE",
            PRICE,
            "meshctl provider price reset {model}",
            against=lambda price: "" if price.get("own") else t("It ships with the gate."),
            confirm=Confirm.ASK,
            undo=_price_back,
            name="model",
            done=t("{name} has no price of yours any more."),
        ),
    ),
    key="model",
    name="model",
    about=("price", "provider"),
    switches=(Switch("o", t("only our own"), {"own": "true"}),),
    sort="model",
    cli="meshctl provider price list",
    empty=t("No prices."),
)


def _limits(_record: Record, values: Values) -> dict[str, Any]:
    return {name: values[name] for name in ("hard", "soft", "currency") if values.get(name) is not None}


def _amounts(record: Record) -> tuple[Field, ...]:
    return (
        Field("hard", t("Never more than"), default=record.get("hard"), pattern=AMOUNT, option="--hard"),
        Field(
            "soft",
            t("Local models from"),
            default=record.get("soft"),
            pattern=AMOUNT,
            option="--soft",
            help=t("from here on local models are preferred"),
        ),
        Field(
            "currency",
            t("Currency"),
            default=record.get("currency"),
            pattern="[A-Z]{3}",
            option="--currency",
        ),
    )


def _budget_back(budget: Record, _values: Values, _reply: Any) -> Call:
    body = _limits({}, budget)
    words = " ".join(f"--{name} {value}" for name, value in body.items())
    return Call(
        "PUT",
        filled(BUDGET, budget),
        body,
        cli=f"meshctl budget set {budget['id']} {words}",
        label=t("Budget"),
    )


def _shifts(room: Room, _records: Sequence[Record]) -> None:
    pane = TablePane(
        "shifts",
        t("Shifts"),
        "/budgets/shifts",
        columns_of(finops_view.SHIFT_COLUMNS, reason={"least": 90}),
        key="at",
        name="budget",
        every=5.0,
        cli="meshctl budget shifts",
        empty=t("No budget has sent anything to a local model."),
    )
    room.descend(view_of(pane, crumb=room.say(pane.title)))


BUDGETS: Final = TablePane(
    "budgets",
    t("Budgets"),
    "/budgets",
    (
        Column("BUDGET", "id", most=28),
        Column("SPENT", "spent", right=True),
        Column("HARD", "hard", right=True),
        Column("SOFT", "soft", right=True, least=90),
        Column("LEFT", "left", right=True, least=80),
        Column("USED", "used", finops_view.percent, right=True),
        Column("CURRENCY", "currency", least=70),
        Column("LASTS", "forecast.in_time"),
        Column("GONE IN", "forecast.ends_in_s", view.span, right=True, least=100),
        Column("AT THE END", "forecast.projected", right=True, least=120),
        Column("UNTIL", "ends_at", view.moment, least=130),
    ),
    (
        Action(
            "budget.set",
            "a",
            t("Add"),
            "PUT",
            BUDGET,
            "meshctl budget set",
            form=Form(
                t("Set a budget"),
                (
                    Field(
                        "id",
                        t("Budget"),
                        required=True,
                        option="",
                        pattern=r"(pool|(app|team|provider):[^/\s]+)/(hour|day|week|month)",
                        help=t("app:NAME/month, team:NAME/week, provider:NAME/day, pool/hour"),
                        known=Known.BUDGETS,
                    ),
                    *_amounts({}),
                ),
            ),
            body=_limits,
            row=False,
            done=t("The budget is set."),
        ),
        Action(
            "budget.change",
            "e",
            t("Change"),
            "PUT",
            BUDGET,
            "meshctl budget set {id}",
            form=lambda budget: Form(t("Change a budget"), _amounts(budget)),
            body=_limits,
            undo=_budget_back,
            name="id",
            done=t("{name} is changed."),
            bulk=False,
        ),
        Action(
            "budget.shifts",
            "v",
            t("Shifts"),
            "GET",
            "/budgets/shifts",
            "meshctl budget shifts",
            Role.VIEWER,
            opens=_shifts,
            row=False,
        ),
        Action(
            "budget.remove",
            "delete",
            t("Lift"),
            "DELETE",
            BUDGET,
            "meshctl budget remove {id}",
            confirm=Confirm.ASK,
            undo=_budget_back,
            name="id",
            done=t("{name} is lifted."),
        ),
    ),
    key="id",
    name="id",
    about=("budget",),
    every=5.0,
    one="/budgets/{id}",
    tables=finops_view.budget,
    sort="-used",
    cli="meshctl budget list",
    empty=t("No budgets: nothing limits what is spent. Press a to set one."),
)


def _by(reply: Any) -> list[Record]:
    return [{**row, "by": reply.get("by")} for row in reply.get("items", ())]


def _receipts(room: Room, records: Sequence[Record]) -> None:
    pane = receipts_of(records[0])
    room.descend(view_of(pane, crumb=f"{records[0]['name']}: {room.say(pane.title)}"))


USAGE: Final = TablePane(
    "usage",
    t("Usage"),
    "/usage",
    columns_of(finops_view.USAGE_COLUMNS, tokens_out={"least": 60}, last_at={"least": 100}),
    (
        Action(
            "usage.receipts",
            "v",
            t("Receipts"),
            "GET",
            "/receipts",
            "meshctl receipt list --app {name}",
            Role.VIEWER,
            opens=_receipts,
            against=lambda row: "" if row.get("by") == "app" else t("Receipts are listed by app."),
            bulk=False,
        ),
    ),
    key="id",
    every=30.0,
    items=_by,
    switches=(
        Switch("e", t("by model"), {"by": "model"}),
        Switch("t", t("by task"), {"by": "task"}),
        Switch("o", t("by team"), {"by": "team"}),
        Switch("i", t("by day"), {"by": "day"}),
    ),
    sort="-requests",
    cli="meshctl receipt usage",
    empty=t("Nothing was asked for in the last 30 days."),
)


def _verified(room: Room, records: Sequence[Record]) -> None:
    """Check a receipt's signature here, against the pool's fingerprint as the gate shows it."""
    room.run_worker(_verify(room, records[0]), group="act")


async def _verify(room: Room, record: Record) -> None:
    from tunnel_proto.errors import MeshError
    from tunnel_proto.receipt import check_receipt

    try:
        document = await room.desk.get(filled("/receipts/{id}", record))
        pool = (await room.desk.get("/key"))["pool"]["fingerprint"]
        check_receipt(document, pool=pool)
    except ValueError as error:
        room.warn(room.say("This is no receipt: {reason}", reason=error))
    except MeshError as error:
        room.fail(error, about=str(record["id"]))
    else:
        room.tell(room.say("{name} is genuine: the pool signed it as it is.", name=record["id"]))


RECEIPTS: Final = TablePane(
    "receipts",
    t("Receipts"),
    "/receipts",
    RECEIPT_COLUMNS,
    (
        Action(
            "receipt.verify",
            "v",
            t("Verify"),
            "GET",
            "/receipts/{id}",
            "meshctl receipt verify",
            Role.VIEWER,
            opens=_verified,
            bulk=False,
            name="id",
        ),
    ),
    key="id",
    name="id",
    every=5.0,
    one="/receipts/{id}",
    tables=lambda one: [finops_view.receipt(one)],
    cli="meshctl receipt list",
    empty=t("No receipts: nothing was asked for."),
)
