"""An executor over a directory with one provider, and a sink that remembers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from qgate.capability.providers.catalogue import Provider, ProviderModel, key_purpose
from qgate.capability.providers.executor import ProviderExecutor
from qgate.capability.work import Attempt, Chunk, Failure, Usage, Work
from qgate.governance.directory import Directory, Snapshot
from qgate.vault import Vault
from tests.qgate.spending import attempt

KEY = "sk-canary-0123456789abcdef"


@dataclasses.dataclass
class Ear:
    """A sink that remembers."""

    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    took: bool = False
    reason: str = ""
    usage: Usage = dataclasses.field(default_factory=Usage)
    raw: bytes | None = None
    result: Any = None
    version: str = ""
    failure: Failure | None = None
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    ends: int = 0

    def accepted(self, *, queue: int = 0, state: str = "", worker: str = "") -> None:
        self.took = True

    def progress(self, state: str, share: float, eta_s: float | None) -> None:
        raise AssertionError("providers do not load")

    def chunk(self, chunk: Chunk) -> None:
        assert self.took
        assert not self.ends
        self.chunks.append(chunk)

    def done(
        self,
        finish_reason: str,
        usage: Usage,
        *,
        result: Any = None,
        raw: bytes | None = None,
        model_version: str = "",
    ) -> None:
        self.reason, self.usage, self.result, self.raw = finish_reason, usage, result, raw
        self.version = model_version
        self.ends += 1
        self.over.set()

    def failed(self, failure: Failure) -> None:
        self.failure = failure
        self.ends += 1
        self.over.set()

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(chunk.text for chunk in self.chunks)


class Caller:
    """Runs works at the provider "acme"."""

    def __init__(self, executor: ProviderExecutor, provider: Provider) -> None:
        self.executor = executor
        self.provider = provider

    def begin(self, work: Work, **fields: Any) -> tuple[Ear, Any]:
        ear = Ear()
        return ear, self.executor.start(self._attempt(work, **fields), ear)

    async def run(self, work: Work, **fields: Any) -> Ear:
        """Until it is over."""
        ear, _ = self.begin(work, **fields)
        async with asyncio.timeout(60):
            await ear.over.wait()
        assert ear.ends == 1
        for told in (repr(ear.failure), repr(self.provider), repr(self.executor)):
            assert KEY not in told
        return ear

    async def fails(self, work: Work, **fields: Any) -> Failure:
        ear = await self.run(work, **fields)
        assert ear.failure is not None, ear
        return ear.failure

    def _attempt(self, work: Work, **fields: Any) -> Attempt:
        return attempt(work, **fields)


@contextlib.asynccontextmanager
async def calling(url: str, *, kind: str = "openai", tls: Any = None, **fields: Any) -> AsyncIterator[Caller]:
    """An open executor with the provider "acme" at `url`, its key sealed in a vault."""
    vault = Vault((bytes(range(32)),))
    provider = Provider("acme", kind, url, (ProviderModel("big"),), **fields)
    provider = dataclasses.replace(provider, sealed_key=vault.seal(KEY.encode(), key_purpose(provider)))
    directory = Directory(Snapshot(providers={"acme": provider}), unseal=vault.unseal)
    executor = ProviderExecutor(directory, tls=tls)
    await executor.open()
    try:
        yield Caller(executor, provider)
    finally:
        await executor.close()
