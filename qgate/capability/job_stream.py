"""One attempt at a worker: the gate's end of a tunnel stream of kind ``job``.

The job goes out whole and our direction is closed; messages come back, and their credit is returned as they
are passed on, so that a client who reads slowly stops the model and not the tunnel. A reset is the cancel. A
link that is lost may come back, and usually does within a second: only when it stays away for the grace is
the attempt given up (what the worker said meanwhile is then never heard, which is why ids are replayed).
"""

from __future__ import annotations

import asyncio
from array import array
from sys import byteorder
from typing import Any, Final

from qgate.capability.job_start import job_start
from qgate.capability.work import Attempt, Blame, Chunk, Failure, Problem, Sink, Usage
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import PeerSession, Stream, StreamError
from tunnel_proto.messages import (
    KIND_JOB,
    Decoder,
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobRefused,
    JobTokens,
    JobVectors,
    Message,
    encode,
)

SHARE_MAX: Final = 1000
VECTORS_BYTES_MAX: Final = 512 * 1024 * 1024

CRASHES: Final = frozenset({"child_crashed", "child_killed", "out_of_memory_killed"})
FINAL: Final = frozenset(
    {"invalid_request", "context_length_exceeded", "unsupported_input", "poison_request"}
)
"""Refusals that any other worker would repeat."""

_BLAMES: Final[dict[str, Blame]] = {"request": "request", "provider": "node", "network": "network"}


