"""Hello and Welcome: their limits, their room for later versions, and the choice of a version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.constants import HELLO_MAX, WELCOME_MAX
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.hello import Hello, Welcome, choose_version
from tunnel_proto.packing import pack

CHAIN = bytes(450)  # no valid chain is longer; test_certificate.py shows it


def hello_fields() -> list[object]:
    return ["client", 1, 1, ["zstd"], CHAIN, 5]


def welcome_fields() -> list[object]:
    return [1, ["zstd"], "gate-a", ["gate-a.example:7000"], ""]


def test_fields_of_a_later_version_are_ignored() -> None:
    assert Hello.unpack(pack([*hello_fields(), "more", {"and": 1}])) == Hello.unpack(pack(hello_fields()))
    assert Welcome.unpack(pack([*welcome_fields(), None])) == Welcome.unpack(pack(welcome_fields()))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, "king"), (0, 1), (0, b"client"), (1, 0), (1, 2), (1, True), (1, 65536), (2, -1), (2, "1"),
        (2, None), (3, "zstd"), (3, ["zstd", "zstd"]), (3, ["ZSTD"]), (3, [1]), (3, [""]), (3, ["x" * 33]),
        (3, [str(n) for n in range(17)]), (3, {"zstd": 1}), (4, b""), (4, "text"), (4, bytes(1025)),
        (4, None), (5, 0), (5, -1), (5, 2**63), (5, 1.5), (5, True),
    ],
)  # fmt: skip
def test_a_hello_out_of_its_limits_is_refused(position: int, value: object) -> None:
    fields = hello_fields()
    fields[position] = value
    with pytest.raises(RemoteProtocolError):
        Hello.unpack(pack(fields))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 0), (0, "1"), (0, 65536), (1, None), (1, ["zstd", "zstd"]), (2, ""), (2, "two words"),
        (2, "x" * 64), (3, "host:1"), (3, ["a b"]), (3, ["x" * 262]), (3, [str(n) for n in range(17)]),
        (3, [b"host:1"]), (4, "Version"), (4, "two words"), (4, "x" * 33), (4, 1), (4, None),
    ],
)  # fmt: skip
def test_a_welcome_out_of_its_limits_is_refused(position: int, value: object) -> None:
    fields = welcome_fields()
    fields[position] = value
    with pytest.raises(RemoteProtocolError):
        Welcome.unpack(pack(fields))


@given(payload=st.binary(max_size=600))
def test_noise_is_no_payload(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Hello.unpack(payload)
    with pytest.raises(RemoteProtocolError):
        Welcome.unpack(payload)


def test_the_greatest_payloads_fit_their_bounds() -> None:
    features = frozenset(f"{n:032d}" for n in range(16))
    assert len(Hello("client", (1, 65535), features, CHAIN, 2**63 - 1).pack()) <= HELLO_MAX
    addresses = tuple(f"{n:0200d}" for n in range(16))
    assert len(Welcome(65535, features, "n" * 63, addresses, "r" * 32).pack()) <= WELCOME_MAX


@pytest.mark.parametrize(
    ("theirs", "ours", "chosen"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 5), (2, 3), 3),
        ((2, 3), (1, 5), 3),
        ((4, 5), (1, 3), None),
        ((1, 1), (2, 3), None),
    ],
)
def test_the_newest_version_in_both_ranges_is_chosen(
    theirs: tuple[int, int], ours: tuple[int, int], chosen: int | None
) -> None:
    assert choose_version(theirs, ours) == chosen
