"""What `tests.bench.llama` compares with: llama-cpp-python called directly, batching in process, its server.

Those that run in a process of their own are this module again: ``python -m tests.bench.llama_peers ROLE
TOKENS MODEL`` prints "ready" and then a line of JSON for each line that it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.process import accepts, free_port

CONTEXT = 512
STREAMS = 4
QUESTION = "Write a long story about a lighthouse keeper and the sea."
PROMPTS = [f"Once upon a time in town number {number}, there lived" for number in range(STREAMS)]
ENGINE_CORE = 0
NO_END = {"0": -100.0, "2": -100.0}  # the model's two ends, so that every answer is as long


@dataclass(frozen=True, slots=True)
class Sample:
    """One run, in seconds.

    ``count`` tokens came in ``wall_s``, in which the engine's process was kept waiting for a processor for
    ``waited_s``; the first token came after ``first_s``, of which it waited ``first_waited_s``. ``cpu_s`` is
    what it used.
    """

    count: int
    wall_s: float
    waited_s: float
    first_s: float
    first_waited_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Tokens/s, less the time in which other programs had the engine's processor."""
        return self.count / max(self.wall_s - self.waited_s, self.wall_s / 100)

    @property
    def rate_by_clock(self) -> float:
        return self.count / self.wall_s

    @property
    def first(self) -> float:
        """Seconds to the first token, less the same."""
        return max(self.first_s - self.first_waited_s, 0.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process has used and waited for so far."""

    at: float
    cpu_s: float
    waited_s: float


def read(pid: int) -> Reading:
    """Read it now: schedstat says, to the nanosecond, how long a thread ran and waited to run."""
    ran = waited = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            one, other, *_ = (task / "schedstat").read_text().split()
            ran, waited = ran + int(one), waited + int(other)
    return Reading(time.perf_counter(), ran / 1e9, waited / 1e9)


class Watch:
    """Times one run of the engine ``pid``."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = self._last = read(pid)
        self._first: Reading | None = None

    def token(self) -> None:
        """A piece of text has come."""
        self._last = read(self._pid)
        self._first = self._first or self._last

    def sample(self, count: int) -> Sample:
        """The run is over, with so many tokens."""
        assert self._first is not None
        return Sample(
            count,
            self._last.at - self._start.at,
            max(self._last.waited_s - self._start.waited_s, 0.0),  # a thread that ended takes its part along
            self._first.at - self._start.at,
            max(self._first.waited_s - self._start.waited_s, 0.0),
            self._last.cpu_s - self._start.cpu_s,
        )


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


# --- in a process of their own ------------------------------------------------------------------------------


def direct(tokens: int, model_file: str) -> Callable[[], Sample]:
    """One stream from llama-cpp-python's high-level interface."""
    import llama_cpp

    llama = llama_cpp.Llama(
        model_file, n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False, n_gpu_layers=0
    )
    bias = {int(token): value for token, value in NO_END.items()}

    def bias_ends(ids: Any, scores: Any) -> Any:
        del ids
        for token, value in bias.items():
            scores[token] += value
        return scores

    processors = llama_cpp.LogitsProcessorList([bias_ends])

    def run() -> Sample:
        llama.reset()  # type: ignore[no-untyped-call]
        llama._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]
        llama.n_tokens = 0
        watch = Watch(os.getpid())
        chunks: Any = llama.create_chat_completion(
            [{"role": "user", "content": QUESTION}],
            stream=True,
            max_tokens=tokens,
            temperature=0.0,
            logits_processor=processors,
        )
        for chunk in chunks:
            if chunk["choices"][0]["delta"].get("content"):
                watch.token()
        return watch.sample(tokens)

    return run


