"""How many strangers may knock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.admission import Admission
from tunnel_proto.constants import SILENT_HOLD_S


def test_unproved_connections_are_bounded_in_all_and_by_address() -> None:
    admission = Admission(in_flight_max=5, in_flight_per_address=3)
    assert [admission.enter("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    assert [admission.enter("192.0.2.2") for _ in range(3)] == [True, True, False]
    assert admission.in_flight == 5
    admission.leave("192.0.2.1")
    assert admission.enter("192.0.2.3")
    assert not admission.enter("192.0.2.3")


def test_leaving_forgets_the_address() -> None:
    admission = Admission()
    for _ in range(3):
        assert admission.enter("192.0.2.1")
    for _ in range(3):
        admission.leave("192.0.2.1")
    assert admission.in_flight == 0
    with pytest.raises(KeyError):
        admission.leave("192.0.2.1")


def test_failed_handshakes_use_the_budget_up_and_time_returns_it() -> None:
    admission = Admission(failures_burst=3, failures_per_s=0.5)
    assert [admission.spend("192.0.2.1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert admission.spend("192.0.2.2", 0.0)
    assert not admission.spend("192.0.2.1", 1.9)
    assert admission.spend("192.0.2.1", 2.0)
    assert not admission.spend("192.0.2.1", 2.1)
    assert [admission.spend("192.0.2.1", 1e6) for _ in range(4)] == [True, True, True, False]


def test_successful_handshakes_cost_nothing() -> None:
    admission = Admission(failures_burst=2)
    for _ in range(1_000):
        assert admission.spend("192.0.2.1", 0.0)
        admission.refund("192.0.2.1")
    admission.refund("192.0.2.1")
    admission.refund("198.51.100.1")
    assert [admission.spend("192.0.2.1", 0.0) for _ in range(3)] == [True, True, False]


def test_a_clock_going_back_gives_nothing() -> None:
    admission = Admission(failures_burst=1, failures_per_s=1.0)
    assert admission.spend("192.0.2.1", 100.0)
    assert not admission.spend("192.0.2.1", 50.0)
    assert not admission.spend("192.0.2.1", 50.5)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unix", "unix", True),
    ],
)
def test_what_counts_as_one_source(one: str, other: str, same: bool) -> None:
    admission = Admission(failures_burst=1, in_flight_per_address=1)
    assert admission.spend(one, 0.0)
    assert admission.spend(other, 0.0) is not same
    assert admission.enter(one)
    assert admission.enter(other) is not same


def test_the_table_of_addresses_is_bounded() -> None:
    admission = Admission(addresses_max=10, failures_burst=1, failures_per_s=0.0)
    for number in range(1_000):
        assert admission.spend(f"10.0.{number // 250}.{number % 250}", 0.0)
    assert len(admission._buckets) == 10
    assert not admission.spend("10.0.3.249", 0.0)


@given(entropy=st.binary(min_size=8, max_size=8))
def test_the_hold_lies_between_its_bounds(entropy: bytes) -> None:
    shortest, longest = SILENT_HOLD_S
    assert shortest <= Admission.hold(entropy) <= longest
