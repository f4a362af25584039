"""One request's way through the mesh: a machine that hears facts and answers with commands. Pure.

**Why a machine.** A request can be moved at any moment: its node may refuse, queue, load, drain, crash,
vanish or stall, its money may be refused, its time may run out, its client may go away, and any two of these
may cross on the wire. What must hold whatever the order:

1. exactly one of `Finish`, `Fail` and `End`, and nothing after it;
2. at most one attempt is live, and what an earlier one says is not heard;
3. no token is lost or repeated: the next attempt begins from the very ids that were given on;
4. each attempt that was launched on reserved money is settled exactly once;
5. attempts are bounded, so that a request cannot roam for ever.

**How a stream moves.** Once something was given on, only a node that continues the same stream will do:

    class    | asks for                     | when
    ---------+------------------------------+----------------------------------------------------------
    exact    | the same fingerprint         | every id is known, and `move` is not "none"
    kindred  | the same tokenizer           | as exact, none is left, the request and the app's policy opt in
    restart  | anything that can do it      | nothing was given on (an answer not streamed is held back until
             |                              | it is complete, so it can always be restarted)
    none     | -                            | a stream without ids (a provider's), or nothing fits: an error

Vectors restart on the same version only, so that one reply never mixes two spaces.

**Who is to blame for a crash.** A batch dies as one, so being there proves little. A request is refused as
poison when two crashes in a row found it at the same point (a neighbour will have gone on in between, for
those that were at a crash start one at a time on their next node), or when it was at three.

    state     | fact                         | next state, commands
    ----------+------------------------------+----------------------------------------------------------
    placing   | Planned(candidates)          | reserving: Reserve; or starting: Launch, where it is free
              | Planned(problem)             | pausing: Wake, where one is soon free; placing: Place, where
              |                              | a next class is, or a process is started anew; over: Fail
    reserving | Reserved                     | starting: Launch
              | Denied                       | placing: Place (another), over: Fail
    starting  | Accepted                     | waiting: Wake
    waiting   | Progressed                   | waiting
              | Tick, load or queue too long | starting: Halt, Launch elsewhere; over: Halt, Fail; waiting
    s, w      | Received                     | streaming: Say
    live      | Completed                    | over: Observe, Settle, Finish
              | Broke                        | placing: Settle, Distrust, Place; over: Settle, Fail
              | NodeDrains                   | starting: Halt, Launch elsewhere, where the class has another
              | Tick, silent too long        | as Broke
    pausing   | Tick                         | placing: Place
    any       | Tick, deadline               | over: Halt, Settle, Fail
              | Cancelled                    | over: Halt, Settle, End

"live" is starting, waiting or streaming (s, w: the first two).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qgate.capability.candidate import Candidate
from qgate.capability.demand import Demand, continuation
from qgate.capability.emitted import Emitted, How
from qgate.capability.endings import BUSY, REFUTING, poisonous, problem_of, still_loading, too_late
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
    Place,
    Planned,
    Progressed,
    Received,
    Reserve,
    Reserved,
    Settle,
    Tick,
    Wake,
)
from qgate.capability.live import Crashes, LiveAttempt
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.scheduler import Plan
from qgate.capability.work import Chunk, Failure, Hop, Problem, Usage

State = Literal["placing", "reserving", "starting", "waiting", "streaming", "pausing", "over"]

LOADING: Final = frozenset({"loading", "stored", "swapping"})
SHA_LENGTH: Final = 64


@dataclass(slots=True)
class Dispatch:
    """The machine of one request. `now` is monotonic time in seconds, the same that `Work.deadline` is in."""

    demand: Demand
    settings: ScheduleSettings
    max_tokens: int
    state: State = "placing"
    live: LiveAttempt | None = None
    attempts: int = 0
    hops: list[Hop] = field(default_factory=list)
    shift: str = ""
    answer: Emitted = field(default_factory=Emitted)
    first_token_at: float | None = None
    _how: How = "first"
    _aside: str = ""  # why the live attempt may be given up for a better one
    _aside_begun: bool = False  # whether the answer had begun when a better one was asked for
    _tried: frozenset[tuple[str, str, str, str]] = frozenset()
    _left: frozenset[tuple[str, str, str, str]] = frozenset()  # good again once another fails
    _first: Candidate | None = None
    chosen: Candidate | None = None  # for the attempt under way, or the next
    _reserved: bool = False
    _failure: tuple[Failure, str] | None = None
    _denial: Problem | None = None
    _pause_until: float | None = None
    _woken_at: float | None = None  # when the next tick comes, at the latest
    _paused_before: bool = False
    _crashes: Crashes = field(default_factory=Crashes)
    _evaluated: int = 0

    # --- facts

    def begin(self, now: float) -> list[Command]:
        """The first commands."""
        commands: list[Command] = [Place(self.demand)]
        return self._awake(commands, now)

    def receive(self, fact: Fact, now: float) -> list[Command]:
        """Take a fact; the commands are to be carried out in order."""
        if self.state == "over":
            return []
        attempt = getattr(fact, "attempt", None)
        if attempt is not None and (self.live is None or self.live.number != attempt):
            return []
        if self.live is not None and attempt is not None:
            self.live.heard_at = now
        commands: list[Command]
        match fact:
            case Planned():
                commands = self._planned(fact.plan, now)
            case Reserved():
                commands = self._launch(now) if self.state == "reserving" else []
            case Denied():
                commands = self._denied(fact.problem)
            case Accepted():
                commands = self._accepted(fact, now)
            case Progressed():
                commands = self._progressed(fact, now)
            case Received():
                commands = self._received(fact.chunk, now)
            case Completed():
                commands = self._completed(fact, now)
            case Broke():
                commands = self._broke(fact.failure, now)
            case NodeDrains():
                commands = self._drains(fact.node)
            case Tick():
                self._woken_at = None
                commands = self._tick(now)
            case Cancelled():
                commands = self._cancelled()
        return self._awake(commands, now)

    # --- placing

    def _planned(self, plan: Plan, now: float) -> list[Command]:
        if self._aside:
            return self._aside_planned(plan, now)
        if self.state != "placing":
            return []
        if plan.candidates:
            self.shift = plan.shift
            return self._choose(plan.candidates[0], now)
        if self._returns():
            return [self._place()]
        assert plan.problem is not None
        problem = plan.problem
        wait = problem.retry_after_s
        if plan.soon and wait is not None and wait <= self.settings.retry_wait_s and not self._paused_before:
            # A breaker or a full node is about to open: once per request that is worth waiting for.
            self._paused_before = True
            self._pause_until = now + wait
            self.state = "pausing"
            self._tried = frozenset()
            return []
        if self._how in {"exact", "kindred"}:
            return self._next_class(plan)
        return self._fail(self._best_problem(problem))

    def _choose(self, candidate: Candidate, now: float) -> list[Command]:
        self.chosen = candidate
        if candidate.charged:
            self.state = "reserving"
            return [Reserve(candidate)]
        return self._launch(now)

    def _returns(self) -> bool:
        """Let it go back to where its process died, for no other node will do: a daemon starts a new one."""
        if self._failure is None or not self._failure[0].crashed or self.chosen is None:
            return False
        there = self.chosen.key in self._tried
        self._tried -= {self.chosen.key}
        return there

    def _denied(self, problem: Problem) -> list[Command]:
        if self.state != "reserving" or self.chosen is None:
            return []
        self._tried |= {self.chosen.key}
        self._failure = None
        self.shift = problem.message
        self.state = "placing"
        self._denial = problem
        return [self._place()]

    def _launch(self, now: float) -> list[Command]:
        candidate = self.chosen
        assert candidate is not None
        assert self.live is None
        self._reserved = candidate.charged
        self.attempts += 1
        number = self.attempts
        self.live = LiveAttempt(number, candidate, now, now, len(self.answer.ids))
        self._first = self._first or candidate
        self.state = "starting"
        work = self.demand.work
        return [
            Launch(
                attempt=number,
                candidate=candidate,
                emitted=tuple(self.answer.ids),
                emitted_text=self.answer.text if self.answer.ids else "",
                max_tokens=max(1, self.max_tokens - len(self.answer.ids)),
                deadline=work.deadline,
                alone=self._crashes.count > 0,
            )
        ]

    def _place(self) -> Place:
        demand = replace(self.demand, tried=self._tried | self._left)
        origin = self.chosen
        if origin is not None and self._how in {"exact", "kindred"}:
            demand = continuation(demand, origin, how=self._how)
        elif self._first is not None and self.demand.work.kind == "embedding":
            demand = continuation(demand, self._first, how="same")
        return Place(demand)

    def _next_class(self, plan: Plan) -> list[Command]:
        """Nothing continues the stream in this class: the next one, or an end."""
        if self._how == "exact" and self._kindred_allowed():
            self._how = "kindred"
            if self.answer.moved is not None:
                self.answer.moved = (*self.answer.moved[:2], "kindred")
            return [self._place()]
        if not self.answer.output:
            return self._restart()
        assert plan.problem is not None
        failure, node = self._failure or (Failure("node_failed", "its node is gone"), "")
        problem = problem_of(failure, node, begun=True, detail={"attempts": self.attempts})
        return self._fail(problem)

    def _restart(self) -> list[Command]:
        self._how = "restart"
        self.answer.restart()
        if self.live is None and self._failure is not None:
            failure, node = self._failure
            self.answer.moved = (node, failure.code, "restart")
        self.state = "placing"
        return [self._place()]

    def _kindred_allowed(self) -> bool:
        policy = self.demand.work.app.policy
        origin = self.chosen
        return (
            self.demand.work.request.move == "kindred"
            and policy is not None
            and policy.kindred
            and origin is not None
            and bool(origin.tokenizer)
        )

    # --- a live attempt

    def _accepted(self, fact: Accepted, now: float) -> list[Command]:
        live = self.live
        assert live is not None
        if self.state == "starting":
            self.state = "waiting"
        live.accepted = True
        live.worker = fact.worker or live.worker
        if fact.queue:
            live.idle, live.queued = False, True
            live.queue_until = now + self.settings.queue_wait_s
        if fact.state in LOADING:
            self._loads(live, now)
        if fact.queue or fact.state in LOADING or not self.demand.work.stream:
            return []
        return self.answer.openings(live.candidate)

    def _progressed(self, fact: Progressed, now: float) -> list[Command]:
        live = self.live
        assert live is not None
        if self.state == "starting":
            self.state = "waiting"
        live.progress = (fact.state, fact.share, fact.eta_s)
        self._loads(live, now)
        return []

    def _loads(self, live: LiveAttempt, now: float) -> None:
        live.idle = False
        if live.load_until is None:
            live.load_until = now + self.settings.load_wait_s

    def _received(self, chunk: Chunk, now: float) -> list[Command]:
        live = self.live
        assert live is not None
        self.state = "streaming"
        live.load_until = live.queue_until = None
        if live.first_at is None:
            live.first_at = now
        self.first_token_at = self.first_token_at or now
        live.last_at = now
        live.tokens += len(chunk.ids) or 1
        if not self.answer.take(chunk):
            failure = Failure("invalid_response", "the node sent more text than any answer has", blame="node")
            return [Halt(live.number), *self._broke(failure, now)]
        if not self.demand.work.stream:
            self.answer.hold(chunk)
            return []
        return self.answer.give(chunk, live.candidate)

    def _completed(self, fact: Completed, now: float) -> list[Command]:
        live = self.live
        assert live is not None
        candidate = live.candidate
        served, by_bytes = fact.version.lower(), candidate.kind in {"worker", "pool"}
        if by_bytes and len(served) == SHA_LENGTH and served != candidate.version.lower():
            failure = Failure("wrong_version", "the node served other weights than it was asked for", True)
            self.answer.blind = True  # nobody can go on from the ids of a model that was not asked for
            return self._broke(failure, now)
        asked = self.demand.input_tokens
        usage = live.counted(fact.usage, ids=len(self.answer.ids), prompt=asked, answer=self.max_tokens)
        commands: list[Command] = [live.observed(replace(fact, usage=usage), now), *self._settled(usage)]
        self._evaluated += usage.evaluated_tokens
        whole = replace(usage, evaluated_tokens=self._evaluated)
        self.hops.append(live.hop(usage, ""))
        commands += self.answer.held(candidate)
        self.live = None
        self.state = "over"
        return [*commands, Finish(fact.finish_reason, whole, tuple(self.hops), fact.result, fact.raw)]

    def _broke(self, failure: Failure, now: float) -> list[Command]:
        """The live attempt is over without an answer; go on elsewhere if that can help."""
        live = self.live
        assert live is not None
        candidate = live.candidate
        used = live.used(failure, len(self.answer.ids), self.demand.input_tokens)
        commands = self._settled(used)
        self.hops.append(live.hop(used, failure.code))
        self._evaluated += used.evaluated_tokens if used is not None else 0
        self.live = None
        self._failure = (failure, candidate.node)
        if failure.code in BUSY:
            self._left |= {candidate.key}
        else:
            self._left = frozenset()
            self._tried = (self._tried if live.first_at is None else frozenset()) | {candidate.key}
        if failure.blame != "request" and (failure.code not in BUSY or failure.retry_after_s):
            commands.append(
                Distrust(
                    candidate,
                    failure.code if failure.status is None else f"{failure.code}, HTTP {failure.status}",
                    whole_node=failure.blame in {"network", "provider"} and failure.retry_after_s is None,
                    retry_after_s=failure.retry_after_s,
                    refuted=failure.code in REFUTING,
                    crashed=failure.crashed,
                )
            )
        if failure.crashed and self._crashes.poisonous(len(self.answer.ids)):
            problem = poisonous(self._crashes.count)
            return [*commands, *self._fail(problem)]
        if failure.blame == "request" or not failure.retriable or self.attempts >= self.settings.attempts:
            return [*commands, *self._fail(self._failed_problem())]
        return [*commands, *self._go_on(candidate, failure.code)]

    def _go_on(self, origin: Candidate, reason: str) -> list[Command]:
        self.state = "placing"
        if not self.answer.begun:
            return self._restart()
        may_move = self.demand.work.request.move != "none" and not self.answer.blind
        if may_move and origin.fingerprint:
            self._how = "exact"
        elif may_move and self._kindred_allowed():
            self._how = "kindred"
        elif not self.answer.output:
            return self._restart()
        else:
            return self._fail(self._failed_problem())
        self.answer.moved = (origin.node, reason, self._how)
        return [self._place()]

    # --- giving up a live attempt for a better one

    def _drains(self, node: str) -> list[Command]:
        live = self.live
        if live is None or live.candidate.node != node or live.candidate.kind != "worker" or self._aside:
            return []
        return self._look_aside(_DRAINS)

    def _look_aside(self, reason: str) -> list[Command]:
        """Ask for a place that is better than where the live attempt is."""
        live = self.live
        assert live is not None
        if self.attempts >= self.settings.attempts:
            return []
        self._aside, self._aside_begun = reason, self.answer.begun
        demand = replace(self.demand, tried=self._tried | self._left | {live.candidate.key})
        if self.answer.begun:
            if self.answer.blind or not live.candidate.fingerprint or self.demand.work.request.move == "none":
                self._aside = ""
                return []
            demand = continuation(demand, live.candidate, how="exact")
        elif self.demand.work.kind == "embedding":
            demand = continuation(demand, live.candidate, how="same")
        return [Place(demand)]

    def _aside_planned(self, plan: Plan, now: float) -> list[Command]:
        reason, self._aside = self._aside, ""
        live = self.live
        if live is None:
            return []
        if self._aside_begun != self.answer.begun:
            # What was planned is for an answer that had not begun; only a drain still asks for another.
            return self._look_aside(reason) if reason == _DRAINS else []
        found = next(
            (one for one in plan.candidates if one.resident and not one.queue_s and one.kind == "worker"),
            None,
        )
        if found is None:
            if reason == _LOADS:
                return self._still_loading(live)
            return []
        commands: list[Command] = [Halt(live.number)]
        used = live.used(None, len(self.answer.ids), self.demand.input_tokens)
        commands += self._settled(used)
        self.hops.append(live.hop(used, reason))
        self._left |= {live.candidate.key}
        self._how = "exact" if self.answer.ids else "restart"
        self.answer.moved = (live.candidate.node, reason, self._how)
        self.live = None
        self.chosen = found
        return [*commands, *self._launch(now)]

    def _still_loading(self, live: LiveAttempt) -> list[Command]:
        self._failure = None
        problem = still_loading(live.candidate, live.progress)
        used = live.used(None, len(self.answer.ids), self.demand.input_tokens)
        commands: list[Command] = [Halt(live.number), *self._settled(used)]
        self.hops.append(live.hop(used, "the model is still being loaded"))
        self.live = None
        return [*commands, *self._fail(problem)]

    # --- time

    def _tick(self, now: float) -> list[Command]:
        deadline = self.demand.work.deadline
        live = self.live
        if deadline is not None and now >= deadline:
            commands = self._drop_live("the deadline passed")
            problem = too_late(self.attempts)
            return [*commands, *self._fail(problem)]
        if self.state == "pausing" and self._pause_until is not None and now >= self._pause_until:
            self._pause_until = None
            self.state = "placing"
            return [self._place()]
        if live is None or self._aside:
            return []
        if live.load_until is not None and now >= live.load_until:
            live.load_until = None
            return self._look_aside(_LOADS) or self._still_loading(live)
        if live.queue_until is not None and now >= live.queue_until:
            live.queue_until = None
            return self._look_aside("its queue was too long")
        if now >= live.silent_at(self.settings.stall_s, self.demand.input_tokens):
            failure = Failure("stalled", "the node has gone silent", retriable=True, blame="node")
            return [Halt(live.number), *self._broke(failure, now)]
        return []

    def _awake(self, commands: list[Command], now: float) -> list[Command]:
        """Ask to be woken where nothing that was asked for comes early enough."""
        if self.state == "over":
            return commands
        due = self.demand.work.deadline
        if self._pause_until is not None and (due is None or self._pause_until < due):
            due = self._pause_until
        if self.live is not None:
            its = self.live.due(self.settings.stall_s, self.demand.input_tokens, now)
            due = its if due is None or its < due else due
        if due is not None and (self._woken_at is None or due < self._woken_at):
            self._woken_at = due
            commands.append(Wake(max(due, now)))
        return commands

    # --- ends

    def _cancelled(self) -> list[Command]:
        commands = self._drop_live("it was cancelled")
        self.state = "over"
        return [*commands, End(tuple(self.hops), self._usage_so_far())]

    def _drop_live(self, reason: str) -> list[Command]:
        live = self.live
        if live is None:
            return []
        used = live.used(None, len(self.answer.ids), self.demand.input_tokens)
        self.hops.append(live.hop(used, reason))
        self.live = None
        return [Halt(live.number), *self._settled(used, live.number)]

    def _fail(self, problem: Problem) -> list[Command]:
        self.state = "over"
        return [Fail(problem, tuple(self.hops), self._usage_so_far())]

    def _failed_problem(self) -> Problem:
        assert self._failure is not None
        failure, node = self._failure
        return problem_of(failure, node, begun=self.answer.output, detail={"attempts": self.attempts})

    def _best_problem(self, problem: Problem) -> Problem:
        """With every candidate tried, what the last one said tells more than that none is left."""
        if self._failure is not None and problem.code == "unavailable":
            return self._failed_problem()
        return self._denial if self._denial is not None else problem

    # --- money

    def _settled(self, usage: Usage | None, number: int | None = None) -> list[Command]:
        if not self._reserved:
            return []
        self._reserved = False
        return [Settle(number if number is not None else self.attempts, usage)]

    def _usage_so_far(self) -> Usage:
        known = [hop.usage for hop in self.hops if hop.usage is not None]
        prompt = max((one.prompt_tokens for one in known), default=0)
        return Usage(prompt, len(self.answer.ids), 0, sum(one.evaluated_tokens for one in known))


_DRAINS: Final = "the node is draining"
_LOADS: Final = "its model is still being loaded"
