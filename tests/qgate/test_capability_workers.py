"""The gate's end of its daemons over a real tunnel: reports, orders, jobs, lost links, bad daemons."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from qgate.capability.inventory import Inventory
from qgate.capability.work import Chunk, Finished, Moved, Problem
from qgate.capability.workers import Workers
from qgate.governance.registry import DEFAULTS
from tests.qgate.capability import Heard, listen, mesh, model, report, work
from tests.tunnel_proto.wire import Collector, Wire, wire
from tunnel_proto.constants import StreamCode
from tunnel_proto.link import Stream
from tunnel_proto.messages import (
    Answer,
    Ask,
    Decoder,
    Fault,
    JobAccepted,
    JobDone,
    JobFailed,
    JobRefused,
    JobStart,
    JobTokens,
    JobUsage,
    JobVectors,
    LoadProgress,
    Message,
    encode,
)


class Told(Collector):
    """The daemon's end of one stream: the messages that came, and a way to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self._decoder = Decoder()

    def data_received(self, data: bytes, boundary: bool) -> None:
        self.messages += self._decoder.feed(data)
        super().data_received(data, boundary)

    def say(self, message: Message) -> None:
        assert self.stream is not None
        self.stream.write(encode(message), boundary=True)

    @property
    def start(self) -> JobStart:
        first = self.messages[0]
        assert isinstance(first, JobStart)
        return first

    def done(self, count: int) -> None:
        self.say(JobDone(self.start.job, "stop", JobUsage(4, count, 0, 4)))
        assert self.stream is not None
        self.stream.write_eof()


