"""Messages parted by their lengths, and the vocabularies that are spoken in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.framing import Frames, framed


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 50))
def test_payloads_arrive_however_they_are_cut(payloads: list[bytes], size: int) -> None:
    wire = b"".join(framed(one) for one in payloads)
    frames = Frames(40)
    arrived = [one for at in range(0, len(wire), size) for one in frames.feed(wire[at : at + size])]
    assert arrived == payloads
    assert frames.clean


def test_a_long_one_is_refused_by_its_length_alone() -> None:
    frames = Frames(8, "a letter")
    assert frames.feed(framed(bytes(8))) == [bytes(8)]
    with pytest.raises(RemoteProtocolError, match="a letter of 9 bytes where 8 are allowed") as refused:
        frames.feed(framed(bytes(9))[:4])
    assert refused.value.code == StreamCode.LIMIT


def test_a_part_of_one_is_not_the_end() -> None:
    frames = Frames(8)
    assert frames.feed(framed(b"abc")[:-1]) == []
    assert not frames.clean
    assert frames.feed(b"c") == [b"abc"]
    assert frames.clean
