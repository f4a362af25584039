"""The tunnel's handshake: Noise IK in two packets, and silence for everybody unknown.

    initiator                                     responder
       | -- length, e, es, s, ss, Hello, mac1 ------> |  mac1, budget, 2 DH, certificate, mark
       | <----- length, e, ee, se, Welcome, mac1 ---- |
       | == records under the two keys of Split ====> |

The initiator proves who it is in its first packet, so the responder need not say a word to anyone it
does not know: every failure on its side is AuthenticationFailed, on which the caller writes nothing,
waits a random moment and closes. mac1 is keyed by the responder's public key and checked before any
elliptic-curve work, so whoever does not hold that key costs two microseconds. It hides nothing and
proves nothing else.

Message 1 can be replayed and its payload has no forward secrecy (Noise section 7.7: payload security 2).
Timestamps that must grow refuse the replay, the payload holds no secret, and anything that changes
state (tickets, resuming, fencing an old link) waits for the initiator's first valid record, which only
the holder of its keys can make.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tunnel_proto.admission import Admission
from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.constants import (
    HELLO_MAX,
    MAC1_BYTES,
    MAC1_LABEL_1,
    MAC1_LABEL_2,
    MESSAGE_1_OVERHEAD,
    MESSAGE_2_OVERHEAD,
    PACKET_LENGTH_BYTES,
    PROLOGUE,
    PROTOCOL_VERSIONS,
    WELCOME_MAX,
)
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError
from tunnel_proto.hello import REFUSAL_VERSION, Hello, Welcome, choose_version
from tunnel_proto.identity import Identity
from tunnel_proto.marks import ReplayMarks, TimestampMark
from tunnel_proto.noise import PATTERNS, HandshakeState, KeyPair

__all__ = [
    "REFUSAL_VERSION",
    "Admission",
    "Established",
    "Hello",
    "InitiatorHandshake",
    "ReplayMarks",
    "ResponderHandshake",
    "TimestampMark",
    "Welcome",
    "choose_version",
]


@dataclass(frozen=True, slots=True)
class Established:
    """The result of a handshake: the two record keys (32 bytes each) and what both sides said.

    ``handshake_hash`` (64 bytes) names this handshake and no other. ``leftover`` are bytes of records
    that arrived behind message 2; at the responder there can be none. ``peer`` is the initiator's
    certificate, at the responder only. With ``welcome.refusal`` set, which only a responder sees, both
    keys are empty: send message 2 and close.
    """

    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    handshake_hash: bytes = field(repr=False)
    hello: Hello | None
    welcome: Welcome
    peer: NodeCertificate | None
    leftover: bytes = field(repr=False, default=b"")


class _State(enum.Enum):
    START = "start"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class InitiatorHandshake:
    """The side that connects. ``responder_key`` is the gate's X25519 key, from the bundle.

    ``ephemeral`` is a fresh 32-byte secret from the operating system, used for this handshake only.
    Call :meth:`message_1` once, then feed what arrives to :meth:`receive`.
    """

    def __init__(self, *, identity: Identity, hello: Hello, responder_key: bytes, ephemeral: bytes) -> None:
        self._hello = hello
        self._payload = hello.pack()
        self._responder_key = responder_key
        self._noise = HandshakeState(
            PATTERNS["IK"],
            initiator=True,
            prologue=PROLOGUE,
            s=KeyPair(identity.handshake_key),
            e=KeyPair(ephemeral),
            rs=responder_key,
        )
        self._inbox = _Inbox(responder_key, MAC1_LABEL_2, MESSAGE_2_OVERHEAD, WELCOME_MAX)
        self._state = _State.START

    def message_1(self) -> bytes:
        """The packet to send first. Raises AuthenticationFailed when the gate's key is no usable point."""
        if self._state is not _State.START:
            raise LocalProtocolError("message 1 is sent once")
        self._state = _State.FAILED
        packet = _packet(self._noise.write_message(self._payload), self._responder_key, MAC1_LABEL_1)
        self._state = _State.WAITING
        return packet

    def receive(self, data: bytes) -> Established | None:
        """Take bytes from the socket; the result once message 2 is whole, None before.

        Raises AuthenticationFailed when the reply is not the gate's, RemoteProtocolError when the gate
        refuses this node or breaks the protocol. Either way the handshake is over.
        """
        if self._state is not _State.WAITING:
            raise LocalProtocolError("no message 2 is awaited")
        self._state = _State.FAILED
        message = self._inbox.receive(data)
        if message is None:
            self._state = _State.WAITING
            return None
        welcome = Welcome.unpack(_read(self._noise, message))
        self._check(welcome)
        send, receive = self._noise.split()
        self._state = _State.DONE
        return Established(
            send_key=send.key or b"",
            receive_key=receive.key or b"",
            handshake_hash=self._noise.handshake_hash,
            hello=self._hello,
            welcome=welcome,
            peer=None,
            leftover=self._inbox.leftover(),
        )

    def _check(self, welcome: Welcome) -> None:
        oldest, newest = self._hello.versions
        if welcome.refusal == REFUSAL_VERSION:
            older = welcome.version < oldest
            raise RemoteProtocolError(
                f"{welcome.node} speaks tunnel version {welcome.version} at most, "
                f"this program {oldest} to {newest}",
                hint="upgrade the gate" if older else "upgrade this program",
            )
        if welcome.refusal:
            raise RemoteProtocolError(f"{welcome.node} refuses this node for now: {welcome.refusal}")
        if not oldest <= welcome.version <= newest:
            raise RemoteProtocolError("the gate chose a version that was not offered")
        if not welcome.features <= self._hello.features:
            raise RemoteProtocolError("the gate chose a feature that was not offered")


