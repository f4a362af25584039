"""llama.cpp through the mesh, beside llama-cpp-python called directly, on one thread each.

    python -m tests.bench.llama [--rounds 9] [--tokens 96] [--only NAME]... [--json FILE] [--markdown FILE]

Whatever computes is pinned to the first core, everything else (client, minigate, gate and its store, qdaemon)
to the others. All run the same file, since where its pages lie in memory makes a difference. Each round runs
every contender once, in turns; a ratio is the median of the rounds' ratios with a bootstrap interval of 95 %,
so that a machine whose speed drifts does not decide. Tokens/s are all tokens over the time from the request
to the last one (a network may deliver the first few at once); the time to the first is a figure of its own.

- mesh: HTTP at minigate, tunnel, gate, tunnel, qdaemon, child. child: the child process alone.
- one stream: a greedy chat request. Direct: ``Llama.create_chat_completion(stream=True)`` in a process of its
  own.
- four streams: four completions at once. Beside it a minimal loop over llama.cpp's batch interface in a
  process of its own (four sequences, greedy, text put together), and llama-cpp-python's own server where its
  extra is installed.

What the kernel says that the engine had to wait for its processor is taken off, so that other programs there
do not decide; on a quiet machine that is next to nothing. What the processes between had to wait is not, so a
time to the first token means something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from qdaemon.runtimes.llama.job import LlamaJob, Sampling
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.runtime import LlamaRuntime
from qdaemon.runtimes.llama.settings import LlamaSettings
from tests.bench.llama_peers import (
    CONTEXT,
    ENGINE_CORE,
    NO_END,
    PROMPTS,
    QUESTION,
    STREAMS,
    Contender,
    Endpoint,
    Sample,
    Watch,
    own_server,
    pin,
    server_missing,
)
from tests.bench.report import Check, write
from tests.kit.mesh import Mesh
from tests.kit.process import descendants
from tests.qdaemon.llama import File, Recorder, packaged, why_not

MODEL = "smollm2"
Run = Callable[[int], Awaitable[Sample]]
_SETTINGS = replace(LlamaSettings(), slots=STREAMS, context=CONTEXT)


# --- the child process alone --------------------------------------------------------------------------------


def _sampling(tokens: int) -> Sampling:
    bias = {int(token): value for token, value in NO_END.items()}
    return Sampling(max_tokens=tokens, temperature=0.0, logit_bias=bias)


async def child_one(model: LlamaChild, tokens: int, number: int) -> Sample:
    """A chat request through the child."""
    messages = [{"role": "user", "content": QUESTION}]
    job = LlamaJob(f"one{number}", "bench", "chat", messages=messages, sampling=_sampling(tokens))
    watch = Watch(model.pid)
    sink = Recorder(on_tokens=lambda _: watch.token())
    model.submit(job, sink)
    await sink.end()
    assert len(sink.ids) == tokens, (len(sink.ids), sink.problem)
    return watch.sample(tokens)


async def child_four(model: LlamaChild, tokens: int, number: int) -> Sample:
    """Four completions at once through the child."""
    watch = Watch(model.pid)
    sinks = [Recorder(on_tokens=lambda _: watch.token()) for _ in PROMPTS]
    for index, (prompt, sink) in enumerate(zip(PROMPTS, sinks, strict=True)):
        name = f"four{number}-{index}"
        model.submit(LlamaJob(name, "bench", "completion", prompt=prompt, sampling=_sampling(tokens)), sink)
    for sink in sinks:
        await sink.end()
    return watch.sample(STREAMS * tokens)


@contextlib.asynccontextmanager
async def child(file: File) -> AsyncIterator[LlamaChild]:
    """A loaded model in a child process of this one."""
    runtime = LlamaRuntime(settings=_SETTINGS)
    try:
        model = await runtime.load(file)
        pin(model.pid, ENGINE_CORE)
        yield model
    finally:
        await runtime.close()


# --- the whole wire -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def mesh() -> AsyncIterator[tuple[Endpoint, File]]:
    """A minigate's port, behind which are a gate, a worker and the same model; and the file that it runs."""
    with Mesh() as made:
        llama = {"slots": STREAMS, "context": CONTEXT, "threads": _SETTINGS.threads}
        daemon = made.add_daemon("worker", settings={"llama": llama})
        daemon.start()
        made.wait_linked()
        made.wait_worker("worker")
        made.add_model(packaged().path, MODEL, "worker")
        key = made.add_models_app("bench")
        warm = Endpoint(made.sidecar.port, daemon.pid, model=MODEL, key=key)
        await warm.one(8)
        await warm.close()
        (stored,) = (daemon.directory / "models" / "blobs").glob("*.gguf")
        computing = next(pid for pid in descendants(daemon.pid) if _computes(pid))
        pin(computing, ENGINE_CORE)
        endpoint = Endpoint(made.sidecar.port, computing, model=MODEL, key=key)
        try:
            yield endpoint, replace(packaged(), path=stored)
        finally:
            await endpoint.close()


