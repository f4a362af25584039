"""What the virtual database asks of the desk: one capability for one row, and the lists of SHOW."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qgate.capability.work import Problem
from qgate.governance.directory import App, Directory
from qgate.http.chat import vectors_of
from qgate.http.desk import Desk
from qgate.http.exchange import dumps
from qgate.http.models import cards
from qgate.http.running import Answer
from qgate.postgres.virtual_statement import LISTS
from qgate.postgres.virtual_values import Table


class Lists(Protocol):
    """Where SHOW finds what the desk does not know; each row in the order of `LISTS`' columns."""

    def workers(self, app: App) -> Iterable[Sequence[Any]]:
        """The workers that may run something for this app."""

    def budgets(self, app: App) -> Iterable[Sequence[Any]]:
        """The budgets that bind this app."""


@dataclass(frozen=True, slots=True)
class SqlDesk:
    """`Capabilities` of the virtual database, over a desk."""

    desk: Desk
    directory: Directory
    lists: Lists | None = None

    async def ask(self, app: App, request: str, texts: list[str], *, sidecar: str) -> Sequence[Any]:
        """Run a request; the row's values in the order of `COLUMNS`."""
        if not texts:
            raise Problem(
                "qg() was given no text to work on",
                code="invalid_request",
                hint="SELECT * FROM qg('task=summarize', $1)",
            )
        work = self.desk.intake.from_text(app, request, texts, source=sidecar)
        answer = Answer(work)
        async with contextlib.aclosing(self.desk.run(work)) as events:
            async for event in events:
                answer.take(event)
        if answer.finished is None or answer.begun is None:
            raise Problem("the answer broke off", code="stream_interrupted")
        usage = answer.end.usage
        result, text = _result(answer)
        return (
            dumps(result).decode(),
            text,
            answer.model,
            answer.node,
            usage.prompt_tokens,
            usage.completion_tokens,
            answer.end.receipt.id,
        )

    async def show(self, app: App, what: str) -> Table:
        """SHOW models, workers, budgets, stats or routes."""
        match what:
            case "models":
                rows: Iterable[Sequence[Any]] = [
                    (card.name, card.owner, ", ".join(card.kinds), card.context or None, card.state or None)
                    for card in cards(self.desk, app)
                ]
            case "stats":
                rows = sorted(self.desk.tallies.of(app.name).items())
            case "routes":
                rows = self._routes(app)
            case "workers":
                rows = [] if self.lists is None else list(self.lists.workers(app))
            case _:
                rows = [] if self.lists is None else list(self.lists.budgets(app))
        return Table(LISTS[what], list(rows))

    def _routes(self, app: App) -> list[Sequence[Any]]:
        routes: Mapping[str, Any] = self.directory.routes()
        found: list[Sequence[Any]] = [
            (name, "database", routes[name].dbname) for name in sorted(app.databases) if name in routes
        ]
        found += [(name, "alias", target) for name, target in sorted(self.directory.aliases().items())]
        return found


def _result(answer: Answer) -> tuple[Any, str | None]:
    """The columns ``result`` and ``text``: the task's object, and its words where it has some."""
    finished = answer.end
    if answer.work.kind == "embedding":
        return [list(vector) for vector in vectors_of(finished)], None
    text = answer.text
    if answer.work.kind == "analysis" and finished.result is not None:
        return finished.result, text
    calls = answer.tool_calls
    return {"text": text, **({"tool_calls": calls} if calls else {})}, text
