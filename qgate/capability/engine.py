"""Runs requests: admission in fair shares, one `Run` each, receipts, the audit and what is counted.

The engine is the one place where the pure parts (inventory, scheduler, dispatch) meet executors, ledger and
receipts. It keeps nothing of what a request says once it is over.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from qgate.capability.demand import demand_of
from qgate.capability.fairness import FairShares, QueueFullError
from qgate.capability.preferences import SETTINGS, ScheduleSettings
from qgate.capability.run import Run
from qgate.capability.scheduler import Explanation, Randomness, Scheduler
from qgate.capability.work import (
    NOTHING_USED,
    Event,
    Executor,
    Hop,
    Ledger,
    Moved,
    Outcome,
    Problem,
    Receipt,
    ReceiptIssuer,
    Work,
)
from qgate.governance.audit import AuditEvent

if TYPE_CHECKING:
    from qgate.capability.facts import Launch
    from qgate.capability.inventory import Inventory

QUEUE_RETRY_S: Final = 2.0
"""Retry-After of a request that finds its app's queue full."""

Key = tuple[str, str, str, str]


@dataclass(slots=True)
class EngineFigures:
    """What the engine counts. Requests by outcome, attempts and failures by executor, moves by class."""

    requests: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    in_flight: int = 0

    def seen(self, event: Event) -> None:
        """Count what is said to a client."""
        if type(event) is Moved:
            self.moves[event.how] += 1


class CrashZones:
    """Attempts of requests that were at a crash begin one at a time on each deployment.

    A batch dies as one. Entering one by one, each shows that it does no harm (by its first token) before the
    next may come, so that the one that does is alone with those that have gone on since.
    """

    def __init__(self) -> None:
        self._inside: dict[Key, Run] = {}
        self._waiting: dict[Key, deque[tuple[Run, Launch]]] = {}

    def enter(self, key: Key, run: Run, command: Launch) -> bool:
        """True: go now. False: `Run.start_now` is called when it is its turn."""
        if key not in self._inside:
            self._inside[key] = run
            return True
        line = self._waiting.setdefault(key, deque())
        line.append((run, command))
        run.moved_up(command.attempt, len(line))
        return False

    def passed(self, candidate: Any, run: Run) -> None:
        """It has shown its first token."""
        if self._inside and candidate is not None:
            self.left(candidate.key, run)

    def left(self, key: Key, run: Run) -> None:
        """It is over, or has passed: the next one's turn."""
        line = self._waiting.get(key)
        if self._inside.get(key) is not run:
            for entry in line or ():
                if entry[0] is run and line is not None:
                    line.remove(entry)
                    break
            return
        del self._inside[key]
        if not line:
            self._waiting.pop(key, None)
            return
        following, command = line.popleft()
        self._inside[key] = following
        for ahead, (waiting, its) in enumerate(tuple(line), 1):
            waiting.moved_up(its.attempt, ahead)
        following.start_now(command)