def _computes(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"qdaemon.runtimes.llama.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


# --- the rounds ---------------------------------------------------------------------------------------------


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % of the medians of samples drawn again from ``ratios``."""
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(4000))
    return medians[100], medians[-101]


async def measure(rounds: int, tokens: int, only: Sequence[str]) -> dict[str, list[Sample]]:
    """Every contender, in turns; samples by "CONTENDER LOAD"."""
    found: dict[str, list[Sample]] = {}
    cores = set(range(os.cpu_count() or 1)) - {ENGINE_CORE} or {ENGINE_CORE}
    os.sched_setaffinity(0, cores)
    async with contextlib.AsyncExitStack() as stack:
        runs = {name: run for name, run in (await _contenders(stack, tokens)).items() if _wanted(name, only)}
        for number in range(rounds):
            for name in runs if number % 2 == 0 else reversed(runs):
                sample = await runs[name](number)
                found.setdefault(name, []).append(sample)
                print(
                    f"{number} {name}: {sample.rate:.1f} tok/s ({sample.rate_by_clock:.1f} by the clock), "
                    f"first {sample.first * 1000:.1f} ms ({sample.first_s * 1000:.1f})",
                    flush=True,
                )
    return found


async def _contenders(stack: contextlib.AsyncExitStack, tokens: int) -> dict[str, Run]:
    through, file = await stack.enter_async_context(mesh())
    model = await stack.enter_async_context(child(file))
    await child_one(model, 8, -1)
    peers = {}
    for role in ("direct", "batch"):
        peers[role] = await asyncio.to_thread(Contender, role, tokens, file.path)
        stack.callback(peers[role].close)
    runs: dict[str, Run] = {
        "mesh one": lambda _: through.one(tokens),
        "direct one": lambda _: asyncio.to_thread(peers["direct"].run),
        "child one": partial(child_one, model, tokens),
        "mesh four": lambda _: through.four(tokens),
        "batch four": lambda _: asyncio.to_thread(peers["batch"].run),
        "child four": partial(child_four, model, tokens),
    }
    if not server_missing():
        server = await stack.enter_async_context(own_server(file.path))
        await server.four(8)
        runs["server four"] = lambda _: server.four(tokens)
    return runs


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or name.partition(" ")[0] in {"mesh", *only}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--only", action="append", default=[], choices=["direct", "batch", "child", "server"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(argv)
    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    found = asyncio.run(measure(options.rounds, options.tokens, options.only))
    report(found, options.tokens, options.json, options.markdown)
    return 0


# --- the report ---------------------------------------------------------------------------------------------


def report(
    found: dict[str, list[Sample]], tokens: int, json_path: Path | None, markdown_path: Path | None
) -> None:
    """Print and write what was found."""
    head = [
        "streams",
        "contender",
        "tokens/s",
        "by clock",
        "to first",
        "engine ms/token",
        "mesh ÷ it",
        "95 %",
    ]
    rows = [head]
    ratios: dict[str, float] = {}
    for name, samples in found.items():
        who, load = name.split()
        by_clock = who == "server"  # its threads come and go, and take along how long they waited
        pairs = [
            a.rate_by_clock / b.rate_by_clock if by_clock else a.rate / b.rate
            for a, b in zip(found[f"mesh {load}"], samples, strict=True)
        ]
        ratios[name] = statistics.median(pairs)
        low, high = interval(pairs)
        firsts = [one.first_s if by_clock else one.first for one in samples]
        each = tokens * (STREAMS if load == "four" else 1)
        rows.append(
            [
                load,
                who,
                "" if by_clock else f"{statistics.median(one.rate for one in samples):.1f}",
                f"{statistics.median(one.rate_by_clock for one in samples):.1f}",
                f"{statistics.median(firsts) * 1000:.1f} ms",
                f"{statistics.median(one.cpu_s for one in samples) / each * 1000:.2f}",
                "" if who == "mesh" else f"{ratios[name]:.3f}",
                "" if who == "mesh" else f"{low:.3f}–{high:.3f}",
            ]
        )
    notes = [f"one llama.cpp thread, pinned to one core; SmolLM2-135M Q4_1; greedy; {tokens} tokens"]
    if "server four" not in found:
        notes.append(f"llama-cpp-python's own server left out: {server_missing() or 'not asked for'}")
    write(
        title="llama.cpp through the mesh",
        rows=rows,
        checks=_checks(found, ratios),
        notes=notes,
        data={"samples": {name: [asdict(one) for one in some] for name, some in found.items()}},
        json_path=json_path,
        markdown_path=markdown_path,
    )


def _checks(found: dict[str, list[Sample]], ratios: dict[str, float]) -> list[Check]:
    checks = []
    if "direct one" in found:
        pairs = zip(found["mesh one"], found["direct one"], strict=True)
        added = statistics.median(a.first - b.first for a, b in pairs)
        checks.append(Check("one stream, mesh ÷ direct", ratios["direct one"], 0.97, True))
        checks.append(Check("time to first token, added", added * 1000, 5.0, False, "ms"))
    if "batch four" in found:
        checks.append(Check("four streams, mesh ÷ batching in process", ratios["batch four"], 0.97, True))
    if "server four" in found:
        checks.append(Check("four streams, mesh ÷ its server", ratios["server four"], 1.2, True))
    return checks


if __name__ == "__main__":
    sys.exit(main())
