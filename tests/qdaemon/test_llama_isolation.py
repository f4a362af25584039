"""What one client leaves in a child, and what another can find of it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qdaemon.runtimes.llama.job import JobProblem, Sampling
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.settings import LlamaSettings
from tests.qdaemon.llama import GREEDY, SEA, Recorder, chat, child, completion, model_path, needs_model, run

pytestmark = needs_model

PREFIX = "The quarterly report of the harbour says this about its ships and cranes. " * 12
SHORT = replace(GREEDY, max_tokens=4)


async def test_the_same_prompt_of_another_client_is_evaluated_afresh() -> None:
    async with child() as model:
        first = await run(model, completion(PREFIX, sampling=SHORT, app="one"))
        second = await run(model, completion(PREFIX, sampling=SHORT, app="two"))
        third = await run(model, completion(PREFIX, sampling=SHORT, app="one"))
        assert first.usage == second.usage == third.usage
        assert first.usage.cached_tokens == 0
        assert first.usage.evaluated_tokens >= first.usage.prompt_tokens > 150
        # A saved evaluation would show as a much shorter time to the first token.
        assert second.timing.prefill_s > first.timing.prefill_s / 3


async def test_an_app_that_opted_in_reuses_its_own_prefix_and_nobody_elses() -> None:
    async with child() as model:
        first = await run(model, completion(PREFIX, sampling=SHORT, app="one", reuse=True))
        other = await run(model, completion(PREFIX, sampling=SHORT, app="two", reuse=True))
        shy = await run(model, completion(PREFIX, sampling=SHORT, app="one"))
        again = await run(model, completion(PREFIX + "More.", sampling=SHORT, app="one", reuse=True))
        assert other.usage.cached_tokens == shy.usage.cached_tokens == 0
        assert first.ids == other.ids == shy.ids
        # Its own was overwritten for "shy": there are two sequences, and it was the least recent.
        assert again.usage.cached_tokens == 0


async def test_a_reused_prefix_gives_the_same_answer_as_a_fresh_one() -> None:
    async with child(slots=2) as model:
        fresh = await run(model, completion(PREFIX + "In short:", app="two"))
        await run(model, completion(PREFIX, sampling=SHORT, app="one", reuse=True))
        reused = await run(model, completion(PREFIX + "In short:", app="one", reuse=True))
        assert reused.usage.cached_tokens >= 128
        assert reused.usage.cached_tokens % 32 == 0
        assert reused.ids == fresh.ids


async def test_a_prefix_kept_for_reuse_is_overwritten_in_time() -> None:
    async with child(LlamaSettings(reuse_ttl_s=0.05), slots=1) as model:
        await run(model, completion(PREFIX, sampling=SHORT, reuse=True))
        async with _settled(model):
            again = await run(model, completion(PREFIX, sampling=SHORT, reuse=True))
        assert again.usage.cached_tokens == 0


def _settled(model: LlamaChild) -> _Settled:
    return _Settled(model)


class _Settled:
    """Runs an unrelated request first, so that what had expired is gone."""

    def __init__(self, model: LlamaChild) -> None:
        self._model = model

    async def __aenter__(self) -> None:
        await run(self._model, completion("Unrelated words. " * 20, sampling=replace(GREEDY, max_tokens=30)))

    async def __aexit__(self, *exc: object) -> None:
        return None


@pytest.mark.parametrize(("context", "slots"), [(256, 1), (512, 2), (2048, 4)])
async def test_that_wiping_works_is_proved_for_small_and_large_caches(context: int, slots: int) -> None:
    """A small cache is no larger than the heap, where the proof's own copy of what it looks for lies."""
    async with child(context=context, slots=slots) as model:
        assert model.isolation == "wiped"


async def test_a_dedicated_child_takes_one_request_and_ends_with_it() -> None:
    async with child(isolation="dedicated") as model:
        assert model.isolation == "dedicated"
        sink = Recorder()
        model.submit(chat(SEA, sampling=SHORT), sink)
        with pytest.raises(JobProblem) as caught:
            model.submit(chat(SEA), Recorder())
        assert caught.value.code == "draining"
        await sink.end()
        assert sink.problem is None
        await model.wait_gone()
        with pytest.raises(ProcessLookupError):
            os.kill(model.pid, 0)


