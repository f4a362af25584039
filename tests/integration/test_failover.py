"""A home pool that dies, and its sidecar that goes on at the next one with the same credentials."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair, wait_guests
from tests.kit.process import wait_until

AIM_S = 3.0
"""From the end of the home gate to the next successful query, at default settings."""


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stores() -> Iterator[Cluster]:
    with Cluster() as cluster:
        for name in ("hq", "gpu"):
            cluster.create_role(name, password=f"{name}-secret")
            cluster.create_database(name, owner=name)
        yield cluster


def store_dsn(stores: Cluster, name: str) -> str:
    return stores.dsn(name, user=name, password=f"{name}-secret")


@pytest.fixture(scope="module")
def pools(stores: Cluster, database: Cluster) -> Iterator[tuple[Mesh, Mesh]]:
    """hq with a sidecar, and gpu: paired at level 2, each with a route to the same database."""
    with Mesh(store_dsn=store_dsn(stores, "hq")) as hq, Mesh(store_dsn=store_dsn(stores, "gpu")) as gpu:
        password = database.create_role("owner")
        database.create_database("shop", owner="owner")
        for mesh, name in ((hq, "hq"), (gpu, "gpu")):
            name_pool(mesh, name)
            mesh.add_database("shop", database.dsn("shop", user="owner", password=password))
        pair(hq, gpu)
        yield hq, gpu


@pytest.fixture(scope="module")
def login(pools: tuple[Mesh, Mesh]) -> Login:
    hq, gpu = pools
    made = hq.add_app("web", "shop")
    wait_guests(gpu, "hq")
    wait_until(
        lambda: bool(targets(hq)) and targets(hq)[0]["serial"] > 0,
        timeout_s=20,
        what="the roster at the sidecar",
    )
    return made


def targets(mesh: Mesh) -> list[dict[str, Any]]:
    return list(mesh.control.get("/failover")["nodes"])


def query(login: Login) -> tuple[Any, ...] | None:
    with psycopg.connect(login.url(), connect_timeout=10) as connection:
        return connection.execute("SELECT current_setting('application_name')").fetchone()


def until_answered(login: Login, *, within_s: float = 20.0) -> tuple[float, str]:
    """Connect again and again; the seconds until a query was answered, and who answered."""
    began = time.monotonic()
    while True:
        try:
            found = query(login)
        except psycopg.OperationalError:
            if time.monotonic() - began > within_s:
                raise
            time.sleep(0.05)
            continue
        assert found is not None
        return time.monotonic() - began, str(found[0])


def wait_home(hq: Mesh, login: Login) -> None:
    """Wait until the sidecar is back at home."""
    wait_until(
        lambda: query(login) == ("web@app-host",), timeout_s=90, what="the sidecar at home", every_s=0.5
    )


def test_a_killed_home_is_left_within_three_seconds_and_returned_to(
    pools: tuple[Mesh, Mesh], login: Login
) -> None:
    hq, gpu = pools
    assert query(login) == ("web@app-host",)
    with psycopg.connect(login.url(), autocommit=True) as idle, psycopg.connect(login.url()) as busy:
        idle.execute("SELECT 1")
        busy.execute("CREATE TABLE IF NOT EXISTS t (n int)")
        hq.gate.kill()
        took, name = until_answered(login)
        assert name == "hq/web@hq/app-host"
        assert took < AIM_S
        hq.gate.start()
        returned = time.monotonic()
        wait_home(hq, login)
        assert time.monotonic() - returned < 75
        for connection in (idle, busy):
            with pytest.raises(psycopg.OperationalError) as caught:
                connection.execute("SELECT 1")
            assert caught.value.sqlstate in {"57P01", "08007"}
    rules = [row["rule"] for row in gpu.control.items("/failover/history")]
    assert rules[:2] == ["return", "emergency"]
    assert [row["rule"] for row in hq.control.items("/failover/history")][:1] == ["return"]


def test_a_stopped_home_is_left_within_three_seconds(pools: tuple[Mesh, Mesh], login: Login) -> None:
    hq, _ = pools
    wait_home(hq, login)
    os.kill(hq.gate.pid, signal.SIGSTOP)
    try:
        took, name = until_answered(login)
    finally:
        os.kill(hq.gate.pid, signal.SIGCONT)
    assert name == "hq/web@hq/app-host"
    assert took < AIM_S
