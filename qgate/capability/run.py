"""One request under way: it carries a dispatch's commands out and brings it the facts.

Facts that arise while commands are being carried out wait their turn, so that the machine is never entered
twice; whatever an executor says, and from wherever, it says in order. What was given on and is not yet read
is bounded: above a mark the source is told to wait, below another to go on.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.capability.demand import demand_of, max_tokens_of
from qgate.capability.dispatch import Dispatch
from qgate.capability.facts import (
    Accepted,
    Broke,
    Cancelled,
    Command,
    Completed,
    Denied,
    Distrust,
    End,
    Fact,
    Fail,
    Finish,
    Halt,
    Launch,
    NodeDrains,
    Observe,
    Place,
    Planned,
    Progressed,
    Received,
    Reserve,
    Reserved,
    Say,
    Settle,
    Tick,
    Wake,
)
from qgate.capability.instructed import UnreadableAnswerError, as_chat, as_result
from qgate.capability.work import (
    NOTHING_USED,
    Attempt,
    Chunk,
    Event,
    Failure,
    Finished,
    Outcome,
    Problem,
    Reservation,
    Running,
    Usage,
    Work,
)

if TYPE_CHECKING:
    from qgate.capability.candidate import Candidate
    from qgate.capability.engine import Engine
    from qgate.capability.preferences import ScheduleSettings

UNREAD_HIGH: Final = 256 * 1024
UNREAD_LOW: Final = 64 * 1024
"""Bytes given on and not yet read, above and below which the source is stopped and let go."""

CHUNK_BYTES: Final = 64  # what a chunk weighs beside its text

log = structlog.get_logger(__name__)


class Run:
    """Drives one `Dispatch`. Made and used on the event loop."""

    def __init__(self, engine: Engine, work: Work, settings: ScheduleSettings) -> None:
        self.work = work
        self.problem: Problem | None = None
        self.over = False
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._began = self._loop.time()
        self._dispatch = Dispatch(
            demand_of(work, settings, now=self._began), settings, max_tokens_of(work, settings)
        )
        self._inbox: deque[Fact] = deque()
        self._draining = False
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._unread = 0
        self._paused = False
        self._running: Running | None = None
        self._number = 0
        self._candidate: Candidate | None = None
        self._reservation: Reservation | None = None
        self._reservations: dict[int, Reservation] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._was_nlp = False
        self._cost = Decimal(0)
        self._currency = ""

    # --- for the engine

    def begin(self) -> None:
        """Ask for a place, and go as far as that leads at once."""
        self._carry_out(self._dispatch.begin(self._began))
        self._drain()

    def take(self) -> Event | None:
        """What happened next; None where nothing did yet. Raises `Problem` once all before it was taken."""
        if not self._events:
            if self.problem is not None:
                raise self.problem
            return None
        event = self._events.popleft()
        if type(event) is Chunk:
            self._unread -= _weight(event)
            if self._paused and self._unread < UNREAD_LOW:
                self._paused = False
                if self._running is not None:
                    self._running.resume()
        return event

    async def news(self) -> None:
        """Wait until there may be something to take, or it is over."""
        self._arrived.clear()
        await self._arrived.wait()

    def close(self) -> None:
        """Cancel what is still under way."""
        if not self.over:
            self.feed(Cancelled())
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def feed(self, fact: Fact) -> None:
        """Tell the machine something."""
        self._inbox.append(fact)
        self._drain()

    def node_drains(self, node: str) -> None:
        """A worker wants to be rid of its requests."""
        if self._candidate is not None and self._candidate.node == node:
            self.feed(NodeDrains(node))

    def start_now(self, command: Launch) -> None:
        """Start an attempt, all who had to go before it having gone."""
        if self.over or self._number != command.attempt:
            self._engine.crash_zones.left(command.candidate.key, self)
            return
        work = self.work
        if work.kind == "analysis" and command.candidate.kind != "nlp":
            work = as_chat(work)
        attempt = Attempt(
            id=f"{self.work.id}.{command.attempt}",
            work=work,
            candidate=command.candidate,
            emitted=command.emitted,
            emitted_text=command.emitted_text,
            number=command.attempt,
            max_tokens=command.max_tokens,
            deadline_s=None if command.deadline is None else max(0.001, command.deadline - self._loop.time()),
        )
        ear = _Ear(self, command.attempt)
        try:
            running = self._engine.executors[command.candidate.kind].start(attempt, ear)
        except Exception:
            log.exception("an executor failed", kind=command.candidate.kind, request=self.work.id)
            ear.failed(Failure("internal_error", "the gate could not begin the attempt", retriable=True))
            return
        if self._number == command.attempt and not self.over:
            self._running = running
            if self._paused:
                running.pause()
        else:
            # It was given up from inside `start`.
            running.cancel()

    def moved_up(self, attempt: int, ahead: int) -> None:
        """It still waits for its turn, with so many before it."""
        if self._number == attempt:
            self.feed(Accepted(attempt, queue=ahead))

    # --- facts

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        try:
            while self._inbox:
                fact = self._inbox.popleft()
                if type(fact) is Completed or type(fact) is Broke:
                    fact = self._ended(fact)
                elif type(fact) is Received and fact.attempt == self._number:
                    self._engine.crash_zones.passed(self._candidate, self)
                self._carry_out(self._dispatch.receive(fact, self._loop.time()))
                if type(fact) is Reserved and self._reservation is not None:
                    # The request was over, or wanted something else, by the time the money was there.
                    self._engine.ledger.settle(self._reservation, NOTHING_USED)
                    self._reservation = None
        finally:
            self._draining = False

    def _ended(self, fact: Completed | Broke) -> Fact:
        """An attempt is over by itself: let go of it before the machine goes on."""
        if fact.attempt != self._number:
            return fact
        self._let_go()
        if type(fact) is not Completed or self.work.kind != "analysis" or self._was_nlp:
            return fact
        try:
            result = as_result(self.work, self._dispatch.answer.text or _said(fact.raw))
        except UnreadableAnswerError as error:
            if self.work.stream:
                # Its words were given on; that they have not the task's shape does not take them back.
                return fact
            return Broke(
                fact.attempt,
                Failure("invalid_response", f"the model's answer cannot be read: {error}", retriable=True),
            )
        return Completed(fact.attempt, fact.finish_reason, fact.usage, result, None, fact.version)

    def _let_go(self) -> None:
        candidate = self._candidate
        self._running = None
        self._number = 0
        self._candidate = None
        if candidate is not None:
            self._was_nlp = candidate.kind == "nlp"
            self._engine.crash_zones.left(candidate.key, self)
            self._engine.inventory.ended(candidate, self._loop.time())

    # --- commands

    def _carry_out(self, commands: list[Command]) -> None:
        engine, now = self._engine, self._loop.time()
        for command in commands:
            match command:
                case Say():
                    self._say(command.event)
                case Wake():
                    self._wake(command.at)
                case Place():
                    demand = command.demand
                    self._inbox.append(
                        Planned(engine.scheduler.plan(demand, self._settings, now=now, random=engine.random))
                    )
                case Reserve():
                    self._reserve(command.candidate)
                case Launch():
                    self._launch(command, now)
                case Halt():
                    running = self._running
                    self._let_go()
                    if running is not None:
                        running.cancel()
                case Settle():
                    self._settle(command)
                case Observe():
                    engine.inventory.observed(
                        command.candidate,
                        now,
                        first_token_s=command.first_token_s,
                        prompt_tokens=command.prompt_tokens,
                        decode=command.decode,
                        service_s=command.service_s,
                    )
                case Distrust():
                    engine.figures.failures[command.candidate.kind] += 1
                    if command.refuted:
                        engine.inventory.refuted(command.candidate, now)
                    else:
                        engine.inventory.failed(
                            command.candidate,
                            now,
                            command.reason,
                            whole_node=command.whole_node,
                            retry_after_s=command.retry_after_s,
                            crashed=command.crashed,
                        )
                case Finish():
                    self._finish(command)
                case Fail():
                    self.problem = command.problem
                    self._end(command.problem.code, command.problem.sqlstate, command)
                case End():
                    self._end("cancelled", "57014", command)

    def _say(self, event: Event) -> None:
        if type(event) is Chunk:
            self._unread += _weight(event)
            if self._unread > UNREAD_HIGH and not self._paused:
                self._paused = True
                if self._running is not None:
                    self._running.pause()
        elif type(event) is not Finished:
            self._engine.figures.seen(event)
        self._events.append(event)
        self._arrived.set()

    def _wake(self, at: float) -> None:
        # Each piece of an answer moves it later, so a timer that is due before only looks again.
        self._wake_at = at
        timer = self._timer
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._loop.time() < self._wake_at:
            self._timer = self._loop.call_at(self._wake_at, self._tick)
        else:
            self.feed(Tick())

    def _launch(self, command: Launch, now: float) -> None:
        engine = self._engine
        self._number = command.attempt
        self._candidate = command.candidate
        if self._reservation is not None:
            self._reservations[command.attempt] = self._reservation
            self._reservation = None
        engine.figures.attempts[command.candidate.kind] += 1
        engine.inventory.began(command.candidate, now)
        if not command.alone or engine.crash_zones.enter(command.candidate.key, self, command):
            self.start_now(command)

    def _reserve(self, candidate: Candidate) -> None:
        ledger = self._engine.ledger
        try:
            bound = ledger.upper_bound(self.work, candidate, self._dispatch.max_tokens)
            self._reservation = ledger.reserve_at_once(self.work, candidate, bound)
        except Exception as error:
            self._inbox.append(self._denied(error))
            return
        if self._reservation is not None:
            self._inbox.append(Reserved())
        else:
            self._engine.keep(self._reserve_soon(candidate, bound))

    async def _reserve_soon(self, candidate: Candidate, bound: Decimal) -> None:
        try:
            self._reservation = await self._engine.ledger.reserve(self.work, candidate, bound)
        except Exception as error:
            self.feed(self._denied(error))
        else:
            self.feed(Reserved())

    def _denied(self, error: Exception) -> Denied:
        if isinstance(error, Problem):
            return Denied(error)
        log.error("the ledger failed", request=self.work.id, exc_info=error)
        return Denied(Problem("the budgets cannot be asked now", code="unavailable", retry_after_s=2.0))

    def _settle(self, command: Settle) -> None:
        reservation = self._reservations.pop(command.attempt, None)
        if reservation is None:
            return
        ledger = self._engine.ledger
        price = ledger.price(self._last) if self._last is not None else None
        ledger.settle(reservation, command.usage)
        if price is not None:
            self._cost += reservation.amount if command.usage is None else price.of(command.usage)
            self._currency = price.currency

    @property
    def _last(self) -> Candidate | None:
        """The candidate whose attempt is being settled: its hop is not yet written."""
        return self._dispatch.chosen

    # --- ends

    def _finish(self, command: Finish) -> None:
        self.over = True
        outcome = self._outcome("ok", command.finish_reason, command)
        receipt = self._engine.receipts.issue(self.work, outcome=outcome)
        self._engine.ended(self.work, outcome, "ok", receipt)
        self._events.append(
            Finished(
                command.finish_reason,
                command.usage,
                receipt,
                command.result,
                command.raw,
                tuple(self._dispatch.answer.ids),
            )
        )
        self._arrived.set()

    def _end(self, code: str, sqlstate: str, command: Fail | End) -> None:
        self.over = True
        outcome = self._outcome(code, "", command)
        receipt = self._engine.receipts.issue(self.work, outcome=outcome) if command.hops else None
        self._engine.ended(self.work, outcome, sqlstate, receipt)
        self._arrived.set()

    def _outcome(self, outcome: str, finish_reason: str, command: Finish | Fail | End) -> Outcome:
        began = self.work.received_at or self._engine.clock()
        first = self._dispatch.first_token_at
        return Outcome(
            outcome=outcome,
            finish_reason=finish_reason,
            usage=command.usage,
            hops=command.hops,
            began_at=began,
            ended_at=max(began, self._engine.clock()),
            first_token_s=None if first is None else first - self._began,
            cost=self._cost,
            currency=self._currency,
            shift=self._dispatch.shift,
        )


class _Ear:
    """The `Sink` of one attempt."""

    __slots__ = ("_attempt", "_run")

    def __init__(self, run: Run, attempt: int) -> None:
        self._run = run
        self._attempt = attempt

    def accepted(self, *, queue: int = 0, state: str = "", worker: str = "") -> None:
        self._run.feed(Accepted(self._attempt, queue, state, worker))

    def progress(self, state: str, share: float, eta_s: float | None) -> None:
        self._run.feed(Progressed(self._attempt, state, share, eta_s))

    def chunk(self, chunk: Chunk) -> None:
        self._run.feed(Received(self._attempt, chunk))

    def done(
        self,
        finish_reason: str,
        usage: Usage,
        *,
        result: Any = None,
        raw: bytes | None = None,
        model_version: str = "",
    ) -> None:
        self._run.feed(Completed(self._attempt, finish_reason, usage, result, raw, model_version))

    def failed(self, failure: Failure) -> None:
        self._run.feed(Broke(self._attempt, failure))


def _weight(chunk: Chunk) -> int:
    return len(chunk.text) + len(chunk.raw or b"") + CHUNK_BYTES


def _said(raw: bytes | None) -> str:
    """The text of a provider's whole answer."""
    try:
        content = json.loads(raw or b"")["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return ""
    return content if isinstance(content, str) else ""
