"""The gate's own engine from an attempt to its answer: order, batches, crashes, time limits, what bars it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.candidate import Candidate
from qgate.capability.nlp import intake, jobs
from qgate.capability.nlp.executor import NlpExecutor, engine_facts
from qgate.capability.nlp.jobs import Job
from qgate.capability.nlp.pool import Given, Pool
from qgate.capability.nlp.queueing import CRASHES_MAX, HELD_MAX, LONG, Queue, Ticket
from qgate.capability.work import Attempt, Failure, Work
from qgate.settings import NlpSettings
from tests.qgate.capability import work


class Waiting:
    """A caller that can be awaited."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[str, Any]] = asyncio.get_running_loop().create_future()

    def finished(self, outcome: str, value: Any) -> None:
        self.answer.set_result((outcome, value))


def fragile(fd: int) -> list[str]:
    """How a worker that two texts are too much for is started."""
    return [sys.executable, "-m", "tests.qgate.fragile_worker", str(fd)]


@asynccontextmanager
async def started(workers: int = 1, **changes: Any) -> AsyncIterator[Pool]:
    """A pool of such workers, the first of them up."""
    settings = NlpSettings(workers=workers, **changes)
    async with asyncio.timeout(60), Pool(settings, command=fragile) as pool:
        await pool.ready()
        yield pool


async def ask(pool: Pool, text: str, task: str = "tokens") -> tuple[str, Any]:
    """One job's end."""
    waiting = Waiting()
    pool.submit(Job(task, (text,)), waiting)
    return await waiting.answer


async def test_each_gets_its_own_answer() -> None:
    async with started(2) as pool:
        answers = await asyncio.gather(*(ask(pool, "word " * count) for count in range(1, 200)))
    assert [value[0]["words"] for _, value in answers] == list(range(1, 200))


async def test_what_came_in_one_tick_goes_as_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    pack = jobs.pack

    def counted(message: list[Any]) -> bytes:
        packed.append(len(message))
        return pack(message)

    async with started() as pool:
        monkeypatch.setattr(jobs, "pack", counted)
        await asyncio.gather(*(ask(pool, "one two") for _ in range(HELD_MAX)))
    assert packed == [HELD_MAX]


async def test_a_text_that_kills_is_tried_twice_and_its_neighbours_are_answered() -> None:
    async with started() as pool:
        texts = ["one", "die", "one two", "one two three"]
        answers = await asyncio.gather(*(ask(pool, text) for text in texts))
        # The answer before it may not have been sent yet, and takes the blame once.
        assert CRASHES_MAX <= pool.restarts <= CRASHES_MAX + 1
    outcome, given_up = answers.pop(1)
    assert outcome == jobs.FAILED
    assert isinstance(given_up, Given)
    assert given_up.code == "crashed"
    assert [value[0]["words"] for _, value in answers] == [1, 2, 3]


async def test_a_text_over_its_time_fails_alone() -> None:
    async with started(time_limit_s=0.3) as pool:
        answers = await asyncio.gather(ask(pool, "hang"), ask(pool, "one"))
        assert pool.restarts == 1
    assert (answers[0][1].code, answers[1][1][0]["words"]) == ("timeout", 1)


async def test_a_worker_that_is_killed_from_outside_costs_nobody_anything() -> None:
    async with started(2) as pool:
        asked = [asyncio.create_task(ask(pool, "word " * 300, "summarize")) for _ in range(40)]
        await asyncio.sleep(0)
        os.kill(pool.pids[0], signal.SIGKILL)
        assert {outcome for outcome, _ in await asyncio.gather(*asked)} == {jobs.OK}


async def test_what_is_unsuited_says_so() -> None:
    async with started() as pool:
        outcome, (message, _) = await ask(pool, "secret", "no such task")
    assert outcome == jobs.UNSUITED
    assert "no such task" in message
    assert "secret" not in message


async def test_what_is_cancelled_is_not_heard_of() -> None:
    async with started() as pool:
        gone, kept = Waiting(), Waiting()
        ticket = pool.submit(Job("tokens", ("one",)), gone)
        pool.submit(Job("tokens", ("one two",)), kept)
        pool.cancel(ticket)
        assert (await kept.answer)[0] == jobs.OK
        assert not gone.answer.done()


