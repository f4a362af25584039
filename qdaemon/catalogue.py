"""Every model of this worker and what is known of it: files of the store, and models of servers beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from qdaemon.models.facts import GgufFacts
from qdaemon.models.store import Entry
from qdaemon.runtimes.engine import Child, Place
from qdaemon.turns import Turns
from tunnel_proto.messages import MODEL_NAME, ModelState, RuntimeState

State = Literal["stored", "loading", "resident", "failed", "external"]

SMOOTHING: Final = 0.3
"""Weight of a new measurement in a model's speed."""

_NAME = re.compile(MODEL_NAME)


class Waiting(Protocol):
    """A job in a model's queue."""

    def told_progress(self, state: str, share: float, eta_s: float | None) -> None:
        """The model is on its way into memory."""

    def told_failed(self, code: str, message: str, *, retriable: bool) -> None:
        """The model will not come; the job has left the queue."""


@dataclass(eq=False, slots=True)
class Model:
    """One set of weights and its jobs. Stored ones are known by their SHA-256, external ones by their name.

    Times are the loop's, in seconds, unless said.
    """

    key: str
    state: State
    engine: Literal["llama", "ollama", "openai"] = "llama"
    entries: list[Entry] = field(default_factory=list)
    facts: GgufFacts | None = None
    name: str = ""  # of an external model
    sha256: str = ""
    described: ModelState | None = None  # an external engine's own description
    runtime: str = ""
    progress: float = 0.0
    load_began: float = 0.0
    load_s: float = 0.0
    problem: str = ""
    problem_code: str = ""
    failed_at: float = 0.0
    context: int = 0
    slots: int = 0
    memory_needed: int = 0
    memory_used: int = 0
    predicted: float = 0.0
    measured: float = 0.0
    prefill: float = 0.0
    isolation: str = ""
    build: str = ""
    ttl_s: float = 0.0
    last_used: float = 0.0
    used_at: float = 0.0  # unix time
    held: bool = False  # no new job begins: another model waits for its memory
    running: int = 0
    child: Child | None = None
    place: Place | None = None
    queue: Turns[Waiting] = field(default_factory=Turns)

    @property
    def stays(self) -> bool:
        """Whether it is to be kept in memory."""
        return any(entry.stay for entry in self.entries)

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(name for entry in self.entries for name in entry.groups)

    @property
    def names(self) -> list[str]:
        """What it is called: current names first, older versions as name@sha-prefix."""
        if not self.entries:
            return [self.name]
        return [name_of(entry) for entry in sorted(self.entries, key=lambda one: not one.current)]

    def learn(self, *, decode: float, prefill: float) -> None:
        """Take a job's measured speeds into the averages, in tokens/s; 0 says nothing."""
        if decode > 0:
            self.measured = _smooth(self.measured, decode)
        if prefill > 0:
            self.prefill = _smooth(self.prefill, prefill)

    def states(self) -> Iterator[ModelState]:
        """How it is told to gates: once for each of its names."""
        if self.described is not None:
            yield _with_load(self.described, self)
            return
        facts = self.facts
        for entry in self.entries:
            yield ModelState(
                name=name_of(entry),
                sha256=entry.sha256,
                family=facts.family[:256] if facts else "",
                quant=facts.quant if facts else "",
                size=entry.size,
                arch=facts.arch if facts else "",
                params=facts.params if facts else 0,
                context_train=facts.context_train if facts else 0,
                context=self.context,
                tokenizer_sha=facts.tokenizer_sha if facts else "",
                template_sha=facts.template_sha if facts else "",
                kinds=facts.kinds if facts else (),
                engine="llama",
                engine_build=self.build,
                state=self.state,
                progress=round(self.progress, 3),
                problem=self.problem[:2000],
                memory_needed=self.memory_needed,
                memory_used=self.memory_used,
                tps_predicted=round(self.predicted, 1),
                tps_measured=round(self.measured, 1),
                prefill_tps=round(self.prefill, 1),
                load_s=round(self.load_s, 3),
                isolation=self.isolation,
                pinned=entry.pinned or entry.stay,
                ttl_s=self.ttl_s,
                slots=self.slots,
                running=self.running,
                queued=len(self.queue),
                last_used=self.used_at,
                groups=entry.groups,
            )


