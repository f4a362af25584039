"""The chaos proxy does to a connection exactly what it says, and nothing to the bytes it lets pass."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from tests.kit.capture import Capture
from tests.kit.proxy import Proxy, Shape


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, int]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[:2]
    server.close()


async def dial(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_bytes_pass_unchanged_and_half_close_passes_too(echo: tuple[str, int]) -> None:
    capture = Capture()
    payload = random.Random(1).randbytes(3_000_000)
    async with Proxy(echo, tap=capture) as proxy:
        reader, writer = await dial(proxy)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read(-1) == payload
        writer.close()
    assert capture.sent_by_client(1) == payload
    assert capture.sent_by_server(1) == payload


async def test_delay_and_rate_are_kept(echo: tuple[str, int]) -> None:
    loop = asyncio.get_running_loop()
    async with Proxy(echo, shape=Shape(delay_s=0.05)) as proxy:
        reader, writer = await dial(proxy)

        async def took(size: int) -> float:
            start = loop.time()
            writer.write(bytes(size))
            await reader.readexactly(size)
            return loop.time() - start

        # The least of five: what a busy machine adds to one is not the proxy's.
        assert 0.1 <= min([await took(4) for _ in range(5)]) < 0.3
        proxy.shape(Shape(bytes_per_s=1_000_000))
        assert 0.19 <= min([await took(200_000) for _ in range(5)]) < 0.8
        writer.close()


async def test_cut_resets_both_ends(echo: tuple[str, int]) -> None:
    async with Proxy(echo) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert proxy.connections == 0
        writer.close()
        reader, writer = await dial(proxy)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()


async def test_stall_keeps_bytes_and_order(echo: tuple[str, int]) -> None:
    async with Proxy(echo) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"before")
        await reader.readexactly(6)
        proxy.stall()
        writer.write(b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(6), 0.1)
        proxy.resume()
        assert await reader.readexactly(6) == b"during"
        writer.close()


async def test_half_open_tells_nobody_and_new_connections_work(echo: tuple[str, int]) -> None:
    async with Proxy(echo) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.half_open()
        writer.write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        reader_2, writer_2 = await dial(proxy)
        writer_2.write(b"new")
        assert await reader_2.readexactly(3) == b"new"
        writer.close()
        writer_2.close()


async def test_old_connections_deliver_late(echo: tuple[str, int]) -> None:
    async with Proxy(echo) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.hold_old()
        writer.write(b"late")
        reader_2, writer_2 = await dial(proxy)
        writer_2.write(b"new")
        assert await reader_2.readexactly(3) == b"new"
        proxy.release_old()
        assert await reader.readexactly(4) == b"late"
        writer.close()
        writer_2.close()


async def test_reconnects_are_reordered(echo: tuple[str, int]) -> None:
    order: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order.append((await reader.readexactly(1))[0])
        writer.write(b"k")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()[:2]) as proxy:
        proxy.hold_connects()
        ends = []
        for number in (1, 2):
            reader, writer = await dial(proxy)
            writer.write(bytes([number]))
            ends.append((reader, writer))
        while proxy.connections < 2:
            await asyncio.sleep(0)
        proxy.release_connects()
        for reader, writer in ends:
            assert await reader.readexactly(1) == b"k"
            writer.close()
        assert order == [2, 1]
    server.close()


async def test_a_schedule_repeats_with_its_seed(echo: tuple[str, int]) -> None:
    played = []
    for _ in range(2):
        async with Proxy(echo) as proxy:
            await proxy.torment(0.5, seed=5, every_s=(0.02, 0.05), hold_s=0.1)
            played.append(dict(proxy.counts))
            assert not proxy.stalled
    assert played[0].keys() == played[1].keys()


def test_a_capture_finds_a_canary_in_each_of_its_forms() -> None:
    import base64

    canary = b"canary-7f3a"
    for hidden in (
        canary,
        canary.hex().encode(),
        base64.b64encode(b"x" + canary + b"yz"),
        base64.b64encode(b"xy" + canary + b"yz"),
        base64.b64encode(canary),
        canary.decode().encode("utf-16-le"),
    ):
        capture = Capture()
        capture(1, to_server=True, data=b"...." + hidden + b"....")
        assert capture.find([canary, b"something else"]) == [canary]