def batch(tokens: int, model_file: str) -> Callable[[], Sample]:
    """Four streams from a minimal loop over the batch interface: batching with nothing around it."""
    import numpy as np

    from qdaemon.runtimes.llama.library import Context, Model

    model = Model(model_file)
    context = Context(model, size=CONTEXT, slots=STREAMS, threads=1, batch=64)
    model.log.close()
    ends = [int(token) for token in NO_END]

    def choose(index: int) -> int:
        row = context.logits(index).copy()
        row[ends] -= 100.0
        return int(np.argmax(row))

    def run() -> Sample:
        context.clear()
        watch = Watch(os.getpid())
        current, positions, texts = [], [], [b""] * STREAMS
        for sequence, prompt in enumerate(PROMPTS):
            ids = model.tokenize(prompt, add_special=True)
            assert not context.decode(
                [(token, at, sequence, at == len(ids) - 1) for at, token in enumerate(ids)]
            )
            current.append(choose(len(ids) - 1))
            positions.append(len(ids))
        watch.token()
        for _ in range(tokens - 1):
            step = [(current[one], positions[one], one, True) for one in range(STREAMS)]
            assert not context.decode(step)
            for one in range(STREAMS):
                current[one] = choose(one)
                positions[one] += 1
                texts[one] += model.piece(current[one])
        watch.token()
        return watch.sample(STREAMS * tokens)

    return run


def serve(role: str, tokens: int, model_file: str) -> None:
    """Be a contender: a line for each run."""
    os.sched_setaffinity(0, {ENGINE_CORE})
    run = {"direct": direct, "batch": batch}[role](tokens, model_file)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(run())), flush=True)


class Contender:
    """One of the above in its process."""

    def __init__(self, role: str, tokens: int, model_file: Path) -> None:
        command = [sys.executable, "-m", "tests.bench.llama_peers", role, str(tokens), str(model_file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._line() == "ready"

    def run(self) -> Sample:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return Sample(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a contender ended")
        return line.strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# --- over HTTP ----------------------------------------------------------------------------------------------


class Endpoint:
    """An OpenAI-compatible server, asked over connections that stay open; ``pid`` computes."""

    def __init__(self, port: int, pid: int, *, model: str, key: str = "") -> None:
        self._pid = pid
        self._base = f"http://127.0.0.1:{port}/v1"
        self._model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session = aiohttp.ClientSession(headers=headers)

    async def close(self) -> None:
        await self._session.close()

    async def one(self, tokens: int) -> Sample:
        """One chat completion."""
        messages = [{"role": "user", "content": QUESTION}]
        watch = Watch(self._pid)
        await self._stream("chat/completions", {"messages": messages}, tokens, watch)
        return watch.sample(tokens)

    async def four(self, tokens: int) -> Sample:
        """Four completions at once."""
        watch = Watch(self._pid)
        await asyncio.gather(
            *(self._stream("completions", {"prompt": prompt}, tokens, watch) for prompt in PROMPTS)
        )
        return watch.sample(STREAMS * tokens)

    async def _stream(self, path: str, asked: dict[str, Any], tokens: int, watch: Watch) -> None:
        body = {"model": self._model, "max_tokens": tokens, "temperature": 0, "stream": True, **asked}
        pieces = 0
        async with self._session.post(f"{self._base}/{path}", json={**body, "logit_bias": NO_END}) as reply:
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                choice = (event["choices"] or [{}])[0]
                if choice.get("text") or choice.get("delta", {}).get("content"):
                    pieces += 1
                    watch.token()
            if reply.status != 200 or pieces < tokens // 2:
                raise RuntimeError(f"{path} said {reply.status} and {pieces} pieces of text")


def server_missing() -> str:
    """What the extra of llama-cpp-python's own server lacks here; empty where it can run."""
    names = ("uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
    return ", ".join(name for name in names if util.find_spec(name) is None)


@contextlib.asynccontextmanager
async def own_server(model_file: Path) -> AsyncIterator[Endpoint]:
    """llama-cpp-python's server on a free port, pinned as the others are."""
    port = free_port()
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model_file), "--n_threads", "1",
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
                if process.poll() is not None:
                    raise RuntimeError(f"llama-cpp-python's server ended with {process.returncode}")
                await asyncio.sleep(0.1)
        endpoint = Endpoint(port, process.pid, model="any")
        yield endpoint
        await endpoint.close()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
