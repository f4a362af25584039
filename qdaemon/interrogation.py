"""Looking for inference servers on this machine, and asking those that are there what they can do.

A port is asked for Ollama's version first, then for a list of models as OpenAI gives it. What answers neither
is left alone. Servers of the configuration are asked the same way and reported when they are down; one that
was only found is reported as down for a while and then forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import structlog

from qdaemon.catalogue import Catalogue
from qdaemon.runtimes.http_engine import EngineError, HttpEngine, Server
from qdaemon.runtimes.ollama import OllamaEngine
from qdaemon.runtimes.openai_compatible import OpenAiEngine
from qdaemon.settings import DiscoverySettings, EngineSettings
from tunnel_proto.errors import ConfigError, LocalProtocolError
from tunnel_proto.messages import ModelState, Report, encode

log = structlog.get_logger()

MISSES: Final = 3
"""Looks without an answer after which a server that was only found is forgotten."""

OWN_PORTS: Final = frozenset({11438, 11439, 11440, 11441})
"""The mesh's own: asking a minigate's port for models would find the mesh itself, and turn in a circle."""


@dataclass(eq=False, slots=True)
class _Known:
    engine: HttpEngine
    configured: bool
    misses: int = 0


@dataclass(eq=False, slots=True)
class Interrogation:
    """Keeps the catalogue's external models up to date. ``run`` must be kept running."""

    settings: DiscoverySettings
    engines: tuple[EngineSettings, ...]
    catalogue: Catalogue
    changed: Callable[[], None]
    host: str = "127.0.0.1"
    _known: dict[str, _Known] = field(default_factory=dict)

    def configure(self) -> None:
        """Make the engines of the configuration. Raises `ConfigError` for a key that cannot be read."""
        for one in self.engines:
            server = Server(one.url, key=read_key(one))
            kind: type[HttpEngine] = OllamaEngine if one.kind == "ollama" else OpenAiEngine
            name = one.name or f"{one.kind}-{urlsplit(one.url).port or urlsplit(one.url).hostname}"
            engine: HttpEngine = kind(server, name=name, isolation=one.isolation, slots=one.slots)
            self._known[server.url] = _Known(engine, configured=True)

    async def run(self) -> None:
        """Look again and again; end only by cancellation."""
        while True:
            await self.look()
            await asyncio.sleep(self.settings.every_s)

    async def look(self) -> None:
        """Ask everything that is known, and the ports where something may be."""
        await asyncio.gather(*(self._ask(url, known) for url, known in list(self._known.items())))
        if self.settings.enabled:
            ports = [port for port in self.settings.ports if port not in OWN_PORTS]
            await asyncio.gather(*(self._find(port) for port in ports))
        self.changed()

    async def close(self) -> None:
        await asyncio.gather(*(known.engine.close() for known in self._known.values()))

    async def _ask(self, url: str, known: _Known) -> None:
        engine = known.engine
        try:
            models = await engine.interrogate()
        except EngineError as error:
            known.misses += 1
            before = self.catalogue.runtimes.get(engine.name)
            if before is None or before.state == "up":
                log.warning("engine does not answer", engine=engine.name, url=url, cause=error.message)
            self.catalogue.runtimes[engine.name] = engine.state(0, error.message)
            self.catalogue.drop_runtime(engine.name)
            if not known.configured and known.misses >= MISSES:
                self.catalogue.runtimes.pop(engine.name, None)
                self._known.pop(url, None)
                await engine.close()
            return
        known.misses = 0
        self._take(engine, url, models)

    def _take(self, engine: HttpEngine, url: str, offered: list[ModelState]) -> None:
        models = [one for one in offered if _tellable(one)]
        before = self.catalogue.runtimes.get(engine.name)
        if before is None or before.state != "up" or before.models != len(models):
            log.info("engine", engine=engine.name, url=url, build=engine.build, models=len(models))
        self.catalogue.runtimes[engine.name] = engine.state(len(models))
        self.catalogue.set_external(engine.name, models, engine)

    async def _find(self, port: int) -> None:
        url = f"http://{self.host}:{port}"
        if any(urlsplit(known).port == port and _local(known) for known in self._known):
            return
        for make in (OllamaEngine, OpenAiEngine):
            engine: HttpEngine = make(Server(url), name=f"{make.kind}-{port}")
            try:
                models = await engine.interrogate()
            except EngineError:
                await engine.close()
                continue
            self._known[url] = _Known(engine, configured=False)
            self._take(engine, url, models)
            return


def read_key(one: EngineSettings) -> str:
    """The engine's key, from its file. Raises `ConfigError`."""
    if one.key_file is None:
        return ""
    try:
        key = one.key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"the key of {one.url} cannot be read from {one.key_file}",
            hint="make the file readable for this user, mode 0600",
        ) from None
    if not key or not key.isascii() or any(letter.isspace() for letter in key):
        raise ConfigError(f"{one.key_file} does not hold one key", hint="one line, the key and nothing else")
    return key


def _tellable(model: ModelState) -> bool:
    """Whether gates can be told of it: what an engine says must not end a report."""
    try:
        encode(Report("worker", 0, models=(model,)))
    except LocalProtocolError:
        return False
    return True


def _local(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
