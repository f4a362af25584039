"""What nodes and gates say about moving: it comes back as it was, and nothing else is believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.movement import (
    CAUSE_MAX,
    RECORDS_MAX,
    Record,
    Standing,
    decode_records,
    encode_records,
)
from tunnel_proto.packing import pack

keys = st.sampled_from((b"", b"k" * 32, b"l" * 32))
records = st.builds(
    Record,
    id=st.binary(min_size=16, max_size=16),
    at=st.floats(0, 1e11),
    kind=st.sampled_from(("move", "incident")),
    rule=st.text(max_size=32),
    source=keys,
    to=keys,
    cause=st.text(max_size=CAUSE_MAX),
    by=st.text(max_size=CAUSE_MAX),
)


@given(st.lists(records, max_size=10))
def test_records_come_back_as_they_were(told: list[Record]) -> None:
    assert decode_records(encode_records(told)) == told


@given(
    st.integers(0, 2**63 - 1), keys, st.sampled_from(("auto", "manual")), st.booleans(), st.text(max_size=200)
)
def test_a_standing_comes_back_as_it_was(
    serial: int, target: bytes, mode: str, pinned: bool, refused: str
) -> None:
    standing = Standing(serial, target, mode, pinned, refused)
    assert Standing.decode(standing.encode()) == standing


GOOD: list[Any] = [b"i" * 16, 1e9, "move", "emergency", b"k" * 32, b"l" * 32, "cause", ""]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"short"),
        (0, "text" * 4),
        (1, 1),
        (1, -1.0),
        (1, float("inf")),
        (1, 2.0**50),
        (1, float("nan")),
        (2, "rumour"),
        (3, "r" * 33),
        (3, None),
        (4, b"k" * 31),
        (5, "l"),
        (6, "c" * (CAUSE_MAX + 1)),
        (7, 7),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(at: int, value: Any) -> None:
    assert decode_records(pack([GOOD]))
    bad = [*GOOD[:at], value, *GOOD[at + 1 :]]
    with pytest.raises(RemoteProtocolError):
        decode_records(pack([bad]))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", pack({}), pack([GOOD[:-1]]), pack([GOOD] * (RECORDS_MAX + 1)), pack([GOOD])[:-1]]
)
def test_what_is_no_list_of_records_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_records(data)


@pytest.mark.parametrize(
    "value",
    [
        [],
        [1, b"k" * 32, "auto", False],
        [-1, b"k" * 32, "auto", False, ""],
        [1, b"k", "auto", False, ""],
        [1, b"k" * 32, "sometimes", False, ""],
        [1, b"k" * 32, "auto", 1, ""],
        [1, b"k" * 32, "auto", False, "x" * 2000],
        {"serial": 1},
    ],
)
def test_a_standing_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        Standing.decode(pack(value))


@given(st.binary(max_size=100))
def test_noise_is_neither(data: bytes) -> None:
    for read in (decode_records, Standing.decode):
        try:
            read(data)
        except RemoteProtocolError:
            continue
