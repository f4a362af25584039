"""The tunnel over real sockets."""

from __future__ import annotations

import os

from tests.tunnel_proto.wire import Collector, wire


async def test_a_stream_carries_bytes_both_ways_and_closes() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        stream.write(b"hello ", boundary=False)
        stream.write(b"world", boundary=True)
        await here.until(lambda: bytes(here.data) == b"hello world")
        assert here.boundaries[-1] is True
        stream.write_eof()
        await here.until(lambda: bool(here.closed))
        assert here.closed == [None]
        assert here.eof
        assert w.accepted[0].closed == [None]
        assert not w.client.streams


async def test_bulk_both_ways() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        data = os.urandom(20 * 1024 * 1024)
        stream.write(data)
        await here.until(lambda: len(here.data) == len(data))
        assert bytes(here.data) == data


async def test_a_cut_link_is_resumed_and_nobody_notices() -> None:
    async with wire() as w:
        here = Collector()
        stream = w.open(here)
        data = os.urandom(8 * 1024 * 1024)
        for start in range(0, len(data), 1 << 20):
            stream.write(data[start : start + (1 << 20)])
            await here.until(lambda start=start: len(here.data) > start // 2)  # type: ignore[misc]
            w.proxy.cut()
        await here.until(lambda: len(here.data) == len(data))
        assert bytes(here.data) == data
        assert w.client.stats.resumes >= 2
        assert here.closed == []
