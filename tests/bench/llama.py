"""llama.cpp through our child process, beside llama-cpp-python called directly, on one thread each.

    python -m tests.bench.llama [--rounds 7] [--tokens 96] [--json FILE] [--markdown FILE]

The engine is pinned to the first core; whoever drives it has the others. Each round runs every contender
once, in turns, and the ratio is the median of the rounds' ratios with a bootstrap interval of 95 %.

- one stream: a chat request, greedy. Direct: ``Llama.create_chat_completion(stream=True)`` in a process of
  its own. Tokens/s count from the first token to the last; the time to the first token is its own figure.
- four streams: four completions at once. Direct: a minimal loop over llama.cpp's batch interface in a process
  of its own (four sequences, greedy, text put together), and llama-cpp-python's own server where its
  extra is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdaemon.runtimes.llama.job import LlamaJob, Sampling
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.runtime import LlamaRuntime
from qdaemon.runtimes.llama.settings import LlamaSettings
from tests.bench.report import Check, Series, write
from tests.kit.process import accepts, free_port
from tests.qdaemon.llama import Recorder, packaged, why_not

CONTEXT = 512
STREAMS = 4
QUESTION = "Write a long story about a lighthouse keeper and the sea."
PROMPTS = [f"Once upon a time in town number {number}, there lived" for number in range(STREAMS)]
ENGINE_CORE = 0
NO_END = {"0": -100.0, "2": -100.0}  # the model's two ends, so that every answer is as long


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: tokens/s after the first token (of all streams together), and seconds to the first token."""

    rate: float
    first_s: float


# Contenders in a process of their own: a line of JSON in, a line out.


