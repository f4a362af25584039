"""A gate with everything an initiator may meet there, for tests of the handshake."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online
from tunnel_proto.constants import (
    HELLO_MAX,
    MAC1_BYTES,
    MESSAGE_1_OVERHEAD,
    PACKET_LENGTH_BYTES,
)
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError
from tunnel_proto.handshake import (
    Hello,
    InitiatorHandshake,
    ReplayMarks,
    ResponderHandshake,
    Welcome,
)
from tunnel_proto.identity import Identity

POOL, ONLINE, NODE, GATE = (Identity(bytes((n,)) * 32, bytes((n + 1,)) * 32) for n in (1, 3, 5, 7))
ONLINE_CERTIFICATE = issue_online(POOL, ONLINE.verify_key, not_before=0, not_after=100_000, serial=1)
CERTIFICATE = NodeCertificate(
    POOL.verify_key, "client", "laptop", NODE.verify_key, NODE.handshake_public, 7, 1_000, 50_000
)
CHAIN = issue_node(ONLINE, ONLINE_CERTIFICATE, CERTIFICATE)
LONGEST_MESSAGE_1 = PACKET_LENGTH_BYTES + MESSAGE_1_OVERHEAD + HELLO_MAX + MAC1_BYTES
HELLO = Hello("client", (1, 1), frozenset({"zstd", "long-context"}), CHAIN, 1_000_000)
WELCOME = Welcome(1, frozenset({"zstd"}), "gate-a", ("gate-a.example:7000",))


class RecordedMarks:
    """Marks in memory that remember what they were asked."""

    def __init__(self) -> None:
        self.accepted: list[tuple[bytes, int]] = []

    def accept(self, key: bytes, timestamp: int) -> None:
        if any(mark >= timestamp for known, mark in self.accepted if known == key):
            raise AuthenticationFailed("a replayed handshake")
        self.accepted.append((key, timestamp))


@dataclass
class Gate:
    """A responder's surroundings: who may come in, and what was asked meanwhile."""

    marks: RecordedMarks | ReplayMarks = field(default_factory=RecordedMarks)
    roles: frozenset[str] = frozenset({"client", "gate"})
    now: float = 3_000.0
    problem: str = ""
    welcome: Welcome = WELCOME
    admitted: bool = True
    asked: list[str] = field(default_factory=list)

    def responder(self, *, identity: Identity = GATE, ephemeral: bytes | None = None) -> ResponderHandshake:
        def authorise(hello: Hello, remote_static: bytes) -> NodeCertificate:
            self.asked.append("authorise")
            judge = Authorisation(
                POOL.verify_key,
                self.roles,
                lambda _node: self.problem,
                self.marks,
                lambda: self.now,
            )
            return judge(hello, remote_static)

        def welcome(_hello: Hello, _peer: NodeCertificate) -> Welcome:
            self.asked.append("welcome")
            return self.welcome

        def admit() -> bool:
            self.asked.append("admit")
            return self.admitted

        return ResponderHandshake(
            identity=identity,
            ephemeral=ephemeral or os.urandom(32),
            authorise=authorise,
            welcome=welcome,
            admit=admit,
        )


def initiator(
    hello: Hello = HELLO, *, identity: Identity = NODE, gate: Identity = GATE
) -> InitiatorHandshake:
    return InitiatorHandshake(
        identity=identity,
        hello=hello,
        responder_key=gate.handshake_public,
        ephemeral=os.urandom(32),
    )


def refused(responder: ResponderHandshake, data: bytes, reason: str) -> None:
    """The responder refuses ``data`` and has nothing to say."""
    with pytest.raises(AuthenticationFailed, match=reason):
        responder.receive(data)
    with pytest.raises(LocalProtocolError):
        responder.message_2()
    with pytest.raises(LocalProtocolError):
        responder.receive(b"")


MESSAGE_1 = InitiatorHandshake(
    identity=NODE, hello=HELLO, responder_key=GATE.handshake_public, ephemeral=b"\x11" * 32
).message_1()


def call(gate: Gate, hello: Hello = HELLO, identity: Identity = NODE) -> tuple[ResponderHandshake, bytes]:
    return gate.responder(), initiator(hello, identity=identity).message_1()
