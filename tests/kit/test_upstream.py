"""The stand-in upstream satisfies a real driver, and refuses a wrong password."""

from __future__ import annotations

import asyncpg
import pytest

from tests.kit.upstream import StandIn


async def test_a_driver_logs_in_and_gets_its_bytes() -> None:
    server = StandIn(user="u", password="right")
    await server.start()
    try:
        connection = await asyncpg.connect(f"postgresql://u:right@127.0.0.1:{server.port}/any")
        assert await connection.execute("SELECT 1") == "SELECT 1"
        await connection.execute("SELECT 1 /* bytes=1000000 */")
        assert server.connections == 1
        assert server.statements == 2
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(f"postgresql://u:wrong@127.0.0.1:{server.port}/any")
    finally:
        await server.close()
