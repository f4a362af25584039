"""Two sessions in one process, joined by a wire that a test can cut, with a clock that the test moves."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field, replace

from tunnel_proto.batch import split_frames
from tunnel_proto.cipher import RecordLayer
from tunnel_proto.compression import ContextPool
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.errors import RemoteProtocolError, ResumeRefused
from tunnel_proto.events import (
    DataReceived,
    EofReceived,
    Event,
    SessionEnded,
    StreamEnded,
    StreamOpened,
)
from tunnel_proto.frame import Resume, Start, decode_number
from tunnel_proto.resume import SessionTable
from tunnel_proto.session import Session, SessionIdentity
from tunnel_proto.stats import SessionStats
from tunnel_proto.stream import MuxStream

OWNER = b"o" * 32


class CpuClock:
    """Each reading is a microsecond later."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1e-6
        return self._now


@dataclass
class Side:
    """A session and what its streams' owners have seen of it."""

    session: Session
    received: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    streams: dict[int, MuxStream] = field(default_factory=dict)
    unread: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    eof: set[int] = field(default_factory=set)
    ended: dict[int, int | None] = field(default_factory=dict)
    over: list[SessionEnded] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    eager: bool = True

    def take(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, DataReceived):
                for stream, data, _ in event.chunks:
                    self.received[stream.id] += data
                    self.unread[stream.id] += len(data)
                    if self.eager:
                        self.read(stream)
            elif isinstance(event, StreamOpened):
                self.streams[event.stream.id] = event.stream
            elif isinstance(event, EofReceived):
                assert event.stream.id not in self.eof
                self.eof.add(event.stream.id)
            elif isinstance(event, StreamEnded):
                assert event.stream.id not in self.ended
                self.ended[event.stream.id] = event.code
            elif isinstance(event, SessionEnded):
                self.over.append(event)

    def read(self, stream: MuxStream, limit: int | None = None) -> None:
        """The owner writes what it holds onward."""
        size = self.unread[stream.id] if limit is None else min(limit, self.unread[stream.id])
        self.unread[stream.id] -= size
        stream.consumed(size)


class Joined:
    """Client and gate with the bytes between them; every byte that crosses is kept in ``carried``."""

    def __init__(
        self, settings: TunnelSettings | None = None, *, gate_settings: TunnelSettings | None = None
    ) -> None:
        settings = settings or TunnelSettings()
        self.now = 100.0
        self.clock = CpuClock()
        self.pool = ContextPool()
        identity = SessionIdentity(OWNER, os.urandom(32), os.urandom(16))
        self.client = Side(self._session(client=True, identity=identity, settings=settings))
        self.gate_settings = gate_settings or settings
        self.gate: Side | None = None
        self.table: SessionTable[Session] = SessionTable()
        self.uplink = b""  # on the wire from the client
        self.downlink = b""
        self.carried = bytearray()
        self._gate_link: RecordLayer | None = None
        self._expecting: Resume | None = None
        self._pending_link: RecordLayer | None = None

    def _session(self, *, client: bool, identity: SessionIdentity, settings: TunnelSettings) -> Session:
        return Session(
            client=client,
            identity=identity,
            settings=settings,
            pool=self.pool,
            cpu_clock=self.clock,
            stats=SessionStats(),
        )

    @property
    def far(self) -> Side:
        assert self.gate is not None
        return self.gate

    def connect(self, rtt: float = 0.0002) -> None:
        """A new connection with fresh keys; what was on the old one is lost. START or RESUME is sent."""
        up, down = os.urandom(32), os.urandom(32)
        link = RecordLayer(up, down)
        self._gate_link = RecordLayer(down, up)
        self.uplink = self.downlink = b""
        session = self.client.session
        if session.untouched:
            session.rename(os.urandom(32))
            session.start(link, self.now, rtt)
            self._expecting = None
        else:
            self._expecting = session.offer()
            self._pending_link = link
            self.uplink += link.seal(b"\0" + self._expecting.encode())
        self.rtt = rtt

    def cut(self) -> None:
        """The connection is gone, with all that was on its way."""
        self.uplink = self.downlink = b""
        self._gate_link = self._expecting = self._pending_link = None
        self.client.session.detach()
        if self.gate is not None:
            self.gate.session.detach()

    def pull(self, records: int = 1000) -> None:
        """Let both sides put up to ``records`` records each on the wire."""
        for _ in range(records):
            record = self.client.session.data_to_send(self.now)
            if record is None or self._pending_link is not None:
                break
            self.uplink += record
            self.carried += record
        if self.gate is not None:
            for _ in range(records):
                record = self.gate.session.data_to_send(self.now)
                if record is None:
                    break
                self.downlink += record
                self.carried += record
        for side in (self.client, self.gate):
            if side is not None:
                side.session.end_flush()
                side.session.mux.awake = False
                side.take()

    def deliver_up(self, size: int = 1 << 30) -> None:
        """The gate receives up to ``size`` bytes."""
        data, self.uplink = self.uplink[:size], self.uplink[size:]
        if not data:
            return
        if self._gate_link is not None:
            self._gate_link.feed(data)
            record = self._gate_link.next_record()
            if record is None:
                return
            self._open(self._gate_link, record)
            self._gate_link, data = None, b""
        assert self.gate is not None
        self.gate.session.receive_data(data, self.now)
        self.gate.take()

    def _open(self, link: RecordLayer, record: bytes) -> None:
        kind, _, _, payload = split_frames(record, 1)[0]
        if kind == 0x23:
            start = Start.decode(payload)
            identity = SessionIdentity(OWNER, start.ticket, start.instance)
            session = self._session(client=False, identity=identity, settings=self.gate_settings)
            for ended in self.table.start(session, start.replaces):
                self.table.remove(ended)
            self.gate = Side(session)
            session.accept(link, self.now, self.rtt, start, "s")
        else:
            session = self.table.resume(OWNER, Resume.decode(payload))
            session.accept_resume(link, self.now, self.rtt, Resume.decode(payload))

    def deliver_down(self, size: int = 1 << 30) -> None:
        """The client receives up to ``size`` bytes."""
        data, self.downlink = self.downlink[:size], self.downlink[size:]
        if not data:
            return
        session = self.client.session
        link = self._pending_link
        if link is not None:
            link.feed(data)
            record = link.next_record()
            if record is None:
                return
            kind, _, _, payload = split_frames(record, 1)[0]
            if kind != 0x26:
                raise RemoteProtocolError("not RESUMED")
            assert self._expecting is not None
            session.resume(
                link,
                self.now,
                self.rtt,
                told=self._expecting.received,
                peer_received=decode_number(payload),
            )
            self._pending_link = self._expecting = None
            data = b""
        session.receive_data(data, self.now)
        self.client.take()

    def settle(self, rounds: int = 200) -> None:
        """Move everything until both sides are quiet."""
        for _ in range(rounds):
            self.pull()
            if not self.uplink and not self.downlink:
                self.now += 0.03
                self.pull()
                if not self.uplink and not self.downlink:
                    return
            self.deliver_up()
            self.deliver_down()
            self.now += 0.0005
        raise AssertionError("the sessions do not come to rest")


def started(
    settings: TunnelSettings | None = None,
    *,
    gate_settings: TunnelSettings | None = None,
    rtt: float = 0.0002,
) -> Joined:
    """A pair whose session is confirmed."""
    joined = Joined(settings, gate_settings=gate_settings)
    joined.connect(rtt)
    joined.settle()
    assert joined.client.session.started
    return joined


__all__ = ["Joined", "ResumeRefused", "Side", "replace", "started"]