class ResponderHandshake:
    """The side that listens, and stays silent to all it does not know.

    ``authorise(hello, remote_static)`` judges certificate, enrolment, role and timestamp and returns the
    certificate, or raises AuthenticationFailed; ``welcome(hello, peer)`` then chooses what to answer.
    ``admit()`` is asked once, after mac1 and before any elliptic-curve work, whether this address may
    have a handshake computed. ``ephemeral`` is a fresh 32-byte secret, used for this handshake only.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        ephemeral: bytes,
        authorise: Callable[[Hello, bytes], NodeCertificate],
        welcome: Callable[[Hello, NodeCertificate], Welcome],
        admit: Callable[[], bool] | None = None,
    ) -> None:
        self._identity = identity
        self._ephemeral = ephemeral
        self._public = identity.handshake_public
        self._authorise = authorise
        self._welcome = welcome
        self._admit = admit
        self._inbox = _Inbox(self._public, MAC1_LABEL_1, MESSAGE_1_OVERHEAD, HELLO_MAX)
        self._message_2: bytes | None = None
        self._state = _State.WAITING

    def receive(self, data: bytes) -> Established | None:
        """Take bytes from the socket; the result once message 1 is whole and known, None before.

        Raises AuthenticationFailed for everything a peer can do wrong: write nothing, wait, close.
        """
        if self._state is not _State.WAITING:
            raise LocalProtocolError("no message 1 is awaited")
        self._state = _State.FAILED
        message = self._inbox.receive(data)
        if message is None:
            self._state = _State.WAITING
            return None
        # An honest initiator has no record keys yet, so nothing of its own can follow.
        if self._inbox.leftover():
            raise AuthenticationFailed("bytes behind message 1", reason="length")
        if self._admit is not None and not self._admit():
            raise AuthenticationFailed("too many failed handshakes from this address", reason="budget")
        # Not before now: deriving the ephemeral's public half is elliptic-curve work too.
        noise = HandshakeState(
            PATTERNS["IK"],
            initiator=False,
            prologue=PROLOGUE,
            s=KeyPair(self._identity.handshake_key),
            e=KeyPair(self._ephemeral),
        )
        hello, peer = self._read_hello(noise, message)
        welcome = self._answer(hello, peer)
        self._message_2 = _packet(noise.write_message(welcome.pack()), self._public, MAC1_LABEL_2)
        send_key, receive_key = b"", b""
        if not welcome.refusal:
            send, receive = noise.split()
            send_key, receive_key = send.key or b"", receive.key or b""
        self._state = _State.DONE
        return Established(send_key, receive_key, noise.handshake_hash, hello, welcome, peer)

    def message_2(self) -> bytes:
        """The packet that answers a known node, a refusal included; once :meth:`receive` returned one."""
        if self._message_2 is None:
            raise LocalProtocolError("there is nothing to answer")
        packet, self._message_2 = self._message_2, None
        return packet

    def _read_hello(self, noise: HandshakeState, message: bytes) -> tuple[Hello, NodeCertificate]:
        try:
            hello = Hello.unpack(_read(noise, message))
        except RemoteProtocolError as error:
            raise AuthenticationFailed(error.message, reason="hello") from None
        remote_static = noise.rs
        if remote_static is None:
            raise LocalProtocolError("message 1 brings the initiator's key")
        peer = self._authorise(hello, remote_static)
        # Authorising is the caller's; that it spoke of the very key that was proved is checked here.
        if not hmac.compare_digest(peer.handshake_public, remote_static):
            raise AuthenticationFailed("the certificate is for another handshake key")
        if peer.role != hello.role:
            raise AuthenticationFailed("the certificate is for another role")
        return hello, peer

    def _answer(self, hello: Hello, peer: NodeCertificate) -> Welcome:
        welcome = self._welcome(hello, peer)
        if choose_version(hello.versions) is None:
            return replace(
                welcome, version=PROTOCOL_VERSIONS[1], features=frozenset(), refusal=REFUSAL_VERSION
            )
        oldest, newest = hello.versions
        if not welcome.refusal and not (
            oldest <= welcome.version <= newest and welcome.features <= hello.features
        ):
            raise LocalProtocolError("a Welcome chooses among the versions and features that were offered")
        return welcome


class _Inbox:
    """Collects one packet of bounded size and checks its mac1."""

    __slots__ = ("_buffer", "_key", "_longest", "_shortest")

    def __init__(self, responder_key: bytes, label: bytes, overhead: int, payload_max: int) -> None:
        self._key = _mac1_key(responder_key, label)
        self._shortest = overhead + MAC1_BYTES
        self._longest = overhead + payload_max + MAC1_BYTES
        self._buffer = b""

    def receive(self, data: bytes) -> bytes | None:
        """The Noise message once its packet is whole; AuthenticationFailed as soon as it cannot be one."""
        self._buffer += data
        if len(self._buffer) < PACKET_LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:PACKET_LENGTH_BYTES], "big")
        if not self._shortest <= length <= self._longest:
            raise AuthenticationFailed("a handshake packet of impossible length", reason="length")
        end = PACKET_LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        covered = self._buffer[: end - MAC1_BYTES]
        if not hmac.compare_digest(_mac1(self._key, covered), self._buffer[end - MAC1_BYTES : end]):
            raise AuthenticationFailed("a handshake packet with a wrong mac1", reason="mac1")
        self._buffer = self._buffer[end:]
        return covered[PACKET_LENGTH_BYTES:]

    def leftover(self) -> bytes:
        """What arrived behind the packet."""
        return self._buffer


def _packet(message: bytes, responder_key: bytes, label: bytes) -> bytes:
    covered = (len(message) + MAC1_BYTES).to_bytes(PACKET_LENGTH_BYTES, "big") + message
    return covered + _mac1(_mac1_key(responder_key, label), covered)


def _mac1_key(responder_key: bytes, label: bytes) -> bytes:
    return hashlib.blake2s(label + responder_key).digest()


def _mac1(key: bytes, covered: bytes) -> bytes:
    return hashlib.blake2s(covered, key=key, digest_size=MAC1_BYTES).digest()


def _read(noise: HandshakeState, message: bytes) -> bytes:
    try:
        return noise.read_message(message)
    except (AuthenticationFailed, RemoteProtocolError) as error:
        raise AuthenticationFailed(
            f"a handshake message does not authenticate: {error.message}", reason="noise"
        ) from None
