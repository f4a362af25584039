"""A session: streams that outlive the links that carry them. Sans-I/O.

    client                                             gate
      new --START-->  up   <--STARTED--           up
      up  ..link lost..  lost                     lost   (both keep streams and unacknowledged records)
      lost --RESUME--> ..  <--RESUMED-- up        up     (both resend from what the other has applied)
      any --GOAWAY FINAL--> over                  over   (or the resume window passes)

Invariant: `received` counts exactly the numbered records whose frames have been applied to the streams, and
the log holds exactly those that the peer has not acknowledged; so resending from the peer's `received` on
any later link continues every stream byte for byte.

The driver feeds bytes to `receive_data`, asks `data_to_send` for records while its socket has room, calls
`handle_timeout` at `next_timeout`, and reads what happened from `next_event` or `take_events`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tunnel_proto.batch import split_frames
from tunnel_proto.cipher import RecordLayer
from tunnel_proto.compression import Compression, ContextPool, LevelPolicy
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import (
    ACK_BYTES,
    ACK_DELAY_S,
    ACK_EVERY_BYTES,
    CONTEXT_IDLE_S,
    CONTROL_MAX,
    GOAWAY_FINAL,
    OPTIONAL_FRAME,
    RTT_PROBE_S,
    SLOW_RECORD,
    WINDOW_LOG_MAX,
    FrameType,
    RecordFlag,
    StreamCode,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.events import Event, LinkDead, SessionEnded, SessionStarted, StreamEnded
from tunnel_proto.frame import (
    Limits,
    Resume,
    Start,
    Started,
    decode_number,
    decode_reason,
    encode,
    encode_number,
    encode_reason,
)
from tunnel_proto.mux import Mux, StreamFactory
from tunnel_proto.rate import LinkRate
from tunnel_proto.resume import SendLog
from tunnel_proto.stats import SessionStats
from tunnel_proto.stream import MuxStream

_NUMBERED: Final = int(RecordFlag.NUMBERED)
_ACK: Final = int(RecordFlag.ACK)
_HEADER: Final = struct.Struct("!BQ")


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """What names a session: who owns it, under which ticket, started by which process."""

    owner: bytes  # the client's X25519 key
    ticket: bytes
    instance: bytes
    replaces: bytes = b""


def limits_of(settings: TunnelSettings) -> Limits:
    """What this side's receiver announces."""
    return Limits(
        max_streams=settings.max_streams,
        session_window=settings.session_window,
        contexts=settings.compression_contexts,
        context_memory=settings.compression_memory,
        window_log=WINDOW_LOG_MAX,
    )


