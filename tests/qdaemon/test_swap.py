"""Who leaves memory: least recently used, never the busy or the pinned, groups as they are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qdaemon.models.swap import Plan, Resident, expired, next_expiry, plan

GIB = 1 << 30


def held(key: str, used: float, *, memory: int = GIB, **more: object) -> Resident:
    return Resident(key, memory, used, **more)  # type: ignore[arg-type]


def test_with_room_nothing_goes() -> None:
    assert plan([held("a", 1)], need=GIB, available=2 * GIB, places=4) == Plan()


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    three = [held("new", 9), held("old", 1), held("middle", 5)]
    assert plan(three, need=GIB, available=0, places=4).evict == ("old",)
    assert plan(three, need=2 * GIB, available=0, places=4).evict == ("old", "middle")


def test_a_place_is_made_also_where_memory_is_plenty() -> None:
    assert plan([held("a", 2), held("b", 1)], need=1, available=99 * GIB, places=2).evict == ("b",)


def test_busy_ones_are_waited_for() -> None:
    both = [held("busy", 1, running=3), held("pinned", 0, pinned=True)]
    assert plan(both, need=GIB, available=0, places=4) == Plan(wait=("busy",))


def test_what_others_wait_for_goes_last() -> None:
    both = [held("wanted", 1, waiting=2), held("idle", 5)]
    assert plan(both, need=GIB, available=0, places=4).evict == ("idle",)


def test_pinned_models_in_the_way_are_said() -> None:
    refused = plan([held("p", 0, pinned=True)], need=3 * GIB, available=GIB, places=4).refused
    assert "more memory" in refused
    assert plan([held("p", 0, pinned=True)], need=1, available=GIB, places=1).refused


def test_an_exclusive_group_holds_one() -> None:
    group = frozenset({"!big"})
    rival = held("rival", 9, groups=group)
    assert plan([rival], need=1, available=99 * GIB, places=4, groups=group).evict == ("rival",)
    busy = held("rival", 9, groups=group, running=1)
    assert plan([busy], need=1, available=99 * GIB, places=4, groups=group).wait == ("rival",)
    pinned = held("rival", 9, groups=group, pinned=True)
    assert "exclusive" in plan([pinned], need=1, available=99 * GIB, places=4, groups=group).refused


def test_a_group_goes_as_one() -> None:
    pair = frozenset({"rag"})
    models = [held("embedder", 1, groups=pair), held("reranker", 8, groups=pair), held("other", 5)]
    assert plan(models, need=GIB, available=0, places=4).evict == ("embedder", "reranker")


def test_time_to_live() -> None:
    models = [
        held("fresh", 95, ttl_s=10),
        held("stale", 80, ttl_s=10),
        held("busy", 1, ttl_s=10, running=1),
        held("pinned", 1, ttl_s=10, pinned=True),
        held("for ever", 1),
    ]
    assert expired(models, 100) == ("stale",)
    assert next_expiry(models) == 90
    assert next_expiry([]) is None


RESIDENTS = st.lists(
    st.builds(
        Resident,
        key=st.uuids().map(str),
        memory=st.integers(0, 8),
        last_used=st.floats(0, 100),
        running=st.integers(0, 2),
        waiting=st.integers(0, 2),
        pinned=st.booleans(),
        groups=st.sets(st.sampled_from(["!x", "!y", "z"])).map(frozenset),
    ),
    max_size=8,
)


@given(
    RESIDENTS, st.integers(0, 40), st.integers(-4, 20), st.integers(1, 6), st.sampled_from(["", "!x", "z"])
)
def test_a_plan_never_ends_work_and_always_makes_enough_room(
    residents: list[Resident], need: int, available: int, places: int, group: str
) -> None:
    groups = frozenset({group} - {""})
    made = plan(residents, need=need, available=available, places=places, groups=groups)
    by_key = {one.key: one for one in residents}
    gone = [by_key[key] for key in made.evict]
    assert not any(one.running or one.pinned for one in gone)
    assert len(set(made.evict)) == len(made.evict)
    if made.refused or made.wait:
        assert not made.evict
        return
    assert available + sum(one.memory for one in gone) >= need
    if residents:
        assert len(residents) - len(gone) < places
        kept = [one for one in residents if one not in gone]
        assert not any(name.startswith("!") for one in kept for name in one.groups & groups)
