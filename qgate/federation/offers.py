"""What pools let each other use: each tells its peers which models its workers have, all workers as one.

An offer goes to every paired pool that may have it (flow "inventory"), once when a link comes up, whenever it
changes, and at least every `OFFER_S`. Whoever sent none for `STALE_S` offers nothing. The tunnel proves whose
it is. Only workers of our own pool are offered: neither providers, nor the gate's own text engine, nor what
another pool offers us, so that nothing is passed on twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

import structlog

from qgate.capability.deployment import Deployment
from qgate.capability.finops.prices import ListedPrice, plain
from qgate.capability.inventory import Inventory
from qgate.federation.links import Carrier, PeerLinks, Peers
from qgate.federation.peer import Peer
from qgate.federation.trust import may
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import KIND_INVENTORY, Decoder, ModelState, Offer, encode

LOOK_S: Final = 1.0
OFFER_S: Final = 3.0
STALE_S: Final = 10.0
REFUSED_RETRY_S: Final = (2.0, 60.0)
"""How long after a refusal offers are tried again: at first, and at most."""

OFFER_MAX: Final = 4 * 1024 * 1024
"""Bytes of one offer; a model takes about 600."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a pool wants for a million tokens of its workers; 0 is for nothing."""

    input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    currency: str = ""


FREE: Final = Tariff()


@dataclass(frozen=True, slots=True)
class Offered:
    """The newest offer of a peer, and the event loop's time at which it came."""

    offer: Offer
    at: float


class Offers:
    """Sends this pool's offer and keeps those of its peers; `heard` is by pool key.

    ``takes(peer)``: whether we take that peer's requests, ``tariff()`` what we want for them.
    ``changed(pool_key)`` is called when what a peer offers may have changed.
    """

    def __init__(
        self,
        *,
        links: PeerLinks,
        peers: Peers,
        inventory: Inventory,
        takes: Callable[[Peer], bool],
        changed: Callable[[bytes], None],
        tariff: Callable[[], Tariff] = Tariff,
    ) -> None:
        self._tariff = tariff
        self.heard: dict[bytes, Offered] = {}
        self._links = links
        self._peers = peers
        self._inventory = inventory
        self._takes = takes
        self._changed = changed
        self._out: dict[bytes, _Out] = {}
        self._refusals: dict[bytes, tuple[int, float]] = {}  # how many, when to try again
        self._seq = 0
        links.serve(KIND_INVENTORY, "inventory", self._accept)
        links.on_change(self._stirred)

    async def run(self) -> None:
        """Offer, and forget what is stale, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Tell every peer what there is to tell."""
        now = asyncio.get_running_loop().time()
        for pool_key in [key for key, one in self.heard.items() if now - one.at > STALE_S]:
            self._forget(pool_key)
        made: dict[bool, Offer] = {}
        for peer in self._peers.peers():
            if not may(peer, "inventory", "send") or not self._links.up(peer.pool_key):
                continue
            if now < self._refusals.get(peer.pool_key, (0, 0.0))[1]:
                continue
            takes = self._takes(peer)
            if takes not in made:
                made[takes] = offer_of(self._inventory, jobs=takes, tariff=self._tariff())
            self._send(peer, made[takes], now)

    def close(self) -> None:
        """End the streams that are open."""
        for out in list(self._out.values()):
            out.end()
        self._out.clear()

    # --- ours

    def _send(self, peer: Peer, offer: Offer, now: float) -> None:
        out = self._out.get(peer.pool_key)
        if out is None:
            out = _Out(self, peer.pool_key)
            try:
                out.stream = self._links.open(peer.pool_key, KIND_INVENTORY, {}, out)
            except LocalProtocolError:
                return
            self._out[peer.pool_key] = out
        if out.stream is None or out.stream.pending_bytes or (out.said == offer and now < out.at + OFFER_S):
            return
        self._seq += 1
        out.said, out.at = offer, now
        out.stream.write(encode(replace(offer, seq=self._seq)), boundary=True)

    def lost(self, out: _Out, error: StreamError | None) -> None:
        """A stream of ours is over."""
        if self._out.get(out.pool_key) is not out:
            return
        del self._out[out.pool_key]
        if error is not None and error.code == StreamCode.REFUSED:
            count = self._refusals.get(out.pool_key, (0, 0.0))[0] + 1
            first, most = REFUSED_RETRY_S
            wait = min(most, first * 2.0 ** min(count - 1, 10))
            self._refusals[out.pool_key] = (count, asyncio.get_running_loop().time() + wait)

    def _stirred(self, pool_key: bytes) -> None:
        self._refusals.pop(pool_key, None)
        self._changed(pool_key)

    # --- theirs

    def _accept(self, peer: Peer, carrier: Carrier, stream: Stream) -> None:
        del carrier
        self._refusals.pop(peer.pool_key, None)  # whoever offers us something may well take an offer now
        stream.receiver = _In(self, peer.pool_key, stream)

    def took(self, pool_key: bytes, offer: Offer) -> None:
        """A peer offers this."""
        self.heard[pool_key] = Offered(offer, asyncio.get_running_loop().time())
        self._changed(pool_key)

    def _forget(self, pool_key: bytes) -> None:
        if self.heard.pop(pool_key, None) is not None:
            self._changed(pool_key)


