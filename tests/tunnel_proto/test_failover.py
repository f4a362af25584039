"""The moving machine, as a table of conversations; its promises over simulated time are in the next file."""

from __future__ import annotations

import json

import pytest

from tunnel_proto.failover import (
    Configured,
    Event,
    Incident,
    Move,
    Ordered,
    Ready,
    Rules,
    Seen,
    State,
    Tick,
    dump_state,
    load_state,
    step,
)

HOME, NEXT, LAST = (bytes((n,)) * 32 for n in (1, 2, 3))
RULES = Rules(return_after_s=40.0)


class Node:
    """A machine with its clock; `say` is one event, and the moves that it leads to."""

    def __init__(self, *, mode: str = "auto", pools: tuple[bytes, ...] = (HOME, NEXT, LAST)) -> None:
        self.state = State()
        self.now = 1000.0
        self.ready: Ready | None = None
        self.say(Configured(pools, mode))

    def say(self, event: Event) -> tuple[Move, ...]:
        self.ready = step(self.state, event, self.now, RULES)
        self.state = self.ready.state
        return self.ready.moves

    def see(self, pool: bytes, sight: str, cause: str = "") -> tuple[Move, ...]:
        return self.say(Seen(pool, sight, cause))

    def wait(self, seconds: float) -> tuple[Move, ...]:
        """Let time pass, looking whenever the machine asked to."""
        end = self.now + seconds
        moves: list[Move] = []
        while self.ready is not None and self.ready.wake_at is not None and self.ready.wake_at <= end:
            assert self.ready.wake_at >= self.now
            stuck = self.ready.wake_at == self.now
            self.now = self.ready.wake_at
            moves += self.say(Tick())
            assert not (stuck and self.ready.wake_at == self.now), "it would look for ever"
        self.now = end
        moves += self.say(Tick())
        return tuple(moves)

    def dial(self) -> tuple[bytes, ...]:
        assert self.ready is not None
        return self.ready.dial

    def incidents(self) -> tuple[Incident, ...]:
        assert self.ready is not None
        return self.ready.incidents

    def order(self, verb: str, target: bytes, *, number: int = 1, issuer: bytes = HOME) -> tuple[Move, ...]:
        return self.say(Ordered(verb, target, number, issuer, self.now + 600, "admin"))


def settled(**options: object) -> Node:
    """A node that has been well at home for a while."""
    node = Node(**options)  # type: ignore[arg-type]
    node.see(HOME, "well")
    node.wait(1000)
    return node


def test_only_home_is_dialled_while_it_is_well() -> None:
    node = settled()
    assert (node.state.target, node.dial()) == (HOME, (HOME,))


def test_a_dead_home_is_left_for_the_first_pool_that_answers() -> None:
    node = settled()
    assert node.see(HOME, "suspect") == ()
    assert node.dial() == (HOME,)
    assert node.wait(0.25) == ()
    assert node.dial() == (HOME, NEXT)
    assert node.see(NEXT, "well") == ()  # home may yet answer
    assert node.see(HOME, "dead", "connection refused") == (
        Move(HOME, NEXT, "emergency", drain=False, cause="connection refused"),
    )
    assert node.dial() == (NEXT, HOME)


def test_a_pool_that_does_not_answer_either_is_not_waited_for() -> None:
    node = settled()
    node.see(HOME, "dead")
    assert node.dial() == (HOME, NEXT)
    node.wait(0.75)
    assert node.dial() == (HOME, NEXT, LAST)
    (move,) = node.see(LAST, "well")
    assert (move.to, move.rule) == (LAST, "emergency")


def test_a_pool_that_refuses_makes_room_for_the_next_at_once() -> None:
    node = settled()
    node.see(HOME, "dead")
    node.see(NEXT, "dead")
    assert node.dial() == (HOME, NEXT, LAST)


def test_home_again_after_an_unbroken_run() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    node.wait(100)
    node.see(HOME, "well")
    assert node.wait(39.9) == ()
    node.see(HOME, "suspect")
    node.see(HOME, "well")
    assert node.wait(39.9) == ()
    (move,) = node.wait(0.2)
    assert (move.source, move.to, move.rule, move.drain) == (NEXT, HOME, "return", True)


def test_a_home_that_lags_behind_is_not_returned_to() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    node.see(HOME, "unfit", "its store is away")
    assert node.wait(3600) == ()


def test_a_flap_holds_home_off_for_five_minutes_from_the_last_one() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    node.see(HOME, "well")
    (move,) = node.wait(60)
    assert move.rule == "return"
    (move,) = node.see(HOME, "dead")  # within 300 s of the return
    assert move.rule == "emergency"
    node.see(HOME, "well")
    assert node.wait(200) == ()
    node.see(HOME, "dead")  # once more: the hold begins anew
    node.see(HOME, "well")
    assert node.wait(299) == ()
    (move,) = node.wait(2)
    assert move.rule == "return"


def test_an_emergency_goes_even_to_a_home_that_is_held_off() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    node.see(HOME, "well")
    node.see(HOME, "dead")  # a flap
    node.see(HOME, "well")
    (move,) = node.see(NEXT, "dead")
    assert (move.to, move.rule) == (HOME, "emergency")


