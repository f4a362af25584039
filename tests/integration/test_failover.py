"""A home pool that dies, and its sidecar that goes on at the next one with the same credentials."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest

from meshctl.errors import GateError
from tests.kit.background import on_loop, running_proxy
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair, wait_guests
from tests.kit.process import wait_until
from tests.kit.proxy import Proxy

pytestmark = pytest.mark.timeout(400)

AIM_S = 3.0
"""From the end of the home gate to the next successful query, at default settings."""


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stores() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def wire() -> Iterator[Proxy]:
    """What stands between the sidecar and the home gate."""
    with running_proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def pools(stores: Cluster, database: Cluster, wire: Proxy) -> Iterator[tuple[Mesh, Mesh]]:
    """hq with a sidecar and a worker, and gpu: paired at level 2, each with a route to the same database."""
    home = Mesh(store_dsn=stores.create_owned("hq"), advertise=f"127.0.0.1:{wire.port}")
    with home as hq, Mesh(store_dsn=stores.create_owned("gpu")) as gpu:
        wire.target = ("127.0.0.1", hq.gate.port)
        hq.wait_linked()
        password = database.create_role("owner")
        database.create_database("shop", owner="owner")
        for mesh, name in ((hq, "hq"), (gpu, "gpu")):
            name_pool(mesh, name)
            mesh.add_database("shop", database.dsn("shop", user="owner", password=password))
        pair(hq, gpu)
        hq.add_daemon("box").start()
        yield hq, gpu


@pytest.fixture(scope="module")
def login(pools: tuple[Mesh, Mesh]) -> Login:
    hq, gpu = pools
    made = hq.add_app("web", "shop")
    wait_guests(gpu, "hq")
    wait_until(
        lambda: bool(targets(hq)) and targets(hq)[0]["serial"] > 0,
        timeout_s=60,
        what="the roster at the sidecar",
    )
    return made


def targets(mesh: Mesh) -> list[dict[str, Any]]:
    return list(mesh.control.get("/failover")["nodes"])


def guests(mesh: Mesh) -> set[str]:
    """Names of hq's apps that may come to a pool."""
    return {name.removeprefix("hq/") for name in mesh.control.get("/failover")["guest_apps"]}


def opens(login: Login) -> bool:
    try:
        return query(login) is not None
    except psycopg.OperationalError:
        return False


def models(port: int, key: str) -> int:
    """The status of a list of models asked for with a key."""
    request = Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code


def query(login: Login) -> tuple[Any, ...] | None:
    with psycopg.connect(**login.keywords(), connect_timeout=10) as connection:  # type: ignore[arg-type]
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


def wait_home(login: Login, *, timeout_s: float = 60.0) -> None:
    """Wait until the sidecar is back at home."""
    wait_until(
        lambda: query(login) == ("web@app-host",),
        timeout_s=timeout_s,
        what="the sidecar at home",
        every_s=0.2,
    )


def go_home(hq: Mesh, login: Login) -> None:
    """Order everybody home: by themselves they would not, for five minutes, as often as home fails here."""
    wait_until(
        lambda: {"app-host", "box"} <= {row["node"] for row in targets(hq)}, timeout_s=30, what="tunnels home"
    )
    hq.control.post("/failover/orders", {"verb": "back"})
    wait_home(login)


@pytest.mark.slow
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
        wait_home(login, timeout_s=90)
        assert 25 < time.monotonic() - returned < 65
        for connection in (idle, busy):
            with pytest.raises(psycopg.OperationalError) as caught:
                connection.execute("SELECT 1")
            assert caught.value.sqlstate in {"57P01", "08007"}
    for mesh in (gpu, hq):
        moves = mesh.control.items("/failover/history", {"node": "app-host"})
        assert [row["rule"] for row in moves[:2]] == ["return", "emergency"], "both pools hear of both"


def test_a_stopped_home_is_left_within_three_seconds(pools: tuple[Mesh, Mesh], login: Login) -> None:
    hq, _ = pools
    go_home(hq, login)
    os.kill(hq.gate.pid, signal.SIGSTOP)
    try:
        took, name = until_answered(login)
    finally:
        os.kill(hq.gate.pid, signal.SIGCONT)
    assert name == "hq/web@hq/app-host"
    assert took < AIM_S


