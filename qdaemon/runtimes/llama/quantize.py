"""Making other quantizations of a model with llama.cpp's own quantiser, in a disposable process."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from qdaemon.runtimes.llama.frames import Decoder, encode
from qdaemon.runtimes.llama.job import LoadFailed
from qdaemon.runtimes.llama.spawning import spawn
from tunnel_proto.errors import RemoteProtocolError

FILE_TYPES: Final = {
    "F32": 0, "F16": 1, "BF16": 32,
    "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30,
    "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
}  # fmt: skip
"""llama.h's numbers of the mixtures that need no importance matrix."""
_READ: Final = 65_536


async def quantize(
    source: Path, target: Path, kind: str, *, threads: int = 1, timeout_s: float = 3600.0, pure: bool = False
) -> Path:
    """Write ``source`` as ``kind`` (a key of `FILE_TYPES`) to ``target``, which must not exist yet.

    A source that is quantised already is taken too: the result then has the losses of both, which is good for
    measuring speed and not for keeping. ``pure`` uses one type throughout. LoadFailed where it did not work;
    nothing partial is left.
    """
    _check(source, target, kind)
    partial = target.with_name(target.name + ".partial")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        ours.setblocking(False)
        with theirs:
            process = await spawn("qdaemon.runtimes.llama.quantiser", theirs)
        task = {
            "t": "quantize",
            "source": str(source),
            "target": str(partial),
            "type": FILE_TYPES[kind],
            "threads": threads,
            "pure": pure,
        }
        problem = "the quantiser's process ended"
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(timeout_s):
                await loop.sock_sendall(ours, encode(task))
                problem = await _answer(ours) or ""
            if not problem:
                partial.rename(target)
        except TimeoutError:
            problem = f"not done after {timeout_s:g} s"
        except (OSError, RemoteProtocolError):
            pass
        finally:
            process.kill()
            await process.wait()
            partial.unlink(missing_ok=True)
    if problem:
        raise LoadFailed(
            "quantization_failed",
            f"{source.name} as {kind}: {problem}",
            hint="check that it is a whole GGUF file and that the disk has room",
        )
    return target


def _check(source: Path, target: Path, kind: str) -> None:
    if kind not in FILE_TYPES:
        raise LoadFailed(
            "unknown_quantization",
            f'there is no quantization "{kind}"',
            hint=f"one of {', '.join(FILE_TYPES)}",
        )
    if target.exists():
        raise LoadFailed("exists", f"{target} exists already", hint="name another file, or remove it")
    if not source.is_file():
        raise LoadFailed("model_corrupt", f"{source}: no such file", hint="name a GGUF file")


async def _answer(ours: socket.socket) -> str:
    decoder = Decoder()
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(ours, _READ):
        for frame in decoder.feed(data):
            return str(frame.get("problem", ""))
    return "the quantiser's process ended: it is no file that llama.cpp can quantise, or memory ran out"
