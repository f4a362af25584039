"""A runtime that a test drives: loads when told, answers when told, dies when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qdaemon.models.facts import GgufFacts
from qdaemon.models.store import ModelStore
from qdaemon.runtimes.engine import StoredModel
from qdaemon.runtimes.llama.job import JobSink, LlamaJob, LoadFailed, Timing, Usage

MIB = 1 << 20


@dataclass(eq=False)
class ScriptedJob:
    """A submitted job."""

    job: LlamaJob
    sink: JobSink
    child: ScriptedChild
    cancelled: bool = False
    paused: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        self.child.jobs.remove(self)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def finish(self, text: str = "ok") -> None:
        """Answer and end."""
        self.child.jobs.remove(self)
        self.sink.tokens(range(3), text, None)
        self.sink.done("stop", Usage(5, 3, 0, 5), Timing(decode_s=0.1, prefill_s=0.1))

    def crash(self) -> None:
        self.child.jobs.remove(self)
        self.sink.failed("child_crashed", "the process ended", retriable=True, blame="node")


@dataclass(eq=False)
class ScriptedChild:
    """A loaded model."""

    runtime: ScriptedRuntime
    sha256: str
    isolation: str
    slots: int
    build: str = "scripted"
    memory_used: int = 100 * MIB
    alive: bool = True
    jobs: list[ScriptedJob] = field(default_factory=list)

    def submit(self, job: LlamaJob, sink: JobSink) -> ScriptedJob:
        assert len(self.jobs) < self.slots, "more jobs than sequences"
        one = ScriptedJob(job, sink, self)
        self.jobs.append(one)
        self.runtime.began.append(job.job)
        self.runtime.changed.set()
        return one

    async def unload(self, drain_s: float | None = None, *, force: bool = False) -> bool:
        if self.jobs and not force:
            return False
        for one in list(self.jobs):
            one.crash()
        self.alive = False
        self.runtime.children.remove(self)
        self.runtime.unloaded.append(self.sha256)
        self.runtime.changed.set()
        return True

    def die(self) -> None:
        """As the kernel kills a process."""
        self.alive = False
        self.runtime.children.remove(self)
        for one in list(self.jobs):
            one.crash()
        assert self.runtime.on_exit is not None
        self.runtime.on_exit(self)


@dataclass(eq=False)
class ScriptedRuntime:
    """Stands in for `LlamaRuntime`. ``gate`` cleared: loads wait."""

    on_exit: Callable[[object], None] | None = None
    children: list[ScriptedChild] = field(default_factory=list)
    loads: list[tuple[str, str]] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    began: list[str] = field(default_factory=list)
    failure: LoadFailed | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

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
    ) -> ScriptedChild:
        self.loads.append((model.sha256, isolation))
        self.changed.set()
        if on_progress is not None:
            on_progress(0.5)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        level = "dedicated" if isolation == "dedicated" else "wiped"
        child = ScriptedChild(self, model.sha256, level, slots or 1)
        self.children.append(child)
        self.changed.set()
        return child

    async def close(self) -> None:
        for child in list(self.children):
            await child.unload(force=True)

    def jobs(self) -> list[ScriptedJob]:
        return [job for child in self.children for job in child.jobs]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds that a load or a job brings about."""
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


FACTS = GgufFacts(
    arch="llama",
    name="toy",
    family="toy-1m",
    quant="Q8_0",
    params=1_000_000,
    context_train=4096,
    layers=2,
    embedding=64,
    heads=2,
    kv_heads=4,
    key_length=32,
    value_length=32,
    vocabulary=1000,
    weights=100 * MIB,
    largest_layer=MIB,
    types={"Q8_0": 100 * MIB},
    read_bytes={"Q8_0": 100 * MIB},
    read_elements={"Q8_0": 94 * MIB},
    tokenizer_sha="1" * 64,
    template_sha="2" * 64,
)


def stock(folder: Path, *names: str) -> dict[str, str]:
    """Put toy models into a store whose facts are known; returns their hashes by name."""
    import dataclasses
    import json

    from tests.qdaemon.test_store import gguf

    store = ModelStore(folder)
    store.open()
    hashes = {}
    for name in names:
        source = folder / f"{name}.source"
        source.write_bytes(gguf(name.encode()))
        entry = store.add(source, name, now=1e10)
        source.unlink()
        (folder / "facts").mkdir(exist_ok=True)
        document = {"format": 1, **dataclasses.asdict(FACTS)}
        (folder / "facts" / f"{entry.sha256}.json").write_text(json.dumps(document))
        hashes[name] = entry.sha256
    return hashes
