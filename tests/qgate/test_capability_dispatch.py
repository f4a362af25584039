"""The dispatch machine under any order of facts: what its docstring promises, as properties."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qgate.capability.candidate import Candidate
from qgate.capability.demand import Demand, demand_of
from qgate.capability.dispatch import Dispatch
from qgate.capability.facts import (
    Accepted,
    Broke,
    Cancelled,
    Command,
    Completed,
    Denied,
    End,
    Fact,
    Fail,
    Finish,
    Halt,
    Launch,
    NodeDrains,
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
from qgate.capability.live import Crashes
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.scheduler import Plan
from qgate.capability.work import Begun, Chunk, Failure, Moved, Price, Problem, Usage
from qgate.governance.policy import CapabilityPolicy
from tests.qgate.capability import APP, work

PRICE = Price(Decimal(1), Decimal(1))

CANDIDATES = (
    Candidate("worker", "w1", "a", "s1", fingerprint="s1/t/b", tokenizer="tok"),
    Candidate("worker", "w2", "a", "s1", fingerprint="s1/t/b", tokenizer="tok"),
    Candidate("worker", "w3", "a", "s1", fingerprint="s1/t/b", tokenizer="tok", resident=False),
    Candidate("worker", "w4", "b", "s2", fingerprint="s2/t/b", tokenizer="tok"),
    Candidate("worker", "w5", "c", "", engine="ollama"),
    Candidate("provider", "cloud", "d", "d", price=PRICE, local=False),
    Candidate("provider", "other", "d", "d", price=PRICE, local=False),
    Candidate("nlp", "gate", "qgate-nlp"),
)

FAILURES = st.sampled_from(
    (
        Failure("node_lost", "gone", retriable=True, blame="network"),
        Failure("child_crashed", "died", retriable=True, blame="node", crashed=True),
        Failure("queue_full", "busy", retriable=True, retry_after_s=1.0, usage=Usage()),
        Failure("model_not_found", "no such model", retriable=True),
        Failure("provider_error", "503", retriable=True, blame="provider", status=503),
        Failure("invalid_request", "no", blame="request", status=400),
        Failure("odd", "a defect", blame="node"),
    )
)


def fitting(demand: Demand) -> list[Candidate]:
    """The candidates that a scheduler could offer for this demand."""
    found = []
    for one in CANDIDATES:
        if one.key in demand.tried:
            continue
        if demand.fingerprint and one.fingerprint != demand.fingerprint:
            continue
        if demand.tokenizer and one.tokenizer != demand.tokenizer:
            continue
        if demand.version and one.version != demand.version:
            continue
        found.append(one)
    return found


class DispatchMachine(RuleBasedStateMachine):
    """Plays scheduler, ledger, executors, clock and client, in any order."""

    @initialize(
        stream=st.booleans(),
        move=st.sampled_from(("", ";move=kindred", ";move=none")),
        deadline=st.sampled_from((None, 50.0)),
        kindred=st.booleans(),
    )
    def start(self, stream: bool, move: str, deadline: float | None, kindred: bool) -> None:
        self.now = 0.0
        app = replace(APP, policy=CapabilityPolicy(kindred=kindred))
        request = work("task=chat" + move, stream=stream, deadline=deadline, app=app)
        limits = ScheduleSettings(attempts=5)
        self.move, self.kindred, self.stream = request.request.move, kindred, stream
        self.limits = limits
        self.dispatch = Dispatch(demand_of(request, limits), limits, 100)
        self.planning: list[Demand] = []
        self.reserving: list[Candidate] = []
        self.live: Launch | None = None
        self.dead: list[int] = []
        self.launched = 0
        self.unsettled: set[int] = set()
        self.settled: list[int] = []
        self.said_ids: list[int] = []
        self.generated: list[int] = []  # of the answer that the client sees
        self.said: list[Any] = []
        self.ends: list[Command] = []
        self.wake: float | None = None
        self.blind = False
        self.take(self.dispatch.begin(self.now))

    # --- carrying out

    def tell(self, fact: Fact) -> None:
        self.take(self.dispatch.receive(fact, self.now))

    def take(self, commands: list[Command]) -> None:
        for command in commands:
            assert not self.ends, "nothing follows the end"
            match command:
                case Place():
                    self.planning.append(command.demand)
                case Reserve():
                    assert command.candidate.kind == "provider"
                    self.reserving.append(command.candidate)
                case Launch():
                    self.launch(command)
                case Halt():
                    assert self.live is not None
                    assert self.live.attempt == command.attempt
                    self.dead.append(command.attempt)
                    self.live = None
                case Settle():
                    assert command.attempt in self.unsettled, "settled once, and only what was reserved"
                    self.unsettled.remove(command.attempt)
                    self.settled.append(command.attempt)
                case Say():
                    self.say(command)
                case Wake():
                    assert command.at >= self.now
                    self.wake = command.at
                case Finish() | Fail() | End():
                    self.end(command)

    def launch(self, command: Launch) -> None:
        assert self.live is None, "at most one live attempt"
        assert command.attempt == self.launched + 1
        self.launched = command.attempt
        assert self.launched <= self.limits.attempts
        assert list(command.emitted) == self.generated_for(command), "replays the very ids"
        self.live = command
        if command.candidate.kind == "provider":
            self.unsettled.add(command.attempt)

    def generated_for(self, command: Launch) -> list[int]:
        if self.stream:
            assert list(command.emitted) == self.said_ids or not self.said_ids
            return self.said_ids
        # Not streamed: it may begin anew, or go on with what is held back.
        if not command.emitted:
            self.generated = []
        return self.generated

    def say(self, command: Say) -> None:
        event = command.event
        if isinstance(event, Chunk):
            assert any(isinstance(one, Begun) for one in self.said)
            self.said_ids += event.ids
        if isinstance(event, Moved):
            assert any(isinstance(one, Begun) for one in self.said)
            if event.how == "exact":
                assert self.move != "none"
            if event.how == "kindred":
                assert self.move == "kindred"
                assert self.kindred
        self.said.append(event)

    def end(self, command: Command) -> None:
        self.ends.append(command)
        assert not self.unsettled, "all that was reserved is settled by the end"
        assert self.live is None or isinstance(command, Finish), "nothing runs on"
        if isinstance(command, Finish):
            assert self.said_ids == self.generated, "no token lost or repeated"
            assert command.usage.completion_tokens >= len(self.said_ids)
            self.live = None

    # --- facts

    def running(self) -> bool:
        return self.live is not None and not self.ends

    @precondition(lambda self: self.planning)
    @rule(data=st.data(), luck=st.integers(0, 9))
    def plan(self, data: st.DataObject, luck: int) -> None:
        demand = self.planning.pop(0)
        found = fitting(demand)
        if luck == 9 or not found:
            soon = data.draw(st.booleans())
            problem = Problem("none is free", code="unavailable", retry_after_s=1.0)
            self.tell(Planned(Plan(problem=problem, soon=soon)))
        else:
            order = data.draw(st.permutations(found))
            self.tell(Planned(Plan(candidates=tuple(order), seconds=(1.0,) * len(order))))

    @precondition(lambda self: self.reserving)
    @rule(luck=st.integers(0, 4))
    def reserve(self, luck: int) -> None:
        self.reserving.pop(0)
        self.tell(Reserved() if luck < 4 else Denied(Problem("used up", code="budget_exceeded")))

    @precondition(running)
    @rule(queue=st.integers(0, 3), state=st.sampled_from(("", "resident", "loading")))
    def accept(self, queue: int, state: str) -> None:
        assert self.live is not None
        self.tell(Accepted(self.live.attempt, queue, state))

    @precondition(running)
    @rule(share=st.floats(0, 1))
    def progress(self, share: float) -> None:
        assert self.live is not None
        self.tell(Progressed(self.live.attempt, "loading", share, 3.0))

    @precondition(running)
    @rule(count=st.integers(1, 3), blind=st.sampled_from((False,) * 9 + (True,)))
    def tokens(self, count: int, blind: bool) -> None:
        assert self.live is not None
        if self.live.candidate.fingerprint and not blind:
            ids = tuple(range(len(self.generated), len(self.generated) + count))
            self.generated += ids
            self.tell(Received(self.live.attempt, Chunk("x" * count, ids)))
        else:
            self.tell(Received(self.live.attempt, Chunk("words ")))

    @precondition(running)
    @rule()
    def complete(self) -> None:
        live = self.live
        assert live is not None
        self.live = None  # it is over by itself
        self.tell(Completed(live.attempt, "stop", Usage(3, len(self.generated))))
        assert self.ends

    @precondition(running)
    @rule(failure=FAILURES)
    def break_off(self, failure: Failure) -> None:
        live = self.live
        assert live is not None
        self.live = None
        self.dead.append(live.attempt)
        self.tell(Broke(live.attempt, failure))

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def dead_attempt_speaks(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.dead))
        fact: Any = data.draw(
            st.sampled_from(
                (
                    Received(number, Chunk("ghost", (999,))),
                    Completed(number, "stop", Usage(1, 1)),
                    Broke(number, Failure("node_lost", "gone", retriable=True)),
                    Accepted(number),
                )
            )
        )
        before = len(self.said), len(self.ends), self.launched
        self.tell(fact)
        assert (len(self.said), len(self.ends), self.launched) == before

    @precondition(running)
    @rule(node=st.sampled_from(("w1", "w2", "w3", "cloud")))
    def drain(self, node: str) -> None:
        self.tell(NodeDrains(node))

    @precondition(lambda self: not self.ends)
    @rule(forward=st.sampled_from((0.1, 0.1, 2.0, 2.0, 11.0, 70.0)))
    def time_passes(self, forward: float) -> None:
        self.now += forward
        self.tell(Tick())

    @precondition(lambda self: self.wake is not None and not self.ends)
    @rule()
    def woken(self) -> None:
        assert self.wake is not None
        self.now = max(self.now, self.wake)
        self.tell(Tick())

    @precondition(lambda self: self.launched or self.ends)
    @rule(luck=st.integers(0, 7))
    def cancel(self, luck: int) -> None:
        if luck == 7:
            over = bool(self.ends)
            self.tell(Cancelled())
            assert len(self.ends) == 1
            if not over:
                assert isinstance(self.ends[0], End)

    @invariant()
    def one_end(self) -> None:
        if hasattr(self, "ends"):
            assert len(self.ends) <= 1
            assert (self.dispatch.state == "over") == bool(self.ends)

    @invariant()
    def never_stuck(self) -> None:
        """Somebody has the word: scheduler, ledger, an attempt, or the clock."""
        if hasattr(self, "ends") and not self.ends:
            assert self.planning or self.reserving or self.live is not None or self.wake is not None


DispatchMachine.TestCase.settings = settings(
    max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDispatch = DispatchMachine.TestCase


def test_a_crash_at_the_same_place_twice_is_the_requests_fault() -> None:
    crashes = Crashes()
    assert not crashes.poisonous(4)
    assert crashes.poisonous(4)


def test_a_neighbour_that_has_gone_on_is_not_to_blame() -> None:
    crashes = Crashes()
    assert not crashes.poisonous(4)
    assert not crashes.poisonous(9)
    assert crashes.poisonous(12)  # three are too many for anybody
