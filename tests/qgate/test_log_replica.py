"""A replica: in order, authentic, held where it must wait, and stopped by a fork."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation.log.entry import Contents, make_entry
from qgate.federation.log.replica import (
    Accepted,
    Duplicate,
    Forked,
    Gap,
    Mastership,
    Refused,
    release,
)
from qgate.federation.log.streams import STREAMS
from tests.qgate.log_origin import NOW, Origin, Replica
from tunnel_proto.certificate import read_online
from tunnel_proto.identity import Identity


def written(count: int) -> Origin:
    origin = Origin()
    for n in range(count):
        origin.write("nodes", {"n": n})
    return origin


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_whatever_order_it_comes_in_the_log_grows_in_order(seed: int) -> None:
    origin = written(12)
    replica = Replica(origin)
    chance = random.Random(seed)
    while replica.state.head != origin.head:
        entry, contents = chance.choice(origin.entries)
        outcome = replica.take(entry, contents)
        if entry.seq > len(replica.log):
            assert isinstance(outcome, Gap)
            assert outcome.after == len(replica.log)
        else:
            assert isinstance(outcome, Accepted | Duplicate)
    assert replica.log == [entry for entry, _ in origin.entries]
    assert replica.applied == replica.log[1:], "each applied once, in order"


def test_a_fork_is_proof_and_ends_the_replica() -> None:
    origin = written(3)
    twin = origin.clone()
    ours, theirs = origin.write("nodes", {"n": "a"}), twin.write("nodes", {"n": "b"})
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    outcome = replica.take(*twin.entries[-1])
    assert outcome == Forked(theirs, ours.seq, ours.hash, theirs.hash)
    assert replica.state.quarantine
    later = replica.take(*origin.make("nodes", {"n": 4}))
    assert isinstance(later, Refused)
    assert later.code == "quarantined"


def test_an_entry_after_another_predecessor_is_proof_too() -> None:
    origin = written(3)
    twin = origin.clone()
    ours = origin.write("nodes", {"n": "a"})
    twin.write("nodes", {"n": "b"})
    twin.write("nodes", {"n": "c"})
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    outcome = replica.take(*twin.entries[-1])
    assert isinstance(outcome, Forked)
    assert (outcome.seq, outcome.ours) == (ours.seq, ours.hash)


def test_a_restored_origin_goes_on_in_another_incarnation() -> None:
    origin = written(6)
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    reborn = origin.reborn(4)
    reborn.write("nodes", {"n": "new"})
    outcome = replica.take(*reborn.entries[4])
    assert isinstance(outcome, Accepted)
    assert outcome.stranded_after == 4
    assert [entry.seq for entry in replica.stranded] == [5, 6, 7]
    assert isinstance(replica.take(*reborn.entries[5]), Accepted)
    assert replica.state.head == reborn.head
    again = replica.take(*origin.entries[5])
    assert isinstance(again, Refused)
    assert again.code == "old-incarnation", "the parent is over"


def test_an_incarnation_without_loss_strands_nothing() -> None:
    origin = written(3)
    replica = Replica(origin)
    reborn = origin.reborn(4)
    for entry, contents in reborn.entries:
        outcome = replica.take(entry, contents)
        assert isinstance(outcome, Accepted)
        assert outcome.stranded_after is None
    assert replica.state.head == reborn.head


def test_an_incarnation_that_nothing_opened_is_refused() -> None:
    origin = written(2)
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    outcome = replica.take(*origin.make("nodes", {}, incarnation=bytes(16)))
    assert isinstance(outcome, Refused)
    assert outcome.code == "incarnation"


def test_an_incarnation_cut_at_what_never_was_is_a_fork() -> None:
    origin = written(6)
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    other = origin.clone()
    del other.entries[3:]
    other.write("nodes", {"n": "elsewhere"})
    reborn = other.reborn(4)
    assert isinstance(replica.take(*reborn.entries[-1]), Forked)


# --- who signed


def refusal(replica: Replica, origin: Origin, **changes: Any) -> str:
    before = replica.state
    outcome = replica.take(*origin.make("nodes", {"n": 1}, **changes))
    assert isinstance(outcome, Refused)
    assert replica.state == before
    return outcome.code


def test_only_certified_keys_of_that_very_pool_count() -> None:
    origin, stranger = written(1), Origin()
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    assert refusal(replica, stranger) == "origin"
    assert refusal(replica, stranger, pool=origin.key) == "certificate"
    assert refusal(replica, origin, hlc=(int(NOW - 10 * 86_400) * 1000) << 16) == "certificate-time"
    entry, contents = origin.make("nodes", {"n": 1})
    forged = replace(entry, raw=origin.make("nodes", {"n": 2})[0].raw[:-64] + entry.raw[-64:])
    outcome = replica.take(forged, contents)
    assert isinstance(outcome, Refused)
    assert outcome.code == "signature"
    outcome = replica.take(entry, Contents(contents.salt, b"\x80"))
    assert isinstance(outcome, Refused)
    assert outcome.code == "payload"


def test_a_replaced_key_signs_nothing_new() -> None:
    origin = written(2)
    old, new = origin.online, Identity.generate()
    newer = origin.certify(new, 2)
    terms = {
        old.verify_key: read_online(origin.certificate_bytes),
        new.verify_key: read_online(newer),
    }
    replica = Replica(origin, certificates=terms)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    origin.online = new
    origin.write("nodes", {"n": "signed by the new key"})
    assert isinstance(replica.take(*origin.entries[-1]), Accepted)
    origin.online = old
    outcome = replica.take(*origin.make("nodes", {"n": "by the old one again"}))
    assert isinstance(outcome, Refused)
    assert outcome.code == "old-key"


# --- what is held


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stream": "memories"}, "unknown-stream"),
        ({"stream": "nodes", "version": 9}, "newer-version"),
        ({"stream": "nodes", "entry_format": 9, "extra": ("?",)}, "newer-format"),
        ({"stream": "catalogue", "epoch": 5}, "epoch-unknown"),
        ({"stream": "nodes", "now": NOW + 600}, "ahead"),
    ],
)
def test_what_must_wait_is_held_and_the_chain_goes_on(changes: dict[str, Any], reason: str) -> None:
    origin = written(1)
    stream = changes.pop("stream")
    origin.write(stream, {"n": "waits"}, **changes)
    origin.last = 0  # the clock that was wrong is right again
    origin.write("workers", {"n": "another stream"})
    origin.write(stream, {"n": "behind it"})
    replica = Replica(origin)
    outcomes = [replica.take(entry, contents) for entry, contents in origin.entries]
    assert all(isinstance(one, Accepted) for one in outcomes)
    assert replica.state.head == origin.head
    kinds = [(one.disposition, one.reason) for one in outcomes[2:] if isinstance(one, Accepted)]
    assert kinds[0] == ("held", reason)
    assert kinds[1] == ("apply", "")
    assert kinds[2][0] == "held"


def test_an_entry_from_ahead_does_not_move_the_replica_clock_and_is_due_later() -> None:
    origin = written(1)
    replica = Replica(origin)
    for entry, contents in origin.entries:
        replica.take(entry, contents)
    clock = replica.state.hlc
    outcome = replica.take(*origin.make("nodes", {"n": 1}, now=NOW + 600))
    assert isinstance(outcome, Accepted)
    assert outcome.wake_at == pytest.approx(NOW + 540, abs=1)
    assert replica.state.hlc == clock
    held = [(entry, contents) for entry, contents, _ in replica.held.values()]
    _, judged = release(replica.state, held, replica.terms, NOW + 539)
    assert judged[0].disposition == "held"
    state, judged = release(replica.state, held, replica.terms, NOW + 541)
    assert judged[0].disposition == "apply"
    assert not state.blocked


def test_too_little_trust_keeps_the_header_and_not_the_payload() -> None:
    origin = written(3)
    origin.write("revocations", {"serial": 4})
    replica = Replica(origin, level=1)
    for entry, contents in origin.entries:
        assert isinstance(replica.take(entry, contents), Accepted)
    assert [entry.stream for entry in replica.applied] == ["revocations"], "everybody hears of revocations"
    assert all(reason == "level" and contents is None for _, contents, reason in replica.held.values())


def test_withheld_payloads_hold_and_erased_ones_do_not() -> None:
    origin = written(4)
    replica = Replica(origin)
    replica.take(*origin.entries[0])
    erased = replica.take(origin.entries[1][0], None, missing="erased")
    assert isinstance(erased, Accepted)
    assert erased.disposition == "erased"
    replica.take(*origin.entries[2])
    assert [entry.seq for entry in replica.applied] == [3]
    withheld = replica.take(origin.entries[3][0], None, missing="withheld")
    assert isinstance(withheld, Accepted)
    assert (withheld.disposition, withheld.reason) == ("held", "withheld")
    replica.take(*origin.entries[4])
    assert replica.held[5][2] == "behind"
    state, judged = release(
        replica.state, [origin.entries[3], (origin.entries[4][0], origin.entries[4][1])], replica.terms, NOW
    )
    assert [one.disposition for one in judged] == ["apply", "apply"]
    assert not state.blocked


@given(st.lists(st.sampled_from(["nodes", "workers", "memories", "roster"]), max_size=25), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_releasing_gives_what_knowing_from_the_start_would_have(streams: list[str], level: int) -> None:
    """A gate that is upgraded and trusted later ends where one that knew and trusted from the start is."""
    known = dict(STREAMS) | {"memories": replace(STREAMS["nodes"], name="memories")}
    origin = Origin()
    for number, stream in enumerate(streams):
        origin.write(stream, {"n": number})
    late, early = Replica(origin, level=level), Replica(origin, level=4, streams=known)
    for entry, contents in origin.entries:
        late.take(entry, contents)
        early.take(entry, contents)
    assert len(late.applied) + len(late.held) == len(streams)
    originals = {entry.seq: contents for entry, contents in origin.entries}
    held = [(entry, originals[entry.seq]) for entry, _, _ in late.held.values()]
    _, judged = release(late.state, held, early.terms, NOW)
    assert all(one.disposition == "apply" for one in judged)
    for stream in known:
        mine = [e.seq for e in late.applied if e.stream == stream]
        mine += [one.entry.seq for one in judged if one.entry.stream == stream]
        assert mine == [e.seq for e in early.applied if e.stream == stream], "in order within each stream"


# --- masters


@pytest.mark.parametrize(
    ("epoch", "mastership", "expected"),
    [
        (2, "mine", ("apply", "")),
        (1, "mine", ("rejected", "epoch-old")),
        (3, "mine", ("held", "epoch-unknown")),
        (2, "other", ("rejected", "not-master")),
        (2, "frozen", ("held", "frozen")),
        (2, "nobody", ("rejected", "not-master")),
    ],
)
def test_only_the_present_master_writes(epoch: int, mastership: str, expected: tuple[str, str]) -> None:
    origin = Origin()
    origin.write("catalogue", {"model": "m"}, epoch=epoch)
    master = {"mine": origin.key, "other": bytes(32), "frozen": origin.key, "nobody": None}[mastership]
    masters = {"catalogue": Mastership(2, master, frozen=mastership == "frozen")}
    replica = Replica(origin, masters=masters)
    for entry, contents in origin.entries:
        outcome = replica.take(entry, contents)
    assert isinstance(outcome, Accepted)
    assert (outcome.disposition, outcome.reason) == expected


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_a_payload_that_is_no_map_is_rejected_and_the_log_goes_on(noise: bytes) -> None:
    origin = Origin()
    replica = Replica(origin)
    replica.take(*origin.entries[0])
    contents = Contents(bytes(32), noise)
    entry = make_entry(
        origin.online, pool=origin.key, incarnation=origin.incarnation, seq=2, previous=origin.head.hash,
        hlc=origin.last + 1, stream="nodes", record=b"r", contents=contents,
    )  # fmt: skip
    outcome = replica.take(entry, contents)
    assert isinstance(outcome, Accepted)
    assert outcome.disposition in {"rejected", "apply"}
