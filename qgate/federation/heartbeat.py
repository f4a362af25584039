"""Heartbeats: what a gate says of itself to every peer, and what it takes from theirs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from qgate.federation.peer import Peer
from tunnel_proto.certificate import OnlineCertificate, read_online
from tunnel_proto.enrolment import GateAddress, gate_problem
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.peer_messages import GatePlace, Heartbeat, Load, LogHead, read_heartbeat

GATES_EVERY: Final = 30
"""A heartbeat in so many says where the gates are, and each for a while after that has changed."""

CLOCK_OFF_S: Final = 60.0
"""From this difference of clocks on a peer's is said to be wrong."""


@dataclass(slots=True)
class Pulse:
    """Makes this gate's heartbeats, one after the other."""

    pool: bytes
    gate: str
    instance: bytes
    seq: int = 0
    _gates: tuple[GateAddress, ...] = ()
    _say_gates: int = 1

    def beat(
        self,
        now: float,
        *,
        health: str,
        load: Load,
        heads: Sequence[LogHead],
        roster: int,
        gates: tuple[GateAddress, ...],
    ) -> Heartbeat:
        """The next one; ``now`` is unix time."""
        self.seq += 1
        if gates != self._gates:
            self._gates, self._say_gates = gates, 5
        told: tuple[GatePlace, ...] = ()
        if self._say_gates or self.seq % GATES_EVERY == 0:
            self._say_gates = max(0, self._say_gates - 1)
            told = tuple(GatePlace(one.name, one.host, one.port, one.handshake_public) for one in gates)
        return Heartbeat(
            self.pool, self.gate, self.instance, self.seq, now, health, load, tuple(heads), roster, told
        )

    def repeat_gates(self) -> None:
        """Somebody new listens: say with the next one where the gates are."""
        self._say_gates = max(self._say_gates, 1)


@dataclass(slots=True)
class Heard:
    """What one peer's heartbeats have said. Times are monotonic; ``skew_s`` is its clock less ours."""

    newest: dict[str, Heartbeat] = field(default_factory=dict)  # by gate
    at: dict[str, float] = field(default_factory=dict)
    skew_s: float = 0.0
    beats: int = 0

    def take(self, beat: Heartbeat, *, monotonic: float, now: float) -> bool:
        """Note a verified heartbeat; False for one that is no newer than what came before of its process."""
        held = self.newest.get(beat.gate)
        if held is not None and held.instance == beat.instance and beat.seq <= held.seq:
            return False
        self.newest[beat.gate] = beat
        self.at[beat.gate] = monotonic
        self.skew_s = beat.time - now
        self.beats += 1
        return True

    @property
    def latest(self) -> Heartbeat | None:
        """The newest of all its gates."""
        if not self.at:
            return None
        return self.newest[max(self.at, key=lambda gate: self.at[gate])]

    def health(self) -> str:
        """The pool's: "ok" as long as one of its gates is."""
        said = [beat.health for beat in self.newest.values()]
        return next((word for word in ("ok", "degraded", "draining") if word in said), "")


def check_heartbeat(frame: bytes, peer: Peer, certificate: OnlineCertificate) -> Heartbeat:
    """A frame of ``peer``, which ``certificate`` (already verified as that pool's) must have signed.

    AuthenticationFailed, RemoteProtocolError.
    """
    beat = read_heartbeat(frame, certificate.verify_key)
    if beat.pool != peer.pool_key:
        raise AuthenticationFailed("a heartbeat of another pool than the one whose tunnel it came over")
    for gate in beat.gates:
        if problem := gate_problem(GateAddress(gate.name, gate.host, gate.port, gate.handshake_public)):
            raise RemoteProtocolError(f"a bad heartbeat: {problem}")
    return beat


def check_certificate(certificate: bytes, peer: Peer, *, now: float) -> OnlineCertificate:
    """The online certificate that a stream of heartbeats began with, at unix time ``now``.

    It must be of the peer's pool key, no older than what we know, and not over. AuthenticationFailed.
    """
    online = read_online(certificate)
    if online.pool != peer.pool_key:
        raise AuthenticationFailed("the online certificate is of another pool")
    if online.serial < read_online(peer.online_certificate).serial:
        raise AuthenticationFailed("the online key was replaced by a newer one")
    if now > online.not_after:
        raise AuthenticationFailed("the online certificate has expired")
    return online


def gates_told(beat: Heartbeat) -> tuple[GateAddress, ...]:
    """Where the sender's gates are, where it says so."""
    return tuple(GateAddress(one.name, one.host, one.port, one.handshake_public) for one in beat.gates)