class Engine:
    """Places requests and follows them to their end. `clock` gives unix seconds, `random` decides ties.

    `setting` looks a setting up by name (`Directory.setting`). `audit` takes one event a request.
    """

    def __init__(
        self,
        *,
        inventory: Inventory,
        executors: Mapping[str, Executor],
        ledger: Ledger,
        receipts: ReceiptIssuer,
        settings: Callable[[str], Any],
        clock: Callable[[], float],
        random: Randomness,
        audit: Callable[[AuditEvent], None] | None = None,
    ) -> None:
        self.inventory = inventory
        self.executors = executors
        self.ledger = ledger
        self.receipts = receipts
        self.clock = clock
        self.random = random
        self.scheduler = Scheduler(inventory, ledger)
        self.figures = EngineFigures()
        self.crash_zones = CrashZones()
        self._setting = settings
        self._audit = audit
        self._read: tuple[Any, ...] = ()
        self._settings = ScheduleSettings()
        self._runs: set[Run] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        shown = self.settings
        self._shares: FairShares[asyncio.Future[None]] = FairShares(
            parallel=shown.in_flight, queue=shown.queue
        )
        inventory.on_draining(self._node_drains)

    @property
    def settings(self) -> ScheduleSettings:
        """The scheduler's settings as they are now."""
        read = tuple(map(self._setting, SETTINGS))
        if read != self._read:
            self._read, self._settings = read, ScheduleSettings(*read)
        return self._settings

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn at this gate."""
        return self._shares.waiting

    async def run(self, work: Work) -> AsyncGenerator[Event, None]:
        """Carry out a request. Raises `Problem`; closing the iterator cancels the request everywhere."""
        settings = self.settings
        await self._admit(work, settings)
        self.figures.in_flight += 1
        run = None
        try:
            run = Run(self, work, settings)
            self._runs.add(run)
            run.begin()
            while True:
                while (event := run.take()) is not None:
                    yield event
                if run.over:
                    return
                await run.news()
        finally:
            if run is not None:
                run.close()
                self._runs.discard(run)
            self.figures.in_flight -= 1
            for turn in self._shares.leave(work.app.name):
                if not turn.done():
                    turn.set_result(None)

    def explain(self, work: Work, *, input_tokens: int | None = None, limit: int = 500) -> Explanation:
        """Every candidate, its score, and why it would or would not be taken; nothing is started."""
        settings = self.settings
        now = asyncio.get_running_loop().time()
        demand = demand_of(work, settings, now=now, input_tokens=input_tokens)
        return self.scheduler.explain(demand, settings, now=now, limit=limit)

    def underway(self, request: str) -> bool:
        """Whether a request of that id runs here."""
        return any(run.work.id == request for run in self._runs)

    async def close(self) -> None:
        """Cancel what runs."""
        for run in list(self._runs):
            run.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- for runs

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine to its end, whatever becomes of who asked for it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def ended(self, work: Work, outcome: Outcome, sqlstate: str, receipt: Receipt | None) -> None:
        """Count and record a request that is over."""
        figures, usage = self.figures, outcome.usage
        took = max(0.0, outcome.ended_at - outcome.began_at)
        figures.requests[outcome.outcome] += 1
        figures.prompt_tokens += usage.prompt_tokens
        figures.completion_tokens += usage.completion_tokens
        figures.seconds += took
        if outcome.first_token_s is not None:
            figures.first_token_seconds += outcome.first_token_s
            figures.first_tokens += 1
        if self._audit is not None:
            self._audit(_audited(work, outcome, sqlstate, took, receipt))

    # --- its own

    async def _admit(self, work: Work, settings: ScheduleSettings) -> None:
        """Wait for the app's turn. Raises `Problem` where its queue is full or the wait too long."""
        self._shares.parallel, self._shares.queue = settings.in_flight, settings.queue
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        share = work.app.policy.share if work.app.policy is not None else 1
        try:
            if self._shares.enter(turn, work.app.name, share):
                return
        except QueueFullError:
            raise self._turned_away(
                work,
                Problem(
                    f"the app has {settings.queue} requests waiting already",
                    code="queue_full",
                    retry_after_s=QUEUE_RETRY_S,
                ),
            ) from None
        leaves = loop.time() + settings.queue_timeout_s
        late = work.deadline is not None and work.deadline < leaves
        try:
            async with asyncio.timeout_at(work.deadline if late else leaves):
                await turn
        except TimeoutError:
            self._give_back(turn, work)
            problem = (
                Problem("the deadline passed while the request waited its turn", code="deadline_exceeded")
                if late
                else Problem(
                    f"no turn came within {settings.queue_timeout_s:g} s",
                    code="queue_full",
                    retry_after_s=QUEUE_RETRY_S,
                )
            )
            raise self._turned_away(work, problem) from None
        except asyncio.CancelledError:
            self._give_back(turn, work)
            raise

    def _give_back(self, turn: asyncio.Future[None], work: Work) -> None:
        """The one who waited is gone: out of the queue, or its turn to the next."""
        if not self._shares.withdraw(turn, work.app.name):
            for following in self._shares.leave(work.app.name):
                if not following.done():
                    following.set_result(None)

    def _turned_away(self, work: Work, problem: Problem) -> Problem:
        now = self.clock()
        outcome = Outcome(problem.code, "", NOTHING_USED, (), work.received_at or now, now)
        self.ended(work, outcome, problem.sqlstate, None)
        return problem

    def _node_drains(self, node: str) -> None:
        for run in list(self._runs):
            run.node_drains(node)


def _audited(work: Work, outcome: Outcome, sqlstate: str, took: float, receipt: Receipt | None) -> AuditEvent:
    last: Hop | None = outcome.hops[-1] if outcome.hops else None
    detail: dict[str, Any] = {
        "request": work.id,
        "task": work.request.task,
        "model": last.model if last is not None else work.request.model,
        "node": last.node if last is not None else None,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "completion_tokens": outcome.usage.completion_tokens,
    }
    if len(outcome.hops) > 1:
        detail["moves"] = [{"from": hop.node, "reason": hop.reason} for hop in outcome.hops[:-1]]
    if outcome.outcome != "ok":
        detail["code"] = outcome.outcome
    if outcome.cost:
        detail["cost"] = str(outcome.cost)
        detail["currency"] = outcome.currency
    if outcome.shift:
        detail["shift"] = outcome.shift
    if receipt is not None:
        detail["receipt"] = receipt.id
    return AuditEvent(
        "capability",
        app=work.app.name,
        sidecar=work.source,
        duration_s=took,
        max_duration_s=took,
        outcome=sqlstate,
        started_at=outcome.began_at,
        detail={name: value for name, value in detail.items() if value is not None},
    )
