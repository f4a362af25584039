"""Whose job is next: shares hold while all wait, nobody starves, nothing is lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from qdaemon.turns import QUANTUM, Turns


def taken(turns: Turns[str], count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        job = turns.pop()
        assert job is not None
        found[job.partition("-")[0]] += 1
    return found


def test_one_app_gets_everything_in_order() -> None:
    turns: Turns[str] = Turns()
    for number in range(5):
        turns.push("a", f"a-{number}", cost=10_000)
    assert [turns.pop() for _ in range(6)] == ["a-0", "a-1", "a-2", "a-3", "a-4", None]


def test_a_flood_makes_only_itself_wait() -> None:
    turns: Turns[str] = Turns()
    for number in range(1000):
        turns.push("flood", f"flood-{number}", cost=QUANTUM)
    turns.push("small", "small-0", cost=QUANTUM)
    assert "small" in taken(turns, 3)


def test_shares_are_held_in_tokens_not_in_jobs() -> None:
    turns: Turns[str] = Turns()
    for number in range(400):
        turns.push("long", f"long-{number}", cost=4 * QUANTUM)
        turns.push("short", f"short-{number}", cost=QUANTUM)
    found = taken(turns, 250)
    assert 3.5 <= found["short"] / found["long"] <= 4.5


def test_three_times_the_share_is_three_times_the_work() -> None:
    turns: Turns[str] = Turns()
    for number in range(400):
        turns.push("gold", f"gold-{number}", cost=QUANTUM, share=3)
        turns.push("plain", f"plain-{number}", cost=QUANTUM, share=1)
    found = taken(turns, 400)
    assert 2.8 <= found["gold"] / found["plain"] <= 3.2


def test_an_app_that_was_away_has_saved_nothing_up() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.push("a", f"a-{number}", cost=QUANTUM)
    taken(turns, 50)
    for number in range(100):
        turns.push("b", f"b-{number}", cost=QUANTUM)
    found = taken(turns, 40)
    assert abs(found["a"] - found["b"]) <= 2


def test_a_job_that_is_cancelled_leaves_its_line() -> None:
    turns: Turns[str] = Turns()
    first, second = "x-1", "x-2"
    turns.push("x", first, cost=1)
    turns.push("x", second, cost=1)
    assert turns.remove("x", first)
    assert not turns.remove("x", first)
    assert not turns.remove("y", second)
    assert len(turns) == 1
    assert turns.waiting("x") == 1
    assert turns.pop() == second
    assert turns.waiting("x") == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.floats(0, 5000), st.integers(1, 9), st.booleans()), max_size=80
    )
)
def test_every_job_comes_out_once_and_apps_keep_their_order(
    steps: list[tuple[str, float, int, bool]],
) -> None:
    turns: Turns[tuple[str, int]] = Turns()
    expected: dict[str, list[int]] = {app: [] for app in "abcd"}
    out: dict[str, list[int]] = {app: [] for app in "abcd"}
    for number, (app, cost, share, popping) in enumerate(steps):
        turns.push(app, (app, number), cost=cost, share=share)
        expected[app].append(number)
        if popping and (job := turns.pop()) is not None:
            out[job[0]].append(job[1])
    assert len(turns) == sum(map(len, expected.values())) - sum(map(len, out.values()))
    while (job := turns.pop()) is not None:
        out[job[0]].append(job[1])
    assert out == expected
