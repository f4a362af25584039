"""What we rely on of uvicorn's inner protocol class, on a stream that looks like a transport."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qgate.http.front import HttpFront
from qgate.http.protocol import BODY_RATE, HEAD_MAX, Patience
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import PeerSession, Stream, StreamError, StreamReceiver


class FakeStream:
    """The gate's end of a stream; the test is the sidecar."""

    def __init__(self, metadata: dict[str, Any] | None = None) -> None:
        self.metadata = {"source": "127.0.0.1:5", "uid": None, "tls": False} | (metadata or {})
        self.receiver: StreamReceiver
        self.pending: list[bytes] = []
        self.out = b""
        self.boundaries: list[int] = []  # lengths of ``out`` at which an answer ended
        self.boundary = False
        self.eof = False
        self.reset_with: tuple[int, str] | None = None
        self.credit_returned = 0
        self.delivered = 0

    @property
    def pending_bytes(self) -> int:
        return sum(map(len, self.pending))

    def write(self, data: bytes, *, boundary: bool = False, sensitive: bool = False) -> None:
        if self.eof:
            raise LocalProtocolError("closed")
        self.pending.append(data)
        self.boundary = boundary
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        if self.pending:
            self.out += b"".join(self.pending)
            self.pending.clear()
            if self.boundary:
                self.boundaries.append(len(self.out))

    def write_eof(self) -> None:
        self.eof = True

    def reset(self, code: int, message: str = "", *, sqlstate: str = "") -> None:
        self.reset_with = (code, message)

    def consumed(self, n: int) -> None:
        self.credit_returned += n

    # the sidecar's side

    def arrive(self, data: bytes) -> None:
        self.delivered += len(data)
        self.receiver.data_received(data, False)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)

    async def answers(self, count: int) -> list[tuple[bytes, bytes]]:
        """So many answers, as (head, body); only ones with Content-Length."""
        found: list[tuple[bytes, bytes]] = []
        await self.until(lambda: len(_split(self.out)) >= count or self.reset_with is not None)
        found = _split(self.out)
        assert len(found) == count
        return found


def _split(data: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        if len(rest) < length:
            break
        found.append((head, rest[:length]))
        data = rest[length:]
    return found


@dataclass
class Echo:
    """An application that answers with what it was sent, and remembers."""

    bodies: list[bytes] = field(default_factory=list)
    scopes: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    hold: bool = False
    hold_body: bool = False
    fail_after: bytes = b""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = b""
        if self.hold_body:
            await self.gate.wait()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body += message.get("body", b"")
            if not message["more_body"]:
                break
        self.bodies.append(body)
        if self.hold:
            assert (await receive())["type"] == "http.disconnect"
            self.left += 1
            return
        text = scope["path"].encode() + b" " + body
        headers = [(b"content-length", str(len(text)).encode())]
        if self.fail_after:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.fail_after, "more_body": True})
            scope["state"]["close"]()
            await asyncio.sleep(0)
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


@asynccontextmanager
async def serving(
    application: Any, patience: Patience | None = None
) -> AsyncIterator[tuple[HttpFront, Callable[..., FakeStream]]]:
    front = HttpFront(application, patience)
    session = cast(PeerSession, SimpleNamespace(peer=SimpleNamespace(name="laptop")))

    def connect(metadata: dict[str, Any] | None = None) -> FakeStream:
        stream = FakeStream(metadata)
        front.accept(session, cast(Stream, stream))
        return stream

    try:
        yield front, connect
    finally:
        await front.close()
        assert not front.live