def test_a_silent_line_is_left_within_three_seconds_and_the_session_there_goes_on(
    pools: tuple[Mesh, Mesh], login: Login, wire: Proxy
) -> None:
    hq, _ = pools
    go_home(hq, login)
    with psycopg.connect(login.url(), autocommit=True) as open_before:
        open_before.execute("SELECT 1")
        on_loop(wire, wire.stall)
        try:
            took, name = until_answered(login)
        finally:
            on_loop(wire, wire.resume)
        assert name == "hq/web@hq/app-host"
        assert took < AIM_S
        # Its tunnel is back within the window, so it goes on where it is; new connections are elsewhere.
        assert open_before.execute("SELECT current_setting('application_name')").fetchone() == (
            "web@app-host",
        )
        assert query(login) == ("hq/web@hq/app-host",)


def test_a_worker_serves_the_next_pool_meanwhile(pools: tuple[Mesh, Mesh], login: Login) -> None:
    hq, gpu = pools
    go_home(hq, login)
    hq.wait_worker("box")
    hq.gate.kill()
    try:
        gpu.wait_worker("hq/box")
        assert gpu.control.get("/workers/hq%2Fbox")["connected"]
    finally:
        hq.gate.start()
    go_home(hq, login)
    hq.wait_worker("box")
    wait_until(
        lambda: not any(row["connected"] for row in gpu.control.items("/workers")),
        timeout_s=60,
        what="the worker gone home",
    )


def test_manual_mode_waits_for_an_order_and_raises_an_incident(
    pools: tuple[Mesh, Mesh], login: Login
) -> None:
    hq, gpu = pools
    go_home(hq, login)
    planned = hq.control.put("/failover/mode", {"mode": "manual", "dry_run": True})
    assert (planned["was"], planned["targets"]) == ("auto", ["gpu"])
    hq.control.put("/failover/mode", {"mode": "manual"})
    wait_until(
        lambda: any(row["node"] == "app-host" and row["mode"] == "manual" for row in targets(gpu)),
        timeout_s=60,
        what="the standby tunnel",
    )
    hq.gate.kill()
    try:
        wait_until(
            lambda: {"target_dead", "peer_dead"} <= {row["kind"] for row in gpu.control.items("/incidents")},
            timeout_s=60,
            what="the incidents",
        )
        rows = gpu.control.items("/incidents")
        incident = next(row for row in rows if row["kind"] == "target_dead")
        assert incident["subject"] == "hq"
        evidence = gpu.control.get(f"/incidents/{incident['id']}")["evidence"]
        assert {one["node"] for one in evidence} <= {"app-host", "box"}
        with pytest.raises(psycopg.OperationalError):
            query(login)
        with pytest.raises(GateError, match="obey this pool only"):
            gpu.control.post("/failover/orders", {"pool": "gpu", "of": "hq", "verb": "reassign"})
        plan = gpu.control.post("/failover/orders", {"pool": "gpu", "of": "hq", "dry_run": True})
        assert "app-host" in plan["moving"]
        gpu.control.post("/failover/orders", {"pool": "gpu", "of": "hq"})
        _, name = until_answered(login)
        assert name == "hq/web@hq/app-host"
        gpu.control.post(f"/incidents/{incident['id']}/ack", {"note": "moved them"})
    finally:
        hq.gate.start()
    wait_until(
        lambda: any(row["node"] == "app-host" and row["target"] == "gpu" for row in targets(hq)),
        timeout_s=60,
        what="the sidecar's tunnel to its home",
    )
    assert query(login) == ("hq/web@hq/app-host",)
    go_home(hq, login)
    hq.control.put("/failover/mode", {"mode": "auto"})


def test_an_order_moves_one_node_and_its_sessions_are_told(pools: tuple[Mesh, Mesh], login: Login) -> None:
    hq, _ = pools
    go_home(hq, login)
    with psycopg.connect(login.url(), autocommit=True) as idle:
        idle.execute("SELECT 1")
        hq.control.post("/failover/orders", {"pool": "gpu", "nodes": ["app-host"]})
        wait_until(
            lambda: query(login) == ("hq/web@hq/app-host",), timeout_s=60, what="the move", every_s=0.1
        )
        with pytest.raises(psycopg.OperationalError) as caught:
            idle.execute("SELECT 1")
        assert caught.value.sqlstate == "57P01"
    go_home(hq, login)
    with pytest.raises(GateError, match="no sidecar or worker nobody"):
        hq.control.post("/failover/orders", {"pool": "gpu", "nodes": ["nobody"]})
    with pytest.raises(GateError, match="no pool mars"):
        hq.control.post("/failover/orders", {"pool": "mars"})


