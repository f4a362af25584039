"""Bugs planted on purpose: each must be caught, or the watch watches nothing.

A bug is a set of replacements of attributes, by name, with the promises that it should be caught breaking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from qgate.federation import catalogue, results, suspicion
from qgate.federation.log import continuity, hlc, replica
from qgate.federation.log.entry import Entry
from qgate.federation.log.streams import STREAMS, Stream
from tests.sim.world import ELECTIONS, USUAL, Plan
from tunnel_proto import failover
from tunnel_proto.failover import Move, Ready, Rules, State


@dataclass(frozen=True, slots=True)
class Bug:
    """`patches` maps "module.attribute" objects to what stands in their place; `promises` break by it, in
    histories of that `plan`; of the first 200, number `first` is tried first.
    """

    patches: tuple[tuple[Any, str, Any], ...]
    promises: frozenset[str]
    plan: Plan = USUAL
    first: int = 0

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """While the bug is there."""
        with contextlib.ExitStack() as stack:
            for owner, name, value in self.patches:
                stack.enter_context(mock.patch.object(owner, name, value))
            yield


def _bug(*patches: tuple[Any, str, Any], promises: str, plan: Plan = USUAL, first: int = 0) -> Bug:
    return Bug(patches, frozenset(promises.split("; ")), plan, first)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _after(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *given, **named: change(function(*given, **named))


def _forgetful(state: State) -> dict[str, Any]:
    return {**_KEPT(state), "flapped_at": None, "failed_at": None, "returned_at": None}


def _late_emergency(state: State, now: float, moves: list[Move]) -> State:
    sight = state.sight(state.target)
    return _EMERGENCY(state, now, moves) if now - sight.since > 3 else state


def _eager_return(state: State, rules: Rules) -> float:
    return (
        state.sight(state.home).since + rules.return_after_s
        if state.sight(state.home).word == "well"
        else 1e18
    )


def _hasty_return(state: State, rules: Rules) -> float:
    home = state.sight(state.home)
    return max(home.since + 5, state.held_until(rules)) if home.word == "well" else 1e18


def _automatic(state: State, event: failover.Event, now: float, rules: Rules) -> Ready:
    if state.mode != "manual":
        return _STEP(state, event, now, rules)
    ready = _STEP(replace(state, mode="auto"), event, now, rules)
    return replace(ready, state=replace(ready.state, mode="manual"))


def _trusting(terms_and_more: Mapping[str, Stream]) -> dict[str, Stream]:
    return {name: replace(stream, level=0) for name, stream in terms_and_more.items()}


def _unstranded(*given: Any) -> Any:
    state, outcome = _RECEIVE(*given)
    if isinstance(outcome, replica.Accepted) and outcome.stranded_after is not None:
        outcome = replace(outcome, stranded_after=None)
    return state, outcome


def _forever_blocked(*given: Any) -> Any:
    state, judged = _RELEASE(*given)
    return replace(state, blocked=given[0].blocked), [
        replace(one, disposition="held", reason="behind") if one.entry.stream in given[0].blocked else one
        for one in judged
    ]


def _nobody_asked(state: continuity.ContinuityState, now: float) -> continuity.ContinuityState:
    decided = _DECIDE(state, now)
    return replace(decided, phase="publishing") if decided.phase == "asking" else decided


def _impatient(state: continuity.ContinuityState, now: float) -> continuity.ContinuityState:
    decided = _DECIDE(state, now)
    if decided.phase == "opening" and not decided.lost and not decided.suspicious:
        return replace(decided, phase="publishing")
    return decided


def _credulous(state: continuity.ContinuityState, event: continuity.Event, now: float) -> Any:
    if isinstance(event, continuity.PeerHas):
        event = replace(event, ours=True)
    return _CONTINUE(state, event, now)


def _decided(documents: Iterable[catalogue.Document]) -> catalogue.Standing:
    standing = _FOLD(documents)
    if not standing.contenders:
        return standing
    return replace(standing, frozen=False, master=standing.contenders[0].master, contenders=())


def _allowing(mastership: replica.Mastership, entry: Entry) -> tuple[str, str]:
    return ("held", "frozen") if mastership.frozen else ("apply", "")


def _told_once(telling: results.Telling, kept: Iterable[str], now: float) -> list[str]:
    jobs = [job for job in kept if job not in telling.told]
    telling.told.update((job, (1, now)) for job in jobs)
    return jobs


def _by_silence(
    machine: suspicion.Suspicion, one: suspicion.Watched, now: float, *, doubt: bool, alone: bool
) -> bool:
    del alone
    return not doubt and now - one.heard_at >= machine.patience.dead_s


def _buried(method: Callable[..., suspicion.Suspicion]) -> Callable[..., suspicion.Suspicion]:
    def unless_dead(
        machine: suspicion.Suspicion, key: bytes, now: float, **named: bool
    ) -> suspicion.Suspicion:
        one = machine.peers.get(key)
        return machine if one is None or one.state == suspicion.DEAD else method(machine, key, now, **named)

    return unless_dead


_FOLD = catalogue.fold
_KEPT = failover.kept
_EMERGENCY = failover._emergency
_STEP = failover.step
_RECEIVE = replica.receive
_RELEASE = replica.release
_DECIDE = continuity._decide
_CONTINUE = continuity.step


def bugs() -> dict[str, Bug]:
    """All of them, by name."""
    from tests.sim import elections, pool

    return {
        "who forgot a vote votes again": _bug(
            (elections, "ABSTAIN_S", 0.0), promises="one elected", plan=ELECTIONS
        ),
        "signatures are not checked": _bug((replica, "check_signature", _nothing), promises="authentic"),
        "payloads are not checked": _bug(
            (replica, "check_contents", _nothing), promises="authentic; converged"
        ),
        "what is ahead is believed": _bug((hlc, "ahead", lambda stamp, now: 0.0), promises="clock"),
        "levels are ignored": _bug(
            (pool, "STREAMS", _trusting(STREAMS)),
            (pool, "_place", lambda row, level: (row.entry, row.contents, "")),
            promises="trust",
        ),
        "pool-local tables have a stream": _bug((pool, "published_stream", _nothing), promises="local stays"),
        "a cut strands nothing": _bug((pool, "receive", _unstranded), promises="converged; no fork"),
        "a held stream stays held": _bug(
            (pool, "release", _forever_blocked), promises="converged; one catalogue"
        ),
        "a restored pool asks nobody": _bug(
            (continuity, "_decide", _nobody_asked), promises="no fork; converged"
        ),
        "silent peers are taken to have nothing": _bug(
            (continuity, "_decide", _impatient), promises="no fork"
        ),
        "peers are not believed": _bug((continuity, "step", _credulous), promises="no fork; converged"),
        "a contested epoch is decided": _bug(
            (catalogue, "fold", _decided), promises="one master; one catalogue"
        ),
        "a lower epoch is taken": _bug(
            (replica.Mastership, "allows", _allowing), promises="one master; one catalogue", first=9
        ),
        "a living gate's request is recorded": _bug(
            (results, "judge", lambda *_, recorded, underway: "known" if recorded else "record"),
            promises="recorded once",
        ),
        "what is recorded is recorded again": _bug(
            (results, "judge", lambda *_, recorded, underway: "wait" if underway else "record"),
            promises="recorded once",
        ),
        "results are acknowledged unrecorded": _bug(
            (results, "judge", lambda *_, recorded, underway: "wait" if underway else "known"),
            promises="no lost job",
        ),
        "a dead gate's requests are waited for": _bug(
            (results, "judge", lambda *_, recorded, underway: "known" if recorded else "wait"),
            promises="no lost job",
        ),
        "a result is told once": _bug((results.Telling, "due", _told_once), promises="no lost job"),
        "silence alone kills": _bug(
            (suspicion.Suspicion, "_is_dead", _by_silence), promises="no false death"
        ),
        "nobody doubts itself": _bug((suspicion, "_doubts", lambda peers: False), promises="self-doubt"),
        "whoever was dead stays dead": _bug(
            (suspicion.Suspicion, "heard", _buried(suspicion.Suspicion.heard)),
            (suspicion.Suspicion, "probed", _buried(suspicion.Suspicion.probed)),
            promises="life seen; death seen",  # who hears nobody ever again doubts itself
        ),
        "probes are not counted": _bug(
            (suspicion.Suspicion, "probed", lambda machine, *_, **__: machine), promises="death seen"
        ),
        "a hold is not observed": _bug((failover, "_return_at", _eager_return), promises="3 hold"),
        "a return after five seconds": _bug((failover, "_return_at", _hasty_return), promises="2 unbroken"),
        "nobody returns": _bug((failover, "_return_home", lambda state, *_: state), promises="2 returns"),
        "an emergency waits": _bug((failover, "_emergency", _late_emergency), promises="1 at once; 1 moves"),
        "manual mode moves": _bug((failover, "step", _automatic), promises="5 manual; 1 at once"),
        "a restart forgets the flap": _bug((failover, "kept", _forgetful), promises="3 hold"),
        "balance moves at will": _bug(
            (failover, "_why_not_reassign", lambda *_: ""), promises="4 seldom; 4 calm", first=41
        ),
    }