def post(path: str = "/a", body: bytes = b"hello", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_a_request_in_any_pieces_is_answered_and_its_credit_returned() -> None:
    echo = Echo()
    async with serving(echo) as (_, connect):
        stream = connect()
        for at in range(len(post())):
            stream.arrive(post()[at : at + 1])
        ((head, body),) = await stream.answers(1)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"/a hello"
        assert stream.credit_returned == stream.delivered
        assert echo.scopes[0]["state"]["sidecar"] == "laptop"
        assert echo.scopes[0]["state"]["source"] == "127.0.0.1:5"
        assert stream.boundaries == [len(stream.out)]


async def test_chunked_bodies() -> None:
    async with serving(Echo()) as (_, connect):
        stream = connect()
        head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        stream.arrive(head + b"3\r\nabc\r\n")
        stream.arrive(b"2;ext=1\r\nde\r\n0\r\n\r\n")
        assert (await stream.answers(1))[0][1] == b"/c abcde"


async def test_keep_alive_and_close() -> None:
    async with serving(Echo()) as (front, connect):
        stream = connect()
        stream.arrive(post("/1"))
        await stream.answers(1)
        stream.arrive(post("/2"))
        await stream.answers(2)
        assert not stream.eof
        stream.arrive(post("/3", b"x", "Connection: close"))
        assert (await stream.answers(3))[2][1] == b"/3 x"
        await stream.until(lambda: stream.eof and front.live == 0)
        assert len(stream.boundaries) == 3
        stream.receiver.stream_closed(None)


async def test_pipelined_requests_are_answered_in_order_and_only_the_last_ends_a_message() -> None:
    async with serving(Echo()) as (_, connect):
        stream = connect()
        stream.arrive(post("/1") + post("/2") + post("/3"))
        answers = await stream.answers(3)
        assert [body for _, body in answers] == [b"/1 hello", b"/2 hello", b"/3 hello"]
        assert stream.boundaries[-1] == len(stream.out)


async def test_a_body_that_is_not_read_withholds_credit() -> None:
    echo = Echo(hold_body=True)
    async with serving(echo) as (_, connect):
        stream = connect()
        head, piece = post("/big", b"")[:-2], b"x" * 50_000
        stream.arrive(head.replace(b"Content-Length: 0", b"Content-Length: 500000") + b"\r\n")
        for _ in range(10):
            stream.arrive(piece)
        await asyncio.sleep(0)
        assert stream.credit_returned < 200_000
        echo.gate.set()
        assert len((await stream.answers(1))[0][1]) == 500_005
        assert stream.credit_returned == stream.delivered


async def test_a_stream_without_credit_makes_the_application_wait() -> None:
    sent = 0

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"y" * 1000, "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b""})

    async with serving(flood) as (_, connect):
        stream = connect()
        stream.receiver.pause_writing()
        stream.arrive(post())
        for _ in range(20):
            await asyncio.sleep(0)
        assert sent == 0
        stream.receiver.resume_writing()
        await stream.until(lambda: stream.out.endswith(b"0\r\n\r\n"))
        assert sent == 100
        assert stream.boundaries == [len(stream.out)]


@pytest.mark.parametrize("how", ["half-close", "reset", "closed"])
async def test_an_app_that_leaves_disconnects_the_request(how: str) -> None:
    echo = Echo(hold=True)
    async with serving(echo) as (front, connect):
        stream = connect()
        stream.arrive(post())
        await stream.until(lambda: bool(echo.bodies))
        if how == "half-close":
            stream.receiver.eof_received()
            assert stream.reset_with is not None
            assert stream.reset_with[0] == StreamCode.CANCELLED
        else:
            stream.receiver.stream_closed(StreamError(StreamCode.CANCELLED) if how == "reset" else None)
        await stream.until(lambda: echo.left == 1)
        assert front.live == 0


async def test_100_continue_is_said_when_the_body_is_wanted() -> None:
    echo = Echo(hold_body=True)
    async with serving(echo) as (_, connect):
        stream = connect()
        request = post("/e", b"body", "Expect: 100-continue")
        stream.arrive(request[:-4])
        for _ in range(10):
            await asyncio.sleep(0)
        assert stream.out == b""
        echo.gate.set()
        await stream.until(lambda: stream.out == b"HTTP/1.1 100 Continue\r\n\r\n")
        stream.arrive(request[-4:])
        await stream.until(lambda: stream.out.endswith(b"/e body"))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * HEAD_MAX,
        b"GET /" + b"a" * (2 * HEAD_MAX),
        b"GET / HTTP/1.1\r\nX: " + b"z" * (2 * HEAD_MAX),
    ],
)
async def test_a_head_that_does_not_end_is_refused(head: bytes) -> None:
    async with serving(Echo()) as (_, connect):
        stream = connect()
        for at in range(0, len(head), 16_384):
            stream.arrive(head[at : at + 16_384])
        ((first, body),) = await stream.answers(1)
        assert b" 431 " in first.split(b"\r\n")[0] + b" "
        assert json.loads(body)["error"]["code"] == "head_too_large"
        assert stream.eof


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02",
    ],
)
async def test_what_is_no_request_gets_an_error_in_json(request_: bytes) -> None:
    async with serving(Echo()) as (_, connect):
        stream = connect()
        stream.arrive(request_)
        ((head, body),) = await stream.answers(1)
        assert b" 400 " in head
        assert json.loads(body)["error"]["code"] == "invalid_http"
        assert stream.eof


