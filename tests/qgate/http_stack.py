"""A minigate, a tunnel and the gate's HTTP in one loop, over an engine that does what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from minigate.relay import AppSide
from qgate.capability.finops.rates import RateLimits
from qgate.capability.work import Begun, Chunk, Event, Finished, Receipt, Usage, Work
from qgate.governance.directory import App, Directory, Snapshot
from qgate.governance.policy import ApiKey, CapabilityPolicy, digest_of
from qgate.http.application import Application
from qgate.http.desk import Desk, ModelCard
from qgate.http.front import HttpFront
from qgate.http.intake import Intake
from qgate.http.protocol import Patience
from qgate.settings import HttpSettings
from tests.minigate.conftest import until
from tests.minigate.tunnel import Mesh, mesh
from tunnel_proto.link import PeerSession

KEY = "qg_" + "k" * 43
OTHER_KEY = "qg_" + "o" * 43
MODELLESS_KEY = "qg_" + "n" * 43


def receipt(work: Work) -> Receipt:
    """A receipt that nobody signed."""
    return Receipt(f"rct_{work.id[4:]}", {"id": f"rct_{work.id[4:]}", "app": work.app.name})


def finished(work: Work, reason: str = "stop", **fields: Any) -> Finished:
    """The end of an answer of three tokens to a prompt of seven."""
    usage = fields.pop("usage", Usage(prompt_tokens=7, completion_tokens=3))
    return Finished(reason, usage, receipt(work), **fields)


Script = Callable[[Work], AsyncGenerator[Event, None]]


async def three_words(work: Work) -> AsyncGenerator[Event, None]:
    """An answer in three pieces."""
    yield Begun("smol", "sha-1", "box", "worker")
    for word in ("one ", "two ", "thrée"):
        yield Chunk(text=word, ids=(1,))
    yield finished(work)


async def vectors(work: Work) -> AsyncGenerator[Event, None]:
    """Two numbers for each text."""
    yield Begun("embedder", "sha-2", "box", "worker")
    yield finished(work, result=[[0.5, float(len(text))] for text in work.body["input"]])


async def analysis(work: Work) -> AsyncGenerator[Event, None]:
    """A summary."""
    yield Begun("extractive", "1", "gate", "nlp")
    yield finished(work, result={"summary": f"about {work.body['input'][:5]}", "sentences": []})


@dataclass
class FakeEngine:
    """Runs ``script``; remembers what it was asked and what was cancelled."""

    script: Script = three_words
    seen: list[Work] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: int = 0

    async def run(self, work: Work) -> AsyncGenerator[Event, None]:
        """The script's events."""
        self.seen.append(work)
        self.running += 1
        complete = False
        try:
            async for event in self.script(work):
                complete = complete or isinstance(event, Finished)
                yield event
        finally:
            self.running -= 1
            if not complete:
                self.cancelled.append(work.id)


@dataclass
class Shelf:
    """A catalogue of what the test puts there."""

    cards: list[ModelCard] = field(
        default_factory=lambda: [
            ModelCard("smol", "box", ("chat", "completion"), 2048, 1_700_000_000, "resident"),
            ModelCard("secret/model", "cloud", ("chat",)),
        ]
    )

    def models(self, app: App) -> Iterable[ModelCard]:
        """All of them."""
        return self.cards


class Drawer:
    """Receipts by id: (app, document)."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, dict[str, Any]]] = {}

    async def get(self, receipt_id: str, app: str | None) -> Mapping[str, Any] | None:
        """One of that app."""
        found = self.kept.get(receipt_id)
        return found[1] if found is not None and app in {None, found[0]} else None


ANYTHING = CapabilityPolicy()


def app(name: str = "web", policy: CapabilityPolicy | None = ANYTHING, **fields: Any) -> App:
    """An app with no database."""
    return App(name=name, verifiers=(), databases=frozenset(), policy=policy, **fields)


def directory(*apps: App, aliases: Mapping[str, str] | None = None) -> Directory:
    """Apps whose keys are `KEY`, `OTHER_KEY` and `MODELLESS_KEY`, in that order."""
    keys = zip((KEY, OTHER_KEY, MODELLESS_KEY), apps, strict=False)
    made = [ApiKey(f"key_{one.name}", one.name, key[:10], digest_of(key)) for key, one in keys]
    return Directory(
        Snapshot(
            apps={one.name: one for one in apps},
            keys={one.digest: one for one in made},
            aliases=dict(aliases or {}),
        )
    )


def desk(engine: FakeEngine, names: Directory, receipts: Drawer | None = None) -> Desk:
    """A desk over that engine and directory."""
    loop = asyncio.get_running_loop()
    intake = Intake(names, time.time, loop.time, os.urandom, RateLimits())
    return Desk(intake, engine, Shelf(), receipts)


@dataclass
class Stack:
    """Everything, running."""

    mesh: Mesh
    front: HttpFront
    engine: FakeEngine
    names: Directory
    desk: Desk
    receipts: Drawer

    @property
    def port(self) -> int:
        """Where minigate listens."""
        return self.mesh.port

    @property
    def url(self) -> str:
        """The base URL of an OpenAI SDK."""
        return f"http://127.0.0.1:{self.port}/v1"


async def _hung_up(running: Mesh) -> None:
    """Wait for the apps' connections to end, and cut what is left: no socket may outlive its test."""
    connections = running.sidecar.connections
    with contextlib.suppress(TimeoutError):
        await until(lambda: not connections.live, 0.5)
    for one in (*connections.live, *connections.lingering):
        if isinstance(one, AppSide):
            one.transport.abort()
        else:
            one.expired()
    await until(lambda: not connections.live and not connections.lingering)


@asynccontextmanager
async def stack(
    tmp_path: Path,
    *apps: App,
    script: Script = three_words,
    settings: HttpSettings | None = None,
    aliases: Mapping[str, str] | None = None,
    accepting: Callable[[], bool] = lambda: True,
    patience: Patience | None = None,
    **changes: Any,
) -> AsyncIterator[Stack]:
    """Start all of it; ``changes`` are to minigate's [gate] table."""
    engine = FakeEngine(script)
    names = directory(
        *(apps or (app(), app("other", CapabilityPolicy(models=("smol",))), app("plain", None))),
        aliases=aliases,
    )
    receipts = Drawer()
    made = dataclasses.replace(desk(engine, names, receipts), accepting=accepting)
    front = HttpFront(Application(made, settings or HttpSettings()), patience)
    session = cast(PeerSession, SimpleNamespace(peer=SimpleNamespace(name="laptop")))
    async with mesh(tmp_path, **changes) as running:
        for gate in running.gates:
            gate.on_stream = lambda stream: front.accept(session, stream)
        try:
            yield Stack(running, front, engine, names, made, receipts)
        finally:
            await front.close()
            await _hung_up(running)
