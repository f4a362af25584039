"""Rosters and orders: who may say where a node goes, and what is not believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.certificate import issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity
from tunnel_proto.packing import pack, unpack
from tunnel_proto.roster import (
    ORDER_LIFE_S,
    ROSTER_LIFE_S,
    ROSTER_MAX,
    Order,
    Roster,
    RosterError,
    RosterPool,
    read_order,
    read_roster,
    seal_order,
    seal_roster,
)

NOW = 1_800_000_000
HQ, GPU, EVIL, HQ_ONLINE, GPU_ONLINE, EVIL_ONLINE = (
    Identity(bytes((n,)) * 32, bytes((n + 1,)) * 32) for n in (1, 3, 5, 7, 9, 11)
)


def certificate(pool: Identity, online: Identity, *, ends: int = NOW + 10**8) -> bytes:
    return issue_online(pool, online.verify_key, not_before=NOW - 1000, not_after=ends, serial=1)


HQ_CERTIFICATE, GPU_CERTIFICATE, EVIL_CERTIFICATE = (
    certificate(pool, online) for pool, online in ((HQ, HQ_ONLINE), (GPU, GPU_ONLINE), (EVIL, EVIL_ONLINE))
)


def pool(identity: Identity, name: str) -> RosterPool:
    gates = (
        GateAddress(f"{name}-1", f"{name}.example", 7443, identity.handshake_public),
        GateAddress(f"{name}-2", "2001:db8::7", 7443, identity.handshake_public),
    )
    return RosterPool(identity.verify_key, name, gates)


ROSTER = Roster(
    pool_key=HQ.verify_key,
    name="hq",
    serial=7,
    issued=NOW,
    expires=NOW + ROSTER_LIFE_S,
    mode="auto",
    pools=(pool(HQ, "hq"), pool(GPU, "gpu")),
)
SEALED = seal_roster(HQ_ONLINE, HQ_CERTIFICATE, ROSTER)
ORDER = Order(
    issuer=GPU.verify_key,
    home=HQ.verify_key,
    number=NOW,
    issued=NOW,
    expires=NOW + ORDER_LIFE_S,
    verb="move",
    target=GPU.verify_key,
    nodes=("laptop",),
    by="uid=0",
)


def read(data: bytes, **options: int) -> Roster:
    return read_roster(data, pool_key=HQ.verify_key, now=options.pop("now", NOW + 60), **options)  # type: ignore[arg-type]


def obey(
    data: bytes, *, issuer: Identity = GPU, node: str = "laptop", now: int = NOW + 1, newest: int = 0
) -> Order:
    return read_order(data, issuer=issuer.verify_key, roster=ROSTER, node=node, now=now, newest=newest)


def reason_of(data: bytes, **options: int) -> str:
    with pytest.raises(RosterError) as caught:
        read(data, **options)
    assert caught.value.message
    return caught.value.reason


def test_a_roster_comes_back_as_it_was_sealed() -> None:
    assert read(SEALED) == ROSTER
    assert read(SEALED, newest=7) == ROSTER


def test_a_roster_is_good_for_its_pool_and_its_time_only() -> None:
    assert (
        reason_of(
            seal_roster(
                EVIL_ONLINE,
                EVIL_CERTIFICATE,
                replace(ROSTER, pool_key=EVIL.verify_key, pools=(pool(EVIL, "hq"),)),
            )
        )
        == "foreign"
    )
    assert reason_of(SEALED, now=NOW + ROSTER_LIFE_S + 1) == "expired"
    assert reason_of(SEALED, now=NOW - 600) == "future"
    assert reason_of(SEALED, newest=8) == "stale"
    assert read(SEALED, now=NOW + 10**7, check_times=False) == ROSTER


def test_an_online_key_that_has_run_out_signs_nothing() -> None:
    short = certificate(HQ, HQ_ONLINE, ends=NOW + 10)
    assert reason_of(seal_roster(HQ_ONLINE, short, ROSTER)) == "expired"


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_no_byte_of_a_roster_can_be_changed(at: int, by: int) -> None:
    damaged = SEALED[:at] + bytes((SEALED[at] ^ by,)) + SEALED[at + 1 :]
    assert reason_of(damaged) in {"malformed", "signature", "foreign"}


@given(st.binary(max_size=200))
def test_noise_is_no_roster(data: bytes) -> None:
    assert reason_of(data) in {"malformed", "signature"}


@pytest.mark.parametrize(
    "data", [SEALED[:-1], SEALED + b"\0", SEALED[: len(SEALED) // 2], b"\x94" * ROSTER_MAX]
)
def test_half_a_roster_is_none(data: bytes) -> None:
    assert reason_of(data) == "malformed"


def test_a_roster_that_is_too_long_is_not_even_looked_at() -> None:
    assert reason_of(pack([1, b"", b"x" * ROSTER_MAX, b""])) == "malformed"


def test_a_roster_of_another_version_is_named_so() -> None:
    _, *rest = unpack(SEALED, max_bytes=ROSTER_MAX)
    with pytest.raises(RosterError, match="another version") as caught:
        read(pack([2, *rest]))
    assert caught.value.hint


def test_the_peer_of_a_pool_cannot_sign_its_roster() -> None:
    with pytest.raises(ConfigError):
        seal_roster(GPU_ONLINE, GPU_CERTIFICATE, ROSTER)
    _, _, body, _ = unpack(SEALED, max_bytes=ROSTER_MAX)
    forged = pack([1, HQ_CERTIFICATE, body, GPU_ONLINE.sign("roster", body)])
    assert reason_of(forged) == "signature"
    as_order = pack([1, HQ_CERTIFICATE, body, HQ_ONLINE.sign("failover order", body)])
    assert reason_of(as_order) == "signature"


def with_gate(gate: GateAddress) -> Roster:
    return replace(ROSTER, pools=(RosterPool(HQ.verify_key, "hq", (gate,)),))


BAD = {
    "no pool": replace(ROSTER, pools=()),
    "home not first": replace(ROSTER, pools=(pool(GPU, "gpu"), pool(HQ, "hq"))),
    "twice": replace(ROSTER, pools=(*ROSTER.pools, pool(GPU, "gpu"))),
    "too many": replace(
        ROSTER,
        pools=(
            ROSTER.pools[0],
            *(RosterPool(bytes((n,)) * 32, f"p{n}", ROSTER.pools[1].gates) for n in range(100, 116)),
        ),
    ),
    "no gate": replace(ROSTER, pools=(ROSTER.pools[0], RosterPool(GPU.verify_key, "gpu", ()))),
    "bad port": with_gate(GateAddress("a", "h", 0, HQ.handshake_public)),
    "bad host": with_gate(GateAddress("a", "h h", 1, HQ.handshake_public)),
    "short key": with_gate(GateAddress("a", "h", 1, b"k")),
    "bad name": replace(ROSTER, name="h q", pools=(RosterPool(HQ.verify_key, "h q", ROSTER.pools[0].gates),)),
    "for ever": replace(ROSTER, expires=NOW + ROSTER_LIFE_S + 1),
    "backwards": replace(ROSTER, expires=NOW - 1),
    "serial": replace(ROSTER, serial=0),
    "mode": replace(ROSTER, mode="sometimes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_roster_that_makes_no_sense_is_neither_made_nor_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="cannot be issued"):
        seal_roster(HQ_ONLINE, HQ_CERTIFICATE, BAD[name])
    with monkeypatch.context() as patch:
        patch.setattr("tunnel_proto.roster._roster_problem", lambda roster: "")
        sealed = seal_roster(HQ_ONLINE, HQ_CERTIFICATE, BAD[name])
    assert reason_of(sealed) == "malformed"


# --- orders


def test_a_peer_calls_nodes_to_itself_and_sends_them_home() -> None:
    assert obey(seal_order(GPU_ONLINE, GPU_CERTIFICATE, ORDER)) == ORDER
    back = replace(ORDER, verb="back", target=HQ.verify_key, nodes=())
    assert obey(seal_order(GPU_ONLINE, GPU_CERTIFICATE, back)) == back


TO_EVIL: dict[str, object] = {"target": EVIL.verify_key}
FORBIDDEN: dict[str, tuple[Identity, Identity, bytes, dict[str, object]]] = {
    "a pool that the roster does not name": (
        EVIL,
        EVIL_ONLINE,
        EVIL_CERTIFICATE,
        TO_EVIL | {"issuer": EVIL.verify_key},
    ),
    "a target that the roster does not name": (
        HQ,
        HQ_ONLINE,
        HQ_CERTIFICATE,
        TO_EVIL | {"issuer": HQ.verify_key},
    ),
    "a peer that rebalances": (GPU, GPU_ONLINE, GPU_CERTIFICATE, {"verb": "reassign"}),
    "another node": (GPU, GPU_ONLINE, GPU_CERTIFICATE, {"nodes": ("desktop",)}),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_orders_that_nobody_may_give(name: str) -> None:
    issuer, online, issued, changes = FORBIDDEN[name]
    sealed = seal_order(online, issued, replace(ORDER, **changes))  # type: ignore[arg-type]
    with pytest.raises(RosterError) as caught:
        obey(sealed, issuer=issuer)
    assert caught.value.reason == "forbidden"


def test_an_order_is_for_one_pools_nodes_and_carried_out_once() -> None:
    sealed = seal_order(GPU_ONLINE, GPU_CERTIFICATE, ORDER)
    for options, reason in (
        ({"newest": ORDER.number}, "stale"),
        ({"now": NOW + ORDER_LIFE_S + 1}, "expired"),
        ({"now": NOW - 600}, "future"),
    ):
        with pytest.raises(RosterError) as caught:
            obey(sealed, **options)  # type: ignore[arg-type]
        assert caught.value.reason == reason
    with pytest.raises(RosterError) as caught:
        obey(sealed, issuer=HQ)
    assert caught.value.reason == "foreign"
    other = seal_order(GPU_ONLINE, GPU_CERTIFICATE, replace(ORDER, home=EVIL.verify_key))
    with pytest.raises(RosterError, match="another pool"):
        obey(other)


@given(st.integers(0, 200), st.integers(1, 255))
def test_no_byte_of_an_order_can_be_changed(at: int, by: int) -> None:
    sealed = seal_order(GPU_ONLINE, GPU_CERTIFICATE, ORDER)
    at %= len(sealed)
    with pytest.raises(RosterError):
        obey(sealed[:at] + bytes((sealed[at] ^ by,)) + sealed[at + 1 :])


@pytest.mark.parametrize(
    "changes",
    [
        {"verb": "explode"},
        {"verb": "back"},
        {"number": 0},
        {"expires": NOW + ORDER_LIFE_S + 1},
        {"nodes": tuple(f"n{n}" for n in range(33))},
        {"nodes": ("a b",)},
        {"by": "x" * 201},
        {"target": b"short"},
    ],
)
def test_an_order_that_makes_no_sense_is_not_given(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="cannot be issued"):
        seal_order(GPU_ONLINE, GPU_CERTIFICATE, replace(ORDER, **changes))  # type: ignore[arg-type]
