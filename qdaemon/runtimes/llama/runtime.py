"""Child processes of llama.cpp: started, loaded, counted, and remembered where a request ends them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from qdaemon.runtimes.llama.frames import Frame
from qdaemon.runtimes.llama.intake import Intake
from qdaemon.runtimes.llama.job import LoadFailed, ModelFile
from qdaemon.runtimes.llama.process import LlamaChild
from qdaemon.runtimes.llama.settings import LlamaSettings
from qdaemon.runtimes.llama.spawning import spawn
from qdaemon.runtimes.llama.template_process import TemplateProcess

MAX_CRASHES: Final = 2
"""A request that was running when so many children ended is not tried again."""
_REMEMBERED: Final = 4096


def available() -> bool:
    """Whether llama-cpp-python is installed here."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaRuntime:
    """Loads models into child processes. ``on_child_exit`` hears of every child that is gone."""

    def __init__(
        self,
        *,
        settings: LlamaSettings,
        on_child_exit: Callable[[LlamaChild], None] | None = None,
    ) -> None:
        self._settings = settings
        self._on_child_exit = on_child_exit
        self._children: set[LlamaChild] = set()
        self._disposals: set[asyncio.Task[None]] = set()
        self._crashes: OrderedDict[str, int] = OrderedDict()

    @property
    def children(self) -> frozenset[LlamaChild]:
        """Every child that lives."""
        return frozenset(self._children)

    async def load(
        self,
        model: ModelFile,
        *,
        context: int | None = None,
        slots: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        isolation: str = "shared",
        on_progress: Callable[[float], None] | None = None,
    ) -> LlamaChild:
        """Load ``model`` into a child of its own; ``on_progress`` gets the share that is loaded, 0 to 1.

        ``context`` is in tokens of one request. With ``isolation`` "dedicated" the child takes one job and
        ends with it. LoadFailed where that is not possible; the daemon goes on.
        """
        if not available():
            raise LoadFailed(
                "engine_missing",
                "llama-cpp-python is not installed",
                hint="pip install 'qgate-mesh[llama]' (it needs a C++ compiler)",
            )
        settings = self._settings
        dedicated = isolation == "dedicated"
        slots = 1 if dedicated else slots or settings.slots
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await spawn("qdaemon.runtimes.llama.child", theirs)
        child = LlamaChild(
            process,
            settings,
            sha256=model.sha256,
            dedicated=dedicated,
            on_gone=self._gone,
            on_crash=self._crashed,
        )
        self._children.add(child)
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: child, sock=ours)
            child.tell(
                {
                    "t": "load",
                    "path": str(model.path),
                    "size": model.size,
                    "context": context or settings.context,
                    "slots": slots,
                    "threads": threads or settings.threads,
                    "gpu_layers": gpu_layers,
                    "chunk": settings.prefill_chunk,
                    "replay_batch": settings.replay_batch,
                    "reuse_ttl_s": 0.0 if dedicated else settings.reuse_ttl_s,
                    "lock": settings.lock_memory,
                }
            )
            ready = await self._loaded(child, on_progress)
            templates = TemplateProcess(ready["template"], settings, context=ready["context"])
            await templates.start()
        except BaseException:
            await child.stop()
            raise
        intake = Intake(
            templates,
            controls=ready["controls"],
            bos=ready["bos"],
            eos=ready["eos"],
            n_vocab=ready["n_vocab"],
        )
        child.ready(ready, intake, slots=slots)
        return child

    async def close(self) -> None:
        """End every child; what still runs fails as work that another node may take."""
        await asyncio.gather(*(child.stop() for child in list(self._children)))
        while self._disposals:
            await asyncio.wait(self._disposals)

    async def _loaded(self, child: LlamaChild, on_progress: Callable[[float], None] | None) -> Frame:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.load_timeout_s):
                while True:
                    frame = await child.next_load_frame()
                    match frame.get("t"):
                        case "ready":
                            return frame
                        case "progress":
                            if on_progress is not None:
                                on_progress(frame["share"])
                        case "load_failed":
                            raise LoadFailed(frame["code"], frame["message"], hint=frame["hint"])
                        case _:
                            raise LoadFailed(
                                "model_corrupt",
                                "the process that loaded this file ended: llama.cpp cannot run it, "
                                "or memory ran out",
                                hint="check the file and the memory that is free",
                            )
        raise LoadFailed(
            "load_timeout",
            f"the model was not loaded after {self._settings.load_timeout_s:g} s",
            hint="raise load_timeout_s, or look at the disk",
        )

    def _gone(self, child: LlamaChild) -> None:
        self._children.discard(child)
        task = asyncio.get_running_loop().create_task(child.dispose())
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)
        if self._on_child_exit is not None:
            self._on_child_exit(child)

    def _crashed(self, jobs: list[str]) -> set[str]:
        """Count a crash against ``jobs``; those that were in too many."""
        for job in jobs:
            self._crashes[job] = self._crashes.get(job, 0) + 1
            self._crashes.move_to_end(job)
        while len(self._crashes) > _REMEMBERED:
            self._crashes.popitem(last=False)
        return {job for job in jobs if self._crashes[job] >= MAX_CRASHES}
