"""Certificate chains: what they promise, and every way in which they are refused."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.certificate import (
    ROLES,
    NodeCertificate,
    issue_node,
    issue_online,
    name_problem,
    nears_expiry,
    read_online,
    verify_chain,
)
from tunnel_proto.constants import CERTIFICATE_CHAIN_MAX, CERTIFICATE_CLOCK_SKEW_S
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import Identity

POOL, ONLINE, NODE = (Identity(bytes((n,)) * 32, bytes((n + 1,)) * 32) for n in (1, 3, 5))
ONLINE_CERTIFICATE = issue_online(POOL, ONLINE.verify_key, not_before=1_000, not_after=100_000, serial=1)
CERTIFICATE = NodeCertificate(
    pool=POOL.verify_key,
    role="client",
    name="laptop-7.example",
    verify_key=NODE.verify_key,
    handshake_public=NODE.handshake_public,
    serial=42,
    not_before=2_000,
    not_after=50_000,
)
CHAIN = issue_node(ONLINE, ONLINE_CERTIFICATE, CERTIFICATE)


def test_a_chain_gives_back_what_was_certified() -> None:
    assert verify_chain(CHAIN, pool_key=POOL.verify_key, now=3_000.5) == CERTIFICATE


def test_the_longest_chain_fits_its_bound() -> None:
    online = issue_online(POOL, ONLINE.verify_key, not_before=1, not_after=2**53, serial=2**63 - 1)
    longest = replace(CERTIFICATE, role="client", name="n" * 63, serial=2**63 - 1, not_after=2**53)
    chain = issue_node(ONLINE, online, longest)
    assert len(chain) < 450 < CERTIFICATE_CHAIN_MAX
    assert verify_chain(chain, pool_key=POOL.verify_key, now=3_000) == longest


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_role_can_be_certified(role: str) -> None:
    chain = issue_node(ONLINE, ONLINE_CERTIFICATE, replace(CERTIFICATE, role=role))
    assert verify_chain(chain, pool_key=POOL.verify_key, now=3_000).role == role


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (999 - CERTIFICATE_CLOCK_SKEW_S, "online certificate is not valid yet"),
        (1_999 - CERTIFICATE_CLOCK_SKEW_S, "node certificate is not valid yet"),
        (50_000.1, "node certificate has expired"),
        (100_001, "online certificate has expired"),
    ],
)
def test_time_is_checked_for_both_certificates(now: float, reason: str) -> None:
    with pytest.raises(AuthenticationFailed, match=reason):
        verify_chain(CHAIN, pool_key=POOL.verify_key, now=now)


@pytest.mark.parametrize("now", [2_000 - CERTIFICATE_CLOCK_SKEW_S, 2_000, 50_000])
def test_the_ends_of_the_validity_are_inside(now: float) -> None:
    verify_chain(CHAIN, pool_key=POOL.verify_key, now=now)


def test_another_pool_is_refused() -> None:
    with pytest.raises(AuthenticationFailed, match="another pool"):
        verify_chain(CHAIN, pool_key=Identity.generate().verify_key, now=3_000)


def test_a_self_made_pool_does_not_pass_for_ours() -> None:
    mallory = Identity.generate()
    online = issue_online(mallory, mallory.verify_key, not_before=0, not_after=100_000, serial=1)
    chain = issue_node(mallory, online, replace(CERTIFICATE, pool=mallory.verify_key))
    with pytest.raises(AuthenticationFailed, match="another pool"):
        verify_chain(chain, pool_key=POOL.verify_key, now=3_000)
    # Naming our pool in the node's part does not help, nor does our pool's key in the online part.
    body = [1, POOL.verify_key, mallory.verify_key, 1, 0, 100_000]
    packed = msgpack.packb(body)
    forged = msgpack.packb([packed, mallory.sign("online certificate", packed)])
    with pytest.raises(ConfigError, match="signature does not verify"):
        issue_node(mallory, forged, CERTIFICATE)


def test_a_node_cannot_certify_another_node() -> None:
    # The node's own certificate is no online certificate, whatever it signs with.
    node_part = msgpack.unpackb(CHAIN)[2]
    with pytest.raises(ConfigError, match="malformed"):
        issue_node(NODE, msgpack.packb([node_part, msgpack.unpackb(CHAIN)[3]]), CERTIFICATE)


def test_chains_cannot_be_mixed() -> None:
    other_online = Identity.generate()
    other_certificate = issue_online(
        POOL, other_online.verify_key, not_before=1_000, not_after=100_000, serial=2
    )
    version, _, body, signature = msgpack.unpackb(CHAIN)
    mixed = msgpack.packb([version, other_certificate, body, signature])
    with pytest.raises(AuthenticationFailed, match="node certificate signature does not verify"):
        verify_chain(mixed, pool_key=POOL.verify_key, now=3_000)


@given(
    position=st.integers(min_value=0, max_value=len(CHAIN) - 1),
    change=st.integers(min_value=1, max_value=255),
)
def test_any_changed_byte_is_refused(position: int, change: int) -> None:
    changed = CHAIN[:position] + bytes((CHAIN[position] ^ change,)) + CHAIN[position + 1 :]
    with pytest.raises(AuthenticationFailed):
        verify_chain(changed, pool_key=POOL.verify_key, now=3_000)


@given(length=st.integers(min_value=0, max_value=len(CHAIN) - 1))
def test_any_cut_is_refused(length: int) -> None:
    with pytest.raises(AuthenticationFailed):
        verify_chain(CHAIN[:length], pool_key=POOL.verify_key, now=3_000)


@given(chain=st.binary(max_size=2_000))
def test_noise_is_refused(chain: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        verify_chain(chain, pool_key=POOL.verify_key, now=3_000)


def test_bytes_behind_a_chain_and_other_spellings_are_refused() -> None:
    with pytest.raises(AuthenticationFailed, match="malformed"):
        verify_chain(CHAIN + b"\x00", pool_key=POOL.verify_key, now=3_000)
    assert CHAIN[:2] == b"\x94\x01"
    with pytest.raises(AuthenticationFailed, match="shortest"):
        verify_chain(b"\x94\xcc\x01" + CHAIN[2:], pool_key=POOL.verify_key, now=3_000)
    with pytest.raises(AuthenticationFailed, match="1025 bytes"):
        verify_chain(bytes(CERTIFICATE_CHAIN_MAX + 1), pool_key=POOL.verify_key, now=3_000)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"role": "king"}, "role"),
        ({"name": ""}, "a name is"),
        ({"name": "n" * 64}, "a name is"),
        ({"name": "-leading"}, "a name is"),
        ({"name": "two words"}, "a name is"),
        ({"name": "line\n"}, "a name is"),
        ({"verify_key": bytes(31)}, "key"),
        ({"handshake_public": b""}, "key"),
        ({"serial": -1}, "serial"),
        ({"serial": 2**63}, "serial"),
        ({"serial": True}, "serial"),
        ({"not_before": 50_001}, "ends before"),
        ({"not_after": 50_000.5}, "unix seconds"),
        ({"not_after": 100_001}, "outlive"),
        ({"pool": bytes(32)}, "another pool"),
    ],
)
def test_what_cannot_be_issued(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        issue_node(ONLINE, ONLINE_CERTIFICATE, replace(CERTIFICATE, **change))  # type: ignore[arg-type]


def test_the_online_certificate_must_be_the_keys_own() -> None:
    with pytest.raises(ConfigError, match="another online key"):
        issue_node(Identity.generate(), ONLINE_CERTIFICATE, CERTIFICATE)
    with pytest.raises(ConfigError, match="cannot be used"):
        issue_node(ONLINE, b"rubbish", CERTIFICATE)
    with pytest.raises(ConfigError, match="cannot be issued"):
        issue_online(POOL, bytes(5), not_before=0, not_after=1, serial=1)


def test_an_online_certificate_says_for_whom_it_is() -> None:
    online = read_online(ONLINE_CERTIFICATE)
    assert (online.pool, online.verify_key, online.serial) == (POOL.verify_key, ONLINE.verify_key, 1)
    assert (online.not_before, online.not_after) == (1_000, 100_000)


@pytest.mark.parametrize("name", ["a", "A9", "laptop-7.example", "x_y", "n" * 63])
def test_usable_names(name: str) -> None:
    assert not name_problem(name)


@pytest.mark.parametrize(
    ("days", "left", "expected"),
    [(365, 31, False), (365, 29, True), (365, -1, True), (9, 4, False), (9, 2, True)],
)
def test_renewal_is_due_in_the_last_month_or_third(days: int, left: int, expected: bool) -> None:
    day = 86_400
    assert nears_expiry(0, days * day, (days - left) * day) is expected
