"""`meshctl budget`: how much may be spent, what was, and where it goes."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import finops_view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Budgets of apps, teams, providers and the whole pool, by calendar period (UTC).")

PERIODS = ("hour", "day", "week", "month")
_NONE = "No budgets: nothing limits what is spent. Next: meshctl budget set WHO/PERIOD --hard AMOUNT"
_SCOPES = "app:NAME, team:NAME, provider:NAME or pool"


Budget = Annotated[
    str,
    typer.Argument(
        metavar="BUDGET",
        help="WHO/PERIOD, as app:web/month, team:red/week, provider:acme/day, pool/hour.",
        autocompletion=options.names_in("/budgets", key="id"),
        show_default=False,
    ),
]


@commands.command("set")
def set_budget(
    budget: Budget,
    hard: Annotated[
        str | None,
        typer.Option("--hard", metavar="AMOUNT", help="Never spend more than this.", show_default=False),
    ] = None,
    soft: Annotated[
        str | None,
        typer.Option(
            "--soft", metavar="AMOUNT", help="From here on prefer local models.", show_default=False
        ),
    ] = None,
    currency: Annotated[
        str | None,
        typer.Option("--currency", metavar="CODE", show_default="the setting finops.currency"),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Set what may be spent in each period; what the present one has spent already counts."""
    if hard is None and soft is None:
        raise UsageError("A budget has a soft limit, a hard one, or both.", hint="--hard 50 --soft 40")
    body = {"hard": hard, "soft": soft, "currency": currency}
    row = options.connect(gate_dir, socket).put(
        _path(budget), {key: value for key, value in body.items() if value is not None}
    )
    emit(row, finops_view.budget(row), output)


@commands.command("list")
def list_budgets(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the budgets with what is spent and left."""
    rows = options.connect(gate_dir, socket).items("/budgets")
    emit(rows, finops_view.budgets(rows), output, empty=_NONE)


@commands.command("show")
def show(
    budget: Budget,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one budget: who holds what of it, its past periods, and what it sent to local models."""
    row = options.connect(gate_dir, socket).get(_path(budget))
    emit(row, finops_view.budget(row), output)


@commands.command("forecast")
def forecast(
    budget: Annotated[
        str | None, typer.Argument(metavar="BUDGET", help="WHO/PERIOD; all if left out.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Tell where each budget goes at its present rate, and whether it lasts."""
    rows = options.connect(gate_dir, socket).items("/budgets")
    if budget is not None:
        _path(budget)
        rows = [row for row in rows if row["id"] == budget]
        if not rows:
            raise UsageError(f"There is no budget {budget}.", hint="meshctl budget list")
    emit(rows, finops_view.forecasts(rows), output, empty=_NONE)


@commands.command("shifts")
def shifts(
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="How many.")] = 30,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List what budgets sent to local models, and when they began and ended to ask for it."""
    rows: list[dict[str, Any]] = options.connect(gate_dir, socket).items("/budgets/shifts", {"limit": number})
    emit(rows, finops_view.shifts(rows), output, empty="No budget has sent anything to a local model.")


@commands.command("remove")
def remove(
    budget: Budget,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Lift a budget. What it has spent is kept, in case it is set again."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Lift the budget {budget}?", yes=yes)
    gate.delete(_path(budget))
    note(f"The budget {budget} is lifted.")


def _path(budget: str) -> str:
    who, slash, period = budget.rpartition("/")
    if not slash or not who or period not in PERIODS:
        raise UsageError(
            f'"{budget}" is no budget: it is WHO/PERIOD, as app:web/month.',
            hint=f"WHO: {_SCOPES}; PERIOD: {', '.join(PERIODS)}",
        )
    return f"/budgets/{quote(who, safe=':')}/{period}"