# --- the canary: found first, then gone --------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it reads another process's memory")
CANARY = "zephyrquartz"


def _memory(pid: int) -> dict[int, bytes]:
    """Every writable mapping of a process, by its address."""
    found = {}
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in lines:
            span, flags, *_ = line.split()
            if not flags.startswith("rw") or "[v" in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                found[start] = memory.read(end - start)
            except OSError:
                continue
    return found


def _keys_of(prompt: str, *, chunk: int) -> list[bytes]:
    """The first layer's key rows that the child computes for ``prompt``, from a context of our own."""
    import ctypes

    import llama_cpp

    from qdaemon.runtimes.llama.library import Context, Model

    model = Model(str(model_path()))
    context = Context(model, size=512, slots=1, threads=1, batch=chunk)
    ids = model.tokenize(prompt, add_special=True)
    for at in range(0, len(ids), chunk):
        part = ids[at : at + chunk]
        assert context.decode([(token, at + index, 0, False) for index, token in enumerate(part)]) == 0
    size = llama_cpp.llama_state_seq_get_size(context.pointer, 0)
    buffer = (ctypes.c_uint8 * size)()
    assert llama_cpp.llama_state_seq_get_data(context.pointer, buffer, size, 0) == size
    state = bytes(buffer)
    context.close()
    model.log.close()
    # magic, sequence, streams, cells; the cells; transposed?, layers, type; row size; rows
    at = 16 + 12 * len(ids) + 12
    row = int.from_bytes(state[at : at + 8], "little")
    at += 8
    return [state[at + index * row : at + (index + 1) * row] for index in range(len(ids))]


@needs_root
async def test_kv_bytes_are_in_memory_while_a_request_runs_and_overwritten_after_it() -> None:
    prompt = f"The secret word of the harbour is {CANARY}, and nobody may know it."
    rows = _keys_of(prompt, chunk=32)[3:]
    assert len({*rows}) > 10
    async with child(slots=2) as model:
        sink = Recorder()
        job = completion(
            prompt, sampling=Sampling(max_tokens=400, temperature=0, logit_bias={0: -100, 2: -100})
        )
        model.submit(job, sink)
        await sink.until(5)
        during = _memory(model.pid)
        seen = sum(any(row in block for block in during.values()) for row in rows)
        assert seen == len(rows), "the planted keys must be found first"
        assert any(CANARY.encode() in block for block in during.values())
        await sink.end()
        # One more request, elsewhere: what the first left is overwritten before it is told an answer.
        await run(model, completion("Good morning to you all.", sampling=SHORT))
        after = _memory(model.pid)
        assert not any(row in block for block in after.values() for row in rows)
        # Freed memory is overwritten by the C library, so the words themselves are gone too.
        assert not any(CANARY.encode() in block for block in after.values())


@needs_root
async def test_no_file_of_the_processes_holds_a_clients_words(tmp_path: Path) -> None:
    async with child(slots=2) as model:
        pids = [model.pid, *_relatives(model.pid)]
        await run(model, chat(f"Please repeat the word {CANARY}."))
        await run(model, chat("x", response_format='{"not": "' + CANARY + '"}'))
        await run(model, chat(f"{CANARY} " * 3000))
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                assert re.match(r"socket:|/dev/null|anon_inode:|pipe:|/.*\.gguf$", target), target
            limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
            assert re.search(r"Max core file size\s+0\s+0", limits)
            assert CANARY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            names = re.findall(rb"([A-Z_]+)=", Path(f"/proc/{pid}/environ").read_bytes())
            assert set(names) <= {b"PYTHONMALLOC", b"GLIBC_TUNABLES", b"OPENBLAS_NUM_THREADS", b"LC_CTYPE"}


def _relatives(pid: int) -> list[int]:
    """Other processes of ours that were started beside ``pid``: the template's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if b"qdaemon.runtimes.llama" in line and parent == os.getpid() and int(folder.name) != pid:
            found.append(int(folder.name))
    assert found
    return found
