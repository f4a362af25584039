"""Refusals are counted each and told in few lines."""

from __future__ import annotations

from tunnel_proto.refusals import ADDRESSES_MAX, Refusals


def test_the_first_is_told_and_the_rest_gathers() -> None:
    refusals = Refusals()
    assert refusals.note("mac1", "a", counted=True)
    assert not any(refusals.note("mac1", host, counted=True) for host in "bbc")
    assert refusals.note("slow", "a", counted=True), "another reason has an interval of its own"
    assert refusals.counts == {"mac1": 4, "slow": 1}
    muted = refusals.due("mac1")
    assert muted is not None
    assert (muted.count, muted.hosts, muted.last) == (3, {"b", "c"}, "c")
    assert not refusals.note("mac1", "d", counted=True), "a storm goes on into the next interval"
    assert refusals.due("mac1") is not None
    assert refusals.due("mac1") is None
    assert refusals.note("mac1", "e", counted=True), "after silence the first is told again"


def test_what_others_count_is_only_muted_and_memory_is_bounded() -> None:
    refusals = Refusals()
    for number in range(3 * ADDRESSES_MAX):
        refusals.note("unwelcome", str(number), counted=False)
    assert not refusals.counts
    muted = refusals.due("unwelcome")
    assert muted is not None
    assert (muted.count, len(muted.hosts)) == (3 * ADDRESSES_MAX - 1, ADDRESSES_MAX)
