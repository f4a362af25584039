"""The ceremony over the network: the same files on one stream, where the offer's gate can be reached.

    answerer's gate                         offerer's gate
       | == tunnel in the role "peer" ======> |  only while an offer marked "online" is open
       | -- Answer ------------------------> |
       | <----------------------- Confirm -- |
       | -- Finish ------------------------> |

The network is trusted with nothing: whoever sits in it can do what he could to files that are mailed, and the
two strings are still read out and typed by people. What it saves is two errands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from qgate.federation.ceremony import PairingError
from qgate.federation.links import PeerLinks
from qgate.federation.transcript import FILE_MAX, read_answer, read_offer
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import MeshError, RemoteProtocolError, TunnelError
from tunnel_proto.framing import Frames, framed
from tunnel_proto.link import PeerSession, Stream, StreamError

KIND_PAIRING: Final = "pairing"

TIMEOUT_S: Final = 15.0
"""For the whole exchange; both stores are written to twice."""

KNOCK_S: Final = 5.0

AT_ONCE: Final = 8
"""Answers that are taken at the same time: whoever has the offer may knock, and nobody is known yet."""

WAITING_MAX: Final = 4
"""Files that wait to be read on one stream; nobody says more than two."""


log = structlog.get_logger(__name__)

Step = Callable[[str], Awaitable[dict[str, Any]]]


class Introduction:
    """Both ends of it, at one gate. ``confirm`` and ``finish`` are the ceremony's steps for what came in."""

    def __init__(self, links: PeerLinks, *, confirm: Step, finish: Step) -> None:
        self._links = links
        self._confirm = confirm
        self._finish = finish
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, offer_text: str, answer_text: str) -> str:
        """Take an answer to the offer's gates; returns the confirmation. PairingError where none answers."""
        offer = read_offer(offer_text)
        if not offer.party.gates:
            raise PairingError(
                "the offer names no address of a gate", "pairing-unreachable", hint="go on by files"
            )
        problems = []
        for gate in offer.party.gates:
            try:
                return await self._exchange(gate, answer_text)
            except TunnelError as error:
                problems.append(f"{gate.name}: {error.message}")
        raise PairingError(
            f"no gate of {offer.party.name} took the answer ({'; '.join(problems)})",
            "pairing-unreachable",
            hint="is the offer still open there (meshctl pool list)? Else go on by files",
        )

    async def _exchange(self, gate: GateAddress, answer: str) -> str:
        client = await self._links.knock(gate, KNOCK_S)
        try:
            talk = Talk()
            talk.stream = client.open_stream(KIND_PAIRING, {}, talk)
            talk.say(answer)
            confirm = await talk.hear(TIMEOUT_S)
            reply = await self._finish(confirm)
            talk.say(str(reply["finish"]))
            await talk.end(TIMEOUT_S)
            return confirm
        finally:
            await client.close()

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """Another pool's gate wants to answer an offer of ours."""
        if len(self._tasks) >= AT_ONCE:
            stream.reset(StreamCode.LIMIT, f"{AT_ONCE} answers are taken already; try again in a moment")
            return
        talk = Talk()
        talk.stream = stream
        stream.receiver = talk
        task = asyncio.get_running_loop().create_task(self._serve(session, talk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, session: PeerSession, talk: Talk) -> None:
        try:
            answer = await talk.hear(TIMEOUT_S)
            if read_answer(answer).party.pool_key != session.peer.pool:
                raise PairingError("the answer is of another pool than the tunnel", "pairing-tampered")
            talk.say(str((await self._confirm(answer))["confirm"]))
            await self._finish(await talk.hear(TIMEOUT_S))
            talk.done()
        except MeshError as error:
            log.warning("a pairing over the network failed", address=session.address, reason=error.message)
            talk.refuse(error.message)


class Talk(Ignore):
    """Files on a stream, each preceded by its length (u32, big-endian)."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self._frames = Frames(FILE_MAX)
        self._came: asyncio.Queue[str | TunnelError] = asyncio.Queue()

    def say(self, text: str) -> None:
        """Send a file."""
        data = text.encode()
        if self.stream is not None:
            self.stream.write(framed(data))

    async def hear(self, timeout: float) -> str:
        """The next file. TunnelError where the stream ended, or nothing came within ``timeout`` s."""
        try:
            async with asyncio.timeout(timeout):
                came = await self._came.get()
        except TimeoutError:
            raise TunnelError("the other side did not answer in time") from None
        if isinstance(came, TunnelError):
            raise came
        return came

    async def end(self, timeout: float) -> None:
        """Wait until the other side has taken everything. TunnelError where it refused."""
        if self.stream is not None:
            self.stream.write_eof()
        try:
            await self.hear(timeout)
        except _OverError:
            return

    def done(self) -> None:
        """Nothing more is to be said."""
        if self.stream is not None:
            self.stream.write_eof()

    def refuse(self, message: str) -> None:
        """End it with a reason."""
        if self.stream is not None:
            self.stream.reset(StreamCode.REFUSED, message)

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        del boundary
        stream = self.stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            for frame in self._frames.feed(data):
                if self._came.qsize() >= WAITING_MAX:
                    raise RemoteProtocolError("more files than a pairing has")
                self._came.put_nowait(frame.decode("utf-8", "replace"))
        except RemoteProtocolError as error:
            self.stream = None
            stream.reset(StreamCode.PROTOCOL, error.message)
            self._came.put_nowait(error)

    def eof_received(self) -> None:
        self._came.put_nowait(_OverError("the other side has ended the exchange"))

    def stream_closed(self, error: StreamError | None) -> None:
        self._came.put_nowait(error or _OverError("the stream was closed"))


class _OverError(TunnelError):
    """The other side said all it had to say."""
