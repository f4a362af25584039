"""Jobs over a real tunnel on a runtime that the test drives: admission, queues, swap, drain, crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qdaemon.runtimes.llama.job import LoadFailed
from qdaemon.runtimes.llama.settings import LlamaSettings
from qdaemon.settings import JobSettings, ModelSettings
from tests.qdaemon.gate import Line, Mesh, WorkerGate, mesh
from tests.qdaemon.scripted import MIB, ScriptedRuntime, stock
from tunnel_proto.constants import StreamCode
from tunnel_proto.messages import (
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobRefused,
    JobStart,
    LoadProgress,
    Sampling,
)

HELLO = ({"role": "user", "content": "hello"},)


def start(job: str, model: str = "a", **more: Any) -> JobStart:
    return JobStart(job, model, "chat", messages=HELLO, **more)


@asynccontextmanager
async def worker(
    folder: Path, *models: str, memory: int = 4096 * MIB, slots: int = 2, **changes: Any
) -> AsyncIterator[tuple[Mesh, WorkerGate, ScriptedRuntime]]:
    """A worker with toy models on a scripted runtime; ``memory`` bytes are free at first."""
    stock(folder / "worker" / "models", *models)
    runtime = ScriptedRuntime()
    changes.setdefault("llama", LlamaSettings(slots=slots))
    changes.setdefault("models", ModelSettings(memory_reserve=0, patience_s=0))
    async with mesh(folder, runtime=runtime, **changes) as one:
        runtime.on_exit = one.daemon.residency.child_exited
        one.daemon.residency.memory_available = lambda: (
            memory - sum(child.memory_used for child in runtime.children)
        )
        try:
            yield one, one.gate, runtime
        finally:
            runtime.gate.set()


async def running(runtime: ScriptedRuntime, *jobs: str) -> None:
    """Wait until these and no other jobs run."""
    await runtime.until(lambda: sorted(one.job.job for one in runtime.jobs()) == sorted(jobs))


def finish(runtime: ScriptedRuntime, name: str) -> None:
    next(one for one in runtime.jobs() if one.job.job == name).finish()


async def refused(line: Line) -> JobRefused:
    end = await line.ended()
    assert isinstance(end, JobRefused), end
    return end


async def test_a_cold_job_hears_of_its_load_and_then_runs(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (_, gate, runtime):
        runtime.gate.clear()
        line = gate.job(start("one"))
        assert (await line.heard(JobAccepted)).state == "stored"
        await line.until(lambda: [m for m in line.said if isinstance(m, JobProgress) and m.share == 0.5])
        assert gate.control is not None
        await gate.control.heard(LoadProgress)
        await gate.until_model("a", state="loading")
        runtime.gate.set()
        await running(runtime, "one")
        finish(runtime, "one")
        end = await line.ended()
        assert isinstance(end, JobDone)
        assert (line.text(), line.ids(), end.usage.prompt_tokens) == ("ok", [0, 1, 2], 5)
        assert len(end.version) == 64
        model = await gate.until_model("a", state="resident", running=0)
        assert model.memory_used == 100 * MIB
        await line.until(lambda: line.eof)


async def test_jobs_wait_for_a_free_sequence_and_apps_take_turns(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", slots=1) as (_, gate, runtime):
        lines = {"flood-0": gate.job(start("flood-0"), app="flood")}
        await running(runtime, "flood-0")
        for number in range(1, 6):
            name = f"flood-{number}"
            lines[name] = gate.job(start(name, sampling=Sampling(max_tokens=500)), app="flood")
            await lines[name].heard(JobAccepted)
        lines["small"] = gate.job(start("small", sampling=Sampling(max_tokens=500)), app="small")
        await lines["small"].heard(JobAccepted)
        for _ in range(7):
            await runtime.until(runtime.jobs)
            runtime.jobs()[0].finish()
        for line in lines.values():
            assert isinstance(await line.ended(), JobDone)
        assert runtime.began.index("small") <= 2


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(tmp_path: Path) -> None:
    jobs = JobSettings(queue=2, queue_app=1)
    async with worker(tmp_path, "a", slots=1, jobs=jobs) as (_, gate, runtime):
        gate.job(start("runs"))
        await running(runtime, "runs")
        await gate.job(start("waits")).heard(JobAccepted)
        mine = await refused(gate.job(start("mine")))
        assert (mine.code, mine.retry_after_s) == ("queue_full", 1.0)
        assert "of this app" in mine.message
        await gate.job(start("other"), app="other").heard(JobAccepted)
        assert (await refused(gate.job(start("third"), app="third"))).code == "queue_full"


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (start("x", model="nowhere"), "model_not_found"),
        (start("x", isolation="dedicated"), "isolation_unavailable"),
    ],
)
async def test_what_cannot_be_done_here_is_refused(tmp_path: Path, job: JobStart, code: str) -> None:
    async with worker(tmp_path, "a", jobs=JobSettings(dedicated=0)) as (_, gate, _runtime):
        assert (await refused(gate.job(job))).code == code


async def test_a_reset_cancels_a_waiting_and_a_running_job(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", slots=1) as (one, gate, runtime):
        first, second = gate.job(start("first")), gate.job(start("second"))
        await running(runtime, "first")
        await second.heard(JobAccepted)
        for line in (second, first):
            assert line.stream is not None
            line.stream.reset(StreamCode.CANCELLED, "the client went away")
        await gate.until_idle()
        assert not one.daemon.jobs.live
        assert runtime.began == ["first"]
        assert one.daemon.jobs.counts.cancelled == 2


async def test_a_deadline_ends_a_job_that_waits(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", slots=1) as (_, gate, runtime):
        gate.job(start("runs"))
        await running(runtime, "runs")
        end = await gate.job(start("late", deadline_s=0.05)).ended()
        assert isinstance(end, JobFailed)
        assert (end.code, end.retriable) == ("deadline_exceeded", False)


async def test_another_model_takes_the_place_of_the_idle_one(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", "b", memory=250 * MIB) as (_, gate, runtime):
        gate.job(start("one"))
        await running(runtime, "one")
        finish(runtime, "one")
        gate.job(start("two", model="b"))
        await running(runtime, "two")
        assert len(runtime.unloaded) == 1
        await gate.until_model("a", state="stored")


async def test_a_busy_model_is_never_unloaded_and_does_not_hold_its_place_for_ever(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", "b", memory=250 * MIB, slots=1) as (one, gate, runtime):
        gate.job(start("long"))
        await running(runtime, "long")
        other = gate.job(start("other", model="b"))
        await other.heard(JobAccepted)
        behind = gate.job(start("behind"))
        await behind.heard(JobAccepted)
        model = one.daemon.catalogue.find("a")
        assert model is not None
        assert model.held, "without patience it is held as soon as another waits"
        assert not runtime.unloaded
        finish(runtime, "long")
        await running(runtime, "other")  # and not "behind": its model had to go first
        finish(runtime, "other")
        await running(runtime, "behind")
        finish(runtime, "behind")
        for line in (other, behind):
            assert isinstance(await line.ended(), JobDone)


async def test_a_model_that_can_never_fit_says_so_to_its_jobs(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", memory=50 * MIB) as (_, gate, runtime):
        end = await gate.job(start("one")).ended()
        assert isinstance(end, JobFailed)
        assert (end.code, end.retriable, end.blame) == ("out_of_memory", True, "node")
        assert "MiB" in end.message
        assert not runtime.loads
        again = await refused(gate.job(start("two")))
        assert (again.code, again.retry_after_s) == ("out_of_memory", 10.0)
        model = await gate.until_model("a", state="failed")
        assert model.problem


async def test_a_load_that_fails_fails_its_jobs_and_is_tried_again_by_order(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (_, gate, runtime):
        runtime.failure = LoadFailed("model_corrupt", "llama.cpp cannot run it")
        end = await gate.job(start("one")).ended()
        assert isinstance(end, JobFailed)
        assert end.code == "model_corrupt"
        assert not (await gate.ask("load", model="a")).ok
        runtime.failure = None
        answer = await gate.ask("load", model="a")
        assert answer.ok
        assert answer.result["state"] == "resident"


async def test_a_dead_child_fails_what_ran_and_its_queue_goes_on_in_a_new_one(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", slots=1) as (_, gate, runtime):
        first, second = gate.job(start("first")), gate.job(start("second"))
        await running(runtime, "first")
        await second.heard(JobAccepted)
        runtime.children[0].die()
        end = await first.ended()
        assert isinstance(end, JobFailed)
        assert (end.code, end.retriable) == ("child_crashed", True)
        await running(runtime, "second")
        assert len(runtime.loads) == 2
        finish(runtime, "second")
        assert isinstance(await second.ended(), JobDone)


async def test_a_dedicated_job_has_a_child_of_its_own_that_ends_with_it(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (_, gate, runtime):
        shared = gate.job(start("shared"))
        await running(runtime, "shared")
        alone = gate.job(start("alone", isolation="dedicated"))
        await running(runtime, "shared", "alone")
        assert [level for _, level in runtime.loads] == ["shared", "dedicated"]
        finish(runtime, "alone")
        assert isinstance(await alone.ended(), JobDone)
        await runtime.until(lambda: len(runtime.children) == 1)
        finish(runtime, "shared")
        assert isinstance(await shared.ended(), JobDone)


async def test_a_dedicated_job_that_is_cancelled_while_it_loads_leaves_nothing(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (_, gate, runtime):
        runtime.gate.clear()
        line = gate.job(start("alone", isolation="dedicated"))
        await runtime.until(lambda: runtime.loads)
        assert line.stream is not None
        line.stream.reset(StreamCode.CANCELLED, "gone")
        await gate.until_idle()
        runtime.gate.set()
        await runtime.until(lambda: runtime.unloaded and not runtime.children)


async def test_a_drain_hands_back_what_waits_and_lets_what_runs_finish(tmp_path: Path) -> None:
    async with worker(tmp_path, "a", slots=1) as (one, gate, runtime):
        first, second = gate.job(start("first")), gate.job(start("second"))
        await running(runtime, "first")
        await second.heard(JobAccepted)
        assert (await gate.ask("drain")).result == {"state": "draining", "running": 1, "queued": 0}
        end = await second.ended()
        assert isinstance(end, JobFailed)
        assert (end.code, end.retriable) == ("draining", True)
        assert (await refused(gate.job(start("third")))).code == "draining"
        assert gate.reports()[-1].draining
        finish(runtime, "first")
        assert isinstance(await first.ended(), JobDone)
        assert (await gate.ask("undrain")).ok
        gate.job(start("fourth"))
        await running(runtime, "fourth")
        draining = asyncio.create_task(one.daemon.drain())
        finish(runtime, "fourth")
        await draining


async def test_a_gate_that_goes_away_takes_its_jobs_with_it(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (one, gate, runtime):
        gate.job(start("one"))
        await running(runtime, "one")
        assert gate.session is not None
        (job,) = one.daemon.jobs.live
        gate.session.close(StreamCode.GATE_SHUTDOWN, "stopped")
        async with asyncio.timeout(60):
            await job.over.wait()
        assert not one.daemon.jobs.live


async def test_garbage_on_a_job_stream_resets_it_and_nothing_else(tmp_path: Path) -> None:
    async with worker(tmp_path, "a") as (_, gate, _runtime):
        for data, metadata in (
            (b"\x00\x00\x00\x02\xc1\xc1", {"job": "x", "app": "a", "share": 1}),
            (b"\x00\x00", {"job": "x", "app": "a", "share": 1}),
            (b"", {"job": "x", "app": "a", "share": 1}),
        ):
            line = gate.open("job", metadata)
            assert line.stream is not None
            line.stream.write(data)
            line.stream.write_eof()
            await line.over()
            assert line.error is not None
            assert line.error.code == StreamCode.PROTOCOL
        other = gate.open("gossip", {})
        await other.over()
        assert other.error is not None
        assert other.error.code == StreamCode.REFUSED
        assert (await gate.ask("undrain")).ok
