"""When a node leaves its home pool, and when it goes back: one pure machine for minigates and qdaemons.

`step(state, event, now, rules)` returns what is to be written down, then what is to be done, and when to look
again. ``now`` is in seconds and only moves forward: unix time when the process began plus what its monotonic
clock has counted since, so that the times that are kept mean something to the next process.

What the driver says of a pool is one word, its `Sight`:

    unknown   nothing has been heard yet               suspect   the tunnel is silent, a probe is under way
    well      a tunnel is up and the pool takes work   dead      silent, and an authenticated probe failed,
    unfit     a tunnel is up, the pool lags behind               or the pool is shutting down

Promises, in their order of precedence:

    5  mode "manual" never moves by itself; what it sees it reports, and it moves when it is ordered to
    1  an emergency move (the target is dead) is never delayed, not even where home is being held off
    3  after a flap of home no return until `hold_s` have passed since the last flap
    2  back home after `return_after_s` of an unbroken run in which home was well
    4  rebalancing (an order to reassign home) only while the target is well, nothing is held, and
       `voluntary_s` have passed since the last voluntary move

A flap is a failure of home within `flap_s` of home's last failure, or of a return. A failure is the step into
"dead" of a home that this process has seen up: a node that starts while home is down does not count it.

    rule        from            to              the streams that are open there
    ---------   -------------   -------------   ------------------------------------------------
    emergency   a dead target   the first well  go on resuming until their window ends
    return      another pool    home            drain
    order       any             as ordered      drain
    rebalance   home            the new home    drain
    withdrawn   a pool that the home            drain: the roster does not name it any more
                roster dropped
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

RETURN_AFTER_S: Final = (30.0, 50.0)
"""A node's own wait within the promised 30 to 60 s: spread, so that a fleet does not come home as one."""

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of the promises, in seconds."""

    return_after_s: float = RETURN_AFTER_S[0]
    flap_s: float = 300.0
    hold_s: float = 300.0
    voluntary_s: float = 300.0
    doubt_s: float = 0.25  # how long a suspect target keeps its turn before the next pool is dialled too
    stagger_s: float = 0.75  # the same of each pool that is dialled after it
    patience_s: float = 10.0  # how long other pools may take to answer before that is an incident

    @classmethod
    def spread(cls, share: float) -> Rules:
        """The rules of one node; ``share`` in [0, 1) says where in the span its return lies."""
        least, most = RETURN_AFTER_S
        return cls(return_after_s=least + (most - least) * share)


# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configured:
    """The roster, or what is left of it: ``pools`` with home first, the mode."""

    pools: tuple[bytes, ...]
    mode: str = "auto"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is now known of a pool; ``cause`` is for people."""

    pool: bytes
    sight: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order that was checked: ``verb`` is move, back or reassign; good until ``until``."""

    verb: str
    target: bytes
    number: int
    issuer: bytes
    until: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Configured | Seen | Ordered | Tick


# --- what comes out -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """New streams go to ``to`` from now on; ``drain``: those at ``source`` are to end, else they resume."""

    source: bytes
    to: bytes
    rule: str
    drain: bool
    cause: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that a person should know: ``kind`` is target_dead, nowhere_to_go or order_refused."""

    kind: str
    pool: bytes
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """Write ``state`` down if ``persist``, then act. ``dial``: pools to hold tunnels to, nearest first."""

    state: State
    persist: bool
    moves: tuple[Move, ...]
    incidents: tuple[Incident, ...]
    dial: tuple[bytes, ...]
    wake_at: float | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a pool looks like, since when, and why."""

    word: str = "unknown"
    since: float = -math.inf
    cause: str = ""

    @property
    def usable(self) -> bool:
        """New work can go there."""
        return self.word in {"well", "unfit"}


UNKNOWN: Final = Sight()


@dataclass(frozen=True, slots=True)
class State:
    """All that a step depends on. `kept` says which of it outlives the process."""

    pools: tuple[bytes, ...] = ()
    mode: str = "auto"
    target: bytes = b""
    assigned: bytes = b""  # home, where rebalancing has chosen another than the roster's first
    pinned: bool = False  # ordered to stay where it is
    failed_at: float | None = None  # home's last failure
    home_down: bool = False  # it has not been well since
    flapped_at: float | None = None
    returned_at: float | None = None
    moved_at: float | None = None  # the last voluntary move
    orders: Mapping[bytes, int] = field(default_factory=dict)  # the newest number by issuer
    pending: Ordered | None = None
    sights: Mapping[bytes, Sight] = field(default_factory=dict)
    doubted_at: float = 0.0  # since when the target has not been usable
    told: frozenset[tuple[str, bytes]] = frozenset()  # incidents that still last

    @property
    def home(self) -> bytes:
        """The pool that this node belongs at."""
        if self.assigned in self.pools:
            return self.assigned
        return self.pools[0] if self.pools else b""

    @property
    def order(self) -> tuple[bytes, ...]:
        """Pools in the order of preference."""
        return (self.home, *(pool for pool in self.pools if pool != self.home))

    def sight(self, pool: bytes) -> Sight:
        """What a pool looks like."""
        return self.sights.get(pool, UNKNOWN)

    def held_until(self, rules: Rules) -> float:
        """Until when home is held off after a flap; minus infinity without one."""
        return -math.inf if self.flapped_at is None else self.flapped_at + rules.hold_s


# --- the machine --------------------------------------------------------------------------------------------


def step(state: State, event: Event, now: float, rules: Rules) -> Ready:
    """Take one event. Pure; the driver persists, then acts, then looks again at ``wake_at``."""
    before = state
    incidents: list[Incident] = []
    moves: list[Move] = []
    state = _take(state, event, now, rules, incidents)
    if state.pools:
        state = _withdraw(state, now, moves)
        if state.pending is not None:
            state = _carry_out(state, now, rules, moves, incidents)
        if state.mode == "auto":
            state = _emergency(state, now, moves)
            state = _return_home(state, now, rules, moves)
        state = _report(state, now, rules, incidents)
        doubted = before.target == state.target and not before.sight(state.target).usable and before.pools
        if not doubted:
            state = replace(state, doubted_at=now)
    dial, dial_at = _dial(state, now, rules)
    return Ready(
        state=state,
        persist=kept(state) != kept(before),
        moves=tuple(moves),
        incidents=tuple(incidents),
        dial=dial,
        wake_at=_wake_at(state, now, rules, dial_at),
    )


def _take(state: State, event: Event, now: float, rules: Rules, incidents: list[Incident]) -> State:
    match event:
        case Configured(pools, mode):
            known = {pool: sight for pool, sight in state.sights.items() if pool in pools}
            changed = mode != state.mode
            return replace(
                state,
                pools=pools,
                mode=mode,
                sights=known,
                target=state.target or pools[0],
                pinned=state.pinned and not changed,  # automation takes over where it is switched on
                assigned=state.assigned if state.assigned in pools else b"",
            )
        case Seen(pool, word, cause):
            return _saw(state, pool, Sight(word, now, cause), rules)
        case Ordered():
            return _ordered(state, event, now, rules, incidents)
    return state


def _saw(state: State, pool: bytes, sight: Sight, rules: Rules) -> State:
    """Note what a pool looks like; a step of home into "dead" is a failure, and perhaps a flap."""
    if pool not in state.pools:
        return state
    before = state.sight(pool)
    if before.word == sight.word:
        sight = replace(sight, since=before.since, cause=sight.cause or before.cause)
    state = replace(state, sights={**state.sights, pool: sight})
    if pool != state.home:
        return state
    if sight.usable:
        return replace(state, home_down=False) if state.home_down else state
    if sight.word != "dead" or state.home_down:
        return state
    if before.word == "unknown":  # it was down when we came: nothing has failed that we had
        return replace(state, home_down=True)
    now = sight.since
    recent = [at for at in (state.failed_at, state.returned_at) if at is not None and now - at < rules.flap_s]
    return replace(state, failed_at=now, home_down=True, flapped_at=now if recent else state.flapped_at)


def _ordered(state: State, order: Ordered, now: float, rules: Rules, incidents: list[Incident]) -> State:
    if order.number <= state.orders.get(order.issuer, 0):
        return state
    state = replace(state, orders={**state.orders, order.issuer: order.number})
    why = ""
    if order.target not in state.pools:
        why = "the roster does not name that pool"
    elif order.verb == "reassign":
        why = _why_not_reassign(state, now, rules)
    if why:
        incidents.append(Incident("order_refused", order.target, why))
        return state
    return replace(state, pending=order)


def _why_not_reassign(state: State, now: float, rules: Rules) -> str:
    if state.mode == "manual":
        return "mode manual: nothing is rebalanced"
    if state.sight(state.target).word != "well" or state.target != state.home:
        return "the node is not at a home that is well"
    if now < state.held_until(rules):
        return "home is held off after a flap"
    if state.moved_at is not None and now - state.moved_at < rules.voluntary_s:
        return f"the last voluntary move was {now - state.moved_at:.0f} s ago"
    return ""


def _withdraw(state: State, now: float, moves: list[Move]) -> State:
    if state.target in state.pools:
        return state
    usable = [pool for pool in state.order if state.sight(pool).usable]
    to = usable[0] if usable and state.mode == "auto" else state.home
    moves.append(Move(state.target, to, "withdrawn", True, "the roster does not name the pool any more"))
    return replace(state, target=to, pinned=False)


def _carry_out(state: State, now: float, rules: Rules, moves: list[Move], incidents: list[Incident]) -> State:
    """Do what was ordered once the target is there; an order that has run out is reported."""
    order = state.pending
    assert order is not None
    if order.target not in state.pools or now >= order.until:
        incidents.append(Incident("order_refused", order.target, "the pool was not reached in time"))
        return replace(state, pending=None)
    if order.verb == "reassign" and (why := _why_not_reassign(state, now, rules)):
        incidents.append(Incident("order_refused", order.target, why))
        return replace(state, pending=None)
    if not state.sight(order.target).usable:
        return state
    source = state.target
    state = replace(state, pending=None, target=order.target)
    if order.verb == "reassign" and source != order.target:  # a new home; the old one keeps its failures
        state = replace(state, assigned=order.target, moved_at=now, home_down=False, failed_at=None)
    if order.verb == "back":
        state = replace(state, assigned=b"")
    state = replace(state, pinned=order.target != state.home)
    if source != order.target:
        rule = "rebalance" if order.verb == "reassign" else "order"
        moves.append(Move(source, order.target, rule, True, "", order.by))
        if order.target == state.home and order.verb != "reassign":
            state = replace(state, returned_at=now)
    return state


def _emergency(state: State, now: float, moves: list[Move]) -> State:
    sight = state.sight(state.target)
    if sight.word != "dead":
        return state
    others = [pool for pool in state.order if pool != state.target]
    well = [pool for pool in others if state.sight(pool).word == "well"]
    found = well or [pool for pool in others if state.sight(pool).usable]
    if not found:
        return state
    moves.append(Move(state.target, found[0], "emergency", False, sight.cause))
    state = replace(state, target=found[0], pinned=False)
    return replace(state, returned_at=now) if found[0] == state.home else state


def _return_home(state: State, now: float, rules: Rules, moves: list[Move]) -> State:
    if state.target == state.home or state.pinned or state.pending is not None:
        return state
    if now < _return_at(state, rules):
        return state
    ran = now - state.sight(state.home).since
    moves.append(Move(state.target, state.home, "return", True, f"home has been well for {ran:.0f} s"))
    return replace(state, target=state.home, returned_at=now)


def _return_at(state: State, rules: Rules) -> float:
    """When home may have this node back, as things are."""
    home = state.sight(state.home)
    if home.word != "well":
        return math.inf
    return max(home.since + rules.return_after_s, state.held_until(rules))


def _report(state: State, now: float, rules: Rules, incidents: list[Incident]) -> State:
    """Tell once of each lasting trouble: a dead target that manual mode stays at, or nowhere to go."""
    sight = state.sight(state.target)
    now_told: set[tuple[str, bytes]] = set()
    if sight.word == "dead" and len(state.pools) > 1:
        if state.mode == "manual":
            now_told.add(("target_dead", state.target))
        elif now >= sight.since + rules.patience_s:
            now_told.add(("nowhere_to_go", state.target))
    incidents += [Incident(kind, pool, sight.cause) for kind, pool in sorted(now_told - state.told)]
    return replace(state, told=frozenset(now_told))


# --- tunnels and times --------------------------------------------------------------------------------------


def _dial(state: State, now: float, rules: Rules) -> tuple[tuple[bytes, ...], float | None]:
    """Pools to hold tunnels to, and when one more may be due.

    Home and the target always, and the pool that issues the roster; the pool of an order under way, in manual
    mode one standby; and while the target is not usable, the others one after the other.
    """
    if not state.pools:
        return (), None
    found = [state.home]
    if state.target != state.home:
        found.insert(0, state.target)
    if state.pools[0] not in found:  # whose node it is, and who may call it back
        found.append(state.pools[0])
    if state.pending is not None and state.pending.target not in found:
        found.append(state.pending.target)
    others = [pool for pool in state.order if pool not in found]
    if state.mode == "manual" and state.target == state.home:
        return (*found, *others[:1]), None
    target = state.sight(state.target)
    if target.usable or state.mode == "manual":
        return tuple(found), None
    if state.target != state.home and state.sight(state.home).usable:
        return tuple(found), None
    at = state.doubted_at
    if target.word != "dead":
        at += rules.doubt_s if target.word == "suspect" else rules.stagger_s
    for pool in others:
        if now < at:
            return tuple(found), at
        found.append(pool)
        sight = state.sight(pool)
        if sight.usable:
            break
        if sight.word != "dead":
            at += rules.stagger_s
    return tuple(found), None


def _wake_at(state: State, now: float, rules: Rules, dial_at: float | None) -> float | None:
    times = [] if dial_at is None else [dial_at]
    if state.pending is not None:
        times.append(state.pending.until)
    elif state.mode == "auto" and state.target != state.home and not state.pinned:
        at = _return_at(state, rules)
        if at < math.inf:
            times.append(max(at, now))
    target = state.sight(state.target)
    if state.mode == "auto" and target.word == "dead" and now < target.since + rules.patience_s:
        times.append(target.since + rules.patience_s)
    return min(times, default=None)


# --- what outlives the process ------------------------------------------------------------------------------


def kept(state: State) -> dict[str, Any]:
    """The part of a state that the next process needs, as JSON can say it."""
    return {
        "version": _FORMAT,
        "target": state.target.hex(),
        "assigned": state.assigned.hex(),
        "mode": state.mode,
        "pinned": state.pinned,
        "failed_at": state.failed_at,
        "home_down": state.home_down,
        "flapped_at": state.flapped_at,
        "returned_at": state.returned_at,
        "moved_at": state.moved_at,
        "orders": {issuer.hex(): number for issuer, number in sorted(state.orders.items())},
    }


def dump_state(state: State) -> str:
    """The text that `load_state` reads."""
    return json.dumps(kept(state), indent=1) + "\n"


def load_state(text: str, now: float) -> State:
    """What the last process wrote down. Raises ValueError for a text that is damaged.

    Times that lie in the future, because the clock was set back meanwhile, become ``now``: a hold may last
    longer than it should, and never for ever.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.keys() != kept(State()).keys():
        raise ValueError("missing or unknown fields")
    if document["version"] != _FORMAT:
        raise ValueError("written by another version of this program")
    mode = document["mode"]
    if mode not in {"auto", "manual"}:
        raise ValueError("an unknown mode")
    orders = document["orders"]
    if not isinstance(orders, dict) or not all(type(number) is int for number in orders.values()):
        raise ValueError("orders must be numbers")
    return State(
        mode=mode,
        target=_key(document["target"]),
        assigned=_key(document["assigned"]),
        pinned=_flag(document["pinned"]),
        failed_at=_time(document["failed_at"], now),
        home_down=_flag(document["home_down"]),
        flapped_at=_time(document["flapped_at"], now),
        returned_at=_time(document["returned_at"], now),
        moved_at=_time(document["moved_at"], now),
        orders={_key(issuer): number for issuer, number in orders.items()},
        doubted_at=now,
    )


def _key(value: object) -> bytes:
    if not isinstance(value, str) or len(value) not in {0, 64}:
        raise ValueError("a key must have 64 hexadecimal digits")
    return bytes.fromhex(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a flag must be true or false")
    return value


def _time(value: object, now: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a time must be a number")
    return min(float(value), now)
