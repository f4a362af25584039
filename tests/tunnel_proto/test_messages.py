"""Messages of daemons and gates: every one survives the wire, and nothing else gets past it."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto import messages
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.messages import (
    Answer,
    Ask,
    Decoder,
    Fault,
    Gpu,
    Hardware,
    JobDone,
    JobStart,
    JobTokens,
    JobUsage,
    JobVectors,
    Load,
    Message,
    ModelState,
    Report,
    RuntimeState,
    Sampling,
    encode,
)

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
COUNTS = st.integers(0, 2**31 - 1)
SHARES = st.floats(0, 1)
SMALL = st.integers(0, 100)
SHAS = st.binary(min_size=32, max_size=32).map(bytes.hex)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)

GPUS = st.builds(Gpu, index=st.integers(0, 7), name=TEXTS, vram=COUNTS, bus=st.floats(0, 1e12))
HARDWARE = st.builds(
    Hardware, cpu=TEXTS, cores=st.integers(0, 256), memory=COUNTS, gpus=st.lists(GPUS, max_size=3).map(tuple)
)
MODELS = st.builds(
    ModelState,
    name=WORDS,
    sha256=SHAS | st.just(""),
    size=COUNTS,
    state=st.sampled_from(["stored", "loading", "resident", "failed", "external"]),
    kinds=st.lists(st.sampled_from(messages.KINDS), max_size=3).map(tuple),
    progress=SHARES,
    pinned=st.booleans(),
    groups=st.lists(TEXTS, max_size=3).map(tuple),
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.none() | COUNTS,
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(TEXTS, max_size=4).map(tuple),
    logit_bias=st.lists(st.tuples(COUNTS, st.floats(-100, 100)), max_size=4).map(tuple),
)
IDS = st.lists(COUNTS, max_size=20).map(tuple)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Report,
        worker=WORDS,
        seq=COUNTS,
        full=st.booleans(),
        load=st.builds(Load, cpu=SHARES, memory_available=COUNTS),
        hardware=st.none() | HARDWARE,
        models=st.lists(MODELS, max_size=3).map(tuple),
        gone=st.lists(WORDS, max_size=3).map(tuple),
        runtimes=st.none()
        | st.lists(st.builds(RuntimeState, name=TEXTS, engine=st.just("ollama")), max_size=2).map(tuple),
        draining=st.booleans(),
    ),
    st.builds(messages.LoadProgress, model=WORDS, state=WORDS, share=SHARES, eta_s=st.none() | SHARES),
    st.builds(Ask, id=COUNTS, verb=st.sampled_from(messages.VERBS), args=OBJECTS),
    st.builds(Answer, id=COUNTS, ok=st.booleans(), result=JSON, problem=st.none()),
    st.builds(
        Answer, id=COUNTS, ok=st.just(False), problem=st.builds(Fault, code=WORDS, message=TEXTS, hint=TEXTS)
    ),
    st.builds(
        JobStart,
        job=WORDS,
        model=WORDS | SHAS,
        kind=st.sampled_from(messages.KINDS),
        app=TEXTS,
        messages=st.none() | st.lists(OBJECTS, max_size=3).map(tuple),
        prompt=st.none() | TEXTS | IDS,
        inputs=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
        sampling=SAMPLINGS,
        emitted=IDS,
        deadline_s=st.none() | SHARES,
        stream=st.booleans(),
    ),
    st.builds(messages.JobAccepted, job=WORDS, queue=st.integers(0, 1000), state=WORDS),
    st.builds(messages.JobRefused, job=WORDS, code=WORDS, message=TEXTS, retry_after_s=st.none() | SHARES),
    st.builds(messages.JobProgress, job=WORDS, state=WORDS, share=SHARES),
    st.builds(JobTokens, job=WORDS, ids=IDS, text=TEXTS),
    st.builds(
        JobVectors, job=WORDS, vectors=st.lists(st.binary(max_size=64), max_size=3).map(tuple), first=SMALL
    ),
    st.builds(JobDone, job=WORDS, finish_reason=WORDS, usage=st.builds(JobUsage, prompt_tokens=COUNTS)),
    st.builds(messages.JobFailed, job=WORDS, code=WORDS, message=TEXTS, retriable=st.booleans()),
)


def framed(document: Any) -> bytes:
    """A frame that no `encode` would make."""
    packed = msgpack.packb(document, use_bin_type=True)
    return struct.pack(">I", len(packed)) + typing.cast(bytes, packed)


@given(st.lists(MESSAGES, max_size=4), st.randoms(use_true_random=False))
def test_what_is_sent_arrives_however_it_is_cut(sent: list[Message], random: Any) -> None:
    wire = b"".join(encode(one) for one in sent)
    decoder = Decoder()
    arrived: list[Message] = []
    while wire:
        size = random.randint(1, len(wire))
        arrived += decoder.feed(wire[:size])
        wire = wire[size:]
    assert arrived == sent
    assert decoder.clean


@given(MESSAGES, st.data())
def test_a_damaged_frame_is_refused_or_read_but_never_a_defect(message: Message, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(4, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        for arrived in Decoder().feed(bytes(wire)):
            assert encode(arrived)  # what was let in is within the bounds
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        Decoder(frame_max=64).feed(noise)


def test_fields_that_hold_their_default_do_not_travel() -> None:
    document = msgpack.unpackb(encode(JobTokens("job-1", (5, 6), "hi"))[4:])
    assert document == {"t": "job-tokens", "job": "job-1", "ids": [5, 6], "text": "hi"}


def test_every_field_of_every_message_has_a_check() -> None:
    for cls in messages.TYPES.values():
        for field in dataclasses.fields(cls):
            assert "check" in field.metadata, f"{cls.__name__}.{field.name}"


def test_a_later_version_may_add_what_we_can_skip() -> None:
    decoder = Decoder()
    assert decoder.feed(framed({"t": "job-mood?", "job": "a"})) == []
    known = {"t": "job-accepted", "job": "a", "mood?": 3}
    assert decoder.feed(framed(known)) == [messages.JobAccepted("a")]


BAD: list[tuple[Any, str]] = [
    ([1, 2], "without a type"),
    ({"job": "a"}, "without a type"),
    ({"t": 5}, "without a type"),
    ({"t": "job-mood"}, "unknown type 'job-mood'"),
    ({"t": "job-accepted"}, "job is missing"),
    ({"t": "job-accepted", "job": "a", "mood": 3}, "'mood' is no field"),
    ({"t": "job-accepted", "job": 7}, "job must be text"),
    ({"t": "job-accepted", "job": "a b"}, "job has characters"),
    ({"t": "job-accepted", "job": "a" * 65}, "job must have at most 64"),
    ({"t": "job-accepted", "job": "a", "queue": -1}, "queue must lie between"),
    ({"t": "job-accepted", "job": "a", "queue": True}, "queue must be a whole number"),
    ({"t": "job-tokens", "job": "a", "ids": [2**31]}, "ids must hold token ids"),
    ({"t": "job-tokens", "job": "a", "ids": [True]}, "ids must hold token ids"),
    ({"t": "job-vectors", "job": "a", "vectors": ["text"]}, "vectors must be bytes"),
    ({"t": "load-progress", "model": "m", "state": "x", "share": 1.5}, "share must lie"),
    ({"t": "load-progress", "model": "m", "state": "x", "share": float("nan")}, "share must lie"),
    ({"t": "load-progress", "model": "m", "state": "x", "share": float("inf")}, "share must lie"),
    ({"t": "load-progress", "model": "m", "state": "x", "share": "1"}, "share must be a number"),
    ({"t": "load-progress", "model": "../../etc", "state": "x"}, "model has characters"),
    ({"t": "ask", "id": 1, "verb": "reboot", "args": {}}, "verb must be one of"),
    ({"t": "ask", "id": 1, "verb": "load", "args": {"a": b"bytes"}}, "args must be what JSON can say"),
    ({"t": "answer", "id": 1, "ok": 1}, "ok must be true or false"),
    ({"t": "answer", "id": 1, "ok": False, "problem": {"code": "x"}}, "problem message is missing"),
    ({"t": "job-start", "job": "a", "model": "m", "kind": "chat", "messages": {}}, "must be a list"),
    ({"t": "job-start", "job": "a", "model": "m", "kind": "theft"}, "kind must be one of"),
    (
        {"t": "job-start", "job": "a", "model": "m", "kind": "chat", "sampling": {"logit_bias": [[1]]}},
        "sampling logit_bias must be a pair",
    ),
    ({"t": "report", "worker": "w", "seq": 0, "models": [{"name": "m", "state": "fine"}]}, "state must be"),
]


@pytest.mark.parametrize(("document", "said"), BAD, ids=[said for _, said in BAD])
def test_a_bad_message_says_what_is_wrong_with_it(document: Any, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said):
        Decoder().feed(framed(document))


def test_a_nest_without_end_is_refused() -> None:
    nest: Any = []
    for _ in range(200):
        nest = [nest]
    with pytest.raises(RemoteProtocolError, match="levels deep"):
        Decoder().feed(framed({"t": "answer", "id": 1, "ok": True, "result": nest}))


def test_a_value_too_wide_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="at most 100000 values"):
        Decoder().feed(framed({"t": "answer", "id": 1, "ok": True, "result": [0] * 100_001}))


def test_a_long_frame_is_refused_by_its_header() -> None:
    decoder = Decoder()
    with pytest.raises(RemoteProtocolError, match="are allowed") as caught:
        decoder.feed(struct.pack(">I", messages.FRAME_MAX + 1))
    assert caught.value.code == 3
    with pytest.raises(RemoteProtocolError):
        Decoder(frame_max=10).feed(encode(JobTokens("job", (), "more than ten bytes")))


def test_half_a_message_is_not_clean() -> None:
    decoder = Decoder()
    assert decoder.feed(encode(JobTokens("job"))[:-1]) == []
    assert not decoder.clean


@pytest.mark.parametrize(
    "message",
    [
        JobStart("job", "m", "chat", messages=({"role": "user", "content": "\ud800"},)),
        JobStart("job", "no spaces", "chat"),
        Answer(1, True, result=float("nan")),
        Answer(1, True, result=2**70),
        JobTokens("job", (), "x" * ((1 << 20) + 1)),
        JobVectors("job", (b"x" * messages.VECTOR_MAX,) * 100),
    ],
)
def test_we_do_not_send_what_would_be_refused(message: Message) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        encode(message)


def test_no_error_repeats_what_a_client_wrote() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode(JobStart("job", "m", "chat", messages=({"content": "canary\ud800"},)))
    assert "canary" not in caught.value.message
    assert caught.value.__cause__ is None