class Session:
    """One side of a session. ``cpu_clock`` measures the compressor, in seconds; ``pool`` may be shared."""

    def __init__(
        self,
        *,
        client: bool,
        identity: SessionIdentity,
        settings: TunnelSettings,
        pool: ContextPool,
        cpu_clock: Callable[[], float],
        stats: SessionStats,
        factory: StreamFactory = MuxStream,
    ) -> None:
        self.owner = identity.owner
        self.ticket = identity.ticket
        self.instance = identity.instance
        self.generation = 0
        self.settings = settings
        self.stats = stats
        self.rate = LinkRate()
        self.log = SendLog()
        self.received = 0
        self.link: RecordLayer | None = None
        self.started = not client
        self.over = False
        self.name = ""
        self._rekey_bytes = settings.rekey_bytes
        self._resend_buffer = settings.resend_buffer
        self._record_size = settings.record_size
        self._identity = identity
        policy = LevelPolicy(settings.compression_level_max, enabled=settings.compression != "off")
        self.mux = Mux(
            client=client,
            limits=limits_of(settings),
            compression=Compression(policy, pool, cpu_clock),
            stats=self.stats,
            stream_window_max=settings.stream_window,
            factory=factory,
        )
        self._opening: bytes | None = None  # START, STARTED or RESUMED: a record of its own, before all else
        self._urgent: list[bytes] = []  # link frames: not numbered, not resent
        self._pong: int | None = None  # the newest PING; answers to older ones tell its sender nothing
        self._resend: deque[bytes] = deque()
        self._resent_number = 0
        self._link_number = 0  # number of the next numbered record that this link will bring
        self._ack_sent = 0
        self._ack_at: float | None = None
        self._unacked_bytes = 0
        self._heard_at = 0.0
        self._waiting_since: float | None = None
        self._ping_at = 0.0
        self._ping_number = 0
        self._ping_open = False
        self._contexts_due = 0.0  # when idle contexts are looked for again

    # --- links

    def start(self, link: RecordLayer, now: float, rtt: float) -> None:
        """Client: begin the session on its first link; streams may be used at once."""
        identity = self._identity
        start = Start(identity.ticket, identity.instance, identity.replaces, self.mux.limits)
        self._attach(link, now, rtt)
        self._opening = start.encode()

    @property
    def untouched(self) -> bool:
        """Client: nothing that counts was ever sent and no gate confirmed it, so START may be sent anew."""
        return not self.started and not self.log.sent

    def rename(self, ticket: bytes) -> None:
        """Client: take another ticket before START is sent anew; a gate that saw the first drops it."""
        identity = self._identity
        self._identity = replace(identity, ticket=ticket, replaces=identity.ticket)
        self.ticket = ticket

    def accept(self, link: RecordLayer, now: float, rtt: float, start: Start, name: str) -> None:
        """Gate: take the session that START asks for."""
        self.name = name
        self._peer_limits(start.limits)
        self._attach(link, now, rtt)
        self._opening = Started(name, self.mux.limits).encode()

    def offer(self) -> Resume:
        """Client: the RESUME to send on a new link; the present link, if any, stays in use meanwhile."""
        self.generation += 1
        return Resume(self.ticket, self.generation, self.received)

    def resume(self, link: RecordLayer, now: float, rtt: float, *, told: int, peer_received: int) -> None:
        """Continue on ``link``: we had said ``told``, the peer has applied ``peer_received`` records.

        RemoteProtocolError when the two cannot be joined; the session should then end.
        """
        if told > self.received:
            raise LocalProtocolError("a resumption from records that were not received")
        self._resend = self.log.rewind(peer_received)
        self._resent_number = self.log.acknowledged
        self._attach(link, now, rtt)
        self._link_number = told
        self.stats.resumes += 1

    def accept_resume(self, link: RecordLayer, now: float, rtt: float, resume: Resume) -> None:
        """Gate: the same, answering RESUMED; an older link is fenced by this."""
        self.resume(link, now, rtt, told=self.received, peer_received=resume.received)
        self._opening = encode_number(FrameType.RESUMED, self.received)

    def _attach(self, link: RecordLayer, now: float, rtt: float) -> None:
        self.link = link
        self.rate.restart()
        if rtt:
            self.rate.rtt_sample(rtt)
            self.stats.rtt_s = self.rate.rtt
        self._relevel()
        self._urgent.clear()
        self._pong = None
        self._opening = None
        self._link_number = 0
        self._ack_sent = self.received
        self._ack_at = None
        self._unacked_bytes = 0
        self._heard_at = now
        self._waiting_since = now
        self._ping_open = False
        self._ping(now)
        self.mux.wake()

    def detach(self) -> None:
        """The link is gone; streams and the log stay."""
        self.link = None
        self._resend.clear()

    @property
    def wants_to_send(self) -> bool:
        """Is there more than acknowledgements to send?"""
        if self._opening or self._urgent or self._pong is not None:
            return True
        return not self.over and (bool(self._resend) or self.mux.has_output)

    # --- streams

    def end(self, code: int, message: str) -> None:
        """End the session and every stream here and, while the link lasts, at the peer."""
        if not self.over:
            self._urgent.append(encode_reason(FrameType.GOAWAY, 0, code, message, flags=GOAWAY_FINAL))
            self._end(code, message)

    def _end(self, code: int, message: str) -> None:
        self.over = True
        for stream in list(self.mux.streams.values()):
            self.mux.remove(stream)
            self.mux.events.append(StreamEnded(stream, code, message, ""))
        self.mux.events.append(SessionEnded(code, message))
        self.log = SendLog()
        self._resend.clear()
        self.mux.wake()

    def next_event(self) -> Event | None:
        """The oldest event not taken yet."""
        events = self.mux.events
        return events.pop(0) if events else None

    def take_events(self) -> list[Event]:
        """All events not taken yet."""
        events = self.mux.events
        if events:
            self.mux.events = []
        return events

    # --- sending

    def data_to_send(self, now: float) -> bytes | None:
        """The next record for the wire, or None when there is nothing to say."""
        link = self.link
        if link is None:
            return None
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return self._seal(link, 0, opening)
        if self._urgent or self._pong is not None:
            return self._seal(link, 0, self._take_urgent())
        if self.over:
            return None
        if link.sealed_bytes >= self._rekey_bytes:
            record = self._seal(link, 0, encode(FrameType.REKEY))
            link.rekey_sending()
            return record
        if self._resend:
            body = self._resend.popleft()
            number = self._resent_number
            self._resent_number = number + 1
            self.stats.resent_bytes += len(body)
            self.rate.sent(number, now)
            return self._seal(link, _NUMBERED, body)
        rate = self.rate
        room = self._resend_buffer
        if rate.measured and not rate.fast:
            room = min(room, rate.flight)
        if self.log.size < room:
            parts: list[bytes | memoryview] = []
            if self.mux.fill(parts, self.record_size, now):
                body = b"".join(parts)
                self.rate.sent(self.log.sent, now)
                self.log.append(body)
                if self._waiting_since is None:
                    self._waiting_since = now
                return self._seal(link, _NUMBERED, body)
        elif room < self._resend_buffer and self.mux.has_output:
            rate.flight_limited()
        if self._ack_at is not None and (now >= self._ack_at or self._unacked_bytes >= self._ack_every):
            return self._seal(link, 0, b"")
        return None

    def _take_urgent(self) -> bytes:
        if self._pong is not None:
            self._urgent.append(encode_number(FrameType.PONG, self._pong))
            self._pong = None
        urgent = b"".join(self._urgent)
        self._urgent.clear()
        return urgent

    def end_flush(self) -> None:
        """The driver has sent what it could: pause the writers whose backlog stayed."""
        self.mux.backpressure()

    @property
    def record_size(self) -> int:
        """Bytes to aim at for one record: what delays interactive data on a slow link, small."""
        return self._record_size if self.rate.fast else min(SLOW_RECORD, self._record_size)

    @property
    def _ack_every(self) -> int:
        return ACK_EVERY_BYTES if self.rate.fast else SLOW_RECORD

    def _seal(self, link: RecordLayer, flags: int, body: bytes) -> bytes:
        if self.received != self._ack_sent:
            self._ack_sent = self.received
            self._ack_at = None
            self._unacked_bytes = 0
            record = link.seal(_HEADER.pack(flags | _ACK, self.received) + body)
        else:
            record = link.seal((b"\1" if flags else b"\0") + body)
        stats = self.stats
        stats.records_out += 1
        stats.bytes_wire_out += len(record)
        return record

    # --- receiving

    def receive_data(self, data: bytes, now: float) -> None:
        """Apply what the link brought.

        AuthenticationFailed or RemoteProtocolError: drop the link; for the latter also `end` the session.
        """
        link = self.link
        if link is None:
            return
        link.feed(data)
        stats = self.stats
        stats.bytes_wire_in += len(data)
        while (record := link.next_record()) is not None:
            if self.over:
                break
            stats.records_in += 1
            self._record_received(link, record, now)
        self._heard_at = now
        self._waiting_since = now if self.log.size else None

    def _record_received(self, link: RecordLayer, record: bytes, now: float) -> None:
        flags = record[0]
        position = 1
        if self.mux.control_bytes > CONTROL_MAX:
            raise RemoteProtocolError("the peer does not read its answers", code=StreamCode.LIMIT)
        if flags & _ACK:
            position = 1 + ACK_BYTES
            if len(record) < position:
                raise RemoteProtocolError("an acknowledgement is cut short")
            self._acknowledged(int.from_bytes(record[1:position]), now)
        if flags & ~(_NUMBERED | _ACK):
            raise RemoteProtocolError("a record with flags that are not known")
        if not flags & _NUMBERED:
            for kind, frame_flags, _, payload in split_frames(record, position):
                self._link_frame(link, kind, frame_flags, payload, now)
            return
        number = self._link_number
        self._link_number = number + 1
        if number < self.received:
            return  # resent, but it had arrived over the older link while this one was being made
        self.mux.receive(record, position)
        self.received = number + 1
        self._unacked_bytes += len(record)
        if self._ack_at is None:
            self._ack_at = now + ACK_DELAY_S
        if self._unacked_bytes >= self._ack_every:
            self.mux.wake()

    def _acknowledged(self, count: int, now: float) -> None:
        freed = self.log.acknowledge(count)
        if freed:
            if self.rate.acknowledged(count, freed, now):
                self._relevel()
            if self.mux.has_output:
                self.mux.wake()

    def _relevel(self) -> None:
        self.mux.compression.link_measured(self.rate.goodput)

    def _link_frame(self, link: RecordLayer, kind: int, flags: int, payload: bytes, now: float) -> None:
        if kind == FrameType.PING:
            self._pong = decode_number(payload)
            self.mux.wake()
        elif kind == FrameType.PONG:
            if decode_number(payload) == self._ping_number and self._ping_open:
                self._ping_open = False
                self.rate.rtt_sample(max(now - self._ping_at, 1e-6))
                self.stats.rtt_s = self.rate.rtt
                self._relevel()
        elif kind == FrameType.REKEY:
            link.rekey_receiving()
        elif kind == FrameType.STARTED and not self.started:
            started = Started.decode(payload)
            self.started = True
            self.name = started.session
            self._peer_limits(started.limits)
            self.mux.events.append(SessionStarted(started.session))
        elif (kind == FrameType.REFUSED and not self.started) or (
            kind == FrameType.GOAWAY and flags & GOAWAY_FINAL
        ):
            code, message, _ = decode_reason(payload)
            self._end(code, message)
        elif not kind & OPTIONAL_FRAME:
            raise RemoteProtocolError(f"a link frame of type {kind} that is unknown or out of place")

    def _peer_limits(self, limits: Limits) -> None:
        mux = self.mux
        mux.peer_limits = limits
        mux.compression.contexts_max = min(limits.contexts, self.settings.compression_contexts)
        mux.compression.memory_max = min(limits.context_memory, self.settings.compression_memory)
        mux.compression.window_log_max = min(limits.window_log, WINDOW_LOG_MAX)

    # --- time

    def _ping(self, now: float) -> None:
        self._ping_number += 1
        self._ping_at = now
        self._ping_open = True
        self._urgent.append(encode_number(FrameType.PING, self._ping_number))
        self.mux.wake()

    @property
    def deadline_s(self) -> float:
        """How long the peer may leave us without any answer."""
        rate, settings = self.rate, self.settings
        wait = settings.dead_factor * rate.rtt + 4 * rate.rttvar + ACK_DELAY_S
        return min(max(wait, settings.dead_min_s), settings.dead_max_s)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due, in the clock of ``now``; None without a link."""
        if self.link is None or self.over:
            return None
        due = self._heard_at + self.settings.ping_idle_s
        if self._waiting_since is not None:
            due = self._waiting_since + self.deadline_s
        if self._ack_at is not None:
            due = min(due, self._ack_at)
        if self.mux.holds_contexts:
            due = min(due, self._contexts_due)
        return due

    def handle_timeout(self, now: float) -> None:
        """Do what is due: acknowledge, ask for a sign of life, give up a dead link, free idle contexts."""
        if self.link is None or self.over:
            return
        if self._waiting_since is not None and now - self._waiting_since >= self.deadline_s:
            self.mux.events.append(LinkDead(now - self._heard_at))
            return
        if self._ack_at is not None and now >= self._ack_at:
            self.mux.wake()
        quiet = now - self._heard_at >= self.settings.ping_idle_s
        if (quiet and self._waiting_since is None) or (
            now - self._ping_at >= RTT_PROBE_S and not self._ping_open and self._heard_at > self._ping_at + 1
        ):
            self._ping(now)
            if self._waiting_since is None:
                self._waiting_since = now
        if self.mux.holds_contexts:
            self.mux.end_idle_contexts(now)
            self._contexts_due = now + CONTEXT_IDLE_S