def direct(tokens: int) -> Callable[[str], Sample]:
    """llama-cpp-python's high-level interface."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(packaged().path), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False, n_gpu_layers=0
    )
    bias = {int(token): value for token, value in NO_END.items()}

    def bias_ends(ids: Any, scores: Any) -> Any:
        del ids
        for token, value in bias.items():
            scores[token] += value
        return scores

    processors = llama_cpp.LogitsProcessorList([bias_ends])

    def run(load: str) -> Sample:
        del load
        llama.reset()  # type: ignore[no-untyped-call]
        llama._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]
        llama.n_tokens = 0
        started = time.perf_counter()
        chunks: Any = llama.create_chat_completion(
            [{"role": "user", "content": QUESTION}],
            stream=True,
            max_tokens=tokens,
            temperature=0.0,
            logits_processor=processors,
        )
        stamps = [time.perf_counter() for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
        return Sample((tokens - 1) / (stamps[-1] - stamps[0]), stamps[0] - started)

    return run


def batch(tokens: int) -> Callable[[str], Sample]:
    """A minimal loop over the batch interface: what batching costs with nothing around it."""
    import numpy as np

    from qdaemon.runtimes.llama.library import Context, Model

    model = Model(str(packaged().path))
    context = Context(model, size=CONTEXT, slots=STREAMS, threads=1, batch=64)
    model.log.close()
    ends = [int(token) for token in NO_END]

    def choose(index: int) -> int:
        row = context.logits(index).copy()
        row[ends] -= 100.0
        return int(np.argmax(row))

    def run(load: str) -> Sample:
        del load
        context.clear()
        started = time.perf_counter()
        current, positions, texts = [], [], [b""] * STREAMS
        for sequence, prompt in enumerate(PROMPTS):
            ids = model.tokenize(prompt, add_special=True)
            assert not context.decode(
                [(token, at, sequence, at == len(ids) - 1) for at, token in enumerate(ids)]
            )
            current.append(choose(len(ids) - 1))
            positions.append(len(ids))
        first = time.perf_counter()
        for _ in range(tokens - 1):
            step = [(current[one], positions[one], one, True) for one in range(STREAMS)]
            assert not context.decode(step)
            for one in range(STREAMS):
                current[one] = choose(one)
                positions[one] += 1
                texts[one] += model.piece(current[one])
        return Sample(STREAMS * (tokens - 1) / (time.perf_counter() - first), first - started)

    return run


def serve(role: str, tokens: int) -> None:
    """Be a contender: a line for each run."""
    os.sched_setaffinity(0, {ENGINE_CORE})
    run = {"direct": direct, "batch": batch}[role](tokens)
    run("warm-up")
    print("ready", flush=True)
    for line in sys.stdin:
        sample = run(line.strip())
        print(json.dumps([sample.rate, sample.first_s]), flush=True)


class Contender:
    """One of the above in its process."""

    def __init__(self, role: str, tokens: int) -> None:
        command = [sys.executable, "-m", "tests.bench.llama", "--role", role, "--tokens", str(tokens)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._line() == "ready"

    def run(self) -> Sample:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return Sample(*json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a contender ended")
        return line.strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# Ours.

_BIASES = {int(token): value for token, value in NO_END.items()}


def _sampling(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0, logit_bias=_BIASES)


async def one_stream(model: LlamaChild, tokens: int, number: int) -> Sample:
    """A chat request through the child."""
    stamps: list[float] = []
    sink = Recorder(on_tokens=lambda _: stamps.append(time.perf_counter()))
    job = LlamaJob(
        f"one{number}",
        "bench",
        "chat",
        messages=[{"role": "user", "content": QUESTION}],
        sampling=_sampling(tokens),
    )
    started = time.perf_counter()
    model.submit(job, sink)
    await sink.end()
    assert len(sink.ids) == tokens, (len(sink.ids), sink.problem)
    return Sample((tokens - 1) / (stamps[-1] - stamps[0]), stamps[0] - started)


async def four_streams(model: LlamaChild, tokens: int, number: int) -> Sample:
    """Four completions at once through the child."""
    stamps: list[float] = []
    sinks = [Recorder(on_tokens=lambda _: stamps.append(time.perf_counter())) for _ in PROMPTS]
    started = time.perf_counter()
    for index, (prompt, sink) in enumerate(zip(PROMPTS, sinks, strict=True)):
        job = LlamaJob(
            f"four{number}-{index}", "bench", "completion", prompt=prompt, sampling=_sampling(tokens)
        )
        model.submit(job, sink)
    for sink in sinks:
        await sink.end()
    # From when all four generate: the first token of the last one.
    everyone = stamps[STREAMS - 1]
    counted = sum(1 for stamp in stamps if stamp > everyone)
    return Sample(counted / (stamps[-1] - everyone), stamps[0] - started)


# Llama-cpp-python's own server.


def server_missing() -> str:
    """What its extra lacks here; empty where it can run."""
    from importlib import util

    names = ("uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
    return ", ".join(name for name in names if util.find_spec(name) is None)


@contextlib.asynccontextmanager
async def own_server() -> AsyncIterator[int]:
    """llama-cpp-python's server on a free port, pinned as the others are."""
    port = free_port()
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(packaged().path), "--n_threads", "1",
        "--n_threads_batch", "1", "--n_ctx", str(CONTEXT), "--port", str(port),
        "--interrupt_requests", "False",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.sched_setaffinity(process.pid, {ENGINE_CORE})
        async with asyncio.timeout(60):
            while not accepts("127.0.0.1", port):
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


async def four_requests(port: int, tokens: int) -> Sample:
    """Four completions at once from an OpenAI-compatible server."""
    import aiohttp

    stamps: list[float] = []

    async def one(session: aiohttp.ClientSession, prompt: str) -> None:
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "logit_bias": NO_END,
        }
        async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as reply:
            stamps.extend(
                [time.perf_counter() async for line in reply.content if line.startswith(b"data: {")]
            )

    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, prompt) for prompt in PROMPTS))
    return Sample((len(stamps) - 1) / (max(stamps) - min(stamps)), min(stamps) - started)