async def test_an_answer_that_is_cut_has_no_last_chunk() -> None:
    echo = Echo(fail_after=b"part")
    async with serving(echo) as (front, connect):
        stream = connect()
        stream.arrive(post())
        await stream.until(lambda: stream.eof and front.live == 0)
        stream.flush()
        assert stream.out.endswith(b"4\r\npart\r\n")
        assert stream.boundaries == []


async def test_a_request_of_http_1_0_closes_the_connection() -> None:
    async with serving(Echo()) as (_, connect):
        stream = connect()
        stream.arrive(b"GET /old HTTP/1.0\r\n\r\n")
        await stream.answers(1)
        assert stream.eof


async def test_a_drain_lets_answers_end_and_cuts_off_what_lasts() -> None:
    echo = Echo(hold=True)
    async with serving(echo) as (front, connect):
        idle, busy = connect(), connect()
        busy.arrive(post())
        await busy.until(lambda: bool(echo.bodies))
        await front.drain(0.05)
        assert idle.eof
        assert busy.reset_with == (StreamCode.GATE_SHUTDOWN, "the gate shuts down")
        late = connect()
        assert late.reset_with is not None
        assert late.reset_with[0] == StreamCode.GATE_SHUTDOWN
        idle.receiver.stream_closed(None)


# --- slow ones

BRIEF = Patience(idle_s=0.05, head_s=0.05, body_s=0.05)
PATIENT = Patience(idle_s=60, head_s=60, body_s=0.05)


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (b"G", "head"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "head"),
        (b"\r\n", "head"),
        (post(body=b"hello")[:-1], "body"),
        (b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", "body"),
    ],
)
async def test_a_request_that_does_not_come_in_time_is_refused(request_: bytes, what: str) -> None:
    echo = Echo()
    async with serving(echo, BRIEF) as (front, connect):
        stream = connect()
        stream.arrive(request_)
        ((head, body),) = await stream.answers(1)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head
        error = json.loads(body)["error"]
        assert error["code"] == "request_timeout"
        assert what in error["message"]
        await stream.until(lambda: stream.eof and front.live == 0)
        assert echo.bodies == []


async def test_a_head_in_drips_is_not_waited_for_any_longer() -> None:
    async with serving(Echo(), BRIEF) as (_, connect):
        stream = connect()
        stream.arrive(b"GET / HTTP/1.1\r\nX: ")

        def drip() -> bool:
            if not stream.eof:
                stream.arrive(b"x")
            return b" 408 " in stream.out

        await stream.until(drip)


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serving(Echo(), BRIEF) as (front, connect):
        stream = connect()
        await stream.until(lambda: stream.eof and front.live == 0)
        assert stream.out == b""


async def test_a_body_that_comes_steadily_may_take_long() -> None:
    async with serving(Echo(), PATIENT) as (_, connect):
        stream = connect()
        body = b"b" * BODY_RATE  # earns a second
        stream.arrive(post(body=body)[:-1])
        loop = asyncio.get_running_loop()
        late = loop.time() + 2 * PATIENT.body_s
        await stream.until(lambda: loop.time() > late)
        stream.arrive(body[:1])
        assert (await stream.answers(1))[0][1] == b"/a " + body


async def test_an_answer_may_take_as_long_as_it_likes_and_outages_are_not_counted() -> None:
    echo = Echo(hold_body=True)
    async with serving(echo, PATIENT) as (_, connect):
        stream = connect()
        loop = asyncio.get_running_loop()
        stream.arrive(post()[:-1])
        stream.receiver.link_lost()
        late = loop.time() + 2 * PATIENT.body_s
        await stream.until(lambda: loop.time() > late)
        assert stream.out == b""
        stream.receiver.link_restored()
        stream.arrive(b"o")
        late = loop.time() + 2 * PATIENT.body_s
        await stream.until(lambda: loop.time() > late)
        assert stream.out == b""
        echo.gate.set()
        assert (await stream.answers(1))[0][1] == b"/a hello"


async def test_half_a_request_behind_another_does_not_end_the_others_answer() -> None:
    echo = Echo(hold_body=True)
    async with serving(echo, BRIEF) as (_, connect):
        stream = connect()
        stream.arrive(post())
        stream.arrive(b"GET /ne")
        loop = asyncio.get_running_loop()
        late = loop.time() + 2 * BRIEF.head_s
        await stream.until(lambda: loop.time() > late)
        assert not stream.eof
        echo.gate.set()
        answers = await stream.answers(2)
        assert answers[0][1] == b"/a hello"
        assert b" 408 " in answers[1][0]