class _Out(Ignore):
    """Our stream of offers to one peer: what was said last, and when."""

    def __init__(self, offers: Offers, pool_key: bytes) -> None:
        self.pool_key = pool_key
        self.stream: Stream | None = None
        self.said: Offer | None = None
        self.at = 0.0
        self._offers = offers

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Nothing is to be said there."""
        if self.stream is not None:
            self.stream.reset(StreamCode.PROTOCOL, "offers are not answered")
        self._offers.lost(self, None)

    def stream_closed(self, error: StreamError | None) -> None:
        """It is over; another is opened where that is allowed."""
        self._offers.lost(self, error)

    def end(self) -> None:
        """Close it from here."""
        if self.stream is not None:
            self.stream.reset(StreamCode.CANCELLED, "the gate stops")


class _In(Ignore):
    """A peer's stream of offers. Where it breaks off, a new one comes, or what was offered gets stale."""

    def __init__(self, offers: Offers, pool_key: bytes, stream: Stream) -> None:
        self._offers = offers
        self._pool_key = pool_key
        self._stream = stream
        self._decoder = Decoder(OFFER_MAX)

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Offers, each of which replaces the one before."""
        self._stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, Offer):
                    raise RemoteProtocolError("only offers are said on this stream")
                self._offers.took(self._pool_key, message)
        except RemoteProtocolError as error:
            log.warning("a peer broke the protocol", stream="inventory", error=error.message)
            self._stream.reset(StreamCode.PROTOCOL, error.message)


def offer_of(inventory: Inventory, *, jobs: bool, tariff: Tariff = FREE) -> Offer:
    """What the workers of our own pool have: a row a model, single workers not told apart. Pure."""
    models = []
    for name, version, group in inventory.models():
        del name, version
        held = [one for one in group.deployments.values() if _ours(one)]
        if held:
            models.append(_as_one(held, inventory))
    workers = [
        one for one in inventory.nodes.values() if one.kind == "worker" and one.live and "/" not in one.name
    ]
    return Offer(
        seq=0,
        jobs=jobs,
        models=tuple(models),
        workers=len(workers),
        jobs_running=sum(max(one.reported, one.running) for one in workers),
        slots=sum(one.capacity for one in workers),
        draining=bool(workers) and all(one.draining for one in workers),
        price_input=plain(tariff.input),
        price_output=plain(tariff.output),
        currency=tariff.currency,
    )


def price_of(offer: Offer, pool: str) -> ListedPrice | None:
    """What another pool wants for its tokens; None where that is nothing. Pure."""
    price = ListedPrice(
        input=Decimal(offer.price_input),
        output=Decimal(offer.price_output),
        currency=offer.currency or "USD",
        source=f"the pool {pool}",
    )
    return None if price.free else price


def _ours(one: Deployment) -> bool:
    """Whether it is at a worker of our own pool that can take it; guests' names hold their pool's."""
    node = one.node
    return (
        node.kind == "worker"
        and node.live
        and not node.draining
        and "/" not in node.name
        and one.state is not None
        and not one.broken
    )


def _as_one(held: list[Deployment], inventory: Inventory) -> ModelState:
    """All places of a model as one: the fastest loaded one, with everybody's room."""
    rows = inventory.rows
    ready = [one for one in held if one.resident] or held
    best = min(ready, key=lambda one: float(rows.decode[one.row]))
    state = best.state
    assert state is not None
    builds = {one.state.engine_build for one in held if one.state is not None}
    decode, prefill = float(rows.decode[best.row]), float(rows.prefill[best.row])
    return replace(
        state,
        # Where workers differ nobody knows whose build an answer comes from.
        engine_build=state.engine_build if len(builds) == 1 else "",
        tps_predicted=0.0,
        tps_measured=1.0 / decode if decode else 0.0,
        prefill_tps=1.0 / prefill if prefill else 0.0,
        slots=sum(one.slots for one in ready),
        running=sum(one.busy for one in ready),
        queued=0,
        problem="",
        memory_needed=0,
        memory_used=0,
        pinned=False,
        ttl_s=0.0,
        last_used=0.0,
        groups=(),
    )
