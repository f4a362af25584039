"""Where requests for capabilities come in, whatever protocol brought them: intake, engine, what there is."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from qgate.capability.work import Event, Finished, Problem, Usage, Work
from qgate.governance.directory import App
from qgate.http.intake import Intake
from qgate.http.running import Runner

AUDIT_RETRY_S: Final = 5.0
"""When to come again while the audit's queue is full: the longest pause between two tries to write it."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that an app may name. ``owner`` is its node or provider; ``created`` unix time, 0: unknown."""

    name: str
    owner: str
    kinds: tuple[str, ...] = ()
    context: int = 0
    created: int = 0
    state: str = ""
    size: int = 0
    family: str = ""
    quant: str = ""
    parameters: int = 0
    version: str = ""


class Catalogue(Protocol):
    """What there is to run requests on, as far as an app may see it."""

    def models(self, app: App) -> Iterable[ModelCard]:
        """The models that the app may name, one card a name."""


class Receipts(Protocol):
    """Receipts by id."""

    async def get(self, receipt_id: str, app: str | None) -> Mapping[str, Any] | None:
        """The signed document, None where there is none of this app (None: of any app)."""


class Tallies:
    """What each app has asked for since the start of this gate."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def of(self, app: str) -> Mapping[str, int]:
        """Counts by name: requests, failed, tokens_in, tokens_out."""
        names = ("requests", "failed", "tokens_in", "tokens_out")
        counts = self._counts.get(app, Counter())
        return {name: counts[name] for name in names}

    def count(self, app: str, usage: Usage | None) -> None:
        """A request ended; ``usage`` None: without an answer."""
        counts = self._counts.get(app)
        if counts is None:
            counts = self._counts[app] = Counter()
        counts["requests"] += 1
        if usage is None:
            counts["failed"] += 1
        else:
            counts["tokens_in"] += usage.prompt_tokens
            counts["tokens_out"] += usage.completion_tokens


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Desk:
    """What every surface needs. ``accepting`` says whether the audit has room to record one more request."""

    intake: Intake
    engine: Runner
    catalogue: Catalogue
    receipts: Receipts | None = None
    tallies: Tallies = field(default_factory=Tallies)
    accepting: Callable[[], bool] = _always

    async def run(self, work: Work) -> AsyncGenerator[Event, None]:
        """The engine's events; the app's rate learns what they cost.

        Raises `Problem` "audit_full" where the request could not be recorded: nothing runs unseen.
        """
        usage = None
        try:
            if not self.accepting():
                raise Problem(
                    "the gate cannot record requests now and takes no new one",
                    code="audit_full",
                    retry_after_s=AUDIT_RETRY_S,
                    hint="its audit queue is full: ask the administrator to look at the gate's store",
                )
            async with contextlib.aclosing(self.engine.run(work)) as events:
                async for event in events:
                    if type(event) is Finished:
                        usage = event.usage
                    yield event
        finally:
            self.intake.used(work, usage)
            self.tallies.count(work.app.name, usage)
