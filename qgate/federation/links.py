"""Tunnels to paired pools: every gate dials every peer, and takes what the peer's gates dial.

Each direction is a tunnel of its own, dialled by whoever sends. Where a peer cannot be dialled (it sits
behind an address translation), what it dialled is used in both directions. A peer's gates are tried in the
order in which it names them; a later one is left again when an earlier one is back.

Streams are known by their kind. Whoever serves a kind says which flow of `trust.FLOWS` it belongs to, and the
links ask `may` for it: when a stream is opened, when one arrives, and again for all that are open whenever
something about the peer changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import structlog

from qgate.federation.peer import Peer
from qgate.federation.trust import may
from tunnel_proto.certificate import NodeCertificate, issue_node
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import INSTANCE_BYTES, StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import LocalProtocolError, TunnelError
from tunnel_proto.identity import Identity, fingerprint
from tunnel_proto.link import PeerSession, Stream, StreamError, StreamReceiver, TunnelClient

FAILOVER_S: Final = 2.0
"""How long a gate of a peer may take to answer before the next one is dialled too."""

Carrier: TypeAlias = PeerSession | TunnelClient
"""A tunnel to a peer: one that the peer dialled, or one of ours."""

Accept: TypeAlias = Callable[[Peer, Carrier, Stream], None]
"""Takes an arriving stream; sets its receiver before it returns, or resets it."""

log = structlog.get_logger(__name__)


class Peers(Protocol):
    """What is known of peers: the gate's directory."""

    def peer(self, pool_key: bytes) -> Peer | None:
        """The pool of that key, whatever its state."""

    def peers(self) -> tuple[Peer, ...]:
        """All of them, in the order of failover."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stream between pools. With ``taking`` the flow goes to whoever opens the stream, else from
    there.
    """

    flow: str
    accept: Accept
    taking: bool = False

    def may_open(self, peer: Peer) -> bool:
        """Whether a stream of it may be opened to that peer."""
        return may(peer, self.flow, "receive" if self.taking else "send")

    def may_come(self, peer: Peer) -> bool:
        """Whether that peer may open one to us."""
        return may(peer, self.flow, "send" if self.taking else "receive")


