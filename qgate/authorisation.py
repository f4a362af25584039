"""Which nodes may hold a session at this gate: at the handshake, and for as long as the session lasts.

A node of this pool is checked against the pool's key and what was enrolled here. A node of a paired pool is
checked against that pool's key: its gates come in the role "peer", with a chain that their own online key
signed; its sidecars and daemons come as guests while the pool may fail over to here, and have to be on the
list of nodes that it sent; its administrators' keys come while its administrators count here. A tunnel gives
those nothing yet: every request needs a session (`qgate.control.access`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from qgate.federation.guests import GuestNode
from qgate.federation.peer import Peer
from qgate.federation.trust import may
from qgate.governance.directory import Directory, Node
from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import NodeCertificate, claimed_pool, read_chain, read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.handshake import Hello
from tunnel_proto.marks import ReplayMarks

SERVED_ROLES = frozenset({"client", "daemon", "admin"})
"""Roles of this pool's own nodes that find something here."""

GUEST_ROLES = frozenset({"client", "daemon"})
"""Roles of other pools' nodes that may come while their own pool is dead."""

FOREIGN_ROLES = GUEST_ROLES | {"peer", "admin"}
"""Roles of other pools' nodes that may come in."""

KNOCKS_S = 600.0
KNOCKS_MOST = 1024
"""How often a revoked node that knocks is told of, and of how many it is known."""

UNKNOWN = "the node is not enrolled"
REVOKED = "the node was revoked"
SUPERSEDED = "the node was enrolled again and this is its old certificate"
OTHER_KEY = "the node is enrolled with another signing key"
OTHER_ROLE = "the node is enrolled in another role"
UNPAIRED = "the node's pool is not paired with this one"
PEER_REVOKED = "the node's pool was revoked"
ROTATED = "the node's pool has another online key by now"
NOT_ADMINISTERED = "administrators of the node's pool have no rights here"

_REASONS = {
    UNKNOWN: "unknown",
    REVOKED: "revoked",
    SUPERSEDED: "superseded",
    OTHER_KEY: "certificate",
    OTHER_ROLE: "role",
    UNPAIRED: "unpaired",
    PEER_REVOKED: "revoked",
    ROTATED: "superseded",
    NOT_ADMINISTERED: "unpaired",
}


