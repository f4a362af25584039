"""A long request body on its way to a file: off the event loop, one at a time, never more than has room.

What comes is gathered to pieces of a megabyte, and a thread writes each; meanwhile nothing more of the body
is read, so that a slow disk slows the sender and not the gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from qgate.control.problems import ProblemError

PIECE: Final = 1024 * 1024
"""Bytes that are written at once."""

RESERVE: Final = 256 * 1024**2
"""Bytes of the disk that are left free for the gate itself."""


class Spool:
    """Takes bodies of at most ``most`` bytes into files of mode 0600 in ``folder``, one after the other."""

    def __init__(self, folder: Path, *, most: int, reserve: int = RESERVE) -> None:
        self._folder = folder
        self._most = most
        self._reserve = reserve
        self._taken = False

    @contextlib.asynccontextmanager
    async def received(self, body: AsyncIterable[bytes], announced: int | None) -> AsyncIterator[Path]:
        """The body in a file, which is gone afterwards. ``announced`` are the bytes that the sender tells of.

        ProblemError 413 "too-large", 429 "busy", 507 "no-room".
        """
        await self._check(announced or 0, announced or 0)
        if self._taken:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "busy",
                "another archive is being taken here",
                hint="try again once that one is done",
            )
        self._taken = True
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, dir=self._folder, prefix=".import-")
        try:
            await self._write(descriptor, body)
            yield Path(name)
        finally:
            self._taken = False
            os.close(descriptor)
            os.unlink(name)

    async def _write(self, descriptor: int, body: AsyncIterable[bytes]) -> None:
        size = 0
        held = bytearray()
        async for piece in body:
            size += len(piece)
            held += piece
            if len(held) >= PIECE:
                await self._check(size, len(held))
                await asyncio.to_thread(_write_all, descriptor, bytes(held))
                held.clear()
        await self._check(size, len(held))
        await asyncio.to_thread(_write_all, descriptor, bytes(held))

    async def _check(self, size: int, more: int) -> None:
        """ProblemError where a body of ``size`` bytes is too long, or ``more`` do not fit on the disk."""
        if size > self._most:
            raise ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"an archive has at most {self._most} bytes"
            )
        free = (await asyncio.to_thread(shutil.disk_usage, self._folder)).free - self._reserve
        if more > free:
            raise ProblemError(
                HTTPStatus.INSUFFICIENT_STORAGE,
                "no-room",
                f"the gate's disk has room for {max(0, free)} bytes of it",
                hint=f"make room where {self._folder} lies, and send it again",
            )


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
