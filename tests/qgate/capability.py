"""Small stand-ins for what the engine is given: workers in memory, a ledger, an issuer of receipts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from qgate.capability.candidate import Candidate, ProviderModel
from qgate.capability.engine import Engine
from qgate.capability.inventory import Inventory
from qgate.capability.work import (
    Attempt,
    Chunk,
    Event,
    Executor,
    Failure,
    Kind,
    Outcome,
    Price,
    Problem,
    Receipt,
    Reservation,
    Sink,
    Usage,
    Verdict,
    Work,
)
from qgate.governance.audit import AuditEvent
from qgate.governance.directory import App
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.registry import DEFAULTS
from tunnel_proto.messages import Hardware, ModelState, Report
from tunnel_proto.request import parse

SHA = "ab" * 32
OTHER_SHA = "cd" * 32
TOKENIZER = "ee" * 32
PRICE = Price(Decimal(1), Decimal(2))

APP = App("web", (), frozenset(), policy=CapabilityPolicy())


def work(
    request: str = "task=chat;model=small",
    *,
    kind: Kind = "chat",
    text: str = "hello",
    stream: bool = True,
    app: App = APP,
    deadline: float | None = None,
    **body: Any,
) -> Work:
    """A request as a surface would make it."""
    content: dict[str, Any]
    if kind == "chat":
        content = {"messages": [{"role": "user", "content": text}]}
    elif kind == "completion":
        content = {"prompt": text}
    else:
        content = {"input": text}
    return Work(
        id="req_" + random.Random(request + text).randbytes(12).hex(),
        app=app,
        request=parse(request),
        kind=kind,
        body={**content, **body},
        stream=stream,
        received_at=1000.0,
        deadline=deadline,
        source="laptop",
    )


def model(name: str = "small", **changes: Any) -> ModelState:
    """A resident chat model of a worker."""
    state = ModelState(
        name=name,
        sha256=SHA,
        params=135_000_000,
        context=2048,
        tokenizer_sha=TOKENIZER,
        template_sha="11" * 32,
        kinds=("chat", "completion"),
        engine_build="b1",
        state="resident",
        tps_predicted=100.0,
        prefill_tps=400.0,
        slots=4,
    )
    return replace(state, **changes)


def report(worker: str, *models: ModelState, **changes: Any) -> Report:
    """A full report."""
    whole = Report(
        worker=worker, seq=0, full=True, hardware=Hardware(memory=16 << 30), models=models, slots=4
    )
    return replace(whole, **changes)


def provided(provider: str = "cloud", name: str = "large", **changes: Any) -> ProviderModel:
    """A model of a provider, with a price."""
    return replace(ProviderModel(provider, name, price=PRICE), **changes)


@dataclass(eq=False)
class Hold:
    """Money set aside."""

    amount: Decimal
    settled: list[Usage | None] = field(default_factory=list)


class FakeLedger:
    """Keeps what was reserved and settled; `cap` is a hard limit."""

    def __init__(self, cap: Decimal | None = None) -> None:
        self.holds: list[Hold] = []
        self.cap = cap
        self.verdicts: dict[str, Verdict] = {}
        self.wait: asyncio.Event | None = None

    def verdict(self, work: Work, candidate: Candidate) -> Verdict:
        return self.verdicts.get(candidate.node, Verdict())

    def upper_bound(self, work: Work, candidate: Candidate, max_tokens: int | None = None) -> Decimal:
        return Decimal("0.01")

    async def reserve(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation:
        if self.wait is not None:
            await self.wait.wait()
        return self._set_aside(upper_bound)

    def reserve_at_once(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation | None:
        return self._set_aside(upper_bound) if self.wait is None else None

    def _set_aside(self, upper_bound: Decimal) -> Reservation:
        if self.cap is not None and sum(hold.amount for hold in self.holds) + upper_bound > self.cap:
            raise Problem("the budget is used up", code="budget_exceeded")
        hold = Hold(upper_bound)
        self.holds.append(hold)
        return hold

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        assert isinstance(reservation, Hold)
        reservation.settled.append(usage)

    def price(self, candidate: Candidate) -> Price | None:
        return candidate.price


class FakeReceipts:
    """Keeps every outcome."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def issue(self, work: Work, *, outcome: Outcome) -> Receipt:
        self.outcomes.append(outcome)
        return Receipt(f"rcpt_{len(self.outcomes)}", {"request": work.id})


