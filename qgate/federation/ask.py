"""Questions between pools: one question, one bounded answer, nothing kept.

    asker's gate                                 answerer's gate
       | -- parameters (msgpack), end of stream -> |
       | <- [0, answer] or [1, code, message, hint], end of stream
       |    or RESET: the question is not known there, not allowed, or too much is asked

Each question is a kind of stream of its own ("ask-NAME") and belongs to a flow of `trust.FLOWS`, so that the
links check both sides' word when it is asked, when it arrives, and again whenever something about the peer
changes: an answer that is on its way when trust is lowered does not arrive. What flows is as a rule the
answer ("inventory" goes from the answerer to the asker); with ``gives="question"`` it is the question, as in
a notice.

    asking    | the answer, within its bounds        | over: its value, or AskError with the answerer's code
              | RESET, the link's loss, malformed    | over: AskError
              | the deadline                         | over: AskError; the stream is reset, the answerer stops
    answering | the whole question in time           | the answer is sought; at most `AT_ONCE` for one pool
              | longer, later, RESET                 | over
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, Literal

import structlog

from qgate.federation.links import Carrier, PeerLinks
from qgate.federation.peer import Peer
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, MeshError, RemoteProtocolError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.packing import pack, unpack

KIND_PREFIX: Final = "ask-"
NAME_MAX: Final = 24

TIMEOUT_S: Final = 2.0
"""For an answer, where the asker says nothing else: a screen waits for it."""

ANSWER_S: Final = 10.0
"""For the question to come and the answer to be sought; whoever asked has long gone then."""

PARAMETERS_MAX: Final = 64 * 1024
ANSWER_MAX: Final = 1024 * 1024
ITEMS_MAX: Final = 10_000
"""Of one list or map in an answer."""

AT_ONCE: Final = 8
"""Answers that are sought for one pool at the same time."""

TEXT_MAX: Final = 512

Gives = Literal["answer", "question"]

Answer = Callable[[Peer, Mapping[str, Any]], Awaitable[Any]]
"""Finds the answer for a peer: values that msgpack has. A `MeshError` of it is told to the asker."""

log = structlog.get_logger(__name__)


class AskError(MeshError):
    """A question has no answer. ``code``: "peer-unknown", "peer-away", "peer-refused", "peer-slow",
    "peer-too-long", "peer-malformed", or "peer-failed" with what the answerer said in ``told``.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", told: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.told = told

    @property
    def status(self) -> int:
        """The HTTP status of a control call that needed the answer."""
        match self.code:
            case "peer-unknown":
                return HTTPStatus.NOT_FOUND
            case "peer-refused":
                return HTTPStatus.FORBIDDEN
            case "peer-away":
                return HTTPStatus.SERVICE_UNAVAILABLE
            case "peer-slow":
                return HTTPStatus.GATEWAY_TIMEOUT
            case _:
                return HTTPStatus.BAD_GATEWAY