async def test_closing_fails_what_waits() -> None:
    async with started() as pool:
        hanging = asyncio.create_task(ask(pool, "hang"))
        await asyncio.sleep(0)
        await pool.close()
        outcome, value = await hanging
        assert (outcome, value.code) == (jobs.FAILED, "stopped")
        late = await ask(pool, "one")
        assert late[1].code == "stopped"


async def test_an_engine_that_does_not_start_says_why() -> None:
    def broken(fd: int) -> list[str]:
        code = "import sys; from qgate.capability.nlp import worker; worker.warm = lambda: 1 / 0"
        return [sys.executable, "-c", f"{code}; sys.exit(worker.main(sys.argv[1:]))", str(fd)]

    async with asyncio.timeout(60), Pool(NlpSettings(workers=1), command=broken) as pool:
        outcome, value = await ask(pool, "one")
    assert (outcome, value.code) == (jobs.FAILED, "unavailable")
    assert "ZeroDivisionError" in value.message


# --- the queue


@given(st.data())
def test_no_ticket_is_lost_or_done_twice(data: st.DataObject) -> None:
    """Whatever workers do, each ticket is answered or given up once; only a worker's first is blamed."""
    queue = Queue(1000)
    workers = [1, 2, 3]
    for number in workers:
        queue.up(number)
    taken: dict[int, Ticket] = {}
    held: dict[int, list[Ticket]] = {number: [] for number in workers}
    ended: Counter[int] = Counter()

    def assign() -> None:
        for number, tickets in queue.assign(0.0):
            held[number] += tickets
            assert len(held[number]) <= HELD_MAX
            assert len(held[number]) == 1 or not any(one.alone for one in held[number])

    def answer(number: int) -> None:
        ticket = held[number].pop(0)
        assert queue.answered(number, ticket.number, 0.0) is ticket
        ended[ticket.number] += 1

    for _ in range(data.draw(st.integers(1, 60))):
        act = data.draw(st.sampled_from(("add", "add", "answer", "answer", "crash", "slow", "cancel")))
        number = data.draw(st.sampled_from(workers))
        if act == "add":
            size = data.draw(st.sampled_from((1, 10, 40_000, LONG)))
            ticket = queue.add(Job("tokens", ("x" * size,)), None)
            taken[ticket.number] = ticket
        elif act == "answer" and held[number]:
            answer(number)
        elif act in {"crash", "slow"}:
            first = held[number][:1]
            for ticket in queue.down(number, blame=act == "slow"):
                assert [ticket] == first
                assert act == "slow" or ticket.crashes == CRASHES_MAX
                ended[ticket.number] += 1
            held[number].clear()
            queue.up(number)
        elif act == "cancel" and taken:
            queue.cancel(taken[data.draw(st.sampled_from(sorted(taken)))])
        assign()
    while any(held.values()) or len(queue):
        for number in workers:
            if held[number]:
                answer(number)
        assign()
    for number, ticket in taken.items():
        assert ended[number] == 1 or (ticket.cancelled and not ended[number])


def test_long_texts_leave_a_worker_to_the_short() -> None:
    queue = Queue(100)
    queue.up(1)
    queue.up(2)
    for _ in range(3):
        queue.add(Job("tokens", ("x" * LONG,)), None)
    assert sum(len(tickets) for _, tickets in queue.assign(0.0)) == 1
    short = queue.add(Job("tokens", ("x",)), None)
    ((_, tickets),) = queue.assign(0.0)
    assert tickets == [short]


def test_an_answer_out_of_turn_is_none() -> None:
    queue = Queue(10)
    queue.up(1)
    first, second = (queue.add(Job("tokens", ("x",)), None) for _ in range(2))
    queue.assign(0.0)
    assert queue.answered(1, second.number, 0.0) is None
    assert queue.answered(1, first.number, 0.0) is first


# --- the executor


