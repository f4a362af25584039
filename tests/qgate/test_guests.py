"""What a home pool tells of its apps and nodes, and what of it a peer believes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from qgate.federation.guests import (
    GuestApp,
    GuestNode,
    HomeKey,
    Spare,
    app_payload,
    gone_payload,
    guest_digest,
    read_app,
    read_node,
    record_of,
    sealed,
)
from qgate.federation.peer import Peer
from qgate.federation.sealing import open_sealed, seal_to
from qgate.governance.directory import App, Directory, Snapshot
from qgate.governance.guest_list import opened, welcome
from qgate.governance.policy import ApiKey, digest_of
from qgate.store.snapshot import _guest_apps
from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.errors import RemoteProtocolError
from tunnel_proto.identity import Identity
from tunnel_proto.packing import pack, unpack
from tunnel_proto.scram import make_verifier

HQ, GPU, BRANCH = (bytes((n,)) * 32 for n in (1, 2, 3))
KEY = "qg_" + "k" * 43
VERIFIERS = {pool: make_verifier(b"secret", salt=pool[:16], iterations=4096) for pool in (GPU, BRANCH)}
NODE = GuestNode(HQ, b"x" * 32, b"v" * 32, "laptop", "client", 7)
APP = GuestApp(
    HQ,
    "web",
    databases=frozenset({"shop", "stock"}),
    expires_at=2e9,
    limits={"max_connections": 5},
    sidecars=frozenset({"laptop"}),
    read_only=True,
    statement_classes=frozenset({"select"}),
    policy={"models": ["*"]},
)
PAYLOAD = app_payload(
    APP,
    spares=(Spare(GPU, VERIFIERS[GPU]), Spare(BRANCH, VERIFIERS[BRANCH], 1e9)),
    keys=(HomeKey(digest_of(KEY), "key_1", KEY[:10]),),
    pools=(GPU, BRANCH),
)


def over_the_log(payload: dict[str, Any]) -> dict[str, Any]:
    """As it arrives: msgpack makes lists of tuples."""
    found: dict[str, Any] = unpack(pack(payload), max_bytes=1 << 20, max_items=10_000)
    return found


def at(pool: bytes) -> GuestApp:
    found = read_app(HQ, over_the_log(PAYLOAD), own=pool)
    assert isinstance(found, GuestApp)
    return found


def test_each_pool_finds_its_own_verifier_and_its_own_digests() -> None:
    gpu, branch = at(GPU), at(BRANCH)
    assert gpu.verifiers == ((VERIFIERS[GPU], None),)
    assert branch.verifiers == ((VERIFIERS[BRANCH], 1e9),)
    assert gpu.keys[0][0] == guest_digest(digest_of(KEY), home=HQ, at=GPU)
    assert gpu.keys[0][0] != branch.keys[0][0] != digest_of(KEY)
    assert (gpu.databases, gpu.read_only, gpu.limits) == (APP.databases, True, {"max_connections": 5})
    stranger = at(b"z" * 32)
    assert (stranger.verifiers, stranger.keys) == ((), ())


def test_a_pool_that_the_app_may_not_go_to_is_told_nothing_for_itself() -> None:
    payload = app_payload(APP, spares=(Spare(BRANCH, VERIFIERS[BRANCH]),), keys=(), pools=(GPU,))
    assert payload["verifiers"] == {}


def test_what_is_for_one_pool_no_other_can_read() -> None:
    gpu, branch = Identity.generate(), Identity.generate()
    app = dataclasses.replace(APP, slices=(("month", "2.5", "EUR"),))
    payload = app_payload(
        app,
        spares=(Spare(GPU, VERIFIERS[GPU]), Spare(BRANCH, VERIFIERS[BRANCH], 1e9)),
        keys=(HomeKey(digest_of(KEY), "key_1", KEY[:10]),),
        pools=(GPU, BRANCH),
    )
    told = over_the_log(sealed(payload, {GPU: gpu.verify_key, BRANCH: branch.verify_key}))
    assert told.keys() & {"verifiers", "keys", "budgets"} == set()
    assert VERIFIERS[GPU].encode() not in pack(told)

    def read(own: bytes, identity: Identity, said: dict[str, Any] = told) -> GuestApp:
        found = read_app(HQ, said, own=own, unseal=lambda box: open_sealed(identity, box))
        assert isinstance(found, GuestApp)
        return found

    mine = read(GPU, gpu)
    assert (mine.verifiers, mine.slices) == (((VERIFIERS[GPU], None),), (("month", "2.5", "EUR"),))
    assert len(mine.keys) == 1
    for own, identity in ((GPU, branch), (BRANCH, gpu), (b"z" * 32, gpu)):
        other = read(own, identity)
        assert (other.verifiers, other.keys, other.slices) == ((), (), ())
        assert other.databases == APP.databases, "the rest is for all"
    broken = {**told, "sealed": {GPU.hex(): b"no box"}}
    assert read(GPU, gpu, broken).verifiers == ()
    wrongs: list[Any] = [[], {str(n): b"" for n in range(100)}]
    for wrong in wrongs:
        with pytest.raises(RemoteProtocolError, match="sealed must be a map"):
            read(GPU, gpu, {**told, "sealed": wrong})
    box = seal_to(gpu.verify_key, pack({"verifiers": [], "keys": [], "budgets": [["year", "1", "EUR"]]}))
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read(GPU, gpu, {**told, "sealed": {GPU.hex(): box}})
    assert seal_to(bytes(32), b"data") is None, "no such key"


def test_an_app_that_is_gone_is_a_name() -> None:
    assert read_app(HQ, over_the_log(gone_payload("web")), own=GPU) == "web"


def test_nodes_come_as_they_were_sent() -> None:
    assert read_node(HQ, over_the_log(NODE.payload())) == NODE


def test_a_record_tells_nothing_and_is_the_same_each_time() -> None:
    assert record_of("app", "web") == record_of("app", "web") != record_of("appw", "eb")
    assert len(record_of("node", b"x" * 32)) == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"app": "hq/web"},
        {"app": ""},
        {"app": None},
        {"databases": ["a b"]},
        {"databases": "shop"},
        {"limits": {"everything": 1}},
        {"limits": {"queue": "many"}},
        {"policy": {"unknown": 1}},
        {"policy": []},
        {"read_only": 1},
        {"expires": "soon"},
        {"verifiers": {GPU.hex(): [["SCRAM-SHA-256$rubbish", None]]}},
        {"verifiers": {GPU.hex(): [["x", None, 1]]}},
        {"verifiers": {"short": []}},
        {"verifiers": []},
        {"verifiers": {GPU.hex(): [[VERIFIERS[GPU], None]] * 9}},
        {"keys": {GPU.hex(): [[b"short", "key_1", "qg_", None]]}},
        {"keys": {GPU.hex(): [[b"d" * 32, "key_1"]]}},
        {"keys": {bytes((n,) * 32).hex(): [] for n in range(65)}},
    ],
)
def test_an_apps_entry_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read_app(HQ, {**over_the_log(PAYLOAD), **changes}, own=GPU)


@pytest.mark.parametrize("missing", sorted(PAYLOAD.keys() - {"budgets"}))  # version 1 had none
def test_an_apps_entry_without_a_field_is_refused(missing: str) -> None:
    payload = over_the_log(PAYLOAD)
    del payload[missing]
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read_app(HQ, payload, own=GPU)


@pytest.mark.parametrize(
    "changes",
    [
        {"handshake": b"short"},
        {"verify": "text"},
        {"name": "a/b"},
        {"role": "king"},
        {"serial": -1},
        {"serial": 1.5},
        {"revoked": None},
    ],
)
def test_a_nodes_entry_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read_node(HQ, {**NODE.payload(), **changes})


# --- who is welcome


def directory(*, level: int = 2, patterns: str = "*", own: App | None = None) -> Directory:
    peers = {HQ: Peer(HQ, "hq", level=level)}
    guests = welcome(peers, apps=[at(GPU)], nodes=[NODE], rosters={HQ: b"sealed"})
    from qgate.governance.directory import Limits, Route

    routes = {"shop": Route("shop", (("h", 1),), "shop", "o")}
    snapshot = Snapshot(
        apps={own.name: own} if own else {},
        keys={digest_of(KEY): ApiKey("key_9", "web", "qg_", digest_of(KEY), None)} if own else {},
        routes=routes,
        peers=peers,
        guest_list=guests,
        guests=_guest_apps(guests, routes, patterns, Limits()),
    )
    return Directory(snapshot, pool_key=GPU)


def node_of(pool: bytes) -> NodeCertificate:
    return NodeCertificate(pool, "client", "laptop", b"v" * 32, b"x" * 32, 7, 0, 2**40)


def test_a_guest_is_known_by_its_pool_and_sees_what_is_here() -> None:
    found = directory().app_from(node_of(HQ), "web")
    assert found is not None
    assert (found.name, found.databases, found.read_only) == ("hq/web", frozenset({"shop"}), True)
    assert found.sidecars == frozenset({"hq/laptop"})
    assert directory().label(node_of(HQ)) == "hq/laptop"


def test_names_of_guests_and_our_own_never_meet() -> None:
    own = App("web", verifiers=(), databases=frozenset({"mine"}))
    both = directory(own=own)
    assert both.app_from(node_of(GPU), "web") is own
    assert both.app_from(node_of(GPU), "hq/web") is None, "a sidecar of ours cannot name a guest"
    guest = both.app_from(node_of(HQ), "web")
    assert guest is not None
    assert guest.name == "hq/web"
    assert both.app_from(node_of(BRANCH), "web") is None


def test_a_key_opens_where_its_digest_was_made_for() -> None:
    own = App("web", verifiers=(), databases=frozenset({"mine"}))
    both = directory(own=own)
    ours, guest = both.app_of_key(KEY, 1e9), both.app_of_key(KEY, 1e9, HQ)
    assert ours is own
    assert guest is not None
    assert guest.name == "hq/web"
    assert both.app_of_key(KEY, 1e9, BRANCH) is None
    assert directory().app_of_key(KEY, 1e9) is None


def test_a_peer_below_level_2_sends_nobody() -> None:
    lowered = directory(level=1)
    assert lowered.app_from(node_of(HQ), "web") is None
    assert lowered.guest_node(HQ, NODE.handshake_public) is None
    assert lowered.guest_roster(HQ) is None


def test_what_one_pool_says_never_counts_for_anothers_nodes_and_keys() -> None:
    peers = {HQ: Peer(HQ, "hq", level=2), BRANCH: Peer(BRANCH, "branch", level=2)}
    revoked = dataclasses.replace(NODE, revoked=True)
    copied = dataclasses.replace(NODE, pool=BRANCH, revoked=False)
    evil = dataclasses.replace(at(GPU), pool=BRANCH, name="evil")
    guests = welcome(peers, apps=[at(GPU), evil], nodes=[revoked, copied], rosters={})
    from qgate.governance.directory import Limits

    snapshot = Snapshot(peers=peers, guest_list=guests, guests=_guest_apps(guests, {}, "*", Limits()))
    both = Directory(snapshot, pool_key=GPU)
    ours = both.guest_node(HQ, NODE.handshake_public)
    assert ours is not None
    assert ours.revoked
    found = both.app_of_key(KEY, 1e9, HQ)
    assert found is not None
    assert found.name == "hq/web"
    assert both.app_of_key(KEY, 1e9, BRANCH) is None, "its digest was made for another home"


def test_databases_are_opened_by_pattern() -> None:
    assert opened({"shop", "stock", "pay"}, "s*, pay") == {"shop", "stock", "pay"}
    assert opened({"shop", "stock"}, "shop") == {"shop"}
    assert opened({"shop"}, "") == frozenset()
    closed = directory(patterns="other").app_from(node_of(HQ), "web")
    assert closed is not None
    assert closed.databases == frozenset()
