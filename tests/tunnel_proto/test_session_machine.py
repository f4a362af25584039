"""A hypothesis state machine: two sessions, a wire that is cut at any byte, and what must never break."""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, invariant, multiple, rule

from tests.tunnel_proto.joined import Side, started
from tunnel_proto.compression import LevelPolicy
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import STREAM_WINDOW, StreamCode
from tunnel_proto.stream import LOCAL_CLOSED, OVER, MuxStream

CANARY = b"canary-in-the-clear-"
SETTINGS = TunnelSettings(
    max_streams=8,
    stream_window=256 * 1024,
    session_window=300 * 1024,
    resend_buffer=256 * 1024,
    rekey_bytes=64 * 1024,
    compression_contexts=3,
)


def text(seed: int, size: int) -> bytes:
    """Compressible or not by its seed, with the canary in it."""
    source = random.Random(seed)
    if seed % 3 == 0:
        return (CANARY + source.randbytes(size))[:size]
    line = CANARY + source.randbytes(6).hex().encode() + b"\t42\t"
    return (line * (size // len(line) + 1))[:size]


class FixedLevel(LevelPolicy):
    """A policy that a test sets, whatever the link does."""

    fixed = 1

    def level(self, goodput: float) -> int:
        return self.fixed


class SessionMachine(RuleBasedStateMachine):
    """Random conversations over a link that dies again and again."""

    streams: Bundle[MuxStream] = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.joined = started(SETTINGS)
        self.up: dict[int, bytearray] = defaultdict(bytearray)  # what the client wrote, by stream
        self.down: dict[int, bytearray] = defaultdict(bytearray)
        self.reset: set[int] = set()
        self.connected = True
        for side, _, _ in self.sides:
            side.eager = False
            side.session.mux.compression.policy = FixedLevel(9)
            side.session.mux.compression.level = FixedLevel.fixed

    @property
    def sides(self) -> list[tuple[Side, dict[int, bytearray], dict[int, bytearray]]]:
        """(side, what it wrote, what it may read)."""
        pairs = [(self.joined.client, self.up, self.down)]
        if self.joined.gate is not None:
            self.joined.gate.eager = False
            pairs.append((self.joined.gate, self.down, self.up))
        return pairs

    @rule(rtt=st.sampled_from([0.0002, 0.05]))
    def connect(self, rtt: float) -> None:
        if self.connected:
            self.joined.cut()
        self.joined.connect(rtt)
        self.connected = True

    @rule()
    def cut(self) -> None:
        self.joined.cut()
        self.connected = False

    @rule(target=streams, mode=st.sampled_from(["off", "auto", "auto", "long"]))
    def open(self, mode: str) -> MuxStream | MultipleResults[MuxStream]:
        mux = self.joined.client.session.mux
        if len(mux.streams) >= SETTINGS.max_streams:
            return multiple()
        return mux.open("x", {"k": CANARY}, mode)

    @rule(stream=streams, seed=st.integers(0, 99), size=st.integers(1, 150_000), sensitive=st.booleans())
    def write_up(self, stream: MuxStream, seed: int, size: int, sensitive: bool) -> None:
        self._write(stream, self.up, text(seed, size), sensitive=sensitive and size < 5000)

    @rule(stream=streams, seed=st.integers(0, 99), size=st.integers(1, 150_000))
    def write_down(self, stream: MuxStream, seed: int, size: int) -> None:
        gate = self.joined.gate
        if gate is not None and stream.id in gate.streams:
            self._write(gate.streams[stream.id], self.down, text(seed, size), sensitive=False)

    def _write(
        self, stream: MuxStream, written: dict[int, bytearray], data: bytes, *, sensitive: bool
    ) -> None:
        # A pausing writer, as every receiver of pause_writing is.
        if stream.state & LOCAL_CLOSED or stream.closing or stream.pending_bytes > 2 * STREAM_WINDOW:
            return
        stream.write(data, boundary=len(data) % 2 == 0, sensitive=sensitive)
        written[stream.id] += data

    @rule(stream=streams, down=st.booleans())
    def close(self, stream: MuxStream, down: bool) -> None:
        gate = self.joined.gate
        if not down:
            stream.write_eof()
        elif gate is not None and stream.id in gate.streams:
            gate.streams[stream.id].write_eof()

    @rule(stream=streams, down=st.booleans())
    def reset_stream(self, stream: MuxStream, down: bool) -> None:
        gate = self.joined.gate
        chosen = stream if not down else gate.streams.get(stream.id) if gate is not None else None
        if chosen is not None and chosen.state != OVER:
            chosen.reset(StreamCode.CANCELLED, "test")
            self.reset.add(stream.id)

    @rule(records=st.integers(1, 8))
    def pull(self, records: int) -> None:
        self.joined.pull(records)

    @rule(size=st.integers(1, 200_000))
    def deliver_up(self, size: int) -> None:
        self.joined.deliver_up(size)

    @rule(size=st.integers(1, 200_000))
    def deliver_down(self, size: int) -> None:
        self.joined.deliver_down(size)

    @rule(share=st.sampled_from([1000, 50_000, 1 << 30]))
    def read(self, share: int) -> None:
        for side, _, _ in self.sides:
            for stream in list(side.session.mux.streams.values()):
                side.read(stream, share)

    @rule(level=st.sampled_from([0, 1, 1, 3]))
    def relevel(self, level: int) -> None:
        for side, _, _ in self.sides:
            compression = side.session.mux.compression
            assert isinstance(compression.policy, FixedLevel)
            compression.policy.fixed = compression.level = level

    @rule(seconds=st.sampled_from([0.001, 0.03, 1.5]))
    def wait(self, seconds: float) -> None:
        self.joined.now += seconds
        for side, _, _ in self.sides:
            side.session.mux.end_idle_contexts(self.joined.now)

    @invariant()
    def bytes_in_are_a_prefix_of_bytes_out(self) -> None:
        for side, _, readable in self.sides:
            for stream_id, data in side.received.items():
                assert readable[stream_id].startswith(data)

    @invariant()
    def accounts_balance(self) -> None:
        for side, _, _ in self.sides:
            mux = side.session.mux
            charged_out = charged_in = 0
            contexts = expanders = 0
            for stream in mux.streams.values():
                assert stream.credit >= 0
                assert stream.outstanding >= 0
                assert 0 <= stream.held + stream.owed == stream.unreturned or stream.state
                assert stream.unreturned <= stream.window <= SETTINGS.stream_window
                charged_out += max(0, stream.outstanding - STREAM_WINDOW)
                charged_in += max(0, stream.unreturned - STREAM_WINDOW)
                contexts += stream.compressor is not None
                expanders += stream.expander is not None
            assert mux.charged_out == charged_out <= SETTINGS.session_window
            assert mux.charged_in == charged_in <= SETTINGS.session_window
            assert mux._expanding == expanders <= SETTINGS.compression_contexts
            assert mux.compression.contexts == contexts <= SETTINGS.compression_contexts
            # One record may pass the bound: it is checked before a record is made.
            assert side.session.log.size <= SETTINGS.resend_buffer + 144 * 1024

    @invariant()
    def nothing_is_in_the_clear(self) -> None:
        assert CANARY not in self.joined.carried
        self.joined.carried.clear()

    def teardown(self) -> None:
        """A last good link: then everything that was written and not reset arrives."""
        if self.connected:
            self.joined.cut()
        self.joined.connect()
        for _ in range(400):
            for side, _, _ in self.sides:
                side.eager = True
                for stream in list(side.session.mux.streams.values()):
                    side.read(stream)
            self.joined.pull()
            if not (self.joined.uplink or self.joined.downlink):
                self.joined.now += 0.03
                self.joined.pull()
                if not (self.joined.uplink or self.joined.downlink):
                    break
            self.joined.deliver_up()
            self.joined.deliver_down()
        for side, _, readable in self.sides:
            for stream_id, data in readable.items():
                if stream_id not in self.reset:
                    assert bytes(side.received[stream_id]) == bytes(data)
            for stream_id, code in side.ended.items():
                assert code is None or stream_id in self.reset  # a reset touches no other stream
            assert not side.over


SessionMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestSessionMachine = SessionMachine.TestCase