class Asks:
    """All questions that this gate answers, and those it asks. ``peer(key)`` is what is known of a pool."""

    def __init__(
        self,
        links: PeerLinks,
        peer: Callable[[bytes], Peer | None],
        *,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._links = links
        self._peer = peer
        self._answer_s = answer_s
        self._gives: dict[str, Gives] = {}
        self._at_once: Counter[bytes] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def question(self, name: str, flow: str, answer: Answer, *, gives: Gives = "answer") -> None:
        """Answer a question from now on, and let it be asked of others.

        ``name``: at most 24 characters. ``gives`` says what of the two the flow is about.
        """
        assert len(name) <= NAME_MAX, name
        self._gives[name] = gives

        def accept(peer: Peer, carrier: Carrier, stream: Stream) -> None:
            del carrier
            self._accept(peer, stream, answer)

        self._links.serve(KIND_PREFIX + name, flow, accept, taking=gives == "answer")

    async def ask(
        self, pool_key: bytes, name: str, parameters: Mapping[str, Any], timeout: float = TIMEOUT_S
    ) -> Any:
        """Ask a linked pool; returns the answer, with lists for arrays. AskError where none comes in time."""
        peer = self._peer(pool_key)
        if peer is None or not peer.paired:
            raise AskError("peer-unknown", "that pool is not paired with this one", hint="meshctl pool list")
        packed = pack(dict(parameters))
        if len(packed) > PARAMETERS_MAX:
            raise AskError("peer-too-long", f"a question has at most {PARAMETERS_MAX} bytes")
        if not self._links.up(pool_key):
            problem = self._links.problem(pool_key)
            raise AskError(
                "peer-away",
                f"no link to the pool {peer.name} is up" + (f": {problem}" if problem else ""),
                hint=f"meshctl pool show {peer.name}",
            )
        reply = _Gathering(ANSWER_MAX)
        try:
            reply.stream = self._links.open(pool_key, KIND_PREFIX + name, {}, reply)
        except LocalProtocolError as error:
            hint = f"meshctl pool trust {peer.name}"
            raise AskError("peer-refused", error.message, hint=hint) from None
        reply.stream.write(packed, boundary=True)
        reply.stream.write_eof()
        try:
            async with asyncio.timeout(timeout):
                data = await reply.whole
        except TimeoutError:
            reply.end(StreamCode.CANCELLED, "the answer came too late")
            raise AskError("peer-slow", f"the pool {peer.name} did not answer within {timeout:g} s") from None
        except asyncio.CancelledError:
            reply.end(StreamCode.CANCELLED, "nobody waits for the answer any more")
            raise
        except StreamError as error:
            raise _refused(peer, error) from None
        return _read(peer, data)

    async def close(self) -> None:
        """Stop answering."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- answering

    def _accept(self, peer: Peer, stream: Stream, answer: Answer) -> None:
        if self._at_once[peer.pool_key] >= AT_ONCE:
            stream.reset(StreamCode.LIMIT, f"at most {AT_ONCE} questions of a pool are answered at once")
            return
        asked = _Gathering(PARAMETERS_MAX)
        asked.stream = stream
        stream.receiver = asked
        self._at_once[peer.pool_key] += 1
        task = asyncio.get_running_loop().create_task(self._serve(peer, asked, answer))
        self._tasks.add(task)
        asked.on_end = task.cancel

        def over(_task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._at_once[peer.pool_key] -= 1
            if not self._at_once[peer.pool_key]:
                del self._at_once[peer.pool_key]

        task.add_done_callback(over)

    async def _serve(self, peer: Peer, asked: _Gathering, answer: Answer) -> None:
        try:
            async with asyncio.timeout(self._answer_s):
                parameters = unpack(await asked.whole, max_bytes=PARAMETERS_MAX, max_items=ITEMS_MAX)
                if not isinstance(parameters, dict):
                    raise RemoteProtocolError("a question's parameters are no map")
                try:
                    said = pack([0, await answer(peer, parameters)])
                except MeshError as error:
                    code = str(getattr(error, "code", "failed"))
                    said = pack([1, code, error.message[:TEXT_MAX], error.hint[:TEXT_MAX]])
        except StreamError:
            return
        except TimeoutError:
            asked.end(StreamCode.CANCELLED, "the question or its answer took too long")
        except RemoteProtocolError as error:
            asked.end(StreamCode.PROTOCOL, error.message)
        except Exception as error:
            log.error("a pool's question failed", pool=peer.name, exc_info=error)
            asked.end(StreamCode.INTERNAL, "a defect of the gate that was asked")
        else:
            if len(said) > ANSWER_MAX:
                asked.end(StreamCode.LIMIT, "the answer is too long; ask for less")
            else:
                asked.say(said)


class _Gathering(Ignore):
    """Receiver of one side: all bytes until their end, bounded. ``on_end`` is called where it broke off."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.stream: Stream | None = None
        self.on_end: Callable[[], object] | None = None

    def say(self, data: bytes) -> None:
        """The answer, whole."""
        if self.stream is not None:
            self.stream.write(data, boundary=True)
            self.stream.write_eof()

    def end(self, code: StreamCode, message: str) -> None:
        """Break it off from here."""
        if self.stream is not None:
            self.stream.reset(code, message)
            self.stream = None

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        if self.stream is None or self.whole.done():
            return
        self.stream.consumed(len(data))
        self._data += data
        if len(self._data) > self._most:
            self._fail(StreamError(StreamCode.LIMIT, f"more than {self._most} bytes"))
            self.end(StreamCode.LIMIT, f"more than {self._most} bytes")

    def eof_received(self) -> None:
        if not self.whole.done():
            self.whole.set_result(bytes(self._data))

    def stream_closed(self, error: StreamError | None) -> None:
        self.stream = None
        self._fail(error or StreamError(StreamCode.CANCELLED, "it ended before it was whole"))
        if error is not None and self.on_end is not None:
            self.on_end()

    def _fail(self, error: StreamError) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)
            self.whole.exception()  # somebody may have stopped waiting


def _refused(peer: Peer, error: StreamError) -> AskError:
    said = _line(error.message)
    match error.code:
        case StreamCode.REFUSED | StreamCode.REVOKED:
            hint = f"its administrator decides: meshctl pool trust there; here meshctl pool show {peer.name}"
            return AskError("peer-refused", f"the pool {peer.name} does not answer this: {said}", hint=hint)
        case StreamCode.LIMIT:
            return AskError("peer-too-long", f"the answer of the pool {peer.name}: {said}")
        case StreamCode.PROTOCOL | StreamCode.INTERNAL | StreamCode.BOMB:
            return AskError("peer-malformed", f"the pool {peer.name} could not answer: {said}")
        case _:
            return AskError("peer-away", f"the link to the pool {peer.name} broke off: {said}")


def _read(peer: Peer, data: bytes) -> Any:
    """The value of an answer. `AskError` where the answerer told a problem, or nothing that can be read."""
    try:
        match unpack(data, max_bytes=ANSWER_MAX, max_items=ITEMS_MAX):
            case [0, value]:
                return value
            case [1, str() as code, str() as message, str() as hint]:
                said = _line(message)
                raise AskError(
                    "peer-failed", f"the pool {peer.name}: {said}", hint=_line(hint), told=_line(code)[:64]
                )
            case _:
                raise RemoteProtocolError("neither an answer nor a problem")
    except RemoteProtocolError as error:
        raise AskError("peer-malformed", f"the answer of the pool {peer.name}: {error.message}") from None


def _line(text: str) -> str:
    """Another pool's words, fit for a terminal: one line without control characters."""
    return "".join(one if one.isprintable() else "·" for one in text[:TEXT_MAX])
