"""A loaded model's chat template in its disposable process, as the daemon sees it."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from qdaemon.runtimes.llama.frames import Decoder, Frame, encode
from qdaemon.runtimes.llama.job import JobProblem
from qdaemon.runtimes.llama.sandbox import GRAMMAR, TEMPLATE
from qdaemon.runtimes.llama.settings import LlamaSettings
from qdaemon.runtimes.llama.spawning import Spawned, spawn
from tunnel_proto.errors import RemoteProtocolError

OUTPUT_FACTOR: Final = 64
"""Bytes of rendered text for each token of the context, at most; what is longer cannot fit anyway."""
_START_S: Final = 60.0
_WALL_FACTOR: Final = 5.0
_PROVED: Final = 256
"""Grammars that are remembered as proved."""
_READ: Final = 65_536


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template is given beside messages and tools."""

    bos: str
    eos: str
    now: float


class TemplateProcess:
    """Renders a template, and proves grammars, in forks of one process. Start it with `start`."""

    def __init__(self, template: str, settings: LlamaSettings, *, context: int) -> None:
        self._template = template
        self._settings = settings
        self._output = context * OUTPUT_FACTOR
        self._process: Spawned | None = None
        self._control: socket.socket | None = None
        self._proved: OrderedDict[bytes, str] = OrderedDict()
        self.problem = ""
        """Why the template is of no use; empty where it is."""

    async def start(self) -> None:
        """Start the process and compile the template; `problem` says how that went."""
        await self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = await spawn("qdaemon.runtimes.llama.sandbox", theirs)
        ours.setblocking(False)
        self._control = ours
        first: Frame = {
            "t": "start",
            "template": self._template,
            "memory": self._settings.template_memory,
            "seconds": self._settings.template_seconds,
            "output": self._output,
            "lock": self._settings.lock_memory,
        }
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_START_S):
                await loop.sock_sendall(ours, encode(first))
                reply = await _answer(ours)
        except (TimeoutError, OSError, RemoteProtocolError):
            self.problem = "the template cannot be compiled within its limits"
            await self.close()
            return
        problem = str(reply.get("problem", ""))
        self.problem = f"the template cannot be compiled: {problem}" if problem else ""
        if not self._template:
            self.problem = "this model's file has no chat template"

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        rendering: Rendering,
    ) -> str:
        """The text of ``messages`` for the model. JobProblem where the template refuses or misbehaves."""
        if self.problem:
            raise JobProblem(
                "template_failed", self.problem, hint='ask for a completion with "prompt" instead'
            )
        reply = await self._ask(
            {
                "t": "render",
                "messages": list(messages),
                "tools": list(tools),
                "bos": rendering.bos,
                "eos": rendering.eos,
                "now": rendering.now,
            }
        )
        match reply.get("t"):
            case "text":
                return str(reply["text"])
            case "refused":
                raise JobProblem("messages_refused", f"the model's template: {reply.get('message', '')}")
            case "output":
                raise JobProblem(
                    "context_length_exceeded",
                    f"the messages render to more than {self._output} bytes, more than this model takes",
                    hint="shorten them",
                )
            case "failed":
                raise JobProblem(
                    "template_failed", f"the model's template failed: {reply.get('message', '')}"
                )
        seconds, memory = self._settings.template_seconds, self._settings.template_memory
        raise JobProblem(
            "template_limits",
            f"the model's template used more than {seconds:g} s or {memory >> 20} MiB, and was stopped",
            hint="report it to whoever made the model; [llama] template_seconds raises the limit",
        )

    async def prove(self, grammar: str) -> None:
        """JobProblem where llama.cpp does not take ``grammar``. What was proved once is remembered."""
        key = sha256(grammar.encode()).digest()
        problem = self._proved.get(key)
        if problem is None:
            reply = await self._ask({"t": "prove", "grammar": grammar}, GRAMMAR)
            problem = str(reply.get("problem", "llama.cpp did not survive the grammar made of this schema"))
            if reply.get("t") == "memory":
                problem = "the grammar made of this schema needs too much memory"
            self._proved[key] = problem
            while len(self._proved) > _PROVED:
                self._proved.popitem(last=False)
        if problem:
            raise JobProblem("unsupported_schema", problem, hint="make the schema smaller")

    async def _ask(self, task: Frame, kind: bytes = TEMPLATE) -> Frame:
        """What a fork answers to ``task``; an empty frame where it was ended."""
        if self._control is None or (self._process is not None and self._process.ended):
            await self.start()
        if self._control is None:
            return {}
        try:
            data = encode(task)
        except (RemoteProtocolError, ValueError, TypeError, OverflowError) as error:
            raise JobProblem("invalid_request", f"the messages cannot be sent: {error}") from None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        loop = asyncio.get_running_loop()
        with ours:
            ours.setblocking(False)
            with theirs:
                try:
                    socket.send_fds(self._control, [kind], [theirs.fileno()])
                except (BlockingIOError, OSError):
                    raise JobProblem(
                        "busy", "too many templates are being rendered", retriable=True, blame="node"
                    ) from None
            try:
                async with asyncio.timeout(self._settings.template_seconds * _WALL_FACTOR):
                    await loop.sock_sendall(ours, data)
                    return await _answer(ours)
            except (TimeoutError, OSError, RemoteProtocolError):
                return {}

    async def close(self) -> None:
        """End the process."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            await process.wait()


async def _answer(sock: socket.socket) -> Frame:
    decoder = Decoder()
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, _READ)
        if not data:
            raise ConnectionResetError("the process ended")
        for frame in decoder.feed(data):
            return frame