@dataclass(eq=False, slots=True)
class Dialled:
    """Our tunnels to one peer. ``clients`` by gate; times are the event loop's."""

    gates: tuple[GateAddress, ...]
    clients: dict[GateAddress, TunnelClient] = field(default_factory=dict)
    since: dict[GateAddress, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    def live(self) -> TunnelClient | None:
        """The client that takes new streams: of the earliest gate that is up."""
        for gate in self.gates:
            client = self.clients.get(gate)
            if client is not None and client.state == "up":
                return client
        return None


class PeerLinks:
    """All tunnels of this gate to other pools' gates. `start` begins to dial, `close` ends everything.

    ``chain()`` is this gate's certificate chain in the role "peer", asked at each new tunnel.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        chain: Callable[[], bytes],
        peers: Peers,
        settings: TunnelSettings,
        next_timestamp: Callable[[], int],
        failover_s: float = FAILOVER_S,
    ) -> None:
        self._identity = identity
        self._chain = chain
        self._peers = peers
        self._settings = settings
        self._next_timestamp = next_timestamp
        self._failover_s = failover_s
        self._kinds: dict[str, Kind] = {}
        self._dialled: dict[bytes, Dialled] = {}
        self._taken: dict[bytes, list[PeerSession]] = {}
        self._known: dict[bytes, Peer] = {}
        self._was_up: dict[bytes, bool] = {}
        self._listeners: list[Callable[[bytes], None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._running = False
        # One for all tunnels: a gate ends the sessions that another instance of the same node began.
        self._instance = os.urandom(INSTANCE_BYTES)

    # --- what the parts of the federation use

    def up(self, pool_key: bytes) -> bool:
        """Whether a stream to that pool can be opened now."""
        return self._carrier(pool_key) is not None

    def open(
        self,
        pool_key: bytes,
        kind: str,
        meta: Mapping[str, Any],
        receiver: StreamReceiver,
        *,
        compression: str = "auto",
        over: Carrier | None = None,
    ) -> Stream:
        """Open a stream of a served kind to a peer, over one of its `ways` where that matters.

        LocalProtocolError where no link is up, or this pool's admin does not let that flow out.
        """
        peer = self._peers.peer(pool_key)
        served = self._kinds.get(kind)
        if peer is None or served is None:
            raise LocalProtocolError(f"no stream of the kind {kind} can go to {_name(pool_key, peer)}")
        if not served.may_open(peer):
            way = "come from" if served.taking else "go to"
            raise LocalProtocolError(f"{served.flow} may not {way} the pool {peer.name} (level {peer.level})")
        carrier = over or self._carrier(pool_key)
        if carrier is None:
            raise LocalProtocolError(f"no link to the pool {peer.name} is up")
        return carrier.open_stream(kind, dict(meta), receiver, compression=compression)

    def serve(self, kind: str, flow: str, accept: Accept, *, taking: bool = False) -> None:
        """Take streams of a kind from peers that may send that flow, and let them be opened to others.

        With ``taking`` whoever opens one wants to have that flow from the other side.
        """
        self._kinds[kind] = Kind(flow, accept, taking)

    def on_change(self, callback: Callable[[bytes], None]) -> None:
        """Call ``callback`` with the key of a pool whose link came or went, or of which something changed."""
        self._listeners.append(callback)

    def carriers(self, pool_key: bytes) -> Iterator[Carrier]:
        """Every tunnel with that pool, with a link or waiting for one, those that we dialled first."""
        dialled = self._dialled.get(pool_key)
        if dialled is not None:
            yield from dialled.clients.values()
        yield from self._taken.get(pool_key, ())

    def ways(self, pool_key: bytes) -> dict[str, Carrier]:
        """A tunnel that is up to each gate of a pool, by the gate's name; ours before theirs."""
        found: dict[str, Carrier] = {}
        dialled = self._dialled.get(pool_key)
        for gate, client in ({} if dialled is None else dialled.clients).items():
            if client.state == "up":
                found.setdefault(gate.name, client)
        for session in reversed(self._taken.get(pool_key, ())):
            if session.connected and not session.session.over:
                found.setdefault(session.peer.name, session)
        return found

    def rtt_s(self, pool_key: bytes) -> float | None:
        """The round trip on the link that is in use, in seconds; None where none is up or none is known."""
        carrier = self._carrier(pool_key)
        return (carrier.stats.rtt_s or None) if carrier is not None else None

    def state(self) -> list[dict[str, Any]]:
        """A row a paired pool, for status: its links as they are."""
        rows = []
        for peer in self._peers.peers():
            if not peer.paired:
                continue
            dialled = self._dialled.get(peer.pool_key)
            clients = {} if dialled is None else dialled.clients
            rows.append(
                {
                    "pool": peer.name,
                    "fingerprint": fingerprint(peer.pool_key),
                    "up": self.up(peer.pool_key),
                    "rtt_s": self.rtt_s(peer.pool_key),
                    "dialled": [
                        {
                            "gate": gate.name,
                            "address": _address(gate),
                            "state": client.state,
                            "problem": client.last_error,
                        }
                        for gate, client in clients.items()
                    ],
                    "taken": [
                        {"gate": one.peer.name, "address": one.address, "connected": one.connected}
                        for one in self._taken.get(peer.pool_key, ())
                    ],
                }
            )
        return rows

    def problem(self, pool_key: bytes) -> str:
        """Why the peer cannot be reached, as the gate that was tried last tells; empty where it can."""
        if self.up(pool_key):
            return ""
        dialled = self._dialled.get(pool_key)
        if dialled is None or not dialled.gates:
            return "it named no address" if dialled is not None else ""
        return next((client.last_error for client in dialled.clients.values() if client.last_error), "")

    async def probe(self, pool_key: bytes, timeout: float) -> bool:
        """Whether one of a peer's gates completes a fresh handshake within ``timeout`` s."""
        dialled = self._dialled.get(pool_key)
        gates = () if dialled is None else dialled.gates
        answers = await asyncio.gather(*(self._answers(gate, timeout) for gate in gates))
        return any(answers)

    async def knock(self, gate: GateAddress, timeout: float) -> TunnelClient:
        """A tunnel of its own to one gate, up; the caller closes it. TunnelError after ``timeout`` s."""
        client = TunnelClient(
            identity=self._identity,
            chain=self._chain(),
            gate=gate,
            settings=self._settings,
            role="peer",
            next_timestamp=self._next_timestamp,
            on_state=lambda _client: None,
            instance=self._instance,
        )
        client.start()
        try:
            await client.wait_up(timeout)
        except BaseException:
            await client.close()
            raise
        return client

    async def _answers(self, gate: GateAddress, timeout: float) -> bool:
        try:
            client = await self.knock(gate, timeout)
        except TunnelError:
            return False
        await client.close()
        return True

    # --- what the gate tells

    def start(self) -> None:
        """Begin to dial; needs a running event loop."""
        self._running = True
        self.look()

    async def close(self) -> None:
        """End every tunnel that we dialled."""
        self._running = False
        for pool_key in list(self._dialled):
            self._drop(pool_key)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def look(self) -> None:
        """The directory may have changed: dial new peers, leave lost ones, cut what is no longer allowed."""
        if not self._running:
            return
        paired = {peer.pool_key: peer for peer in self._peers.peers() if peer.paired}
        before, self._known = self._known, paired
        for pool_key in before.keys() - paired.keys():
            self._drop(pool_key)
        changed = [key for key in before.keys() | paired.keys() if before.get(key) != paired.get(key)]
        for pool_key in changed:
            if (peer := paired.get(pool_key)) is not None:
                self._dial(peer)
                self._cut(peer)
        for pool_key in changed:
            self._tell(pool_key)

    def renew(self) -> None:
        """Dial every peer anew, as when this gate's certificate was replaced."""
        for pool_key, peer in self._known.items():
            self._drop(pool_key)
            self._dial(peer)

    def session_opened(self, session: PeerSession) -> None:
        """A peer's gate dialled us."""
        self._taken.setdefault(session.peer.pool, []).append(session)
        # The session is told of before its link is attached to it; only then can it carry anything.
        asyncio.get_running_loop().call_soon(self._stirred, session.peer.pool)

    def session_closed(self, session: PeerSession) -> None:
        """That tunnel is over."""
        held = self._taken.get(session.peer.pool, [])
        if session in held:
            held.remove(session)
            if not held:
                del self._taken[session.peer.pool]
            self._stirred(session.peer.pool)

    def accept(self, pool_key: bytes, carrier: Carrier, stream: Stream) -> None:
        """Hand an arriving stream to whoever serves its kind, or refuse it."""
        served = self._kinds.get(stream.kind)
        peer = self._peers.peer(pool_key)
        if served is None or peer is None:
            stream.reset(
                StreamCode.REFUSED, f'no streams of the kind "{stream.kind[:32]}" are served to pools'
            )
        elif not served.may_come(peer):
            refusal = "is not given to" if served.taking else "is not accepted from"
            stream.reset(StreamCode.REFUSED, f"{served.flow} {refusal} your pool here")
        else:
            served.accept(peer, carrier, stream)

    # --- dialling

    def _dial(self, peer: Peer) -> None:
        dialled = self._dialled.setdefault(peer.pool_key, Dialled(()))
        if dialled.gates != peer.gates:
            dialled.gates = peer.gates
            for gate in [one for one in dialled.clients if one not in peer.gates]:
                self._leave(dialled, gate)
        self._choose(peer.pool_key, dialled)

    def _choose(self, pool_key: bytes, dialled: Dialled) -> None:
        """Dial gates in order until one is up; leave later ones that carry nothing."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if dialled.timer is not None:
            dialled.timer.cancel()
            dialled.timer = None
        found = False
        for gate in dialled.gates:
            client = dialled.clients.get(gate)
            if found:
                if client is not None and not client.streams:
                    self._leave(dialled, gate)
                continue
            if client is None:
                client = self._client(pool_key, dialled, gate)
                dialled.clients[gate] = client
                dialled.since[gate] = now
                client.start()
            if client.state == "up":
                found = True
            elif not client.last_error and now < dialled.since[gate] + self._failover_s:
                wait = dialled.since[gate] + self._failover_s - now
                dialled.timer = loop.call_later(wait + 0.01, self._choose, pool_key, dialled)
                return

    def _client(self, pool_key: bytes, dialled: Dialled, gate: GateAddress) -> TunnelClient:
        loop = asyncio.get_running_loop()

        def changed(client: TunnelClient) -> None:
            if dialled.clients.get(gate) is client:
                if client.state == "up":
                    dialled.since[gate] = loop.time()
                # Not from inside the client's own call: choosing may close it.
                loop.call_soon(self._moved, pool_key, dialled)

        def arrived(stream: Stream) -> None:
            client = dialled.clients.get(gate)
            if client is None:
                stream.reset(StreamCode.CANCELLED, "this tunnel is being left")
            else:
                self.accept(pool_key, client, stream)

        return TunnelClient(
            identity=self._identity,
            chain=self._chain(),
            gate=gate,
            settings=self._settings,
            role="peer",
            next_timestamp=self._next_timestamp,
            on_state=changed,
            on_stream=arrived,
            instance=self._instance,
        )

    def _moved(self, pool_key: bytes, dialled: Dialled) -> None:
        if self._dialled.get(pool_key) is dialled:
            self._choose(pool_key, dialled)
            self._stirred(pool_key)

    def _drop(self, pool_key: bytes) -> None:
        dialled = self._dialled.pop(pool_key, None)
        if dialled is not None:
            if dialled.timer is not None:
                dialled.timer.cancel()
            for gate in list(dialled.clients):
                self._leave(dialled, gate)

    def _leave(self, dialled: Dialled, gate: GateAddress) -> None:
        client = dialled.clients.pop(gate)
        dialled.since.pop(gate, None)
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- choosing and cutting

    def _carrier(self, pool_key: bytes) -> Carrier | None:
        """The tunnel that a new stream to that pool goes over: ours where it is up, else the peer's."""
        dialled = self._dialled.get(pool_key)
        if dialled is not None and (client := dialled.live()) is not None:
            return client
        held = self._taken.get(pool_key, ())
        return next((one for one in reversed(held) if one.connected and not one.session.over), None)

    def _cut(self, peer: Peer) -> None:
        """Reset every open stream that the peer's level no longer allows; its receiver hears of it."""
        for carrier in list(self.carriers(peer.pool_key)):
            theirs = isinstance(carrier, PeerSession)  # they dialled, so streams with odd numbers are theirs
            for stream in list(carrier.streams.values()):
                served = self._kinds.get(stream.kind)
                if served is None:
                    continue
                came = bool(stream.id & 1) == theirs
                if served.may_come(peer) if came else served.may_open(peer):
                    continue
                receiver = stream.receiver
                stream.reset(StreamCode.REVOKED, f"{served.flow} is no longer allowed")
                receiver.stream_closed(StreamError(StreamCode.REVOKED, f"{served.flow} is no longer allowed"))

    def _stirred(self, pool_key: bytes) -> None:
        if self.up(pool_key) != self._was_up.get(pool_key, False):
            self._tell(pool_key)

    def _tell(self, pool_key: bytes) -> None:
        now_up = self.up(pool_key)
        if now_up != self._was_up.get(pool_key, False):
            peer = self._peers.peer(pool_key)
            log.info("peer", pool=_name(pool_key, peer), link="up" if now_up else "down")
        self._was_up[pool_key] = now_up
        for callback in tuple(self._listeners):
            callback(pool_key)


def peer_chain(
    node: Identity, certificate: NodeCertificate, online: Identity, online_certificate: bytes
) -> bytes:
    """A gate's chain for dialling peers: its own keys, name and terms, in the role "peer"."""
    return issue_node(
        online,
        online_certificate,
        NodeCertificate(
            pool=certificate.pool,
            role="peer",
            name=certificate.name,
            verify_key=node.verify_key,
            handshake_public=node.handshake_public,
            serial=certificate.serial,
            not_before=certificate.not_before,
            not_after=certificate.not_after,
        ),
    )


def _name(pool_key: bytes, peer: Peer | None) -> str:
    return fingerprint(pool_key) if peer is None else peer.name


def _address(gate: GateAddress) -> str:
    return f"[{gate.host}]:{gate.port}" if ":" in gate.host else f"{gate.host}:{gate.port}"
