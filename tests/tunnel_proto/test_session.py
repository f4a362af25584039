"""Sessions without sockets: limits, credit, fairness, compression, resumption and time."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import zstandard

from tests.tunnel_proto.joined import Side, started
from tests.tunnel_proto.test_frame import inject
from tunnel_proto import frame
from tunnel_proto.compression import LEVEL_SPEEDS, ContextPool, LevelPolicy
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import (
    ACK_DELAY_S,
    CONTROL_MAX,
    EXPANDED_FRAME_MAX,
    STREAM_WINDOW,
    DataFlag,
    FrameType,
    StreamCode,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError, ResumeRefused
from tunnel_proto.events import LinkDead, StreamEnded
from tunnel_proto.rate import LinkRate
from tunnel_proto.resume import SendLog

SLOW_RTT = 0.04  # such a link is compressed for


def rows(count: int) -> bytes:
    source = random.Random(1)
    return b"".join(
        b"%d\tcustomer %d\t2024-01-%02d\n" % (i, source.randrange(9999), i % 28) for i in range(count)
    )


def magicless(data: bytes, window_log: int = 17) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window_log, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def compressors(side: Side) -> int:
    return sum(stream.compressor is not None for stream in side.session.mux.streams.values())


# --- a test for each limit


def test_streams_a_session() -> None:
    joined = started(gate_settings=TunnelSettings(max_streams=3))
    mux = joined.client.session.mux
    for _ in range(3):
        mux.open("x", {}, "auto")
    with pytest.raises(LocalProtocolError, match="3 streams"):
        mux.open("x", {}, "auto")
    joined.settle()
    # A client that does not keep to it loses the stream, not the session.
    inject(joined, frame.encode_open(99, "x", {}, 0))
    assert len(joined.far.session.mux.streams) == 3
    assert any(b"more than 3" in one for one in joined.far.session.mux.control)


def test_metadata_size() -> None:
    joined = started()
    with pytest.raises(LocalProtocolError, match="metadata"):
        joined.client.session.mux.open("x", {"k": bytes(17_000)}, "auto")
    body = frame.HEADER.pack(FrameType.OPEN, 0, 20_000, 1) + b"\x93" + bytes(19_999)
    with pytest.raises(RemoteProtocolError, match="at most"):
        inject(joined, body)


def test_decompressed_size_of_a_frame() -> None:
    """Zeros at 32,000 to one, in blocks that say so and in blocks that do not."""
    joined = started()
    one = joined.client.session.mux.open("x", {}, "off")
    two = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    flags = DataFlag.COMPRESSED | DataFlag.FRESH
    bomb = magicless(bytes(EXPANDED_FRAME_MAX + 1))
    assert len(bomb) < 100
    inject(joined, frame.encode(FrameType.DATA, one.id, bomb, flags))
    assert joined.far.ended == {one.id: StreamCode.BOMB}
    rle = b"\0\x38" + (((128 * 1024) << 3) | 2).to_bytes(3, "little") + b"\0"
    inject(joined, frame.encode(FrameType.DATA, two.id, rle * 3, flags))
    assert joined.far.ended[two.id] in {StreamCode.BOMB, StreamCode.PROTOCOL}
    joined.settle()
    assert joined.client.ended == joined.far.ended
    assert not joined.far.over


def test_decompressed_size_of_a_stream_is_its_credit() -> None:
    joined = started()
    joined.far.eager = False
    stream = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    joined.far.eager = False
    flags = DataFlag.COMPRESSED | DataFlag.FRESH
    for _ in range(2):
        inject(joined, frame.encode(FrameType.DATA, stream.id, magicless(bytes(60_000)), flags))
    assert joined.far.ended == {stream.id: StreamCode.BOMB}
    assert len(joined.far.received[stream.id]) == 60_000


@pytest.mark.parametrize(
    "payload", [b"", b"\x20\x38", b"\0\x98abc", b"\0\x38\1\0\0", b"\0\x38\xff\xff\xff", b"\0\x38\x4c"]
)
def test_damaged_compressed_data_resets_its_stream_only(payload: bytes) -> None:
    joined = started()
    stream = joined.client.session.mux.open("x", {}, "off")
    other = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    inject(joined, frame.encode(FrameType.DATA, stream.id, payload, DataFlag.COMPRESSED | DataFlag.FRESH))
    if payload:
        assert stream.id in joined.far.ended
    assert other.id not in joined.far.ended


def test_contexts_of_a_session() -> None:
    joined = started(gate_settings=TunnelSettings(compression_contexts=1))
    streams = [joined.client.session.mux.open("x", {}, "off") for _ in range(2)]
    joined.settle()
    for stream in streams:
        inject(
            joined,
            frame.encode(
                FrameType.DATA, stream.id, magicless(b"x" * 600), DataFlag.COMPRESSED | DataFlag.FRESH
            ),
        )
    assert joined.far.ended == {streams[1].id: StreamCode.LIMIT}


def test_unacknowledged_bytes() -> None:
    settings = TunnelSettings(resend_buffer=256 * 1024)
    joined = started(settings)
    stream = joined.client.session.mux.open("x", {}, "off")
    other = [joined.client.session.mux.open("x", {}, "off") for _ in range(20)]
    joined.settle()
    for one in [stream, *other]:
        one.write(os.urandom(STREAM_WINDOW))
    joined.pull()  # nothing is delivered, so nothing is acknowledged
    assert settings.resend_buffer <= joined.client.session.log.size < settings.resend_buffer + 70_000
    assert joined.client.session.data_to_send(joined.now) is None
    joined.settle()
    assert joined.client.session.log.size == 0
    assert all(len(joined.far.received[one.id]) == STREAM_WINDOW for one in other)


def test_pings_whose_answers_are_not_read_leave_one() -> None:
    joined = started()
    pings = b"".join(frame.encode_number(FrameType.PING, number) for number in range(1000, 6000))
    for _ in range(4):
        inject(joined, pings, flags=0)
    answers = joined.far.session.data_to_send(joined.now)
    assert answers is not None
    assert len(answers) < 200
    link = joined.client.session.link
    assert link is not None
    link.feed(answers)
    assert frame.encode_number(FrameType.PONG, 5999) in (link.next_record() or b"")


def test_answers_that_are_not_read() -> None:
    """OPENs past the limit are answered by RESETs; so are those that the owner refuses."""
    joined = started(gate_settings=TunnelSettings(max_streams=1))

    def flood() -> None:
        for start in range(1, 800_000, 8000):
            inject(joined, b"".join(frame.encode_open(start + 2 * i, "x", {}, 0) for i in range(4000)))

    with pytest.raises(RemoteProtocolError, match="does not read") as caught:
        flood()
    assert caught.value.code == StreamCode.LIMIT
    assert joined.far.session.mux.control_bytes < 2 * CONTROL_MAX
    joined.far.session.end(caught.value.code, caught.value.message)
    record = joined.far.session.data_to_send(joined.now)
    assert record is not None  # the reason, before all that was queued
    assert not joined.far.session.wants_to_send


def test_all_streams_reset_at_once_are_no_flood() -> None:
    joined = started()
    streams = [joined.client.session.mux.open("x", {}, "off") for _ in range(4000)]
    joined.settle()
    for one in list(joined.far.streams.values()):
        one.reset(StreamCode.UPSTREAM_LOST, "the gate lost its connection to the database")
    streams[0].write(b"late")
    joined.settle()
    assert len(joined.client.ended) == 4000
    assert joined.far.session.mux.control_bytes == 0
    assert not joined.far.over


def test_more_data_than_credit_resets_the_stream() -> None:
    joined = started()
    stream = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    joined.far.eager = False
    for _ in range(3):
        inject(joined, frame.encode(FrameType.DATA, stream.id, bytes(30_000)))
    assert joined.far.ended == {stream.id: StreamCode.PROTOCOL}


# --- credit and fairness


def test_a_window_grows_for_a_reader_that_keeps_up_and_only_then() -> None:
    joined = started()
    fast = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    fast.write(bytes(8 << 20))
    joined.settle(2000)
    assert joined.far.streams[fast.id].window > 8 * STREAM_WINDOW
    joined.far.eager = False
    slow = joined.client.session.mux.open("x", {}, "off")
    slow.write(bytes(1 << 20))
    joined.settle()
    for _ in range(20):
        joined.far.read(joined.far.streams[slow.id], 3000)
        joined.settle()
    assert joined.far.streams[slow.id].window == STREAM_WINDOW


def test_stalled_readers_with_grown_windows_stop_nobody_else() -> None:
    settings = TunnelSettings(session_window=256 * 1024)
    joined = started(settings)
    mux = joined.client.session.mux
    streams = [mux.open("x", {}, "off") for _ in range(4)]
    joined.settle()
    for stream in streams:
        stream.write(bytes(2 << 20))
    joined.settle(2000)
    joined.far.eager = False
    for stream in streams:
        stream.write(bytes(2 << 20))
    joined.settle()
    assert mux.charged_out == settings.session_window
    held = sum(stream.held for stream in joined.far.session.mux.streams.values())
    assert held <= settings.session_window + 4 * STREAM_WINDOW
    joined.far.eager = True
    other = mux.open("x", {}, "off")
    other.write(bytes(1 << 20))
    joined.settle(2000)
    assert len(joined.far.received[other.id]) == 1 << 20


def test_an_interactive_frame_waits_for_one_record_of_bulk_at_most() -> None:
    joined = started(rtt=SLOW_RTT)
    mux = joined.client.session.mux
    bulk = [mux.open("x", {}, "off") for _ in range(8)]
    small = mux.open("x", {}, "off")
    joined.settle()
    for stream in bulk:
        stream.write(os.urandom(60_000))
    session = joined.client.session
    assert session.data_to_send(joined.now) is not None
    small.write(b"now")
    record = session.data_to_send(joined.now)
    assert record is not None
    assert len(record) < 40_000
    assert small.pending_bytes == 0
    # Nor do small writers starve bulk: each record holds some.
    before = sum(stream.pending_bytes for stream in bulk)
    for _ in range(4):
        for _ in range(100):
            small.write(b"x" * 300)
        session.data_to_send(joined.now)
    assert sum(stream.pending_bytes for stream in bulk) < before


# --- compression


def test_slow_links_compress_and_contexts_end_at_the_turn() -> None:
    joined = started(rtt=SLOW_RTT)
    mux = joined.client.session.mux
    assert mux.compression.level > 1
    stream = mux.open("x", {}, "auto")
    joined.settle()
    data = rows(6000)
    stream.write(data)
    joined.settle()
    assert bytes(joined.far.received[stream.id]) == data
    assert joined.client.session.stats.bytes_wire_out < len(data) // 2
    assert compressors(joined.client) == 1
    assert joined.far.session.mux._expanding == 1
    joined.far.streams[stream.id].write(b"thanks")
    joined.settle()
    assert compressors(joined.client) == 0
    assert joined.far.session.mux._expanding == 0


def test_an_idle_context_is_given_back() -> None:
    joined = started(rtt=SLOW_RTT)
    stream = joined.client.session.mux.open("x", {}, "auto")
    stream.write(rows(6000))
    joined.settle()
    assert compressors(joined.client) == 1
    joined.now += 1.1
    joined.client.session.handle_timeout(joined.now)
    joined.settle()
    assert compressors(joined.client) == 0
    assert joined.far.session.mux._expanding == 0


def test_mode_long_keeps_history_over_turns_and_off_keeps_none() -> None:
    joined = started(rtt=SLOW_RTT)
    mux = joined.client.session.mux
    long, off = mux.open("x", {}, "long"), mux.open("x", {}, "auto")
    joined.settle()
    joined.far.streams[off.id].set_compression("off")
    joined.settle()
    for _ in range(2):
        for stream in (long, off):
            stream.write(rows(3000))
            joined.settle()
            joined.far.streams[stream.id].write(b"?")
            joined.settle()
    assert long.compressor is not None
    assert off.compressor is None
    assert bytes(joined.far.received[long.id]) == rows(3000) * 2


def test_sensitive_data_is_neither_compressed_nor_mixed() -> None:
    joined = started(rtt=SLOW_RTT)
    stream = joined.client.session.mux.open("x", {}, "auto")
    joined.settle()
    parts: list[bytes | memoryview] = []
    stream.write(b"a" * 2000)
    stream.write(b"s" * 2000, sensitive=True)
    stream.write(b"b" * 2000)
    joined.client.session.mux.fill(parts, 60_000, joined.now)
    flags = [bytes(part)[1] for part in parts[::2]]
    assert [bool(one & DataFlag.COMPRESSED) for one in flags] == [True, False, True]
    assert parts[3] == b"s" * 2000


def test_data_that_does_not_shrink_is_left_alone() -> None:
    joined = started(rtt=SLOW_RTT)
    stream = joined.client.session.mux.open("x", {}, "auto")
    joined.settle()
    data = os.urandom(600_000)
    stream.write(data)
    joined.settle(2000)
    assert bytes(joined.far.received[stream.id]) == data
    assert stream.bypass > 0
    assert joined.client.session.stats.bytes_wire_out < len(data) * 1.01


def test_the_level_follows_the_link() -> None:
    policy = LevelPolicy(9)
    assert [policy.level(mbit * 125_000) for mbit in (1, 20, 100, 400, 1000, 10_000)] == [9, 9, 6, 3, 0, 0]
    assert LevelPolicy(9, enabled=False).level(1000) == 0
    assert LevelPolicy(3).level(1000) == 3
    slow_machine = LevelPolicy(9, machine=0.1)
    assert slow_machine.level(20 * 125_000) < 9
    assert [level for level, _ in LEVEL_SPEEDS] == sorted(level for level, _ in LEVEL_SPEEDS)


def test_the_pool_is_capped_and_reuses() -> None:
    pool = ContextPool(capacity=3_000_000)
    one = pool.take(3, 17)
    assert one is not None
    assert pool.take(3, 17) is None
    pool.give_back(one, 3, 17)
    assert pool.take(3, 17) is one
    pool.give_back(one, 3, 17)
    assert pool.take(1, 17) is not None  # a spare gives way
    assert pool.used < 3_000_000


# --- resumption and time


def test_a_log_refuses_what_cannot_be() -> None:
    log = SendLog()
    for body in (b"a", b"bb", b"ccc"):
        log.append(body)
    assert log.acknowledge(1) == 1
    assert log.acknowledge(1) == 0
    assert list(log.rewind(2)) == [b"ccc"]
    with pytest.raises(RemoteProtocolError):
        log.rewind(1)
    with pytest.raises(RemoteProtocolError):
        log.acknowledge(4)


def test_a_gate_that_lost_the_session_says_so() -> None:
    joined = started()
    joined.table.remove(joined.far.session)
    joined.cut()
    joined.connect()
    with pytest.raises(ResumeRefused):
        joined.deliver_up()


def test_acknowledgements_ride_along_or_come_alone_after_a_moment() -> None:
    joined = started()
    stream = joined.client.session.mux.open("x", {}, "off")
    stream.write(b"hi")
    joined.pull()
    joined.deliver_up()
    gate = joined.far.session
    assert gate.data_to_send(joined.now) is None
    due = gate.next_timeout()
    assert due is not None
    assert due <= joined.now + ACK_DELAY_S
    record = gate.data_to_send(joined.now + ACK_DELAY_S)
    assert record is not None
    assert len(record) == 4 + 16 + 9
    joined.client.session.receive_data(record, joined.now)
    assert joined.client.session.log.size == 0


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    settings = TunnelSettings()
    joined = started(settings)
    session = joined.client.session
    joined.client.take()
    due = session.next_timeout()
    assert due is not None
    joined.now = due
    session.handle_timeout(joined.now)
    assert session.data_to_send(joined.now) is not None  # a PING
    due = session.next_timeout()
    assert due is not None
    assert due - joined.now == pytest.approx(settings.dead_min_s)
    session.handle_timeout(due)
    assert isinstance(session.next_event(), LinkDead)


def test_keys_change_with_the_bytes() -> None:
    joined = started(TunnelSettings(rekey_bytes=64 * 1024))
    link = joined.client.session.link
    assert link is not None
    before = link._send_key
    stream = joined.client.session.mux.open("x", {}, "off")
    stream.write(os.urandom(1 << 20))
    joined.settle(2000)
    assert len(joined.far.received[stream.id]) == 1 << 20
    assert link._send_key != before
    assert link.sealed_bytes < 200_000


def test_ending_a_session_ends_every_stream_at_both_ends() -> None:
    joined = started()
    stream = joined.client.session.mux.open("x", {}, "off")
    joined.settle()
    joined.far.session.end(StreamCode.REVOKED, "gone")
    joined.settle()
    for side in (joined.client, joined.far):
        assert side.ended == {stream.id: StreamCode.REVOKED}
        assert side.over
        assert isinstance(side.events[-2], StreamEnded)


def test_goodput_is_learnt_from_a_full_socket() -> None:
    rate = LinkRate(0.04)
    for number in range(30):
        rate.sent(number, number * 0.05)
        rate.link_limited()
        rate.acknowledged(number + 1, 125_000, (number + 1) * 0.05)
    assert rate.goodput == pytest.approx(2_500_000, rel=0.05)
    assert not rate.fast


def test_settings_bound_each_other() -> None:
    settings = replace(TunnelSettings(), record_size=4096)
    joined = started(settings)
    stream = joined.client.session.mux.open("x", {}, "off")
    stream.write(os.urandom(60_000))
    record = joined.client.session.data_to_send(joined.now)
    assert record is not None
    assert len(record) < 4096 + 200