# The rounds.


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % of the medians of samples drawn again from ``ratios``."""
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(4000))
    return medians[100], medians[-101]


async def measure(rounds: int, tokens: int) -> dict[str, list[Sample]]:
    """Every contender, in turns."""
    found: dict[str, list[Sample]] = {}
    cores = set(range(os.cpu_count() or 1)) - {ENGINE_CORE} or {ENGINE_CORE}
    os.sched_setaffinity(0, cores)
    settings = replace(LlamaSettings(), slots=STREAMS, context=CONTEXT)
    runtime = LlamaRuntime(settings=settings)
    contenders: dict[str, Contender] = {}
    missing = server_missing()
    async with contextlib.AsyncExitStack() as stack:
        try:
            model = await runtime.load(packaged())
            os.sched_setaffinity(model.pid, {ENGINE_CORE})
            for role in ("direct", "batch"):
                contenders[role] = await asyncio.to_thread(Contender, role, tokens)
            port = 0 if missing else await stack.enter_async_context(own_server())
            await one_stream(model, 8, -1)
            for number in range(rounds):
                turn = [
                    "mesh one",
                    "direct one",
                    "mesh four",
                    "batch four",
                    *(["server four"] if port else []),
                ]
                for name in turn if number % 2 == 0 else reversed(turn):
                    match name:
                        case "mesh one":
                            sample = await one_stream(model, tokens, number)
                        case "mesh four":
                            sample = await four_streams(model, tokens, number)
                        case "server four":
                            sample = await four_requests(port, tokens)
                        case _:
                            sample = await asyncio.to_thread(contenders[name.split()[0]].run)
                    found.setdefault(name, []).append(sample)
                    print(
                        f"{number} {name}: {sample.rate:.1f} tok/s, {sample.first_s * 1000:.1f} ms",
                        flush=True,
                    )
        finally:
            for contender in contenders.values():
                contender.close()
            await runtime.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--role", choices=["direct", "batch"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(argv)
    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    if options.role:
        serve(options.role, options.tokens)
        return 0
    found = asyncio.run(measure(options.rounds, options.tokens))
    report(found, options.json, options.markdown)
    return 0


def report(found: dict[str, list[Sample]], json_path: Path | None, markdown_path: Path | None) -> None:
    """Print and write what was found."""
    series = []
    for name, samples in found.items():
        who, load = name.split()
        one = Series(load=f"{load} stream{'s' if load == 'four' else ''}", contender=who, unit="tok/s")
        one.rates = [sample.rate for sample in samples]
        one.latencies_s = [sample.first_s for sample in samples]
        series.append(one)
    rows = [["streams", "contender", "tokens/s", "to first token", "mesh ÷ it", "95 %"]]
    ratios: dict[str, list[float]] = {}
    for name, samples in found.items():
        who, load = name.split()
        pairs = [a.rate / b.rate for a, b in zip(found[f"mesh {load}"], samples, strict=True)]
        ratios[name] = pairs
        low, high = interval(pairs)
        mine = who == "mesh"
        rows.append(
            [
                load,
                who,
                f"{statistics.median(one.rate for one in samples):.1f}",
                f"{statistics.median(one.first_s for one in samples) * 1000:.1f} ms",
                "" if mine else f"{statistics.median(pairs):.3f}",
                "" if mine else f"{low:.3f}–{high:.3f}",
            ]
        )
    added = statistics.median(
        a.first_s - b.first_s for a, b in zip(found["mesh one"], found["direct one"], strict=True)
    )
    checks = [
        Check("one stream, mesh ÷ direct", statistics.median(ratios["direct one"]), 0.97, True),
        Check("time to first token, added", added * 1000, 5.0, False, "ms"),
        Check(
            "four streams, mesh ÷ batching in process", statistics.median(ratios["batch four"]), 0.97, True
        ),
    ]
    notes = ["one llama.cpp thread, pinned to one core; SmolLM2-135M Q4_1; greedy"]
    if "server four" in ratios:
        checks.append(
            Check("four streams, mesh ÷ its server", statistics.median(ratios["server four"]), 1.2, True)
        )
    else:
        notes.append(f"llama-cpp-python's own server left out: {server_missing()} not installed")
    write(
        title="llama.cpp through a child process",
        rows=rows,
        checks=checks,
        notes=notes,
        data={"samples": {name: [[s.rate, s.first_s] for s in samples] for name, samples in found.items()}},
        json_path=json_path,
        markdown_path=markdown_path,
    )


if __name__ == "__main__":
    sys.exit(main())