class JobStream:
    """A `StreamReceiver`, and the `Running` of its attempt."""

    def __init__(self, attempt: Attempt, sink: Sink, *, grace_s: float) -> None:
        self._attempt = attempt
        self._sink: Sink | None = sink
        self._grace_s = grace_s
        self._decoder = Decoder()
        self._stream: Stream | None = None
        self._paused = False
        self._kept = 0  # bytes whose credit is held back
        self._grace: asyncio.TimerHandle | None = None
        self._vectors: list[Any] = []
        self._vector_bytes = 0

    def open(self, session: PeerSession) -> None:
        """Send the job. What goes wrong is told to the sink."""
        attempt = self._attempt
        try:
            start = encode(job_start(attempt))
        except Problem as problem:
            self._end(Failure(problem.code, problem.message, blame="request"))
            return
        except LocalProtocolError as error:
            code = "payload_too_large" if "bytes of" in error.message else "invalid_request"
            self._end(Failure(code, error.message, blame="request"))
            return
        policy = attempt.work.app.policy
        metadata = {
            "job": attempt.id,
            "app": attempt.work.app.name,
            "share": max(1, min(SHARE_MAX, policy.share)) if policy is not None else 1,
        }
        try:
            stream = session.open_stream(KIND_JOB, metadata, self)
        except LocalProtocolError as error:
            self._end(Failure("node_lost", error.message, retriable=True, blame="network"))
            return
        self._stream = stream
        stream.write(start, boundary=True, sensitive=True)
        stream.write_eof()
        if not session.connected:
            self.link_lost()

    # --- Running

    def cancel(self) -> None:
        """Reset the stream: the worker stops at its next token."""
        self._over(StreamCode.CANCELLED, "cancelled")

    def pause(self) -> None:
        """Hold credit back: after at most a window the worker waits."""
        self._paused = True

    def resume(self) -> None:
        """Return what was held back."""
        self._paused = False
        kept, self._kept = self._kept, 0
        if kept and self._stream is not None:
            self._stream.consumed(kept)

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Messages of the worker."""
        stream = self._stream
        if stream is None:
            return
        try:
            for message in self._decoder.feed(data):
                if self._sink is None:
                    return
                self._take(message)
        except RemoteProtocolError as error:
            failure = Failure("invalid_response", f"the worker broke the protocol: {error.message}", True)
            self._end(failure, StreamCode.PROTOCOL, error.message)
            return
        if self._stream is None:
            return
        if self._paused:
            self._kept += len(data)
        else:
            stream.consumed(len(data))

    def eof_received(self) -> None:
        """The worker says no more; where the job's end is missing it was cut off."""
        if self._sink is not None:
            self._end(Failure("node_lost", "the worker stopped in the middle", retriable=True, blame="node"))

    def stream_closed(self, error: StreamError | None) -> None:
        """The session is over, or the worker refused the stream."""
        self._stream = None
        code = error.code if error is not None else StreamCode.SESSION_LOST
        if code == StreamCode.PROTOCOL:
            # The worker could not read our job: another of the same version could not either.
            self._end(Failure("internal_error", "the worker could not read the job", blame="node"))
            return
        said = error.message if error is not None and error.message else "the worker is gone"
        self._end(Failure("node_lost", said, retriable=True, blame="network"))

    def pause_writing(self) -> None:
        """A long prompt waits for credit; there is nothing to stop."""

    def resume_writing(self) -> None:
        """It goes on by itself."""

    def link_lost(self) -> None:
        """Wait a little for the link to come back."""
        if self._grace is None and self._sink is not None:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._grace_s, self._give_up)

    def link_restored(self) -> None:
        """It is back, and what was on its way is resent."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    # --- its own

    def _give_up(self) -> None:
        self._grace = None
        failure = Failure("link_lost", "the link to the worker was lost", retriable=True, blame="network")
        self._end(failure, StreamCode.CANCELLED, "the link was lost for too long")

    def _take(self, message: Message) -> None:
        sink = self._sink
        assert sink is not None
        if getattr(message, "job", self._attempt.id) != self._attempt.id:
            raise RemoteProtocolError("a message of another job")
        match message:
            case JobTokens():
                logprobs = list(message.logprobs) if message.logprobs is not None else None
                sink.chunk(Chunk(message.text, message.ids, message.delta, logprobs=logprobs))
            case JobAccepted():
                sink.accepted(queue=message.queue, state=message.state, worker=message.node)
            case JobProgress():
                sink.progress(message.state, message.share, message.eta_s)
            case JobVectors():
                self._collect(message)
            case JobDone():
                self._done(message)
            case JobRefused():
                final = message.code in FINAL
                self._end(
                    Failure(
                        message.code,
                        message.message,
                        retriable=not final,
                        retry_after_s=message.retry_after_s,
                        blame="request" if final else "node",
                        usage=Usage(),
                    )
                )
            case JobFailed():
                self._end(
                    Failure(
                        message.code,
                        message.message,
                        retriable=message.retriable,
                        retry_after_s=message.retry_after_s,
                        blame=_BLAMES.get(message.blame, "node"),
                        crashed=message.code in CRASHES,
                    )
                )
            case _:
                raise RemoteProtocolError("a message that has no place on a job's stream")

    def _collect(self, message: JobVectors) -> None:
        if message.first != len(self._vectors):
            raise RemoteProtocolError("embeddings out of order")
        for packed in message.vectors:
            self._vector_bytes += len(packed)
            if len(packed) % 4 or self._vector_bytes > VECTORS_BYTES_MAX:
                raise RemoteProtocolError("an embedding of no possible size")
            floats = array("f", packed)
            if byteorder == "big":
                floats.byteswap()
            self._vectors.append(floats.tolist())

    def _done(self, message: JobDone) -> None:
        wanted = self._attempt.work.body.get("input") if self._attempt.work.kind == "embedding" else None
        count = 1 if isinstance(wanted, str) else len(wanted) if isinstance(wanted, list | tuple) else 0
        if count and count != len(self._vectors):
            raise RemoteProtocolError("not as many embeddings as texts")
        sink, self._sink = self._sink, None
        assert sink is not None
        used = message.usage
        usage = Usage(used.prompt_tokens, used.completion_tokens, used.cached_tokens, used.evaluated_tokens)
        self._close()
        sink.done(message.finish_reason, usage, result=self._vectors or None, model_version=message.version)

    def _end(self, failure: Failure, code: int = StreamCode.CANCELLED, message: str = "") -> None:
        sink = self._sink
        self._over(code, message)
        if sink is not None:
            sink.failed(failure)

    def _over(self, code: int, message: str) -> None:
        self._sink = None
        stream, self._stream = self._stream, None
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if stream is not None:
            stream.reset(code, message)

    def _close(self) -> None:
        """After a clean end the stream closes by itself, the worker's direction last."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.receiver = _Ended(stream)


class _Ended(Ignore):
    """Receiver of a stream whose job is over: only the worker's close is still to come."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._stream.reset(StreamCode.PROTOCOL, "nothing follows the end of a job")
