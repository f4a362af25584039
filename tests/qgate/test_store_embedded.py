"""The embedded server: start, reuse, recovery, and whom it runs as."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from qgate.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tunnel_proto.errors import ConfigError


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    tmp_path.chmod(0o700)
    embedded = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await embedded.start()
    yield embedded
    await embedded.stop()


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_takes_scram_logins_on_both_ways_in(server: EmbeddedPostgres) -> None:
    assert await ask(server.dsn(), "SHOW password_encryption") == "scram-sha-256"
    if server.socket_directory is not None:
        assert await ask(server.dsn(over_socket=True), "SELECT inet_server_addr()") is None
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(server.dsn().replace(server.password, "wrong"), "SELECT 1")


async def test_the_parents_modes_stay_as_they_were(server: EmbeddedPostgres, tmp_path: Path) -> None:
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert server.directory.stat().st_mode & 0o077 == 0
    for secret in ("superuser.password", "postgres.log"):
        assert (server.directory / secret).stat().st_mode & 0o077 == 0


async def test_secrets_are_in_neither_repr_nor_argv(server: EmbeddedPostgres) -> None:
    assert server.password not in repr(server)
    argv = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert server.password.encode() not in argv


async def test_a_live_server_is_found_again(server: EmbeddedPostgres) -> None:
    second = EmbeddedPostgres(server.directory)
    await second.start()
    assert (second.pid, second.port, second.dsn()) == (server.pid, server.port, server.dsn())


async def test_committed_rows_survive_a_killed_postmaster(server: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(server.dsn())
    await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7); CHECKPOINT")
    pid, port = server.pid, server.port
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    connection.terminate()
    while server.pid is not None:
        await asyncio.sleep(0.01)
    again = EmbeddedPostgres(server.directory, durable=False)
    await again.start()
    assert again.port == port
    assert await ask(again.dsn(), "SELECT n FROM kept") == 7
    await again.stop()


async def test_a_server_that_is_kept_comes_back_when_killed(server: EmbeddedPostgres) -> None:
    keeping = asyncio.ensure_future(server.keep())
    first, dsn = server.pid, server.dsn()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            try:
                assert await ask(dsn, "SELECT 1") == 1
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.01)
            else:
                break
    assert server.pid not in {None, first}
    await server.stop()
    await asyncio.wait_for(keeping, 60)


async def test_a_pid_file_that_names_a_stranger_is_ignored(server: EmbeddedPostgres) -> None:
    await server.stop()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n0\n1\n\n\n\nready\n")
    assert server.pid is None
    await server.start()
    assert await ask(server.dsn(), "SELECT 1") == 1


async def test_a_kept_port_that_was_taken_is_replaced(server: EmbeddedPostgres) -> None:
    await server.stop()
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", server.port))
        rival.listen()
        taken = server.port
        await server.start()
        assert server.port != taken


async def test_a_fixed_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        embedded = EmbeddedPostgres(tmp_path / "pg", port=rival.getsockname()[1], durable=False)
        with pytest.raises(ConfigError, match="is taken"):
            await embedded.start()


async def test_an_interrupted_initdb_is_done_again(tmp_path: Path) -> None:
    left = tmp_path / "pg" / "data"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    embedded = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await embedded.start()
    try:
        assert await ask(embedded.dsn(), "SELECT 1") == 1
    finally:
        await embedded.stop()
    assert embedded.pid is None


async def test_a_bad_setting_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    embedded = EmbeddedPostgres(tmp_path / "pg", durable=False, settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        await embedded.start()


async def test_with_a_key_no_password_lies_beside_the_cluster(tmp_path: Path) -> None:
    directory = tmp_path / "pg"
    embedded = EmbeddedPostgres(directory, durable=False, secret=b"a key of the gate")
    await embedded.start()
    try:
        assert await ask(embedded.dsn(), "SELECT 1") == 1
        assert len(embedded.password) == 43
        for path in directory.rglob("*"):
            if path.is_file():
                assert embedded.password.encode() not in path.read_bytes(), path
        assert not (directory / "superuser.password").exists()
        second = EmbeddedPostgres(directory, durable=False, secret=b"a key of the gate")
        await second.start()
        assert (second.pid, second.dsn()) == (embedded.pid, embedded.dsn())
    finally:
        await embedded.stop()


@pytest.mark.parametrize("running", [False, True])
async def test_a_cluster_of_another_key_or_of_a_password_file_is_taken_over(
    tmp_path: Path, running: bool
) -> None:
    directory = tmp_path / "pg"
    before = EmbeddedPostgres(directory, durable=False)
    await before.start()
    servers = [before]
    try:
        await ask(before.dsn(), "CREATE TABLE kept AS SELECT 7 AS n")
        for key in (b"first", b"second"):
            if not running:
                await servers[-1].stop()
            again = EmbeddedPostgres(directory, durable=False, secret=key)
            servers.append(again)
            await again.start()
            assert await ask(again.dsn(), "SELECT n FROM kept") == 7
            assert not (directory / "superuser.password").exists()
            with pytest.raises(asyncpg.InvalidPasswordError):
                await ask(again.dsn().replace(again.password, servers[-2].password), "SELECT 1")
    finally:
        for one in servers:
            await one.stop()
