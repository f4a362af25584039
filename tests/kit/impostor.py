"""A worker that a test plays over a real tunnel: it says of itself, and answers, whatever it is told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qdaemon.enrolment import node
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.discard import Ignore
from tunnel_proto.link import Stream, StreamError, TunnelClient
from tunnel_proto.messages import (
    KIND_DAEMON,
    KIND_JOB,
    Decoder,
    JobAccepted,
    JobDone,
    JobStart,
    JobTokens,
    JobUsage,
    Message,
    ModelState,
    Report,
    encode,
)

T = TypeVar("T")

Answering = Callable[["Job"], Coroutine[Any, Any, None]]
"""Plays one job; runs on the impostor's own loop."""

LINK_S = 10.0


class Impostor:
    """A worker without a model. ``directory`` is its enrolment, as `Mesh.add_daemon` writes it.

    ``answering`` plays each job; ``clock`` is what it takes for unix time. Use as ``with``, and `report` at
    least every `schedule.silence_s` seconds, or `report` once and be found silent.
    """

    def __init__(
        self, directory: Path, name: str, answering: Answering, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = name
        self.jobs: list[JobStart] = []
        self._answering = answering
        self._clock = clock
        self._enrolment = node(directory).load(now=time.time())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._client: TunnelClient | None = None
        self._control: Stream | None = None
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_loop(self._dial())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def report(self, *models: ModelState, **fields: Any) -> None:
        """Say what it has: these models are all."""
        self._on_loop(self._report(models, fields))

    def say(self, data: bytes) -> None:
        """Bytes as they are on the control stream."""
        self._on_loop(self._say(data))

    # --- on its loop

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LINK_S + 5)

    async def _dial(self) -> None:
        bundle = self._enrolment.bundle
        self._client = TunnelClient(
            identity=self._enrolment.identity,
            chain=bundle.chain,
            gate=bundle.gates[0],
            settings=TunnelSettings(retry_min_s=0.02, retry_max_s=0.1),
            role="daemon",
            next_timestamp=lambda: int(self._clock() * 1e9),
            on_state=lambda client: None,
            on_stream=self._opened,
        )
        self._client.start()
        await self._client.wait_up(LINK_S)
        self._control = self._client.open_stream(KIND_DAEMON, {"worker": self.name, "version": "0"}, Ignore())

    async def _leave(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _report(self, models: Iterable[ModelState], fields: dict[str, Any]) -> None:
        self._seq += 1
        said: dict[str, Any] = {"slots": 8, "version": "0", "at": self._clock()} | fields
        await self._say(encode(Report(self.name, self._seq, full=True, models=tuple(models), **said)))

    async def _say(self, data: bytes) -> None:
        assert self._control is not None
        self._control.write(data, boundary=True)

    def _opened(self, stream: Stream) -> None:
        assert stream.kind == KIND_JOB
        stream.receiver = Job(self, stream)

    def play(self, job: Job) -> None:
        """A job has come in whole."""
        self.jobs.append(job.start)
        task = self._loop.create_task(self._answering(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Job(Ignore):
    """One job's stream at the impostor's end."""

    def __init__(self, impostor: Impostor, stream: Stream) -> None:
        self._impostor = impostor
        self._stream = stream
        self._decoder = Decoder()
        self._start: JobStart | None = None
        self.over = False

    @property
    def start(self) -> JobStart:
        """What was asked."""
        assert self._start is not None
        return self._start

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._stream.consumed(len(data))
        for message in self._decoder.feed(data):
            assert isinstance(message, JobStart)
            self._start = message

    def eof_received(self) -> None:
        self._impostor.play(self)

    def stream_closed(self, error: StreamError | None) -> None:
        self.over = True

    def say(self, *messages: Message) -> None:
        """Tell the gate."""
        for message in messages:
            if not self.over:
                self._stream.write(encode(message), boundary=True)

    def accept(self) -> None:
        """Take it."""
        self.say(JobAccepted(self.start.job, state="resident"))

    def token(self, number: int, text: str = "a ") -> None:
        """One token of the answer."""
        self.say(JobTokens(self.start.job, (number,), text))

    def end(self, last: Message) -> None:
        """The last message, and the end of the stream."""
        self.say(last)
        if not self.over:
            self.over = True
            self._stream.write_eof()

    def done(self, count: int, *, version: str = "", usage: JobUsage | None = None) -> None:
        """A clean end."""
        told = usage or JobUsage(4, count, 0, 4)
        self.end(JobDone(self.start.job, "stop", told, version=version or self.start.model))
