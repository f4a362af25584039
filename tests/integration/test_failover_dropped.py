"""A home whose packets vanish: real links, a route that loses every answer, nobody told. Needs root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from tests.integration.test_failover import AIM_S, until_answered
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair
from tests.kit.process import wait_until
from tests.kit.veth import Spokes

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture
def links() -> Iterator[Spokes]:
    with Spokes("hq", "gpu") as spokes:
        yield spokes


@pytest.fixture
def pools(links: Spokes) -> Iterator[tuple[Mesh, Mesh, Login]]:
    """hq and gpu, each on a link of its own to the namespace where the sidecar runs."""
    with Cluster() as cluster:
        shop = cluster.create_owned("shop")
        home = Mesh(
            store_dsn=cluster.create_owned("hq"), listen_host=links.here("hq"), sidecar_command=links.command
        )
        home.sidecar_settings = {"listen": {"unix_socket": str(home.root)}}
        next_one = Mesh(store_dsn=cluster.create_owned("gpu"), listen_host=links.here("gpu"))
        with home as hq, next_one as gpu:
            for mesh, name in ((hq, "hq"), (gpu, "gpu")):
                name_pool(mesh, name)
                mesh.add_database("shop", shop)
            pair(hq, gpu)
            login = replace(hq.add_app("web", "shop"), host=str(hq.root))
            wait_until(
                lambda: "hq/web" in gpu.control.get("/failover")["guest_apps"], timeout_s=60, what="the guest"
            )
            wait_until(
                lambda: any(row["serial"] for row in hq.control.get("/failover")["nodes"]),
                timeout_s=60,
                what="the roster at the sidecar",
            )
            yield hq, gpu, login


def test_a_home_whose_packets_vanish_is_left_within_three_seconds(
    pools: tuple[Mesh, Mesh, Login], links: Spokes
) -> None:
    hq, _, login = pools
    _, name = until_answered(login)
    assert name == "web@app-host"
    with psycopg.connect(**login.keywords(), autocommit=True) as before:  # type: ignore[arg-type]
        before.execute("SELECT 1")
        links.drop("hq")
        took, name = until_answered(login)
        assert name == "hq/web@hq/app-host"
        assert took < AIM_S
        links.heal("hq")
        # Within the resume window: it goes on where it is.
        row = before.execute("SELECT current_setting('application_name')").fetchone()
        assert row == ("web@app-host",)
    began = time.monotonic()
    wait_until(
        lambda: until_answered(login)[1] == "web@app-host", timeout_s=90, what="the return", every_s=0.5
    )
    assert 25 < time.monotonic() - began < 65
    assert hq.control.items("/failover/history")[0]["rule"] == "return"
