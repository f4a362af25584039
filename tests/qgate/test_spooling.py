"""A long body on its way to a file: never on the event loop, one at a time, never more than has room."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qgate.control.problems import ProblemError
from qgate.control.spooling import PIECE, Spool


async def body(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def refused(spool: Spool, *pieces: bytes, announced: int | None = None) -> tuple[int, str]:
    with pytest.raises(ProblemError) as caught:
        async with spool.received(body(*pieces), announced):
            pytest.fail("it was taken")
    return caught.value.status, caught.value.code


async def test_a_body_comes_into_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most=8 * PIECE, reserve=0)
    pieces = [bytes([number]) * 100_000 for number in range(30)]
    async with spool.received(body(*pieces), None) as file:
        assert file.read_bytes() == b"".join(pieces)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


async def test_no_byte_is_written_on_the_loops_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    write = os.write

    def watched(descriptor: int, data: bytes) -> int:
        threads.add(threading.get_ident())
        return write(descriptor, data)

    monkeypatch.setattr("qgate.control.spooling.os.write", watched)
    async with Spool(tmp_path, most=8 * PIECE, reserve=0).received(body(bytes(PIECE), b"end"), None) as file:
        assert file.stat().st_size == PIECE + 3
    assert threads
    assert threading.get_ident() not in threads


async def test_what_is_too_long_ends_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most=2 * PIECE, reserve=0)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += PIECE
            yield bytes(PIECE)

    with pytest.raises(ProblemError) as caught:
        async with spool.received(endless(), None):
            pytest.fail("it was taken")
    assert (caught.value.status, caught.value.code) == (413, "too-large")
    assert sent == 3 * PIECE
    assert await refused(spool, b"x", announced=2 * PIECE + 1) == (413, "too-large")  # before a byte is read
    assert list(tmp_path.iterdir()) == []


async def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    spool = Spool(tmp_path, most=1 << 60, reserve=free * 2)
    assert await refused(spool, b"x" * 10) == (507, "no-room")
    assert await refused(Spool(tmp_path, most=1 << 60), b"x", announced=free * 2) == (507, "no-room")
    assert list(tmp_path.iterdir()) == []


async def test_one_is_taken_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most=PIECE, reserve=0)
    here, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        here.set()
        await go.wait()
        yield b"x"

    async def first() -> bytes:
        async with spool.received(slow(), None) as file:
            return file.read_bytes()

    task = asyncio.create_task(first())
    await here.wait()
    assert await refused(spool, b"y") == (429, "busy")
    go.set()
    assert await task == b"x"
    async with spool.received(body(b"y"), 1) as file:
        assert file.read_bytes() == b"y"
