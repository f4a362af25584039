"""Heartbeats: what is taken and what is not, and between two real gates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qgate.federation.heartbeat import Heard, Pulse, check_certificate, check_heartbeat
from qgate.federation.peer import Peer
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import until
from tests.qgate.peering import hasten, know, pair, peer_of, pools
from tunnel_proto.certificate import issue_online, read_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError, TunnelError
from tunnel_proto.framing import Frames
from tunnel_proto.identity import Identity
from tunnel_proto.packing import pack
from tunnel_proto.peer_messages import (
    HEARTBEAT_MAX,
    GatePlace,
    Heartbeat,
    Load,
    LogHead,
    read_heartbeat,
    sign_heartbeat,
)

NOW = 1_800_000_000.0
DAY = 86_400
GATE = GateAddress("gate-1", "gate.example", 11437, bytes(range(32)))


class Sender:
    """A pool that sends heartbeats, and what the receiver knows of it."""

    def __init__(self) -> None:
        self.pool, self.online = Identity.generate(), Identity.generate()
        self.certificate = self.certify(self.online, 5)
        self.peer = Peer(
            self.pool.verify_key, "hq", level=1, gates=(GATE,), online_certificate=self.certificate
        )
        self.pulse = Pulse(self.pool.verify_key, "gate-1", b"i" * 16)

    def certify(self, online: Identity, serial: int) -> bytes:
        return issue_online(
            self.pool,
            online.verify_key,
            not_before=int(NOW) - DAY,
            not_after=int(NOW) + DAY,
            serial=serial,
        )

    def beat(self, now: float = NOW) -> Heartbeat:
        return self.pulse.beat(
            now,
            health="ok",
            load=Load(sessions=3, workers=1),
            heads=[LogHead(self.pool.verify_key, b"x" * 16, 7)],
            roster=2,
            gates=(GATE,),
        )

    def frame(self, beat: Heartbeat | None = None) -> bytes:
        return Frames(HEARTBEAT_MAX).feed(sign_heartbeat(beat or self.beat(), self.online))[0]


def test_a_heartbeat_survives_its_way() -> None:
    sender = Sender()
    beat = sender.beat()
    taken = check_heartbeat(sender.frame(beat), sender.peer, read_online(sender.certificate))
    assert taken == beat
    assert taken.gates == (GatePlace("gate-1", "gate.example", 11437, bytes(range(32))),)
    frames = Frames(HEARTBEAT_MAX)
    wire = b"".join(sign_heartbeat(sender.beat(), sender.online) for _ in range(3))
    assert sum(len(frames.feed(wire[i : i + 1])) for i in range(len(wire))) == 3


def test_what_is_not_the_peers_own_is_refused() -> None:
    sender, other = Sender(), Sender()
    certificate = read_online(sender.certificate)
    frame = bytearray(sender.frame())
    frame[-1] ^= 1
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        check_heartbeat(bytes(frame), sender.peer, certificate)
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        check_heartbeat(other.frame(), sender.peer, certificate)
    forged = dataclasses.replace(sender.beat(), pool=other.pool.verify_key)
    with pytest.raises(AuthenticationFailed, match="of another pool"):
        check_heartbeat(sender.frame(forged), sender.peer, certificate)
    for nonsense in (b"", b"\xc0", pack([b"", b""]), pack([b"x", b"y" * 64]), b"\x00" * 100):
        with pytest.raises((AuthenticationFailed, RemoteProtocolError)):
            read_heartbeat(nonsense, sender.online.verify_key)
    with pytest.raises(RemoteProtocolError, match="where 16384 are allowed"):
        Frames(HEARTBEAT_MAX).feed(b"\x7f\xff\xff\xff")
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        sign_heartbeat(dataclasses.replace(sender.beat(), health="splendid"), sender.online)


def test_an_online_certificate_must_be_the_pools_newest() -> None:
    sender, other = Sender(), Sender()
    assert check_certificate(sender.certificate, sender.peer, now=NOW).serial == 5
    fresh = sender.certify(Identity.generate(), 6)
    assert check_certificate(fresh, sender.peer, now=NOW).serial == 6
    for certificate, now, why in (
        (sender.certify(Identity.generate(), 4), NOW, "replaced by a newer one"),
        (other.certificate, NOW, "of another pool"),
        (sender.certificate, NOW + 2 * DAY, "expired"),
        (b"\xc0", NOW, "malformed"),
    ):
        with pytest.raises(AuthenticationFailed, match=why):
            check_certificate(certificate, sender.peer, now=now)


def test_a_replayed_heartbeat_counts_once() -> None:
    sender, heard = Sender(), Heard()
    first, second = sender.beat(), sender.beat(NOW + 1)
    assert heard.take(first, monotonic=1.0, now=NOW)
    assert heard.take(second, monotonic=2.0, now=NOW + 601)
    assert not heard.take(first, monotonic=3.0, now=NOW)
    assert not heard.take(second, monotonic=3.0, now=NOW)
    assert heard.skew_s == -600
    assert heard.at == {"gate-1": 2.0}
    restarted = Pulse(sender.pool.verify_key, "gate-1", b"j" * 16)
    sender.pulse = restarted
    assert heard.take(sender.beat(NOW + 3), monotonic=4.0, now=NOW + 3)


def test_addresses_are_said_when_they_change_and_now_and_then() -> None:
    sender = Sender()
    told = [bool(sender.beat().gates) for _ in range(60)]
    assert told[:5] == [True] * 5
    assert 1 <= sum(told[5:]) <= 2


def shown(gate: Gate, other: Gate) -> dict[str, object]:
    return gate.peering.liveness(other.parts.keys.pool_key)


async def test_gates_hear_each_other_and_miss_who_is_gone(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "gpu", "branch") as (hq, gpu, branch):
        verdicts: list[tuple[str, str]] = []
        hq.peering.vitals.on_verdict(lambda peer, now: verdicts.append((peer.name, now.state)))
        for gate in (hq, gpu, branch):
            await hasten(gate)
        for one, other in ((hq, gpu), (hq, branch), (gpu, branch)):
            await pair(one, other, level=1)
        await until(lambda: all(shown(hq, one).get("heard_s") is not None for one in (gpu, branch)))
        row = shown(hq, gpu)
        assert (row["link"], row["health"], row["problem"]) == ("up", "alive", "")
        assert abs(float(str(row["skew_s"]))) < 5
        verdicts.clear()
        await gpu.tunnel.close()
        await gpu.peering.links.close()
        await until(lambda: shown(hq, gpu)["health"] == "dead", 20)
        assert verdicts == [("gpu", "suspect"), ("gpu", "dead")]
        assert shown(hq, branch)["health"] == "alive"


async def test_a_peer_without_leave_is_not_heard_but_not_dead_either(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        for gate in (hq, branch):
            await hasten(gate)
        await know(hq, peer_of(branch, level=1))
        await know(branch, peer_of(hq, level=0))
        await until(lambda: shown(hq, branch)["health"] == "silent", 20)
        assert shown(branch, hq)["health"] is None
        assert not branch.peering.vitals.heard  # what hq sent was refused
        await know(branch, peer_of(hq, level=1))
        await until(lambda: shown(hq, branch)["health"] == "alive", 20)


async def test_an_unpaired_peers_heartbeat_counts_for_nothing(
    tmp_path: Path, store_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        for gate in (hq, branch):
            await hasten(gate)
        vitals = branch.peering.vitals
        frames: list[Any] = []
        take = vitals.take

        def taken(*given: Any) -> None:
            frames.append(given)
            take(*given)

        monkeypatch.setattr(vitals, "take", taken)
        await pair(hq, branch, level=1)
        await until(lambda: shown(branch, hq)["health"] == "alive" and len(frames) >= 2, 20)
        await know(branch, peer_of(hq, state="unpaired", level=0))
        with pytest.raises(TunnelError, match="not accepted from your pool"):
            take(*frames[-1])  # sound, signed, and the newest
        await until(lambda: shown(branch, hq)["health"] is None, 60)
        await until(lambda: not branch.peering.links.up(hq.parts.keys.pool_key), 20)
        assert shown(branch, hq)["health"] is None


async def test_a_peers_new_address_is_learnt(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        for gate in (hq, branch):
            await hasten(gate)
        nowhere = GateAddress("branch-gate", "127.0.0.1", 9, branch.parts.keys.node.handshake_public)
        await know(hq, peer_of(branch, level=1, gates=(nowhere,)))
        await know(branch, peer_of(hq, level=1))
        key = branch.parts.keys.pool_key

        def learnt() -> bool:
            peer = hq.parts.directory.peer(key)
            return peer is not None and peer.gates == branch.gate_addresses()

        await until(learnt, 20)
        await until(lambda: bool(hq.peering.links.state()[0]["dialled"][0]["state"] == "up"), 20)
