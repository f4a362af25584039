"""Offers and bundles: what a person carries between a node and its gate."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.certificate import issue_online, verify_chain
from tunnel_proto.constants import BUNDLE_ROSTER_MAX
from tunnel_proto.enrolment import (
    Bundle,
    GateAddress,
    make_bundle,
    make_offer,
    read_bundle,
    read_offer,
    seal_bundle,
)
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity

POOL, ONLINE, NODE, GATE = (Identity(bytes((n,)) * 32, bytes((n + 1,)) * 32) for n in (1, 3, 5, 7))
ONLINE_CERTIFICATE = issue_online(POOL, ONLINE.verify_key, not_before=1_000, not_after=100_000, serial=1)
GATES = (
    GateAddress("gate-a", "gate-a.example", 7000, GATE.handshake_public),
    GateAddress("gate-b", "2001:db8::7", 7001, Identity(bytes(32), bytes(32)).handshake_public),
)
OFFER = make_offer(NODE, role="client", name="laptop", now=1_500.75)


def bundle(**more: Any) -> str:
    return make_bundle(
        ONLINE,
        ONLINE_CERTIFICATE,
        read_offer(OFFER),
        gates=GATES,
        serial=7,
        not_before=2_000,
        not_after=50_000,
        **more,
    )


BUNDLE = bundle()


def changed(text: str, change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(text)
    change(document)
    return json.dumps(document)


def resealed(change: Callable[[dict[str, Any]], object]) -> str:
    """An offer with a field changed and signed again by the same key."""
    document = json.loads(OFFER)
    change(document)
    del document["signature"]
    signed = json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
    document["signature"] = base64.b64encode(NODE.sign("offer", signed)).decode("ascii")
    return json.dumps(document)


def test_from_offer_to_bundle() -> None:
    offer = read_offer(OFFER)
    assert (offer.role, offer.name, offer.created) == ("client", "laptop", 1_500)
    assert (offer.verify_key, offer.handshake_public) == (NODE.verify_key, NODE.handshake_public)
    assert offer.fingerprint == NODE.fingerprint

    bundle = read_bundle(BUNDLE, NODE)
    assert bundle.gates == GATES
    assert (bundle.pool_key, bundle.name, bundle.issued) == (POOL.verify_key, "laptop", 2_000)
    node = verify_chain(bundle.chain, pool_key=POOL.verify_key, now=3_000)
    assert (node.role, node.name, node.serial, node.not_after) == ("client", "laptop", 7, 50_000)
    assert (node.verify_key, node.handshake_public) == (NODE.verify_key, NODE.handshake_public)


def test_layout_does_not_matter_to_the_signature() -> None:
    assert read_offer(json.dumps(json.loads(OFFER), indent=8, sort_keys=True)) == read_offer(OFFER)
    assert read_bundle(BUNDLE.replace("\n", "\r\n"), NODE) == read_bundle(BUNDLE, NODE)


def test_no_secret_leaves_the_node() -> None:
    for secret in (NODE.signing_seed, NODE.handshake_key, ONLINE.signing_seed, ONLINE.handshake_key):
        for text in (OFFER, BUNDLE):
            assert base64.b64encode(secret).decode("ascii") not in text
            assert secret.hex() not in text


@pytest.mark.parametrize("field", sorted(json.loads(OFFER)))
def test_every_field_of_an_offer_is_guarded(field: str) -> None:
    with pytest.raises(ConfigError):
        read_offer(changed(OFFER, lambda offer: offer.pop(field)))
    with pytest.raises(ConfigError):
        read_offer(changed(OFFER, lambda offer: offer.update({field: None})))
    other = json.loads(make_offer(Identity.generate(), role="daemon", name="other", now=9_999))
    if field in {"type", "version"}:
        other[field] = "other"
    with pytest.raises(ConfigError):
        read_offer(changed(OFFER, lambda offer: offer.update({field: other[field]})))


@pytest.mark.parametrize("field", sorted(json.loads(BUNDLE)))
def test_every_field_of_a_bundle_is_guarded(field: str) -> None:
    with pytest.raises(ConfigError):
        read_bundle(changed(BUNDLE, lambda bundle: bundle.pop(field)), NODE)
    with pytest.raises(ConfigError):
        read_bundle(changed(BUNDLE, lambda bundle: bundle.update({field: None})), NODE)


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle["gates"].pop(),
        lambda bundle: bundle["gates"].reverse(),
        lambda bundle: bundle["gates"][0].update(host="evil.example"),
        lambda bundle: bundle["gates"][0].update(port=7002),
        lambda bundle: bundle["gates"][0].update(port=0),
        lambda bundle: bundle["gates"][0].update(port=True),
        lambda bundle: bundle["gates"][0].update(extra=1),
        lambda bundle: bundle.update(gates=[]),
        lambda bundle: bundle.update(gates=["gate"]),
        lambda bundle: bundle.update(name="other"),
        lambda bundle: bundle.update(issued=2_001),
        lambda bundle: bundle.update(issued=-1),
        lambda bundle: bundle.update(extra=1),
    ],
)
def test_a_bundle_cannot_be_edited(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ConfigError):
        read_bundle(changed(BUNDLE, change), NODE)


def test_a_bundle_is_for_one_node() -> None:
    with pytest.raises(ConfigError, match="is for the node") as caught:
        read_bundle(BUNDLE, Identity.generate())
    assert NODE.fingerprint in caught.value.message
    assert "offer" in caught.value.hint
    half = Identity(NODE.signing_seed, bytes(32))
    with pytest.raises(ConfigError, match="is for the node"):
        read_bundle(BUNDLE, half)


def test_a_bundle_must_be_signed_by_the_online_key_of_its_chain() -> None:
    with pytest.raises(ConfigError, match="bundle signature does not verify"):
        read_bundle(seal_bundle(NODE, read_bundle(BUNDLE, NODE)), NODE)


def test_a_bundle_of_another_pool_is_refused_when_the_pool_is_known() -> None:
    read_bundle(BUNDLE, NODE, pool_key=POOL.verify_key)
    with pytest.raises(ConfigError, match="another pool"):
        read_bundle(BUNDLE, NODE, pool_key=GATE.verify_key)


def test_a_bundle_with_an_expired_certificate_is_refused_when_the_time_is_known() -> None:
    read_bundle(BUNDLE, NODE, now=50_000)
    with pytest.raises(ConfigError, match="node certificate has expired"):
        read_bundle(BUNDLE, NODE, now=50_001)


def test_a_node_whose_clock_is_behind_is_told_to_set_it() -> None:
    with pytest.raises(ConfigError, match="not valid yet") as caught:
        read_bundle(BUNDLE, NODE, now=500)
    assert "clock" in caught.value.hint


def test_gates_may_move_without_a_new_certificate() -> None:
    bundle = read_bundle(BUNDLE, NODE)
    moved = GateAddress("gate-c", "gate-c.example", 7000, GATE.handshake_public)
    text = seal_bundle(ONLINE, Bundle(bundle.pool_key, bundle.chain, (moved,), bundle.name, 3_000))
    again = read_bundle(text, NODE)
    assert again.gates == (moved,)
    assert again.chain == bundle.chain


@pytest.mark.parametrize(
    "gate",
    [
        GateAddress("gate", "", 1, bytes(32)),
        GateAddress("gate", "two words", 1, bytes(32)),
        GateAddress("gate", "h" * 254, 1, bytes(32)),
        GateAddress("gate", "host\n", 1, bytes(32)),
        GateAddress("gate", "höst", 1, bytes(32)),
        GateAddress("gate", "host", 0, bytes(32)),
        GateAddress("gate", "host", 65536, bytes(32)),
        GateAddress("gate", "host", 1, bytes(31)),
        GateAddress("no gate", "host", 1, bytes(32)),
    ],
)
def test_impossible_gates_do_not_go_into_a_bundle(gate: GateAddress) -> None:
    with pytest.raises(ConfigError, match="cannot go into a bundle"):
        seal_bundle(ONLINE, Bundle(POOL.verify_key, b"", (gate,), "laptop", 0))


def test_a_bundle_names_one_to_sixteen_gates() -> None:
    for gates in ((), GATES * 9):
        with pytest.raises(ConfigError, match="1 to 16 gates"):
            seal_bundle(ONLINE, Bundle(POOL.verify_key, b"", gates, "laptop", 0))


def test_offers_nobody_should_make() -> None:
    with pytest.raises(ConfigError, match="no role"):
        make_offer(NODE, role="king", name="laptop", now=0)
    with pytest.raises(ConfigError, match="cannot name a node"):
        make_offer(NODE, role="client", name="two words", now=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda offer: offer.update(role="king"), "unknown role"),
        (lambda offer: offer.update(name="two words"), "name cannot be used"),
        (lambda offer: offer.update(fingerprint=GATE.fingerprint), "fingerprint is not that of its key"),
        (lambda offer: offer.update(created=-1), "no time"),
    ],
)
def test_a_signature_does_not_excuse_what_is_wrong(
    change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_offer(resealed(change))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '"x"', "{}", '{"type": "qgate-mesh-bundle"}', "[" * 70_000, "[" * 60_000,
     OFFER.replace('"version": 1', '"version": 2'),
     OFFER.replace('"role"', '"name": "x", "role"')],
)  # fmt: skip
def test_what_is_no_offer(text: str) -> None:
    with pytest.raises(ConfigError):
        read_offer(text)


@given(position=st.integers(min_value=0, max_value=len(OFFER) - 1), letter=st.characters(max_codepoint=0x17F))
def test_a_changed_character_is_noticed_or_meaningless(position: int, letter: str) -> None:
    text = OFFER[:position] + letter + OFFER[position + 1 :]
    try:
        offer = read_offer(text)
    except ConfigError:
        return
    assert offer == read_offer(OFFER)


@given(text=st.text(max_size=300))
def test_noise_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_bundle(text, NODE)


def test_a_bundle_may_bring_the_roster_of_its_day() -> None:
    made = bundle(roster=b"sealed")
    assert read_bundle(made, NODE).roster == b"sealed"
    assert read_bundle(BUNDLE, NODE).roster == b""
    with pytest.raises(ConfigError, match="signature"):
        read_bundle(changed(made, lambda document: document.pop("roster")), NODE)
    with pytest.raises(ConfigError, match="unknown fields"):
        read_bundle(changed(made, lambda document: document.update(surplus=1)), NODE)
    with pytest.raises(ConfigError, match="roster"):
        read_bundle(changed(made, lambda document: document.update(roster="***")), NODE)


def test_a_roster_that_is_too_long_for_a_bundle_stays_out_of_it() -> None:
    made = bundle(roster=bytes(BUNDLE_ROSTER_MAX + 1))
    assert read_bundle(made, NODE).roster == b""