def test_manual_mode_stays_and_says_so_once() -> None:
    node = settled(mode="manual")
    assert node.dial() == (HOME, NEXT), "a standby tunnel carries the orders"
    node.see(NEXT, "well")
    assert node.see(HOME, "dead", "no answer") == ()
    assert node.incidents() == (Incident("target_dead", HOME, "no answer"),)
    assert node.wait(3600) == ()
    assert node.incidents() == ()
    (move,) = node.order("move", NEXT, issuer=NEXT)
    assert (move.to, move.rule, move.by) == (NEXT, "order", "admin")
    node.see(HOME, "well")
    assert node.wait(3600) == ()
    (move,) = node.order("back", HOME, number=2, issuer=NEXT)
    assert (move.to, move.rule) == (HOME, "order")


def test_an_order_waits_for_its_target_and_runs_out() -> None:
    node = settled()
    assert node.order("move", LAST) == ()
    assert node.dial() == (HOME, LAST)
    (move,) = node.see(LAST, "well")
    assert (move.to, move.rule, move.drain) == (LAST, "order", True)
    node.see(HOME, "well")
    assert node.wait(3600) == (), "ordered to stay there"
    assert node.order("move", NEXT, number=2) == ()
    assert node.wait(601) == ()
    assert node.state.pending is None


def test_an_order_is_carried_out_once() -> None:
    node = settled()
    node.see(NEXT, "well")
    assert len(node.order("move", NEXT, number=7)) == 1
    assert len(node.order("back", HOME, number=8)) == 1
    assert node.order("move", NEXT, number=7) == ()
    assert node.state.target == HOME


def test_a_pool_ordered_to_is_left_when_it_dies() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.order("move", NEXT)
    (move,) = node.see(NEXT, "dead")
    assert (move.to, move.rule) == (HOME, "emergency")
    assert not node.state.pinned


def test_rebalancing_is_refused_where_it_would_fight_something() -> None:
    node = settled()
    node.see(NEXT, "well")
    (move,) = node.order("reassign", NEXT, number=1)
    assert (move.rule, node.state.home) == ("rebalance", NEXT)
    assert node.dial() == (NEXT, HOME), "whose node it is can call it back"
    node.wait(10)
    assert node.order("reassign", HOME, number=2) == ()
    assert "10 s ago" in node.incidents()[0].cause
    node.wait(300)
    (move,) = node.order("reassign", HOME, number=3)
    assert (move.to, node.state.home) == (HOME, HOME)


def test_a_node_that_was_lent_is_called_back_for_good() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.order("reassign", NEXT, number=1)
    (move,) = node.order("back", HOME, number=2)
    assert (move.to, node.state.home, node.state.pinned) == (HOME, HOME, False)


def test_a_pool_that_the_roster_drops_is_left() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    assert node.state.target == NEXT
    (move,) = node.say(Configured((HOME, LAST), "auto"))
    assert (move.source, move.to, move.rule, move.drain) == (NEXT, HOME, "withdrawn", True)


def test_nowhere_to_go_is_an_incident_after_a_while() -> None:
    node = settled()
    node.see(HOME, "dead", "no route to host")
    assert node.incidents() == ()
    node.wait(9.0)
    assert node.incidents() == ()
    node.wait(1.0)
    assert node.state.told == {("nowhere_to_go", HOME)}


def test_a_node_that_starts_while_home_is_down_does_not_count_it_again() -> None:
    node = settled()
    node.see(HOME, "dead")
    kept = load_state(dump_state(node.state), node.now)
    again = Node()
    again.state, again.now = kept, node.now + 5
    again.say(Configured((HOME, NEXT, LAST), "auto"))
    again.see(HOME, "dead")
    assert again.state.flapped_at is None
    assert again.state.failed_at == node.now


def test_times_beyond_now_are_cut_to_now() -> None:
    state = State(flapped_at=5000.0)
    assert load_state(dump_state(state), 1000.0).flapped_at == 1000.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("target", "zz"),
        ("target", "00"),
        ("mode", "sometimes"),
        ("pinned", 1),
        ("flapped_at", "soon"),
        ("flapped_at", True),
        ("orders", {"00": 1}),
        ("orders", {"01" * 32: "1"}),
        ("surplus", 1),
    ],
)
def test_a_damaged_state_is_refused(field: str, value: object) -> None:
    document = json.loads(dump_state(State()))
    with pytest.raises(ValueError, match=r"."):
        load_state(json.dumps({**document, field: value}), 0.0)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1}'])
def test_half_a_state_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_state(text, 0.0)


def test_being_told_to_belong_where_it_belongs_does_not_excuse_homes_failures() -> None:
    node = settled()
    node.see(NEXT, "well")
    node.see(HOME, "dead")
    node.see(HOME, "well")
    node.wait(60)  # home again
    assert node.order("reassign", HOME) == ()
    node.see(HOME, "dead")  # the second failure within five minutes: a flap
    node.see(HOME, "well")
    assert node.wait(290) == ()
    assert [move.rule for move in node.wait(20)] == ["return"]