def worker_rows(mesh: Mesh, name: str) -> list[dict[str, Any]]:
    return [row for row in mesh.control.items("/workers") if row["name"] == name]


def list_workers(mesh: Mesh) -> str:
    """What `meshctl worker list` prints."""
    command = [
        sys.executable,
        "-m",
        "meshctl",
        "worker",
        "list",
        "--socket",
        str(mesh.gate.directory / "admin.sock"),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_worker_that_was_ordered_elsewhere_is_said_to_be_there(
    pools: tuple[Mesh, Mesh], login: Login
) -> None:
    hq, gpu = pools
    go_home(hq, login)
    hq.wait_worker("box")
    hq.control.post("/failover/orders", {"pool": "gpu", "nodes": ["box"]})
    gpu.wait_worker("hq/box")

    def check() -> None:
        wait_until(
            lambda: [row["state"] for row in worker_rows(hq, "box")] == ["at gpu"],
            timeout_s=60,
            what="the worker to be said to be at gpu",
        )
        (row,) = worker_rows(hq, "box")
        assert (row["at"], row["connected"]) == ("gpu", False)
        assert hq.control.get("/workers/box")["state"] == "at gpu"
        assert "at gpu" in list_workers(hq)
        wait_until(
            lambda: hq.control.get("/overview")["workers"]["elsewhere"] == 1,
            timeout_s=60,
            what="the overview",
        )
        workers = hq.control.get("/overview")["workers"]
        assert (workers["total"], workers["serving"], workers["away"]) == (1, 0, 0)
        assert [one for one in hq.control.get("/topology")["nodes"] if one["label"] == "box"] == []
        (row,) = [one for one in hq.control.items("/cluster/workers") if one["name"] == "box"]
        assert row["state"] == "at gpu"

    check()
    hq.gate.kill()  # one that begins anew has never seen it
    hq.gate.start()
    check()
    go_home(hq, login)
    hq.wait_worker("box")
    (row,) = worker_rows(hq, "box")
    assert (row["state"], row["at"]) == ("present", None)
    assert hq.control.get("/overview")["workers"]["elsewhere"] == 0


def test_only_apps_that_may_come_and_keys_that_were_made_here_open_the_next_pool(
    pools: tuple[Mesh, Mesh], login: Login
) -> None:
    hq, gpu = pools
    go_home(hq, login)
    key = hq.add_models_app("models", "shop")
    stays = hq.add_app("stays", "shop", failover=False)
    gone = hq.add_app("gone", "shop")
    rotated = hq.add_app("rotated", "shop")
    fresh = replace(rotated, password=hq.control.post("/apps/rotated/rotate", {})["password"])
    hq.control.delete("/apps/gone")
    names = {"web", "models", "rotated"}
    wait_until(lambda: guests(gpu) == names, timeout_s=60, what="the guests at gpu")
    hq.control.post("/failover/orders", {"pool": "gpu"})
    wait_until(lambda: query(login) == ("hq/web@hq/app-host",), timeout_s=60, what="the move", every_s=0.1)
    try:
        for good in (rotated, fresh):
            wait_until(partial(opens, good), timeout_s=60, what="both passwords to be known here")
            assert query(good) == ("hq/rotated@hq/app-host",)
        for bad in (stays, gone, replace(login, password="wrong")):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                query(bad)
        assert models(hq.sidecar.port, key) == 200
        assert models(hq.sidecar.port, key[:-1] + ("A" if key[-1] != "A" else "B")) == 401
        gpu.control.put("/settings/failover.guest_databases", {"value": ""})
        wait_until(lambda: not opens(login), timeout_s=60, what="the database to be closed to guests")
        gpu.control.delete("/settings/failover.guest_databases")
        wait_until(lambda: opens(login), timeout_s=60, what="the database to be open again")
    finally:
        go_home(hq, login)


def test_a_peer_that_is_lowered_takes_nobody_in(pools: tuple[Mesh, Mesh], login: Login) -> None:
    hq, gpu = pools
    go_home(hq, login)
    hq.control.post("/failover/orders", {"pool": "gpu"})
    wait_until(lambda: query(login) == ("hq/web@hq/app-host",), timeout_s=60, what="the move", every_s=0.1)
    gpu.control.put("/pools/hq/trust", {"level": 1})
    took, name = until_answered(login)
    assert name == "web@app-host", "it went home by itself"
    assert took < AIM_S
    gpu.control.put("/pools/hq/trust", {"level": 2})