class Ear:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.over = asyncio.Event()

    def accepted(self, *, queue: int = 0, state: str = "", worker: str = "") -> None:
        self.said.append(("accepted", queue))

    def progress(self, state: str, share: float, eta_s: float | None) -> None:
        self.said.append(("progress", state))

    def chunk(self, chunk: Any) -> None:
        self.said.append(("chunk", chunk.text))

    def done(self, finish_reason: str, usage: Any, **rest: Any) -> None:
        self.said.append(("done", (usage, rest["result"])))
        self.over.set()

    def failed(self, failure: Failure) -> None:
        self.said.append(("failed", failure))
        self.over.set()


def attempt(request: Work) -> Attempt:
    """An attempt on the engine."""
    return Attempt(id="req_1.1", work=request, candidate=Candidate("nlp", "gate", "qgate-nlp"))


async def test_an_attempt_is_answered_with_result_and_usage() -> None:
    async with started() as pool:
        ear = Ear()
        request = work("task=tokens", kind="analysis", text="Was it late? No.")
        NlpExecutor(pool, NlpSettings(workers=1)).start(attempt(request), ear)
        await ear.over.wait()
    ((kind, (usage, result)),) = ear.said
    assert (kind, usage.prompt_tokens, usage.completion_tokens) == ("done", 4, 0)
    assert result["words"] == 4


async def test_a_chat_is_answered_in_words_too() -> None:
    async with started() as pool:
        ear = Ear()
        request = work("task=tokens", kind="chat", text="Was it late? No.")
        NlpExecutor(pool, NlpSettings(workers=1)).start(attempt(request), ear)
        await ear.over.wait()
    assert [kind for kind, _ in ear.said] == ["chunk", "done"]
    assert ear.said[0] == ("chunk", "4")


async def test_a_list_of_texts_gets_a_list_of_results() -> None:
    async with started() as pool:
        ear = Ear()
        request = work("task=tokens", kind="analysis", input=["one", "one two"])
        NlpExecutor(pool, NlpSettings(workers=1)).start(attempt(request), ear)
        await ear.over.wait()
    _, (_, result) = ear.said[-1]
    assert [one["words"] for one in result["results"]] == [1, 2]


async def test_a_full_queue_refuses_with_the_time_to_come_back() -> None:
    async with started(queue_max=1) as pool:
        executor = NlpExecutor(pool, NlpSettings(workers=1))
        ears = [Ear() for _ in range(HELD_MAX + 3)]
        request = work("task=tokens", kind="analysis", text="one")
        for ear in ears:
            executor.start(attempt(request), ear)
        await asyncio.gather(*(ear.over.wait() for ear in ears))
    refused = [ear.said[-1][1] for ear in ears if ear.said[-1][0] == "failed"]
    assert refused
    assert {(one.code, one.retry_after_s, one.retriable) for one in refused} == {("queue_full", 1.0, True)}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
            "system prompt",
        ),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "several turns"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no turn of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is no text"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "has tools"),
        ({"input": "x", "instructions": "as a pirate"}, "instructions"),
        ({"input": "x", "stop": ["y"]}, "has stop"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "n": 2}, "several answers"),
        ({"input": "x", "dimensions": 8}, "512 dimensions"),
        ({"input": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"input": [1, 2]}, "no text"),
        ({"input": "\ud800"}, "half a character"),
        ({"input": " \n"}, "the text is empty"),
        ({"input": "x" * 2000}, "nlp.input_max"),
    ],
)
def test_what_it_cannot_obey_bars_it(body: dict[str, Any], reason: str) -> None:
    request = work("task=summarize", kind="analysis")
    asked = Work(id=request.id, app=request.app, request=request.request, kind="analysis", body=body)
    assert reason in "; ".join(intake.read(asked, input_max=1024).bars)


def test_plain_fields_bar_nothing() -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "é"}], "temperature": 0, "max_tokens": 5}
    request = work("task=summarize;sentences=2;language=de", kind="analysis")
    asked = Work(id=request.id, app=request.app, request=request.request, kind="chat", body=body)
    reading = intake.read(asked, input_max=1024)
    assert (reading.bars, reading.texts, reading.sizes) == ((), ("é",), (2,))
    assert intake.job_of(asked.request, reading).options == {"sentences": 2, "language": "de"}


def test_the_inventory_is_told_what_settings_say() -> None:
    facts = engine_facts(NlpSettings(workers=3))
    assert facts.parallel == 3
    assert facts.quality.keys() >= {"summarize", "embed"}
