"""The program itself: exit codes, what it prints, and what signals do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from minigate.__main__ import main
from tests.kit.cluster import Cluster
from tests.kit.process import free_port
from tests.minigate.conftest import until
from tests.minigate.gates import Server, address
from tests.minigate.tunnel import TunnelGate, enrol
from tunnel_proto.identity import Identity


def _configure(folder: Path, *lines: str, port: int) -> Path:
    path = folder / "minigate.toml"
    path.write_text(
        "\n".join(
            [
                f'state_dir = "{folder}"',
                *lines,
                "[listen]",
                'hosts = ["127.0.0.1"]',
                f"port = {port}",
                "[metrics]",
                "enabled = false",
            ]
        )
    )
    return path


@asynccontextmanager
async def _running(config: Path, port: int) -> AsyncIterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "minigate", "--config", config], stderr=subprocess.PIPE, text=True
    )
    try:
        await until(lambda: _accepts(port) or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


async def _come(connection: psycopg.AsyncConnection) -> bytes:
    """What comes on an idle connection next, and is left there for libpq."""
    with socket.socket(fileno=os.dup(connection.fileno())) as beside:
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(beside, come.set)
        try:
            await asyncio.wait_for(come.wait(), 60)
        finally:
            loop.remove_reader(beside)
        return beside.recv(4096, socket.MSG_PEEK)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_offer_install_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["offer", "--name", "laptop", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "offer.json") in said
    assert "meshctl sidecar enroll offer.json" in said
    enrol(tmp_path, Identity.generate(), [address("hq")])
    assert main(["install", str(tmp_path / "from-the-gate.json"), "--dir", str(tmp_path)]) == 0
    assert "enrolled as laptop; gates: hq at 10.0.0.1:7443" in capsys.readouterr().out
    assert main(["--config", str(tmp_path / "minigate.toml"), "--check-config"]) == 0
    assert "fingerprint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "minigate.toml").write_text("prot = 1"), 'unknown key "prot"'),
        (lambda folder: (folder / "minigate.toml").unlink(), "no such file"),
        (lambda folder: (folder / "node.key").chmod(0o640), "mode 0640"),
        (lambda folder: (folder / "bundle.json").unlink(), "not enrolled"),
        (lambda folder: (folder / "bundle.json").write_text("{}"), "no bundle"),
    ],
)
def test_files_that_cannot_be_used_exit_78_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, problem: str
) -> None:
    enrol(tmp_path, Identity.generate(), [address("hq")])
    assert callable(spoil)
    spoil(tmp_path)
    assert main(["--config", str(tmp_path / "minigate.toml"), "--check-config"]) == 78
    error = capsys.readouterr().err
    assert problem in error
    assert "minigate: next: " in error


def test_a_wrong_command_line_exits_2() -> None:
    with pytest.raises(SystemExit) as info:
        main(["--nonsense"])
    assert info.value.code == 2


def test_a_taken_port_exits_69_and_names_the_next_step(tmp_path: Path) -> None:
    enrol(tmp_path, Identity.generate(), [address("hq", "127.0.0.1", free_port())])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "minigate", "--config", _configure(tmp_path, port=port)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert result.returncode == 69
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "next: find who holds it: ss -ltnp" in result.stderr
    assert "Traceback" not in result.stderr


async def test_sigterm_drains_sighup_reloads(tmp_path: Path, postgres: Cluster) -> None:
    pool = Identity.generate()
    gate = TunnelGate(pool, "hq", tmp_path / "marks", Server("127.0.0.1", postgres.port))
    await gate.start()
    enrol(tmp_path, pool, [gate.address])
    port = free_port()
    config = _configure(tmp_path, "drain_s = 20", port=port)
    dsn = f"host=127.0.0.1 port={port} user={postgres.user} password={postgres.password} dbname=postgres"
    try:
        async with _running(config, port) as process:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                await connection.execute("SELECT 1")
                config.write_text(config.read_text().replace("drain_s = 20", "drain_s = 'soon'"))
                process.send_signal(signal.SIGHUP)  # refused: it goes on as before
                await connection.execute("SELECT 2")
                process.send_signal(signal.SIGTERM)
                # Of what came, libpq may tell the connection's end alone: look at it before it does.
                assert b"C57P01\0" in await _come(connection)
                with pytest.raises(psycopg.OperationalError):
                    await connection.execute("SELECT 3")
            code = await asyncio.to_thread(process.wait, 20)
            assert code == 0
            assert process.stderr is not None
            log = process.stderr.read()
        assert "reload refused" in log
        assert '"message": "stopped"' in log
        assert "Traceback" not in log
    finally:
        await gate.close()


async def test_a_second_sigterm_stops_at_once(tmp_path: Path, postgres: Cluster) -> None:
    pool = Identity.generate()
    gate = TunnelGate(pool, "hq", tmp_path / "marks", Server("127.0.0.1", postgres.port))
    await gate.start()
    enrol(tmp_path, pool, [gate.address])
    port = free_port()
    dsn = f"host=127.0.0.1 port={port} user={postgres.user} password={postgres.password} dbname=postgres"
    try:
        async with _running(_configure(tmp_path, "drain_s = 600", port=port), port) as process:
            connection = await psycopg.AsyncConnection.connect(dsn)
            await connection.execute("SELECT 1")  # inside a transaction: never idle
            process.send_signal(signal.SIGTERM)
            await until(lambda: not _accepts(port))
            await connection.execute("SELECT 2")  # still served
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
            with pytest.raises(psycopg.errors.AdminShutdown):
                await connection.execute("SELECT 3")
            await connection.close()
    finally:
        await gate.close()
