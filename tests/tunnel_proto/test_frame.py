"""Frames and records: round trips, and bytes that a peer could make up."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel_proto.joined import Joined, started
from tunnel_proto import frame
from tunnel_proto.batch import split_frames
from tunnel_proto.cipher import RecordLayer, rekeyed
from tunnel_proto.constants import METADATA_MAX, RECORD_PLAINTEXT_MAX, FrameType
from tunnel_proto.errors import AuthenticationFailed, LocalProtocolError, RemoteProtocolError, TunnelError
from tunnel_proto.events import SessionEnded

frames = st.lists(
    st.tuples(
        st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.binary(max_size=300)
    ),
    max_size=20,
)


@given(frames)
def test_frames_are_cut_as_they_were_joined(items: list[tuple[int, int, int, bytes]]) -> None:
    body = b"h" + b"".join(
        frame.encode(kind, stream, payload, flags) for kind, flags, stream, payload in items
    )
    assert split_frames(body, 1) == items


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_remote_error(body: bytes) -> None:
    try:
        items = split_frames(body, 0)
    except RemoteProtocolError:
        return
    assert sum(8 + len(payload) for *_, payload in items) == len(body)


@given(st.binary(max_size=300))
def test_any_payload_is_decoded_or_a_remote_error(payload: bytes) -> None:
    for decode in (
        frame.decode_open,
        frame.decode_credit,
        frame.decode_reason,
        frame.decode_number,
        frame.Start.decode,
        frame.Started.decode,
        frame.Resume.decode,
    ):
        with contextlib.suppress(RemoteProtocolError):
            decode(payload)


@given(st.text(max_size=2000), st.integers(0, 65535), st.sampled_from(["", "57P01", "08006"]))
def test_reasons_survive_and_are_bounded(message: str, code: int, sqlstate: str) -> None:
    (_, _, _, payload) = split_frames(frame.encode_reason(FrameType.RESET, 1, code, message, sqlstate), 0)[0]
    got_code, got_message, got_sqlstate = frame.decode_reason(payload)
    assert (got_code, got_sqlstate) == (code, sqlstate)
    assert message.startswith(got_message)
    assert len(got_message.encode()) <= 512


def test_metadata_is_limited_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError, match="metadata"):
        frame.encode_open(1, "pg", {"a": bytes(METADATA_MAX)}, 0)
    with pytest.raises(RemoteProtocolError):
        frame.decode_open(b"\x93\xa2pg\x81\xa1a\xc6\x00\x00\x40\x00" + bytes(METADATA_MAX) + b"\x00")


def layers() -> tuple[RecordLayer, RecordLayer]:
    up, down = os.urandom(32), os.urandom(32)
    return RecordLayer(up, down), RecordLayer(down, up)


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=8), st.integers(1, 700))
def test_records_arrive_whole_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    here, there = layers()
    wire = b"".join(here.seal(body) for body in bodies)
    got = []
    for start in range(0, len(wire), step):
        there.feed(wire[start : start + step])
        while (record := there.next_record()) is not None:
            got.append(record)
    assert got == bodies
    assert there.buffered == 0


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_record_is_refused(body: bytes, data: st.DataObject) -> None:
    here, there = layers()
    record = bytearray(here.seal(body))
    record[data.draw(st.integers(4, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    there.feed(bytes(record))
    with pytest.raises(AuthenticationFailed):
        there.next_record()


def test_a_replayed_record_is_refused() -> None:
    here, there = layers()
    record = here.seal(b"\0")
    there.feed(record + record)
    assert there.next_record() == b"\0"
    with pytest.raises(AuthenticationFailed):
        there.next_record()


@pytest.mark.parametrize("length", [0, 16, RECORD_PLAINTEXT_MAX + 17, 0xFFFFFFFF])
def test_a_record_of_an_impossible_length_is_refused_at_its_header(length: int) -> None:
    _, there = layers()
    there.feed(length.to_bytes(4))
    with pytest.raises(RemoteProtocolError):
        there.next_record()


def test_rekey_follows_noise() -> None:
    """Noise 4.2: the first 32 bytes of ENCRYPT(k, maxnonce, zerolen, zeros); PyNaCl is the oracle."""
    from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

    key = os.urandom(32)
    nonce = bytes(4) + b"\xff" * 8
    assert rekeyed(key) == crypto_aead_chacha20poly1305_ietf_encrypt(bytes(32), None, nonce, key)[:32]


@given(st.binary(max_size=200))
def test_records_are_what_pynacl_makes_of_them(body: bytes) -> None:
    from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

    key = os.urandom(32)
    layer = RecordLayer(key, key)
    for number in range(3):
        nonce = bytes(4) + number.to_bytes(8, "little")
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(body, None, nonce, key)
        assert layer.seal(body) == len(sealed).to_bytes(4) + sealed


def inject(joined: Joined, body: bytes, flags: int = 1) -> None:
    """A record that a hostile but known client could make."""
    session = joined.client.session
    link = session.link
    assert link is not None
    if flags & 1:
        session.log.append(body)
    joined.uplink += link.seal(bytes([flags]) + body)
    joined.deliver_up()


@given(st.binary(max_size=120), st.integers(0, 3))
def test_a_known_node_can_send_anything_and_only_end_its_session(body: bytes, flags: int) -> None:
    joined = started()
    joined.client.session.mux.open("x", {}, "auto")
    joined.settle()
    try:
        inject(joined, body, flags)
        joined.far.take()
    except TunnelError:
        joined.far.session.end(1, "broken")
        joined.far.take()
        assert isinstance(joined.far.events[-1], SessionEnded)


@given(frames)
def test_a_known_node_can_send_any_frames_and_only_end_its_session(
    items: list[tuple[int, int, int, bytes]],
) -> None:
    joined = started()
    joined.client.session.mux.open("x", {}, "auto")
    joined.settle()
    for kind, flags, stream, payload in items:
        try:
            inject(joined, frame.encode(kind % 48, stream % 4, payload, flags))
        except TunnelError:
            break


def test_unknown_frames_are_skipped_only_where_marked_optional() -> None:
    joined = started()
    inject(joined, frame.encode(0x81, 0, b"later"))
    inject(joined, frame.encode(0xA1, 0, b"later"), flags=0)
    with pytest.raises(RemoteProtocolError, match="unknown type"):
        inject(joined, frame.encode(0x1F, 0, b""))
