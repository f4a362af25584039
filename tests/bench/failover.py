"""How long an app waits when the home gate is gone: until a query is answered, and a token comes, elsewhere.

Two pools as processes, paired by the ceremony, a route of the same name at each; one sidecar at default
settings. Each run ends the home gate (SIGKILL), stops it (SIGSTOP), or lets nothing through to it any more
(a proxy that forwards no byte, as a link that drops every packet), and then connects, logs in and asks, again
and again. Between runs the sidecar is ordered home.

    python -m tests.bench.failover --runs 20
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

import psycopg

from tests.kit.background import on_loop, running_proxy
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair
from tests.kit.process import wait_until
from tests.kit.proxy import Proxy

TEXT = "The tunnel carries rows. The gate keeps the keys. The sidecar listens on localhost. " * 4
WITHIN_S = 30.0


@dataclass(frozen=True)
class Stage:
    """Two pools, and how an app comes in."""

    hq: Mesh
    gpu: Mesh
    wire: Proxy
    login: Login
    key: str


@contextmanager
def stage() -> Iterator[Stage]:
    """Pools hq (behind a proxy) and gpu, an app with a database and a key for models."""
    with Cluster() as cluster, running_proxy() as wire:
        hq_dsn, gpu_dsn, shop = (cluster.create_owned(name) for name in ("hq", "gpu", "shop"))
        home = Mesh(store_dsn=hq_dsn, advertise=f"127.0.0.1:{wire.port}")
        with home as hq, Mesh(store_dsn=gpu_dsn) as gpu:
            wire.target = ("127.0.0.1", hq.gate.port)
            for mesh, name in ((hq, "hq"), (gpu, "gpu")):
                name_pool(mesh, name)
                mesh.add_database("shop", shop)
            pair(hq, gpu)
            app = {"name": "web", "databases": ["shop"], "policy": {"models": ["*"]}}
            reply = hq.control.post("/apps", app)
            login = Login("127.0.0.1", hq.sidecar.port, "web", str(reply["password"]), "shop")
            wait_until(
                lambda: "hq/web" in gpu.control.get("/failover")["guest_apps"], timeout_s=60, what="the guest"
            )
            yield Stage(hq, gpu, wire, login, str(reply["api_key"]))


def answered_by(login: Login) -> str:
    """The application_name that the database sees."""
    with psycopg.connect(login.url(), connect_timeout=30) as connection:
        row = connection.execute("SELECT current_setting('application_name')").fetchone()
    return str(row[0]) if row else ""


def first_token(stage: Stage) -> str:
    """Ask for a summary as a stream; the first piece of text."""
    body = {
        "model": "qg://task=summarize",
        "stream": True,
        "messages": [{"role": "user", "content": TEXT}],
    }
    connection = HTTPConnection("127.0.0.1", stage.login.port, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {stage.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise OSError(f"HTTP {reply.status}")
        while line := reply.readline():
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if piece:
                    return str(piece)
        raise OSError("the stream ended without a token")
    finally:
        connection.close()


def until_works(ask: Callable[[], str]) -> float:
    """Seconds until ``ask`` succeeds."""
    began = time.monotonic()
    while True:
        try:
            ask()
        except (psycopg.Error, OSError, HTTPException):
            if time.monotonic() - began > WITHIN_S:
                raise
            time.sleep(0.02)
            continue
        return time.monotonic() - began


def go_home(stage: Stage) -> None:
    """Order the sidecar home and wait until it is there."""

    def home() -> bool:
        try:
            return answered_by(stage.login) == "web@app-host"
        except psycopg.Error:
            return False

    wait_until(
        lambda: any(row["node"] == "app-host" for row in stage.hq.control.get("/failover")["nodes"]),
        timeout_s=60,
        what="the tunnel home",
    )
    stage.hq.control.post("/failover/orders", {"verb": "back"})
    wait_until(home, timeout_s=60, what="the sidecar at home", every_s=0.1)


@contextmanager
def killed(stage: Stage) -> Iterator[None]:
    stage.hq.gate.kill()
    yield
    stage.hq.gate.start()


@contextmanager
def stopped(stage: Stage) -> Iterator[None]:
    os.kill(stage.hq.gate.pid, signal.SIGSTOP)
    yield
    os.kill(stage.hq.gate.pid, signal.SIGCONT)


@contextmanager
def silent(stage: Stage) -> Iterator[None]:
    on_loop(stage.wire, stage.wire.stall)
    yield
    on_loop(stage.wire, stage.wire.resume)
    on_loop(stage.wire, stage.wire.cut)


FAULTS = {"SIGKILL": killed, "SIGSTOP": stopped, "nothing passes": silent}


def main() -> int:
    """Print a row a fault: median and maximum, for a query and for a token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=-1, help="runs that ask for a token, else as many")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; repeatable")
    options = parser.parse_args()
    tokens = options.runs if options.tokens < 0 else options.tokens
    print("| home gate | runs | query, median | query, maximum | token, median | token, maximum |")
    print("|---|---|---|---|---|---|", flush=True)
    with stage() as pools:
        asks = {"query": lambda: answered_by(pools.login), "token": lambda: first_token(pools)}
        go_home(pools)
        for name in options.fault or FAULTS:
            fault = FAULTS[name]
            took: dict[str, list[float]] = {"query": [], "token": []}
            for what, runs in (("query", options.runs), ("token", tokens)):
                for number in range(runs):
                    time.sleep(0.07 * (number % 13))  # anywhere between two signs of life
                    with fault(pools):
                        took[what].append(until_works(asks[what]))
                    go_home(pools)
            cells = [
                f"{statistics.median(one):.2f} s | {max(one):.2f} s" if one else "- | -"
                for one in (took["query"], took["token"])
            ]
            print(f"| {name} | {options.runs} | {cells[0]} | {cells[1]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
