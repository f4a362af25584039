"""What the daemon expects of whatever runs models: its own llama.cpp children, and servers beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qdaemon.runtimes.llama.job import JobSink, LlamaJob, Running
from tunnel_proto.messages import JobStart


class Sink(JobSink, Protocol):
    """Who is told about a job; beside tokens, an external engine may pass on a whole OpenAI delta."""

    def delta(self, delta: Mapping[str, Any]) -> None:
        """A piece of the answer that is more than text: tool calls, reasoning, a refusal."""


class Place(Protocol):
    """Somewhere that one model's jobs run."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""

    def submit(self, start: JobStart, sink: Sink) -> Running:
        """Begin a job; the sink hears of everything, also of a job that cannot begin."""


class StoredModel(Protocol):
    """A file to load."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


class Child(Protocol):
    """One loaded model in a process of its own."""

    build: str
    memory_used: int
    isolation: str

    @property
    def alive(self) -> bool: ...
    def submit(self, job: LlamaJob, sink: JobSink) -> Running: ...
    async def unload(self, drain_s: float | None = None, *, force: bool = False) -> bool: ...


class Runtime(Protocol):
    """What loads models: LlamaRuntime, or a stand-in for it."""

    async def load(
        self,
        model: StoredModel,
        *,
        context: int | None = None,
        slots: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        isolation: str = "shared",
        on_progress: Callable[[float], None] | None = None,
    ) -> Child: ...
    async def close(self) -> None: ...
