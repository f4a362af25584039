"""Entries: what is signed and committed to, and that no other bytes pass for them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.log import hlc
from qgate.federation.log.digest import buckets, differing, expected, record_digest, without_superseded
from qgate.federation.log.entry import (
    ENTRY_MAX,
    PAYLOAD_MAX,
    Contents,
    check_contents,
    check_signature,
    make_entry,
    read_entry,
)
from qgate.federation.log.erasure import erased_places, erasure_payload, holes
from qgate.federation.log.incarnation import incarnation_payload, named_cut
from qgate.federation.log.pace import BURST, Pace
from qgate.federation.log.problems import LogProblem, StreamRefused
from qgate.federation.log.snapshot import check_kept, kept_of, make_snapshot, read_snapshot
from qgate.federation.log.streams import STREAMS, StreamRule, declared_stream, published_stream
from qgate.federation.log.vector import EMPTY, Head, behind, common, points, wanted
from tests.qgate.log_origin import NOW, Origin
from tunnel_proto.identity import Identity
from tunnel_proto.packing import pack, unpack

ORIGIN = Origin()


def test_an_entry_is_read_back_as_it_was_made() -> None:
    entry, contents = ORIGIN.make("nodes", {"name": "laptop", "serial": 7}, epoch=3, version=2)
    again = read_entry(entry.raw)
    assert again == entry
    check_signature(again)
    check_contents(again, contents)
    assert contents.value() == {"name": "laptop", "serial": 7}
    assert (again.epoch, again.version, again.stream, again.size) == (3, 2, "nodes", len(contents.payload))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    entry, _ = ORIGIN.make("nodes", {"a": 1})
    place = data.draw(st.integers(0, len(entry.raw) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(entry.raw)
    changed[place] ^= 1 << bit
    with pytest.raises(LogProblem) as caught:
        check_signature(read_entry(bytes(changed)))
    assert caught.value.code in {"malformed", "signature"}


@given(st.binary(max_size=400))
def test_noise_is_refused_and_nothing_else_happens(noise: bytes) -> None:
    with pytest.raises(LogProblem, match="malformed"):
        read_entry(noise)


def test_another_spelling_of_the_same_entry_is_refused() -> None:
    entry, _ = ORIGIN.make("nodes", {"a": 1})
    body, signature = unpack(entry.raw, max_bytes=ENTRY_MAX)
    longer = b"\x92" + b"\xc5" + len(body).to_bytes(2, "big") + body + b"\xc5\x00\x40" + signature
    with pytest.raises(LogProblem, match="shortest"):
        read_entry(longer)


def test_a_signature_for_another_purpose_is_no_signature() -> None:
    entry, _ = ORIGIN.make("nodes", {"a": 1})
    body, _ = unpack(entry.raw, max_bytes=ENTRY_MAX)
    with pytest.raises(LogProblem, match="does not verify"):
        check_signature(read_entry(pack([body, ORIGIN.online.sign("receipt", body)])))


def test_a_commitment_tells_nothing_without_its_salt() -> None:
    one = ORIGIN.make("nodes", {"secret": "maybe"})[0]
    two = ORIGIN.make("nodes", {"secret": "maybe"})[0]
    assert one.commitment != two.commitment


@pytest.mark.parametrize("change", ["salt", "payload", "length"])
def test_contents_that_are_not_committed_to_are_refused(change: str) -> None:
    entry, contents = ORIGIN.make("nodes", {"a": 1})
    other = {
        "salt": Contents(os.urandom(32), contents.payload),
        "payload": Contents(contents.salt, pack({"a": 2})),
        "length": Contents(contents.salt, contents.payload + b"\0"),
    }[change]
    with pytest.raises(LogProblem, match="commits"):
        check_contents(entry, other)


def test_a_payload_beyond_the_bound_is_refused_with_the_way_out() -> None:
    with pytest.raises(LogProblem) as caught:
        Contents.of({"a": bytes(PAYLOAD_MAX)}, os.urandom(32))
    assert caught.value.code == "payload-too-large"
    assert "blob" in caught.value.hint


def test_an_entry_that_claims_a_gigabyte_is_refused_before_it_is_sent() -> None:
    entry, _ = ORIGIN.make("nodes", {"a": 1})
    body, _ = unpack(entry.raw, max_bytes=ENTRY_MAX)
    fields = unpack(body, max_bytes=ENTRY_MAX)
    fields[11] = 1 << 30
    body = pack(fields)
    with pytest.raises(LogProblem, match="payload has more than"):
        read_entry(pack([body, ORIGIN.online.sign("log entry", body)]))


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0), (1, b"x"), (2, b"x"), (3, 0), (3, True), (4, b""), (5, -1), (6, "Nodes"), (6, "a" * 33), (7, 0),
     (8, b""), (8, bytes(65)), (9, -1), (10, b""), (11, "1"), (12, b"k")],
)  # fmt: skip
def test_each_field_is_checked(place: int, value: object) -> None:
    entry, _ = ORIGIN.make("nodes", {"a": 1})
    fields = unpack(unpack(entry.raw, max_bytes=ENTRY_MAX)[0], max_bytes=ENTRY_MAX)
    fields[place] = value
    body = pack(fields)
    with pytest.raises(LogProblem, match="malformed"):
        read_entry(pack([body, ORIGIN.online.sign("log entry", body)]))


def test_a_later_format_may_append_fields_and_this_one_may_not() -> None:
    later, _ = ORIGIN.make("nodes", {"a": 1}, entry_format=2, extra=("new", 5))
    assert later.format == 2
    check_signature(later)
    with pytest.raises(LogProblem, match="more fields"):
        ORIGIN.make("nodes", {"a": 1}, extra=("new",))


# --- clocks


@given(st.lists(st.floats(1e9, 2e9), min_size=1, max_size=50))
def test_the_clock_never_stands_still_or_goes_back(times: list[float]) -> None:
    last = 0
    for now in times:
        following = hlc.tick(last, now)
        assert following > last
        assert hlc.seconds(following) >= now - 0.001
        last = following


@given(st.floats(0, 1e6), st.floats(1e9, 2e9))
def test_a_time_from_far_ahead_does_not_move_the_clock(lead: float, now: float) -> None:
    ours = hlc.timestamp(now)
    theirs = hlc.timestamp(now + lead)
    merged = hlc.merge(ours, theirs, now)
    if lead > hlc.AHEAD_MAX_S + 0.001:
        assert merged == ours
        assert hlc.ahead(theirs, now) == pytest.approx(lead - hlc.AHEAD_MAX_S, abs=0.01)
    elif lead < hlc.AHEAD_MAX_S - 0.001:
        assert merged == max(ours, theirs)
        assert hlc.ahead(theirs, now) == 0


# --- vectors


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_two_ends_find_what_they_share(length: int, shared: int) -> None:
    shared = min(shared, length)
    mine = {n: n.to_bytes(32, "big") for n in range(1, length + 1)}
    theirs = {n: mine[n] if n <= shared else b"\xff" * 32 for n in range(1, length + 1)}
    asked = points(Head(bytes(16), length, mine[length]), mine.get)
    assert len(asked) <= 64
    assert [seq for seq, _ in asked[1:]] == list(wanted(Head(bytes(16), length, b"")))
    found, _ = common(asked, theirs.get)
    assert found <= shared
    assert length - found <= max(1, 2 * (length - shared)) or found == 0


def test_who_is_behind() -> None:
    a, b = Head(bytes(16), 5, b"a" * 32), Head(bytes(16), 7, b"b" * 32)
    assert behind({b"x": a}, {b"x": b, b"y": a}) == {b"x": b, b"y": a}
    assert behind({b"x": b}, {b"x": a}) == {}
    assert behind({b"x": a}, {b"x": a}) == {}
    assert behind({b"x": a}, {b"x": Head(bytes(16), 5, b"c" * 32)}) != {}, "another hash at the same place"


# --- streams


@pytest.mark.parametrize(
    "name",
    ["audit", "audit_entries", "incidents", "settings", "api_keys", "employees", "notifications", "toggles",
     "flags", "apps", "passwords", "secrets", "admin", "people", "budgets", "receipts"],
)  # fmt: skip
def test_what_belongs_to_one_pool_has_no_stream(name: str) -> None:
    with pytest.raises(StreamRefused, match="never leaves"):
        published_stream(name)


def test_the_log_writes_its_own_streams_alone() -> None:
    for name in ("incarnation", "erasure"):
        with pytest.raises(StreamRefused, match="by the log alone"):
            published_stream(name)
    assert {name for name, one in STREAMS.items() if one.authority == "master"} == {"catalogue"}
    assert STREAMS["revocations"].level == 0


async def _apply(*_: object) -> None: ...


def test_a_rule_must_agree_with_its_stream() -> None:
    assert StreamRule("nodes", _apply, level=2).stream is declared_stream("nodes")
    with pytest.raises(StreamRefused, match="declared with"):
        _ = StreamRule("nodes", _apply, level=1).stream
    with pytest.raises(StreamRefused, match="declared with"):
        _ = StreamRule("catalogue", _apply, authority="origin").stream


# --- incarnations, erasure, snapshots


def test_an_incarnation_names_its_parent_and_cut() -> None:
    origin = Origin()
    origin.write("nodes", {"n": 1})
    cut = origin.head
    reborn = origin.reborn(2)
    entry, contents = reborn.entries[-1]
    assert named_cut(entry, contents.value()) == cut
    lie = incarnation_payload(Head(cut.incarnation, cut.seq, bytes(32)), "")
    with pytest.raises(LogProblem, match="another cut"):
        named_cut(entry, lie)
    with pytest.raises(LogProblem, match="another cut"):
        named_cut(entry, {})
    assert named_cut(origin.entries[0][0], incarnation_payload(EMPTY, "")) == EMPTY


def test_an_erasure_names_only_what_is_before_it() -> None:
    assert erased_places(erasure_payload([3, 1, 3], "asked by its owner"), before=9) == (1, 3)
    places: list[object] = [[], [9], ["1"], [0], [True, 0]]
    bads: list[dict[str, object]] = [{}, *[{"places": one} for one in places]]
    for bad in bads:
        with pytest.raises(LogProblem, match="malformed"):
            erased_places(bad, before=9)
    with pytest.raises(LogProblem):
        erasure_payload([], "")
    assert holes([1, 2, 3], [2]) == (1, 3)


def test_a_snapshot_stands_for_the_newest_entry_of_each_record() -> None:
    origin = Origin()
    for n in range(20):
        origin.write("nodes", {"n": n}, record=bytes([n % 5]))
    entries = [entry for entry, _ in origin.entries]
    kept = kept_of(entries)
    assert [entry.seq for entry in kept] == [1, *range(17, 22)]
    snapshot = make_snapshot(origin.online, pool=origin.key, head=origin.head, hlc=origin.last, kept=kept)
    read = read_snapshot(snapshot.raw)
    assert read == snapshot
    check_kept(read, kept)
    with pytest.raises(LogProblem, match="not those"):
        check_kept(read, kept[:-1])
    with pytest.raises(LogProblem, match="not those"):
        check_kept(read, kept_of(entries[:-1]))
    with pytest.raises(LogProblem, match="does not belong"):
        check_kept(read, kept[::-1])
    forged = make_snapshot(Identity.generate(), pool=origin.key, head=origin.head, hlc=0, kept=kept)
    assert read_snapshot(forged.raw).signer != origin.online.verify_key, "whose key it is, the caller checks"
    for place in range(0, len(snapshot.raw), 7):
        changed = bytearray(snapshot.raw)
        changed[place] ^= 1
        with pytest.raises(LogProblem):
            read_snapshot(bytes(changed))


def test_making_costs_no_more_than_it_must() -> None:
    entry, contents = ORIGIN.make("nodes", {"a": 1})
    assert len(entry.raw) < 400
    made = make_entry(
        ORIGIN.online, pool=ORIGIN.key, incarnation=bytes(16), seq=1, previous=bytes(32),
        hlc=hlc.timestamp(NOW), stream="nodes", record=b"r", contents=contents,
    )  # fmt: skip
    assert made.seq == 1


# --- digests


@given(st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(min_size=16, max_size=16), max_size=40))
def test_buckets_tell_any_difference_and_no_order(rows: dict[bytes, bytes]) -> None:
    mine = buckets(rows)
    assert buckets(dict(reversed(list(rows.items())))) == mine
    for record, digest in rows.items():
        without = {key: value for key, value in rows.items() if key != record}
        assert len(differing(mine, buckets(without))) == 1
        changed = rows | {record: bytes(16) if digest != bytes(16) else b"1" * 16}
        assert len(differing(mine, buckets(changed))) == 1


def test_what_a_log_comes_to() -> None:
    said = expected([(b"a", {"n": 1}), (b"b", {"n": 2}), (b"a", {"n": 3}), (b"b", {"gone": True, "n": 2})])
    assert said == {b"a": record_digest({"n": 3})}
    assert record_digest({"x": {"b": 1, "a": 2}}) == record_digest({"x": {"a": 2, "b": 1}})
    assert without_superseded(said, {b"a": b""}) == ({}, {})


# --- pace


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(0, 5)), min_size=1, max_size=60))
def test_a_backfill_keeps_to_its_rate(batches: list[tuple[int, float]]) -> None:
    rate, now = 100_000.0, 0.0
    pace = Pace(rate, at=now)
    total = 0
    for size, idle in batches:
        now += pace.wait(now) + idle
        pace = pace.spent(size, now)
        total += size
    assert total <= BURST + rate * now + max(size for size, _ in batches)
    assert Pace(0.0).spent(1 << 30, 1.0).wait(1.0) == 0.0
