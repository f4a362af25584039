"""A whole minigate, a real tunnel, real drivers and a real PostgreSQL; only the gate's policy is left out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from minigate.enrolment import load_enrolment
from minigate.sidecar import Sidecar, check_config
from tests.kit.cluster import Cluster
from tests.minigate.conftest import KeyPair, until
from tests.minigate.gates import Server
from tests.minigate.tunnel import Mesh, TunnelGate, enrol, mesh
from tunnel_proto.errors import ConfigError
from tunnel_proto.node_directory import BUNDLE_FILE, MARK_FILE


def _dsn(one: Mesh, postgres: Cluster, *options: str) -> str:
    return " ".join(
        [
            f"host=127.0.0.1 port={one.port} user={postgres.user} password={postgres.password}",
            "dbname=postgres connect_timeout=10",
            *options,
        ]
    )


@pytest.fixture
def upstream(postgres: Cluster) -> Server:
    return Server("127.0.0.1", postgres.port)


async def _get(port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def test_a_query_through_the_tunnel(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            cursor = await connection.execute("SELECT repeat('x', 5000000)")
            row = await cursor.fetchone()
            assert row is not None
            assert len(row[0]) == 5_000_000
        await until(lambda: not one.sidecar.connections.live)


async def test_a_cut_link_is_not_felt(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        proxy = one.gates[0].proxy
        assert proxy is not None
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            digest = hashlib.sha256()
            size = cuts = 0
            async with connection.cursor().copy(
                "COPY (SELECT n, md5(n::text) FROM generate_series(1, 300000) n) TO STDOUT"
            ) as copy:
                while data := await copy.read():
                    digest.update(data)
                    size += len(data)
                    if size > 2_000_000 * (cuts + 1):
                        proxy.cut()
                        cuts += 1
            expected = b"".join(
                b"%d\t%s\n" % (n, hashlib.md5(b"%d" % n).hexdigest().encode()) for n in range(1, 300001)
            )
            assert digest.digest() == hashlib.sha256(expected).digest()
        totals = one.sidecar.uplink.ledger.totals(one.sidecar.uplink.clients())
        assert totals["resumes"] >= 1


async def test_cancel_through_the_tunnel(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            sleeping = asyncio.create_task(connection.execute("SELECT pg_sleep(60), 'tunnel'"))
            active = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                " AND query LIKE '%''tunnel''%' AND pid <> pg_backend_pid()"
            )
            await until(lambda: bool(postgres.scalar(active)))
            await connection.cancel_safe(timeout=5)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await sleeping
        assert len(one.gates[0].cancels) == 1


# --- gates that are not there


@asynccontextmanager
async def _again(state_dir: Path, before: Mesh) -> AsyncIterator[Mesh]:
    """The same minigate, started again where its gates are gone."""
    sidecar = Sidecar(before.settings, load_enrolment(state_dir, now=time.time()))
    await sidecar.start()
    try:
        yield Mesh(sidecar, [], before.settings, before.pool)
    finally:
        await sidecar.close()


async def test_a_gate_that_was_never_reached_is_named(tmp_path: Path, postgres: Cluster) -> None:
    async with mesh(tmp_path, patience_s=0.2) as one:
        await one.gates[0].close()
    async with _again(tmp_path, one) as again:
        with pytest.raises(
            psycopg.OperationalError, match=r"gate hq at 127\.0\.0\.1:\d+: connection refused"
        ) as info:
            await psycopg.AsyncConnection.connect(_dsn(again, postgres))
        assert "no gate is reachable" in str(info.value)
        status, body = await _get(again.sidecar.monitor.port, "/readyz")
        assert status == 503
        assert b"connection refused" in body


async def test_a_session_that_cannot_be_resumed_ends_with_08006_and_the_next_works(
    tmp_path: Path, postgres: Cluster, upstream: Server
) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        gate = one.gates[0]
        connection = await psycopg.AsyncConnection.connect(_dsn(one, postgres))
        await connection.execute("SELECT 1")
        assert gate.server is not None
        # A gate that is killed says nothing: cut first, so that its last words are not heard.
        assert gate.proxy is not None
        gate.proxy.accepting = False
        gate.proxy.cut()
        await gate.stop()
        await gate.start()
        gate.proxy.accepting = True
        with pytest.raises(psycopg.errors.ConnectionFailure, match="lost and could not be resumed"):
            await connection.execute("SELECT 2")
        await connection.close()
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as again:
            await again.execute("SELECT 3")


async def test_the_second_gate_takes_over(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    async with mesh(tmp_path, names=("hq", "spare"), upstream=upstream) as one:
        await until(lambda: one.sidecar.uplink.available() is not None)
        await one.gates[0].close()
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            await connection.execute("SELECT 1")
        assert len(one.gates[1].streams) == 1


async def test_a_rolling_upgrade_breaks_nothing(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    """The first gate drains while it has a session: that goes on, new ones go to the second."""
    async with mesh(tmp_path, names=("hq", "spare"), upstream=upstream) as one:
        hq, spare = one.gates
        assert hq.server is not None
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres), autocommit=True) as old:
            await old.execute("SELECT 1")
            draining = asyncio.create_task(hq.server.drain(20))
            for _ in range(20):
                async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as new:
                    await new.execute("SELECT 2")
                await old.execute("SELECT 3")
            await until(lambda: bool(spare.streams))
            sleeping = asyncio.create_task(old.execute("SELECT pg_sleep(60), 'drain'"))
            active = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                " AND query LIKE '%''drain''%' AND pid <> pg_backend_pid()"
            )
            await until(lambda: bool(postgres.scalar(active)))
            await old.cancel_safe(timeout=5)  # a draining gate still takes cancels
            with pytest.raises(psycopg.errors.QueryCanceled):
                await sleeping
        await asyncio.wait_for(draining, 60)


async def test_apps_that_log_in_while_a_gate_drains_see_no_error(
    tmp_path: Path, postgres: Cluster, upstream: Server
) -> None:
    async with mesh(tmp_path, names=("hq", "spare"), upstream=upstream) as one:
        hq, spare = one.gates
        assert hq.server is not None
        server = hq.server

        async def come_and_go(rounds: int) -> None:
            for _ in range(rounds):
                async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
                    await connection.execute("SELECT 1")

        async def drain_meanwhile() -> None:
            await until(lambda: len(hq.streams) >= 20)
            await server.drain(20)

        await asyncio.gather(drain_meanwhile(), *(come_and_go(10) for _ in range(8)))
        assert len(spare.streams) > 0
        assert one.sidecar.connections.counts.errors == {}


# --- drain, reload, monitor


async def test_drain_tells_idle_apps_and_waits_for_busy_ones(
    tmp_path: Path, postgres: Cluster, upstream: Server
) -> None:
    async with (
        mesh(tmp_path, upstream=upstream) as one,
        await psycopg.AsyncConnection.connect(postgres.dsn(), autocommit=True) as holding,
    ):
        port = one.port
        idle = await psycopg.AsyncConnection.connect(_dsn(one, postgres), autocommit=True)
        busy = await psycopg.AsyncConnection.connect(_dsn(one, postgres), autocommit=True)
        await idle.execute("SELECT 1")
        await holding.execute("SELECT pg_advisory_lock(1)")
        working = asyncio.create_task(busy.execute("SELECT pg_advisory_lock(1), 42"))
        await until(lambda: sum(app.idle for app in one.sidecar.connections.live) == 1)
        draining = asyncio.create_task(one.sidecar.drain())
        await until(lambda: sum(bool(app.stream) for app in one.sidecar.connections.live) == 1)
        await holding.execute("SELECT pg_advisory_unlock(1)")
        row = await (await working).fetchone()
        assert row is not None
        assert row[1] == 42
        await until(lambda: not any(app.stream for app in one.sidecar.connections.live))
        for connection in (idle, busy):
            with pytest.raises(psycopg.errors.AdminShutdown):
                await connection.execute("SELECT 1")
            await connection.close()
        await draining
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)


async def test_reload_follows_a_new_bundle(tmp_path: Path, postgres: Cluster, upstream: Server) -> None:
    async with (
        mesh(tmp_path, upstream=upstream) as one,
        await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as old,
    ):
        await old.execute("SELECT 1")
        other = TunnelGate(one.pool, "new", tmp_path / "new.marks", upstream)
        await other.start()
        one.gates.append(other)
        enrol(tmp_path, one.pool, [other.address])
        await one.sidecar.reload(one.settings)
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as new:
            await new.execute("SELECT 2")
            assert len(other.streams) == 1
        await old.execute("SELECT 3")


async def test_reload_refuses_what_it_cannot_use_and_goes_on(
    tmp_path: Path, postgres: Cluster, upstream: Server, key_pair: KeyPair
) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        bad = replace(
            one.settings,
            listen=replace(one.settings.listen, tls_cert=key_pair.key, tls_key=key_pair.key),
        )
        with pytest.raises(ConfigError, match="TLS certificate"):
            await one.sidecar.reload(bad)
        (tmp_path / BUNDLE_FILE).write_text("{")
        with pytest.raises(ConfigError, match="not JSON"):
            await one.sidecar.reload(one.settings)
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            await connection.execute("SELECT 1")


async def test_reload_brings_tls(
    tmp_path: Path, postgres: Cluster, upstream: Server, key_pair: KeyPair
) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        listen = replace(one.settings.listen, tls_cert=key_pair.certificate, tls_key=key_pair.key)
        await one.sidecar.reload(replace(one.settings, listen=listen))
        dsn = _dsn(one, postgres, "sslmode=require channel_binding=disable")
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            assert connection.pgconn.ssl_in_use


async def test_the_monitor_shows_links_and_counts(
    tmp_path: Path, postgres: Cluster, upstream: Server
) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        port = one.sidecar.monitor.port
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            await connection.execute("SELECT 1")
            assert (await _get(port, "/readyz"))[0] == 200
            assert (await _get(port, "/healthz"))[0] == 200
            status = json.loads((await _get(port, "/status"))[1])
            assert status["listening"] == [f"127.0.0.1:{one.port}"]
            assert status["links"][0]["state"] == "up"
            assert status["links"][0]["streams"] == 1
            assert status["totals"]["bytes_app_in"] > 0
            metrics = (await _get(port, "/metrics"))[1].decode()
        for line in (
            'minigate_connections{phase="live"} 1.0',
            'minigate_gate_state{gate="hq",state="up"} 1.0',
            'minigate_recognised_total{protocol="postgresql"} 1.0',
            "minigate_wire_out_bytes_total",
            'minigate_gate_rtt_seconds{gate="hq"}',
        ):
            assert line in metrics, line


async def test_a_clock_that_steps_back_does_not_lock_us_out(
    tmp_path: Path, postgres: Cluster, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh(tmp_path, upstream=upstream) as one:
        await until(lambda: one.sidecar.uplink.available() is not None)
        mark = int((tmp_path / MARK_FILE).read_bytes())
        assert abs(mark - time.time_ns()) < 60 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: 10**9)
        assert one.gates[0].proxy is not None
        one.gates[0].proxy.cut()
        await until(lambda: one.gates[0].proxy is not None and one.gates[0].proxy.connections >= 2)
        async with await psycopg.AsyncConnection.connect(_dsn(one, postgres)) as connection:
            await connection.execute("SELECT 1")
        assert int((tmp_path / MARK_FILE).read_bytes()) > mark


async def test_check_config_reads_everything(tmp_path: Path) -> None:
    async with mesh(tmp_path) as one:
        lines = check_config(tmp_path / "minigate.toml", one.settings)
        assert any("hq at 127.0.0.1" in line for line in lines)
        (tmp_path / "node.key").chmod(0o644)
        with pytest.raises(ConfigError, match="mode 0644") as info:
            check_config(tmp_path / "minigate.toml", one.settings)
        assert info.value.hint.startswith("chmod 600")
        (tmp_path / "node.key").chmod(0o600)


async def test_a_certificate_near_its_end_is_logged_at_start_and_at_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def due(not_before: int, not_after: int, now: float) -> bool:
        asked.append((not_before, not_after))
        return not_before < now < not_after

    monkeypatch.setattr("tunnel_proto.expiry.nears_expiry", due)
    with capture_logs() as said:
        async with mesh(tmp_path) as one:
            await one.sidecar.reload(one.settings)
    soon = [line for line in said if line["event"] == "this node's certificate expires soon"]
    assert len(soon) == len(asked) == 2
    assert soon[0]["log_level"] == "warning"
    assert "meshctl sidecar enroll" in soon[0]["next"]