@dataclass
class Daemon:
    """A daemon that a test plays, its tunnel, and the gate's workers at the other end."""

    wire: Wire
    workers: Workers
    jobs: list[Told] = field(default_factory=list)
    control: Told = field(default_factory=Told)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def job_opened(self, stream: Stream) -> None:
        told = Told()
        told.stream = stream
        stream.receiver = told
        self.jobs.append(told)
        self.came.set()

    async def job(self, number: int) -> Told:
        async with asyncio.timeout(60):
            while len(self.jobs) < number:
                self.came.clear()
                await self.came.wait()
            job = self.jobs[number - 1]
            await job.until(lambda: job.eof)
        return job

    async def until(self, condition: Any) -> None:
        """Wait for something at the gate, which is in this process."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    @property
    def state(self) -> str:
        view = self.workers.views.get("laptop")
        return view.state if view is not None else ""


@contextlib.asynccontextmanager
async def daemon(inventory: Inventory, **settings: Any) -> AsyncIterator[Daemon]:
    """A daemon named "laptop" with a session at a gate."""
    values = {**DEFAULTS, **{f"schedule.{name}": value for name, value in settings.items()}}
    workers = Workers(inventory, settings=values.__getitem__)
    played: list[Daemon] = []

    def receivers(stream: Stream) -> Collector:
        raise AssertionError("replaced below")

    def job_opened(stream: Stream) -> None:
        played[0].job_opened(stream)

    async with wire(receivers=receivers, on_stream_here=job_opened) as line:
        line.server.on_stream = workers.accept
        line.server._on_session_closed = workers.session_closed
        played.append(Daemon(line, workers))
        yield played[0]
        workers.close()


async def reporting(it: Daemon, *models: Any) -> None:
    """Open the control stream and report."""
    it.control = Told()
    it.wire.open(it.control, "daemon")
    it.control.say(report("somebody-else", *(models or (model(),))))
    await it.until(lambda: it.state == "present")


async def running(it: Daemon, inventory: Inventory, request: Any, **settings: Any) -> asyncio.Task[Heard]:
    whole = mesh(executors={"worker": it.workers}, **settings)
    whole.engine.inventory = whole.engine.scheduler.inventory = inventory
    return asyncio.create_task(listen(whole.engine.run(request)))


async def test_a_worker_is_known_by_its_certificate() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        (candidate,) = inventory.candidates()
        assert (candidate.node, candidate.model) == ("laptop", "small")
        assert list(it.workers.views) == ["laptop"]
        it.control.say(LoadProgress("other", "loading", 0.5, 3.0))
        await it.until(lambda: it.workers.views["laptop"].loading)
        await it.wire.client.close()
        await it.until(lambda: it.state == "gone")
        assert not inventory.candidates()


async def test_a_job_goes_there_and_back() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        request = work(text="secret words", temperature=0.5, stop=["END"], top_k=3, max_tokens=7)
        listening = await running(it, inventory, request)
        job = await it.job(1)
        start = job.start
        assert start.model == "ab" * 32
        assert start.messages == ({"role": "user", "content": "secret words"},)
        assert start.sampling.temperature == 0.5
        assert start.sampling.stop == ("END",)
        assert start.sampling.top_k == 3
        assert start.sampling.max_tokens == 7
        assert job.stream is not None
        assert job.stream.metadata == {"job": start.job, "app": "web", "share": 1}
        job.say(JobAccepted(start.job))
        job.say(JobTokens(start.job, (1, 2), "one two "))
        job.say(JobTokens(start.job, (3,), "three"))
        job.done(3)
        heard = await listening
        assert heard.ids == [1, 2, 3]
        finished = heard.events[-1]
        assert isinstance(finished, Finished)
        assert finished.usage.completion_tokens == 3
        await job.until(lambda: bool(job.closed))
        assert job.closed == [None]


async def test_embeddings_come_as_floats() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it, model("embedder", kinds=("embedding",)))
        request = work("task=embed", kind="embedding", stream=False)
        listening = await running(it, inventory, request)
        job = await it.job(1)
        assert job.start.inputs == ("hello",)
        job.say(JobVectors(job.start.job, (b"\x00\x00\x80\x3f\x00\x00\x00\xc0",)))
        job.done(0)
        finished = (await listening).events[-1]
        assert isinstance(finished, Finished)
        assert finished.result == [[1.0, -2.0]]


async def test_cancelling_resets_the_jobs_stream() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        listening = await running(it, inventory, work())
        job = await it.job(1)
        listening.cancel()
        await job.until(lambda: bool(job.closed))
        error = job.closed[0]
        assert error is not None
        assert error.code == StreamCode.CANCELLED


async def test_a_refusal_says_when_to_come_again() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        listening = await running(it, inventory, work(), attempts=1)
        job = await it.job(1)
        job.say(JobRefused(job.start.job, "queue_full", "full", 3.0))
        heard = await listening
        assert heard.problem is not None
        assert heard.problem.retry_after_s == 3.0


async def test_a_short_loss_of_the_link_is_not_noticed() -> None:
    inventory = Inventory()
    async with daemon(inventory, grace_s=5.0) as it:
        await reporting(it)
        listening = await running(it, inventory, work())
        job = await it.job(1)
        job.say(JobTokens(job.start.job, (1,), "a"))
        it.wire.proxy.cut()
        job.say(JobTokens(job.start.job, (2,), "b"))
        job.done(2)
        heard = await listening
        assert heard.ids == [1, 2]
        assert not any(isinstance(event, Moved) for event in heard.events)


async def test_a_link_that_stays_away_gives_the_job_up() -> None:
    inventory = Inventory()
    async with daemon(inventory, grace_s=0.05) as it:
        await reporting(it)
        listening = await running(it, inventory, work(), attempts=1)
        job = await it.job(1)
        job.say(JobTokens(job.start.job, (1,), "a"))
        await it.until(lambda: inventory.candidates() and not listening.done())
        it.wire.proxy.stall()
        heard = await listening
        assert heard.problem is not None
        await it.until(lambda: it.state == "away")


async def test_a_silent_worker_gets_no_new_work_until_it_speaks() -> None:
    inventory = Inventory()
    async with daemon(inventory, silence_s=0.1) as it:
        await reporting(it)
        await it.until(lambda: it.state == "away")
        assert not inventory.nodes["worker", "laptop"].live
        it.control.say(report("laptop", full=False))
        await it.until(lambda: it.state == "present")
        assert inventory.nodes["worker", "laptop"].live


async def test_orders_are_answered_refused_or_given_up() -> None:
    async with daemon(Inventory()) as it:
        with pytest.raises(Problem) as unknown:
            await it.workers.ask("laptop", "probe")
        assert unknown.value.code == "not_found"
        await reporting(it)
        asking = asyncio.create_task(it.workers.ask("laptop", "load", {"model": "small"}))
        await it.control.until(lambda: bool(it.control.messages))
        ask = it.control.messages[0]
        assert isinstance(ask, Ask)
        assert (ask.verb, ask.args) == ("load", {"model": "small"})
        it.control.say(Answer(ask.id, True, {"state": "resident"}))
        assert await asking == {"state": "resident"}
        asking = asyncio.create_task(it.workers.ask("laptop", "remove", {"model": "small"}))
        await it.control.until(lambda: len(it.control.messages) > 1)
        it.control.say(Answer(ask.id + 1, False, problem=Fault("in_use", "it is in use", "unload it first")))
        with pytest.raises(Problem, match="it is in use") as refused:
            await asking
        assert refused.value.hint == "unload it first"
        with pytest.raises(Problem) as late:
            await it.workers.ask("laptop", "probe", timeout=0.02)
        assert late.value.code == "unavailable"
        with pytest.raises(Problem):
            await it.workers.ask("laptop", "format-disk")
        gone = asyncio.create_task(it.workers.ask("laptop", "probe"))
        await it.control.until(lambda: len(it.control.messages) > 3)
        await it.wire.client.close()
        with pytest.raises(Problem) as lost:
            await gone
        assert lost.value.code == "unavailable"


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\x90",
        encode(Ask(1, "probe", {})),
        encode(report("x", full=False)),
    ],
    ids=["too long", "no message", "another's message", "no full report first"],
)
async def test_a_daemon_that_breaks_the_protocol_loses_its_stream(bad: bytes) -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        it.wire.open(it.control, "daemon")
        assert it.control.stream is not None
        it.control.stream.write(bad, boundary=True)
        await it.control.until(lambda: bool(it.control.closed))
        error = it.control.closed[0]
        assert error is not None
        assert error.code == StreamCode.PROTOCOL
        assert not inventory.candidates()
        await reporting(it)  # and it may come again


@pytest.mark.parametrize("sort", ["other job", "vectors for words", "not a job's", "cut"])
async def test_a_job_stream_that_breaks_the_protocol_is_a_failed_attempt(sort: str) -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        listening = await running(it, inventory, work(), attempts=1)
        job = await it.job(1)
        assert job.stream is not None
        match sort:
            case "other job":
                job.say(JobTokens("req_other.1", (1,), "x"))
            case "vectors for words":
                job.say(JobVectors(job.start.job, (b"123",)))
            case "not a job's":
                job.say(LoadProgress("small", "loading", 0.5))
            case _:
                job.stream.write_eof()
        heard = await listening
        assert heard.problem is not None
        assert not any(isinstance(event, Chunk) for event in heard.events)


async def test_a_newer_control_stream_takes_the_older_ones_place() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        older = it.control
        await reporting(it, model("fresh"))
        await older.until(lambda: bool(older.closed))
        assert [one.model for one in inventory.candidates()] == ["fresh"]


async def test_a_job_that_no_worker_can_read_is_the_requests_fault() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        listening = await running(it, inventory, work(logit_bias={"a": 1}))
        heard = await listening
        assert heard.problem is not None
        assert (heard.problem.code, heard.problem.status) == ("invalid_request", 400)
        listening = await running(it, inventory, work(kind="completion", prompt=["a", "b"]))
        heard = await listening
        assert heard.problem is not None
        assert heard.problem.status in {400, 422}


async def test_failures_carry_the_daemons_words() -> None:
    inventory = Inventory()
    async with daemon(inventory) as it:
        await reporting(it)
        listening = await running(it, inventory, work())
        job = await it.job(1)
        job.say(JobFailed(job.start.job, "context_length_exceeded", "3000 of 2048 tokens", False, "request"))
        heard = await listening
        assert heard.problem is not None
        assert (heard.problem.code, heard.problem.message) == (
            "context_length_exceeded",
            "3000 of 2048 tokens",
        )
