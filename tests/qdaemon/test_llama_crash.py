"""Children that die, and files that cannot be loaded: the daemon lives, and says what happened."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qdaemon.runtimes.llama.job import LoadFailed, Sampling
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.runtime import LlamaRuntime
from qdaemon.runtimes.llama.settings import LlamaSettings
from tests.kit.process import wait_until
from tests.qdaemon.llama import SEA, File, Recorder, chat, child, needs_model, packaged, run, runtime

pytestmark = needs_model

LONG = Sampling(max_tokens=1500, temperature=0, logit_bias={0: -100.0, 2: -100.0})


async def _killed_while_running(model: LlamaChild, *sinks_jobs: tuple[Recorder, str]) -> None:
    """Kill it once as many run as have room; what is prepared first runs first, so one after the other."""
    for place, (sink, job) in enumerate(sinks_jobs):
        model.submit(chat(SEA, sampling=LONG, job=job), sink)
        if place < model.slots:
            await sink.until(3)
    os.kill(model.pid, signal.SIGKILL)
    await model.wait_gone()


async def test_a_killed_child_fails_its_requests_as_ones_that_others_may_take() -> None:
    gone: list[LlamaChild] = []
    one = LlamaRuntime(settings=LlamaSettings(), on_child_exit=gone.append)
    model = await one.load(packaged(), context=2048, slots=1)
    running, waiting = Recorder(), Recorder()
    await _killed_while_running(model, (running, "a"), (waiting, "b"))
    for sink in (running, waiting):
        await sink.end()
        assert sink.problem is not None
        assert (sink.problem.code, sink.problem.retriable, sink.problem.blame) == (
            "child_crashed",
            True,
            "node",
        )
    assert gone == [model]
    assert not model.alive
    assert one.children == frozenset()
    again = await one.load(packaged(), context=2048, slots=1)
    rest = Recorder()
    again.submit(chat(SEA, job="a", emitted=tuple(running.ids)), rest)
    await rest.end()
    whole = await run(again, chat(SEA))
    assert running.ids + rest.ids == whole.ids[: len(running.ids)] + rest.ids
    await one.close()


async def test_a_request_that_ran_in_two_crashes_is_not_tried_again() -> None:
    async with runtime() as one:
        for attempt in range(2):
            model = await one.load(packaged(), context=2048, slots=2)
            guilty, neighbour = Recorder(), Recorder()
            await _killed_while_running(model, (guilty, "guilty"), (neighbour, f"neighbour{attempt}"))
            await guilty.end()
            await neighbour.end()
            assert guilty.problem is not None
            assert neighbour.problem is not None
            assert guilty.problem.code == ("child_crashed" if attempt == 0 else "poisoned")
            assert guilty.problem.retriable == (attempt == 0)
            assert neighbour.problem.code == "child_crashed"


async def test_a_child_that_hangs_is_ended() -> None:
    async with child(LlamaSettings(stall_s=1.0)) as model:
        sink = Recorder()
        model.submit(chat(SEA, sampling=LONG), sink)
        await sink.until(3)
        os.kill(model.pid, signal.SIGSTOP)
        await sink.end()
        assert sink.problem is not None
        assert sink.problem.code == "child_crashed"


async def test_a_child_does_not_outlive_its_daemon(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.qdaemon.llama import packaged, runtime\n"
        "async def main():\n"
        "    async with runtime() as one:\n"
        "        model = await one.load(packaged(), context=512, slots=1)\n"
        "        print(model.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert daemon.stdout is not None
    pid = int(await daemon.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    daemon.send_signal(signal.SIGKILL)
    await daemon.wait()
    await asyncio.to_thread(wait_until, lambda: not _lives(pid), timeout_s=20, what="the end of the child")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _spoiled(tmp_path: Path, name: str) -> Path:
    data = packaged().path.read_bytes()
    spoiled = {
        "empty": b"",
        "no GGUF": b"PK\x03\x04" + bytes(4096),
        "header only": data[:64],
        "half of the metadata": data[:100_000],
        "truncated": data[: len(data) // 2],
        "wild counts": data[:8] + b"\xff" * 16 + data[24:4096],
        "garbled metadata": data[:24] + bytes(b ^ 0x5A for b in data[24:2_000_000]) + data[2_000_000:],
    }[name]
    path = tmp_path / "spoiled.gguf"
    path.write_bytes(spoiled)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "no GGUF",
        "header only",
        "half of the metadata",
        "truncated",
        "wild counts",
        "garbled metadata",
    ],
)
async def test_a_spoiled_file_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    path = _spoiled(tmp_path, name)
    async with runtime() as one:
        with pytest.raises(LoadFailed) as caught:
            await one.load(File(path, "x", path.stat().st_size), context=512, slots=1)
        assert caught.value.code in {"model_corrupt", "out_of_memory"}
        assert caught.value.hint
        assert one.children == frozenset()
        model = await one.load(packaged(), context=512, slots=1)
        assert model.alive


async def test_a_missing_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    async with runtime() as one:
        with pytest.raises(LoadFailed):
            await one.load(File(tmp_path / "none.gguf", "x", 1), context=512, slots=1)


async def test_a_model_that_needs_more_memory_than_there_is_is_refused() -> None:
    async with runtime() as one:
        with pytest.raises(LoadFailed) as caught:
            # 64 sequences of four million tokens: terabytes of KV cache.
            await one.load(packaged(), context=4_000_000, slots=64)
        assert caught.value.code == "out_of_memory"
        assert caught.value.hint


async def test_weights_that_memory_can_never_hold_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "vast.gguf"
    with path.open("wb") as file:
        file.write(packaged().path.read_bytes()[: 1 << 20])
        file.truncate(1 << 43)  # a hole
    async with runtime() as one:
        with pytest.raises(LoadFailed) as caught:
            await one.load(File(path, "x", path.stat().st_size), context=512, slots=1)
        assert caught.value.code == "out_of_memory"
        assert "8388608 MiB" in caught.value.message
        assert caught.value.hint


async def test_a_load_that_takes_too_long_is_given_up() -> None:
    async with runtime(replace(LlamaSettings(), load_timeout_s=0.01)) as one:
        with pytest.raises(LoadFailed) as caught:
            await one.load(packaged(), context=512, slots=1)
        assert caught.value.code == "load_timeout"
        assert one.children == frozenset()
