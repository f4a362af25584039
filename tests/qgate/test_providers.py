"""Model APIs that behave, and those that do not, over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qgate.capability.work import Usage
from tests.qgate.calling import KEY, calling
from tests.qgate.certificates import self_signed
from tests.qgate.model_api import USAGE, Exchange, ModelApi, answer, chat, events, piece
from tests.qgate.spending import work

BODY = {"model": "qg://task=chat", "messages": [{"role": "user", "content": "hi"}], "made_up": {"x": [1]}}


def streamed(**body: Any) -> Any:
    return work(body={**BODY, **body}, stream=True)


# --- what passes


async def test_the_body_goes_as_it_is_but_for_the_model_and_a_bound() -> None:
    async with ModelApi(answer(chat())) as api, calling(api.url) as caller:
        ear = await caller.run(work(body=BODY), max_tokens=50)
        assert ear.raw is not None
        assert json.loads(ear.raw) == chat()
        assert (ear.reason, ear.usage, ear.version) == ("stop", Usage(7, 3, 0, 7), "big-2026-01-01")
        sent = api.seen[0]
        assert sent.path == "/v1/chat/completions"
        assert sent.headers["authorization"] == f"Bearer {KEY}"
        assert sent.headers["accept-encoding"] == "identity"
        assert sent.json == {**BODY, "model": "big", "max_tokens": 50, "stream": False}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"max_tokens": 20}, {"max_tokens": 20}),
        ({"max_tokens": 200}, {"max_tokens": 50}),
        ({"max_completion_tokens": 200}, {"max_completion_tokens": 50}),
        ({"max_tokens": "many"}, {"max_tokens": 50}),
        ({"max_tokens": True}, {"max_tokens": 50}),
        ({"max_tokens": -1}, {"max_tokens": 50}),
    ],
)
async def test_nothing_in_a_body_raises_its_bound(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    async with ModelApi(answer(chat())) as api, calling(api.url) as caller:
        await caller.run(work(body={**BODY, **asked}), max_tokens=50)
        got = api.seen[0].json
        assert {name: value for name, value in got.items() if name.startswith("max")} == sent


async def test_a_streams_payloads_pass_byte_for_byte() -> None:
    odd = b'data: {"choices" : [ {"delta":{"content":"\\u00e9\xc3\xa9"},"index":0} ], "extra":1.50}\r\n\r\n'
    reply = events(piece(role="assistant"), odd, b": ping\n\n", piece(finish="stop"), USAGE)
    async with ModelApi(reply) as api, calling(api.url) as caller:
        ear = await caller.run(streamed())
        assert ear.text == "éé"
        assert [chunk.raw for chunk in ear.chunks][1] == odd[6:-4]
        assert (ear.reason, ear.usage) == ("stop", Usage(7, 3, 4, 3))
        assert len(ear.chunks) == 3  # the usage was not asked for, so nobody is sent it
        assert api.seen[0].json["stream_options"] == {"include_usage": True}
        wanted = await caller.run(streamed(stream_options={"include_usage": True}))
        assert len(wanted.chunks) == 4


async def test_events_may_be_cut_anywhere() -> None:
    whole = b"".join(
        b"data: " + json.dumps(one).encode() + b"\n\n"
        for one in (piece("Grüße "), piece("𝄞"), piece(finish="length"), USAGE)
    )

    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        for byte in whole + b"data: [DONE]\n\n":
            exchange.writer.write(b"1\r\n%c\r\n" % byte)
        await exchange.end()

    async with ModelApi(reply) as api, calling(api.url) as caller:
        ear = await caller.run(streamed())
        assert (ear.text, ear.reason) == ("Grüße 𝄞", "length")


async def test_tool_calls_are_deltas() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    reply = events(piece(role="assistant", tool_calls=[call]), piece(finish="tool_calls"), USAGE)
    async with ModelApi(reply) as api, calling(api.url) as caller:
        ear = await caller.run(streamed())
        assert ear.chunks[0].delta == {"role": "assistant", "tool_calls": [call]}
        assert ear.reason == "tool_calls"


async def test_embeddings_come_as_vectors_too() -> None:
    document = {
        "object": "list",
        "data": [{"index": 0, "embedding": [0.5, 1]}],
        "model": "e",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    async with ModelApi(answer(document)) as api, calling(api.url) as caller:
        ear = await caller.run(work(kind="embedding", body={"model": "x", "input": "hi"}), max_tokens=9)
        assert ear.result == [[0.5, 1]]
        assert ear.usage.prompt_tokens == 2
        assert api.seen[0].path == "/v1/embeddings"
        assert api.seen[0].json == {"model": "big", "input": "hi"}


async def test_connections_are_used_again() -> None:
    async with ModelApi(events(piece("a"), piece(finish="stop"), USAGE)) as api, calling(api.url) as caller:
        for _ in range(5):
            await caller.run(streamed())
            async with asyncio.timeout(60):
                while caller.executor.running("acme"):
                    await asyncio.sleep(0)
        assert api.connections == 1


async def test_without_usage_the_most_is_assumed() -> None:
    async with ModelApi(answer(chat(usage=False))) as api, calling(api.url) as caller:
        ear = await caller.run(work(body=BODY), max_tokens=20)
        assert ear.usage.prompt_tokens >= len(json.dumps(BODY["messages"]))
        assert ear.usage.completion_tokens == 20
    async with (
        ModelApi(events(piece("abcde"), piece(finish="stop"))) as api,
        calling(api.url) as caller,
    ):
        ear = await caller.run(streamed())
        assert ear.usage.completion_tokens == 5


async def test_a_server_that_leaves_done_out_ends_by_its_finish_reason() -> None:
    reply = events(piece("abc"), piece(finish="stop"), USAGE, done=False)
    async with ModelApi(reply) as api, calling(api.url) as caller:
        ear = await caller.run(streamed())
        assert (ear.text, ear.reason) == ("abc", "stop")


# --- what does not


@pytest.mark.parametrize("how", ["end", "cut", "reset"])
async def test_half_a_stream_is_never_a_clean_end(how: str) -> None:
    cut = asyncio.Event()

    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(b"data: " + json.dumps(piece("half")).encode() + b"\n\n")
        await cut.wait()
        if how == "end":
            await exchange.end()
        elif how == "cut":
            exchange.cut()
        else:
            exchange.reset()

    async with ModelApi(reply) as api, calling(api.url) as caller:
        ear, _ = caller.begin(streamed())
        async with asyncio.timeout(60):
            while not ear.chunks:
                await asyncio.sleep(0)
            cut.set()
            await ear.over.wait()
        assert ear.text == "half"
        assert ear.failure is not None
        assert ear.failure.code == "stream_interrupted"
        assert ear.failure.blame in {"provider", "network"}


@pytest.mark.parametrize(
    "payloads",
    [
        (piece("a"), b"data: {half"),
        (b"data: [DONE]\n\n",),
        (piece("a"), b"data: [DONE]\n\n"),
        (piece(finish="stop"), b'data: {"choices": [{"ind'),
    ],
)
async def test_an_end_without_a_reason_is_none(payloads: tuple[Any, ...]) -> None:
    async with ModelApi(events(*payloads, done=False)) as api, calling(api.url) as caller:
        failure = await caller.fails(streamed())
        assert failure.code in {"stream_interrupted", "invalid_response"}


@pytest.mark.parametrize(
    "payload",
    [
        b"data: nonsense\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": {}}\n\n',
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
async def test_garbage_in_a_stream_is_the_providers_fault(payload: bytes) -> None:
    async with ModelApi(events(payload)) as api, calling(api.url) as caller:
        failure = await caller.fails(streamed())
        assert (failure.code, failure.blame, failure.retriable) == ("invalid_response", "provider", True)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b"\x00\xff", b"null"])
async def test_garbage_in_a_body_is_the_providers_fault(body: bytes) -> None:
    async with ModelApi(answer(body)) as api, calling(api.url) as caller:
        failure = await caller.fails(work(body=BODY))
        assert (failure.code, failure.blame) == ("invalid_response", "provider")


async def test_the_wrong_content_type_is_not_read() -> None:
    async with ModelApi(answer(chat(), content_type="text/html")) as api, calling(api.url) as caller:
        assert "text/html, not application/json" in (await caller.fails(work(body=BODY))).message
        assert "not text/event-stream" in (await caller.fails(streamed())).message
    async with ModelApi(answer(chat(), content_encoding="gzip")) as api, calling(api.url) as caller:
        assert "compressed" in (await caller.fails(work(body=BODY))).message


async def test_a_line_without_end_is_cut_off() -> None:
    async def reply(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        while not exchange.closed.is_set():
            await exchange.chunk(b"x" * (1 << 20))

    async with ModelApi(reply) as api, calling(api.url) as caller:
        failure = await caller.fails(streamed())
        assert "one line has more than" in failure.message


async def test_an_error_within_a_stream_ends_it() -> None:
    told = {"error": {"message": f"overloaded, {KEY}", "type": "overloaded_error"}}
    async with ModelApi(events(piece("a"), told)) as api, calling(api.url) as caller:
        failure = await caller.fails(streamed())
        assert (failure.code, failure.retriable, failure.status) == ("stream_interrupted", True, 529)
    async with ModelApi(events(told)) as api, calling(api.url) as caller:
        assert (await caller.fails(streamed())).code == "provider_error"


# --- refusals


def refusal(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", **more}}


@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (400, refusal("bad temperature"), ("invalid_request", "request", False)),
        (
            400,
            refusal("too long", code="context_length_exceeded"),
            ("context_length_exceeded", "request", False),
        ),
        (400, refusal("prompt is too long: 3"), ("context_length_exceeded", "request", False)),
        (401, refusal(f"Incorrect API key provided: {KEY}"), ("provider_error", "provider", True)),
        (402, refusal("pay"), ("provider_error", "provider", True)),
        (403, refusal("no"), ("provider_error", "provider", True)),
        (404, refusal("no such model"), ("model_not_found", "provider", True)),
        (408, {}, ("provider_error", "provider", True)),
        (413, {}, ("payload_too_large", "request", False)),
        (418, {}, ("provider_error", "provider", False)),
        (429, refusal("slow down"), ("rate_limit_exceeded", "provider", True)),
        (429, refusal("no credit", code="insufficient_quota"), ("provider_error", "provider", True)),
        (500, b"<h1>oops</h1>", ("provider_error", "provider", True)),
        (502, b"", ("provider_error", "provider", True)),
        (503, {}, ("provider_error", "provider", True)),
        (529, {}, ("provider_error", "provider", True)),
        (302, b"", ("provider_error", "provider", True)),
        (204, b"", ("provider_error", "provider", False)),
    ],
)
async def test_a_refusal_says_whose_fault_it_is(
    status: int, document: Any, expected: tuple[str, str, bool]
) -> None:
    async with ModelApi(answer(document, status)) as api, calling(api.url) as caller:
        failure = await caller.fails(work(body=BODY))
        assert (failure.code, failure.blame, failure.retriable) == expected
        assert KEY not in failure.message
        assert "acme" in failure.message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "999999999"}, 3600.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-5"}, None),
        ({}, None),
    ],
)
async def test_a_429_says_when_to_come_again(headers: dict[str, str], seconds: float | None) -> None:
    async with ModelApi(answer(refusal("x"), 429, **headers)) as api, calling(api.url) as caller:
        assert (await caller.fails(work(body=BODY))).retry_after_s == seconds


async def test_a_redirect_is_not_followed_and_takes_no_key_along() -> None:
    async with (
        ModelApi(answer(chat())) as elsewhere,
        ModelApi(answer(b"", 307, location=elsewhere.url + "/chat/completions")) as api,
        calling(api.url) as caller,
    ):
        assert "redirect" in (await caller.fails(work(body=BODY))).message
        assert elsewhere.seen == []


async def test_a_key_that_the_provider_repeats_is_not_passed_on() -> None:
    document = refusal(f"cannot do that with {KEY} at all")
    async with ModelApi(answer(document, 400)) as api, calling(api.url) as caller:
        assert "with *** at all" in (await caller.fails(work(body=BODY))).message


async def test_an_errors_body_without_end_is_not_waited_for() -> None:
    async def reply(exchange: Exchange) -> None:
        await exchange.head(500, content_type="application/json")
        while not exchange.closed.is_set():
            await exchange.chunk(b"x" * 65_536)

    async with ModelApi(reply) as api, calling(api.url) as caller:
        assert (await caller.fails(work(body=BODY))).status == 500


# --- time


async def silence(exchange: Exchange) -> None:
    await exchange.closed.wait()


async def head_only(exchange: Exchange) -> None:
    await exchange.head(content_type="text/event-stream")
    await exchange.closed.wait()


async def then_silence(exchange: Exchange) -> None:
    await exchange.head(content_type="text/event-stream")
    await exchange.chunk(b"data: " + json.dumps(piece("half")).encode() + b"\n\n")
    await exchange.closed.wait()


async def trickle(exchange: Exchange) -> None:
    """A byte at a time, and never a line."""
    await exchange.head(content_type="text/event-stream")
    while not exchange.closed.is_set():
        await exchange.chunk(b"x")
        await asyncio.sleep(0.01)


async def slow_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while not exchange.closed.is_set():
        await exchange.send(b"x: y\r\n")
        await asyncio.sleep(0.01)


async def pings(exchange: Exchange) -> None:
    """Alive, and without an answer for ever."""
    await exchange.head(content_type="text/event-stream")
    while not exchange.closed.is_set():
        await exchange.chunk(b": ping\n\n")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (silence, "did not begin to answer"),
        (slow_head, "did not begin to answer"),
        (head_only, "fell silent"),
        (then_silence, "fell silent"),
        (trickle, "fell silent"),
        (pings, "did not end its answer"),
    ],
)
async def test_each_wait_has_an_end(reply: Callable[[Exchange], Awaitable[None]], said: str) -> None:
    patience: dict[str, Any] = {
        "connect_timeout_s": 0.1,
        "first_byte_timeout_s": 0.3,
        "idle_timeout_s": 0.3,
        "total_timeout_s": 1.0,
    }
    async with ModelApi(reply) as api, calling(api.url, **patience) as caller:
        failure = await caller.fails(streamed())
        assert said in failure.message
        assert failure.retriable
        async with asyncio.timeout(60):
            await api.seen[0].closed.wait()


async def test_a_requests_own_deadline_comes_first() -> None:
    async with ModelApi(silence) as api, calling(api.url) as caller:
        assert "did not end" in (await caller.fails(streamed(), deadline_s=0.2)).message


async def test_nobody_listens_and_no_such_host() -> None:
    async with ModelApi() as api:
        gone = api.url
    for url in (gone, "https://no-such-host.invalid/v1"):
        async with calling(url) as caller:
            failure = await caller.fails(work(body=BODY))
            assert (failure.code, failure.blame, failure.retriable) == ("unavailable", "network", True)


async def test_what_is_not_http_is_said_to_be_none() -> None:
    async def reply(exchange: Exchange) -> None:
        await exchange.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        exchange.cut()

    async with ModelApi(reply) as api, calling(api.url) as caller:
        assert (await caller.fails(work(body=BODY))).code in {"invalid_response", "unavailable"}


# --- holding on and letting go


async def test_cancelling_hangs_up() -> None:
    async with ModelApi(then_silence) as api, calling(api.url) as caller:
        ear, running = caller.begin(streamed())
        async with asyncio.timeout(60):
            while not ear.chunks:
                await asyncio.sleep(0)
            running.cancel()
            running.cancel()
            await api.seen[0].closed.wait()
            while caller.executor.running("acme"):
                await asyncio.sleep(0)
        assert ear.ends == 0


async def test_a_slow_reader_halts_the_provider() -> None:
    sent = 0

    async def reply(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head(content_type="text/event-stream")
        payload = b"data: " + json.dumps(piece("x" * 10_000)).encode() + b"\n\n"
        for _ in range(3000):
            await exchange.chunk(payload)
            sent += 1
        await exchange.chunk(b"data: " + json.dumps(piece(finish="stop")).encode() + b"\n\n")
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    async with ModelApi(reply) as api, calling(api.url, idle_timeout_s=5.0) as caller:
        ear, running = caller.begin(streamed())
        running.pause()
        seen = -1
        async with asyncio.timeout(60):
            while seen != sent or not sent:
                seen = sent
                await asyncio.sleep(0.1)
        assert sent < 3000
        assert len(ear.chunks) < 100
        running.resume()
        async with asyncio.timeout(60):
            await ear.over.wait()
        assert len(ear.text) == 3000 * 10_000
        assert ear.reason == "stop"


async def test_a_provider_has_so_many_at_a_time() -> None:
    async with ModelApi(silence) as api, calling(api.url, max_concurrent=2) as caller:
        running = [caller.begin(streamed())[1] for _ in range(2)]
        failure = await caller.fails(streamed())
        assert (failure.code, failure.retry_after_s) == ("queue_full", 1.0)
        for one in running:
            one.cancel()


async def test_nothing_goes_on_from_anothers_answer() -> None:
    async with ModelApi() as api, calling(api.url) as caller:
        failure = await caller.fails(streamed(), emitted=(1, 2))
        assert (failure.code, failure.retriable) == ("stream_interrupted", False)
        assert api.seen == []


async def test_a_key_sealed_for_another_place_is_not_sent() -> None:
    import dataclasses

    from qgate.governance.directory import Directory, Snapshot
    from qgate.vault import Vault

    async with ModelApi() as api, calling("https://api.example/v1") as caller:
        moved = dataclasses.replace(caller.provider, url=api.url)
        caller.executor._directory = Directory(
            Snapshot(providers={"acme": moved}), unseal=Vault((bytes(range(32)),)).unseal
        )
        failure = await caller.fails(work(body=BODY))
        assert "cannot be opened" in failure.message
        assert api.seen == []


async def test_a_bound_holds_under_every_name_that_a_server_may_heed() -> None:
    body = {**BODY, "max_completion_tokens": 5, "max_tokens": 100_000}
    async with ModelApi(answer(chat())) as api, calling(api.url) as caller:
        await caller.run(work(body=body))
        sent = api.seen[0].json
        assert (sent["max_completion_tokens"], sent["max_tokens"]) == (5, 5)
        await caller.run(work(body=BODY))
        assert api.seen[1].json["max_tokens"] == 4096


@pytest.mark.parametrize(
    "extra",
    [{"service_tier": "priority"}, {"web_search_options": {"x": 1}}, {"prediction": {"content": "x"}}],
)
async def test_what_costs_more_than_its_tokens_is_not_sent(extra: dict[str, Any]) -> None:
    async with ModelApi() as api, calling(api.url) as caller:
        failure = await caller.fails(work(body={**BODY, **extra}))
        assert (failure.code, failure.usage) == ("unsupported", Usage())
        assert api.seen == []


async def test_it_is_told_whether_a_failure_can_have_cost_anything() -> None:
    async with ModelApi() as api:
        gone = api.url
    async with calling(gone) as caller:
        assert (await caller.fails(work(body=BODY))).usage == Usage()
    async with ModelApi(answer(b"", 504)) as api, calling(api.url) as caller:
        failure = await caller.fails(work(body=BODY))
        assert (failure.usage, failure.status) == (None, None)
    async with ModelApi(answer(b"garbage")) as api, calling(api.url) as caller:
        failure = await caller.fails(work(body=BODY))
        assert (failure.usage, failure.status) == (None, None)


# --- TLS


def tls_contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server with a certificate for 127.0.0.1, and a client that trusts its issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key, "api.example").public_bytes(serialization.Encoding.PEM)
    (tmp_path / "cert").write_bytes(certificate)
    (tmp_path / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    return server, ssl.create_default_context(cadata=certificate.decode())


async def test_a_key_goes_to_no_server_that_cannot_prove_who_it_is(tmp_path: Path) -> None:
    server, client = tls_contexts(tmp_path)
    async with ModelApi(answer(chat()), tls=server) as api:
        async with calling(api.url) as caller:
            failure = await caller.fails(work(body=BODY))
            assert "could not prove who it is" in failure.message
        assert api.seen == []
        async with calling(api.url, tls=client) as caller:
            assert (await caller.run(work(body=BODY))).reason == "stop"
        async with calling(api.url.replace("127.0.0.1", "localhost"), tls=client) as caller:
            assert "could not prove who it is" in (await caller.fails(work(body=BODY))).message


async def test_a_server_without_tls_where_tls_is_expected() -> None:
    async with ModelApi() as api, calling(api.url.replace("http:", "https:")) as caller:
        failure = await caller.fails(work(body=BODY))
        assert failure.code in {"provider_error", "unavailable"}
        assert api.seen == []
