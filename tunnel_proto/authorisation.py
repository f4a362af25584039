"""Whether a node whose handshake opened may come in: certificate, role, standing, then timestamp."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tunnel_proto.certificate import NodeCertificate, verify_chain
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.handshake import Hello


class Marks(Protocol):
    """What remembers timestamps: :class:`tunnel_proto.marks.ReplayMarks`."""

    def accept(self, key: bytes, timestamp: int) -> None:
        """Record a newer timestamp of ``key``, or raise AuthenticationFailed."""


@dataclass(frozen=True, slots=True)
class Authorisation:
    """The ``authorise`` of a ResponderHandshake, for gates of one pool.

    ``standing(certificate)`` says why a node is not welcome (unknown, revoked, an old serial), or the
    empty string; ``clock()`` is unix time in seconds. The mark comes last, so that nothing but a
    handshake that would have been answered uses its timestamp up.
    """

    pool_key: bytes
    roles: frozenset[str]
    standing: Callable[[NodeCertificate], str]
    marks: Marks
    clock: Callable[[], float]

    def __call__(self, hello: Hello, remote_static: bytes) -> NodeCertificate:
        """The certificate of a node that may come in; raises AuthenticationFailed for any other."""
        node = verify_chain(hello.chain, pool_key=self.pool_key, now=self.clock())
        if not hmac.compare_digest(node.handshake_public, remote_static):
            raise AuthenticationFailed("the certificate is for another handshake key")
        if node.role != hello.role:
            raise AuthenticationFailed("the certificate is for another role")
        if node.role not in self.roles:
            raise AuthenticationFailed(f"nodes of the role {node.role} are not served here")
        if problem := self.standing(node):
            raise AuthenticationFailed(problem)
        self.marks.accept(remote_static, hello.timestamp)
        return node