@dataclass(eq=False)
class Held:
    """An attempt that a test plays the worker of."""

    attempt: Attempt
    sink: Sink
    cancelled: bool = False
    heard: list[str] = field(default_factory=list)  # "pause" and "resume", in order

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        self.heard.append("pause")

    def resume(self) -> None:
        self.heard.append("resume")

    def tokens(self, *ids: int) -> None:
        """Say these ids; the text of id n is "n "."""
        self.sink.chunk(Chunk("".join(f"{one} " for one in ids), ids))

    def done(self, reason: str = "stop", **more: Any) -> None:
        self.sink.done(reason, Usage(5, 0, 0, 5), **more)

    def crash(self) -> None:
        self.sink.failed(
            Failure("child_crashed", "the model's process died", retriable=True, blame="node", crashed=True)
        )

    def lose(self) -> None:
        self.sink.failed(Failure("node_lost", "the worker is gone", retriable=True, blame="network"))


class Stage:
    """An executor whose attempts wait for a test to play them."""

    def __init__(self) -> None:
        self.attempts: list[Held] = []
        self._arrived = asyncio.Event()

    def start(self, attempt: Attempt, sink: Sink) -> Held:
        held = Held(attempt, sink)
        self.attempts.append(held)
        self._arrived.set()
        return held

    async def next(self, number: int) -> Held:
        """The attempt of that number, from 1, when it has begun."""
        async with asyncio.timeout(60):
            while len(self.attempts) < number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.attempts[number - 1]


class Scripted:
    """An executor that plays each attempt at once by a function."""

    def __init__(self, play: Callable[[Held], None]) -> None:
        self.play = play
        self.attempts: list[Held] = []

    def start(self, attempt: Attempt, sink: Sink) -> Held:
        held = Held(attempt, sink)
        self.attempts.append(held)
        self.play(held)
        return held


class LastRow:
    """Randomness that always draws the first."""

    def randrange(self, stop: int, /) -> int:
        return 0


@dataclass
class Mesh:
    """An engine with everything around it."""

    inventory: Inventory
    engine: Engine
    ledger: FakeLedger
    receipts: FakeReceipts
    events: list[AuditEvent]
    settings: dict[str, Any]


def mesh(
    *reports: Report,
    providers: Iterable[ProviderModel] = (),
    executors: dict[str, Executor] | None = None,
    ledger: FakeLedger | None = None,
    **settings: Any,
) -> Mesh:
    """An engine over an inventory of these reports. Settings are named without their `schedule.`."""
    inventory = Inventory(pool="main")
    for one in reports:
        inventory.workers_changed(one.worker, one, 0.0)
    inventory.providers_changed(list(providers))
    values = {**DEFAULTS, **{f"schedule.{name}": value for name, value in settings.items()}}
    ledger = ledger or FakeLedger()
    receipts, events = FakeReceipts(), list[AuditEvent]()
    engine = Engine(
        inventory=inventory,
        executors=executors or {},
        ledger=ledger,
        receipts=receipts,
        settings=values.__getitem__,
        clock=lambda: 1001.0,
        random=LastRow(),
        audit=events.append,
    )
    return Mesh(inventory, engine, ledger, receipts, events, values)


@dataclass
class Heard:
    """What a client of a run has heard; `problem` where it was raised."""

    events: list[Event] = field(default_factory=list)
    problem: Problem | None = None

    @property
    def ids(self) -> list[int]:
        return [one for event in self.events if isinstance(event, Chunk) for one in event.ids]

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


async def listen(events: AsyncIterator[Event]) -> Heard:
    """Hear a run to its end."""
    heard = Heard()
    try:
        async for event in events:
            heard.events.append(event)
    except Problem as problem:
        heard.problem = problem
    return heard