def _with_load(described: ModelState, model: Model) -> ModelState:
    return replace(
        described,
        running=model.running,
        queued=len(model.queue),
        tps_measured=round(model.measured, 1),
        prefill_tps=round(model.prefill, 1),
        last_used=model.used_at,
    )


class Catalogue:
    """All models by key and by name, and the engines that were found."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.runtimes: dict[str, RuntimeState] = {}
        self._names: dict[str, str] = {}

    def find(self, wanted: str) -> Model | None:
        """The model that a SHA-256, a name or a name@sha-prefix means; stored ones come before external."""
        if (model := self.models.get(wanted)) is not None and model.engine == "llama":
            return model
        if (key := self._names.get(wanted)) is not None:
            return self.models.get(key)
        name, at, prefix = wanted.partition("@")
        if at and len(prefix) >= 6:
            found = [
                model
                for model in self.models.values()
                if model.key.startswith(prefix.lower()) and any(one.name == name for one in model.entries)
            ]
            if len(found) == 1:
                return found[0]
        return None

    def set_stored(self, entries: Iterable[Entry]) -> tuple[list[Model], list[Model]]:
        """Take the store's entries as they are now; returns the models that came and those that went."""
        grouped: dict[str, list[Entry]] = {}
        for entry in entries:
            grouped.setdefault(entry.sha256, []).append(entry)
        stored = {key for key, model in self.models.items() if model.engine == "llama"}
        gone = [self.models.pop(key) for key in stored - grouped.keys()]
        came = []
        for sha256, named in grouped.items():
            model = self.models.get(sha256)
            if model is None:
                model = self.models[sha256] = Model(sha256, "stored", sha256=sha256)
                came.append(model)
            model.entries = named
        self._index()
        return came, gone

    def set_external(self, runtime: str, described: Iterable[ModelState], place: Place) -> None:
        """Take what a server beside this daemon offers now; models that it no longer has go."""
        keys = set()
        for one in described:
            key = f"{runtime}/{one.name}"
            keys.add(key)
            model = self.models.get(key)
            if model is None:
                model = self.models[key] = Model(key, "external", engine=one.engine)  # type: ignore[arg-type]
            model.name = one.name
            model.sha256 = one.sha256
            model.runtime = runtime
            model.described = one
            model.place = place
            model.slots = one.slots
            model.isolation = one.isolation
        for key in [key for key, model in self.models.items() if model.runtime == runtime]:
            if key not in keys:
                del self.models[key]
        self._index()

    def drop_runtime(self, runtime: str) -> None:
        """Forget a server's models; jobs that run there fail by themselves."""
        for key in [key for key, model in self.models.items() if model.runtime == runtime]:
            del self.models[key]
        self._index()

    def stored(self) -> list[Model]:
        """Models of the store."""
        return [model for model in self.models.values() if model.engine == "llama"]

    def states(self) -> dict[str, ModelState]:
        """Every model as gates are told of it, by name; a stored model hides an external one of its name."""
        found: dict[str, ModelState] = {}
        for model in sorted(self.models.values(), key=lambda one: one.engine != "llama"):
            for state in model.states():
                if _NAME.fullmatch(state.name):
                    found.setdefault(state.name, state)
        return found

    def _index(self) -> None:
        names: dict[str, str] = {}
        for model in sorted(self.models.values(), key=lambda one: one.engine != "llama"):
            for name in model.names:
                names.setdefault(name, model.key)
        self._names = names


def name_of(entry: Entry) -> str:
    """An entry as a request names it."""
    return entry.name if entry.current else f"{entry.name}@{entry.sha256[:12]}"


def _smooth(before: float, now: float) -> float:
    return now if before <= 0 else before + SMOOTHING * (now - before)
