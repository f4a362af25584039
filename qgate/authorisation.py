"""Which nodes may hold a session at this gate: at the handshake, and for as long as the session lasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from qgate.governance.directory import Directory
from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.handshake import Hello
from tunnel_proto.marks import ReplayMarks

SERVED_ROLES = frozenset({"client", "daemon"})
"""Roles that find something here; peers and administrators come with later parts of the mesh."""

UNKNOWN = "the node is not enrolled"
REVOKED = "the node was revoked"
SUPERSEDED = "the node was enrolled again and this is its old certificate"
OTHER_KEY = "the node is enrolled with another signing key"
OTHER_ROLE = "the node is enrolled in another role"

_REASONS = {
    UNKNOWN: "unknown",
    REVOKED: "revoked",
    SUPERSEDED: "superseded",
    OTHER_KEY: "certificate",
    OTHER_ROLE: "role",
}


class GateAuthorisation:
    """Answers a handshake: pool key, chain, expiry, role, enrolment, revocation, replay mark, in that order.

    ``refused`` counts refusals by reason; the reason is never told to the other side.
    """

    def __init__(
        self, pool_key: bytes, directory: Directory, marks: ReplayMarks, *, clock: Callable[[], float]
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._directory = directory
        self._check = Authorisation(
            pool_key=pool_key, roles=SERVED_ROLES, standing=self.standing, marks=marks, clock=clock
        )

    def __call__(self, hello: Hello, remote_static: bytes) -> NodeCertificate:
        """The certificate of a node that may come in; raises AuthenticationFailed for any other."""
        try:
            return self._check(hello, remote_static)
        except AuthenticationFailed as error:
            self.refused[reason_of(error)] += 1
            raise

    def standing(self, certificate: NodeCertificate) -> str:
        """Why the bearer of a sound certificate is not welcome all the same, or the empty string."""
        node = self._directory.node(certificate.handshake_public)
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

    def withdrawn(self, peer: NodeCertificate) -> str:
        """Why the bearer of a live session must go, or the empty string.

        An old certificate is no reason: who enrols again keeps the running session and shows the new one at
        the next handshake.
        """
        reason = self.standing(peer)
        return "" if reason == SUPERSEDED else reason


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