class GateAuthorisation:
    """Answers a handshake: pool key, chain, expiry, role, enrolment, revocation, replay mark, in that order.

    ``refused`` counts refusals by reason; the reason is never told to the other side. ``on_revoked`` hears
    of a revoked node that knocks, by the name that it had here, once in `KNOCKS_S`.
    """

    def __init__(
        self, pool_key: bytes, directory: Directory, marks: ReplayMarks, *, clock: Callable[[], float]
    ) -> None:
        self.refused: Counter[str] = Counter()
        self.on_revoked: Callable[[str], object] = _ignored
        self._knocked: dict[bytes, float] = {}
        self._directory = directory
        self._pool_key = pool_key
        self._clock = clock
        self._check = Authorisation(
            pool_key=pool_key, roles=SERVED_ROLES, standing=self.standing, marks=marks, clock=clock
        )

    def __call__(self, hello: Hello, remote_static: bytes) -> NodeCertificate:
        """The certificate of a node that may come in; raises AuthenticationFailed for any other."""
        try:
            return self._check_of(hello)(hello, remote_static)
        except AuthenticationFailed as error:
            self.refused[reason_of(error)] += 1
            if error.message == REVOKED:
                self._knock(remote_static)
            raise

    def _knock(self, remote_static: bytes) -> None:
        """Somebody has a key that was revoked, and tries it: worth an entry, and not one a second."""
        node, now = self._directory.node(remote_static), self._clock()
        if node is None or now < self._knocked.get(remote_static, now - KNOCKS_S) + KNOCKS_S:
            return
        self._knocked.pop(remote_static, None)
        self._knocked[remote_static] = now
        while len(self._knocked) > KNOCKS_MOST:
            del self._knocked[next(iter(self._knocked))]
        self.on_revoked(node.name)

    def _check_of(self, hello: Hello) -> Authorisation:
        """The check for nodes of the pool that the chain claims to be of."""
        pool_key = claimed_pool(hello.chain)
        if pool_key == self._pool_key:
            return self._check
        peer = self._directory.peer(pool_key)
        if problem := self._unwelcome(peer, hello.role):
            if problem != UNPAIRED or peer is None or hello.role != "peer":
                raise AuthenticationFailed(problem)
            # A pool that was paired with us may know that it is no longer: `refusal` tells it.
            return dataclasses.replace(
                self._check, pool_key=pool_key, roles=frozenset({"peer"}), standing=_no_objection
            )
        # Whoever holds an online key that the peer has replaced is none of its gates any more. Its sidecars
        # may go on to show what the old key signed.
        gate = peer if hello.role == "peer" else None
        if gate is not None and _online_serial(hello.chain) < _serial(gate):
            raise AuthenticationFailed(ROTATED)
        return dataclasses.replace(self._check, pool_key=pool_key, roles=FOREIGN_ROLES)

    def refusal(self, certificate: NodeCertificate) -> str:
        """What a known peer is told instead of a session, or the empty string."""
        if certificate.pool == self._pool_key or certificate.role != "peer":
            return ""
        if self._unwelcome(self._directory.peer(certificate.pool), "peer"):
            self.refused[_REASONS[UNPAIRED]] += 1
            return "unpaired"
        return ""

    def standing(self, certificate: NodeCertificate) -> str:
        """Why the bearer of a sound certificate is not welcome all the same, or the empty string."""
        if certificate.pool != self._pool_key:
            peer = self._directory.peer(certificate.pool)
            if problem := self._unwelcome(peer, certificate.role):
                return problem
            public = certificate.handshake_public
            if self._directory.node_revoked(certificate.pool, public, certificate.serial):
                return REVOKED
            return self._guest_standing(certificate)
        return _standing(certificate, self._directory.node(certificate.handshake_public))

    def _guest_standing(self, certificate: NodeCertificate) -> str:
        """Why a node of a paired pool is not welcome; gates of peers are no guests."""
        if certificate.role not in GUEST_ROLES:
            return ""
        return _standing(
            certificate, self._directory.guest_node(certificate.pool, certificate.handshake_public)
        )

    def _unwelcome(self, peer: Peer | None, role: str) -> str:
        """Why a pool's nodes may not come in. A tunnel alone gives no right to anything but to be refused.

        While an offer is open to answers over the tunnel, any pool's gate may knock: for that it needs our
        gate's key, which is in the offer.
        """
        if peer is not None and peer.state == "revoked":
            return PEER_REVOKED
        if role == "admin":
            return "" if peer is not None and may(peer, "admin", "receive") else NOT_ADMINISTERED
        if peer is not None and (peer.paired or (role == "peer" and peer.state == "confirmed")):
            return ""
        knocks = role == "peer" and self._directory.takes_answers(self._clock())
        return "" if knocks else UNPAIRED

    def withdrawn(self, peer: NodeCertificate) -> str:
        """Why the bearer of a live session must go, or the empty string.

        An old certificate is no reason: who enrols again keeps the running session and shows the new one at
        the next handshake.
        """
        reason = self.standing(peer)
        return "" if reason == SUPERSEDED else reason


def _ignored(name: str) -> None:
    del name


def _standing(certificate: NodeCertificate, node: Node | GuestNode | None) -> str:
    if node is None:
        return UNKNOWN
    if node.revoked:
        return REVOKED
    if node.verify_key != certificate.verify_key:
        return OTHER_KEY
    if node.role != certificate.role:
        return OTHER_ROLE
    if certificate.serial < node.serial:
        return SUPERSEDED
    return ""


def _no_objection(certificate: NodeCertificate) -> str:
    del certificate
    return ""


def _serial(peer: Peer) -> int:
    return read_online(peer.online_certificate).serial


def _online_serial(chain: bytes) -> int:
    online, _ = read_chain(chain)
    return online.serial


def reason_of(error: AuthenticationFailed) -> str:
    """A refusal's label in the metrics: one of a handful of words."""
    if error.message in _REASONS:
        return _REASONS[error.message]
    if "expired" in error.message or "not valid yet" in error.message:
        return "expired"
    if "role" in error.message:
        return "role"
    if "replay" in error.message or "timestamp" in error.message:
        return "replay"
    return "certificate"
