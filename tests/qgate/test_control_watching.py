"""Overview, graph, live events and all pools: of real gates, over the control API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.capability.workers import WorkerView
from qgate.control.live import ROWS_MAX, ChangesTopic, DocumentTopic, Live, RowsTopic
from qgate.control.overview import SERIES_LEN, Series
from qgate.control.problems import ProblemError
from qgate.control.topology import Graph, History
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import Sidecar, control, gate_settings, make_directory, running, until
from tests.qgate.peering import know, pair, peer_of, pools


@pytest.fixture
async def gate(tmp_path: Path, store_dsn: str) -> AsyncIterator[Gate]:
    """A gate of its own."""
    settings = gate_settings(tmp_path, store_dsn, name="alpha")
    make_directory(tmp_path, settings)
    async with running(settings) as started:
        yield started


async def events(client: httpx.AsyncClient, topics: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async with client.stream("GET", "/live", params={"topics": topics}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in reply.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


async def test_the_overview_shows_what_is_there(gate: Gate) -> None:
    async with control(gate) as client:
        sidecar = Sidecar("edge")
        await sidecar.enrol(client)
        tunnel = sidecar.dial()
        await until(lambda: tunnel.state == "up")
        number = await gate.movement.journal.raise_incident("target_dead", "elsewhere", {"node": "edge"})
        await client.put("/budgets/pool/month", json={"hard": "10", "currency": "EUR"})
        shown = (await client.get("/overview")).json()
        assert shown["gate"]["name"] == "alpha"
        assert shown["sessions"]["connected"] == 1
        assert shown["incidents"] == {"open": 1, "acknowledged": 0}
        assert [row["id"] for row in shown["burn_down"]] == ["pool/month"]
        assert [row["name"] for row in shown["gates"]] == ["alpha"]
        assert {row["name"] for row in shown["certificates"]} == {"online.cert", "node.cert"}
        assert set(map(len, shown["series"].values())) == {SERIES_LEN}
        assert shown["store"] == ""
        graph = (await client.get("/topology")).json()
        nodes = {one["id"]: one for one in graph["nodes"]}
        assert nodes["minigate:edge"]["state"] == "ok"
        assert {"from": "minigate:edge", "to": "gate:alpha"}.items() <= graph["edges"][-1].items()
        await until(lambda: len(gate.governing.watching.topology.history) > 0)
        history = (await client.get("/topology/history?seconds=60")).json()
        assert history["items"][0]["nodes"][0]["kind"] == "pool"
        assert number
        await tunnel.close()


async def test_ten_thousand_workers_stay_a_picture(gate: Gate) -> None:
    views = gate.capabilities.workers.views
    views.update({f"w{number:05}": WorkerView(f"w{number:05}") for number in range(10_000)})
    views["w00007"].state = "away"
    topology = gate.governing.watching.topology
    began = time.thread_time()
    topology.frame(time.monotonic())
    assert time.thread_time() - began < 0.1  # 1 ms where nothing else runs
    async with control(gate) as client:
        nodes = (await client.get("/topology")).json()["nodes"]
        worker = next(one for one in nodes if one["kind"] == "worker")
        assert (worker["count"], worker["state"]) == (10_000, "away")
        page = (await client.get("/workers?limit=2&sort=-name&state=present")).json()
        assert (page["total"], [one["name"] for one in page["items"]]) == (9_999, ["w09999", "w09998"])
    views.clear()


async def test_what_changes_is_told_and_what_does_not_is_not(gate: Gate) -> None:
    async with control(gate) as client:
        told: list[tuple[str, dict[str, Any]]] = []

        async def listen() -> None:
            async for name, data in events(client, "changes,incidents,workers"):
                told.append((name, data))

        listening = asyncio.create_task(listen())
        await until(lambda: {name for name, _ in told} == {"changes", "incidents", "workers"})
        live = gate.governing.watching.live
        assert live.clients == 1
        assert not (await client.put("/settings/audit.retention_days", json={"value": 30})).is_error
        await until(lambda: ("changes", {"names": ["setting:audit.retention_days"], "all": False}) in told)
        assert not (await client.patch("/branding", json={"name": "Lyon"})).is_error
        await until(lambda: ("changes", {"names": ["branding:Lyon"], "all": False}) in told)
        assert [name for name, _ in told].count("incidents") == 1
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await until(lambda: live.clients == 0)
        reply = await client.get("/live?topics=overview,nothing")
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid")
        assert "overview" in reply.json()["next"]


async def test_all_pools_answer_and_absent_ones_are_named(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with (
        pools(tmp_path, store_server, "hq", "branch", "far") as (hq, branch, far),
        control(hq) as client,
    ):
        await pair(hq, branch)
        await know(hq, peer_of(far))  # it never paired back
        keys = branch.parts.keys.pool_key
        await until(lambda: hq.peering.links.up(keys))
        await branch.movement.journal.raise_incident("order_refused", "x", {"node": "secret-node"})
        began = time.monotonic()
        shown = (await client.get("/cluster/overview")).json()
        assert [row["pool"] for row in shown["items"]] == ["hq", "branch"]
        assert shown["items"][1]["incidents"]["open"] == 1
        assert "cost_today" not in shown["items"][1]
        assert [(one["pool"], one["code"]) for one in shown["missing"]] == [("far", "peer-away")]
        assert time.monotonic() - began < 6
        incidents = await client.get("/cluster/incidents?pool=branch")
        assert [row["subject"] for row in incidents.json()["items"]] == ["x"]
        assert "secret-node" not in incidents.text
        rows = (await client.get("/cluster/pools?sort=id")).json()["items"]
        assert [row["id"] for row in rows] == ["branch/hq", "hq/branch", "hq/far"]
        assert (await client.get("/cluster/replication?q=hq")).json()["total"] >= 2
        assert (await client.get("/cluster/workers")).json()["total"] == 0
        await know(branch, peer_of(hq, level=0))
        reply = (await client.get("/cluster/overview")).json()
        assert {one["pool"]: one["code"] for one in reply["missing"]}["branch"] == "peer-refused"


# --- the parts


def test_series_are_rates_of_counters_and_levels() -> None:
    series = Series(4)
    for second, count in enumerate((10, 10, 13, 12)):  # a counter that went back was begun anew
        series.sample((count, 0, 0, 0), (second, 0, 0, 0), float(second))
    assert series.shown()["requests_s"] == [0.0, 0.0, 3.0, 0.0]
    assert series.shown()["running"] == [0.0, 1.0, 2.0, 3.0]
    assert series.rate("requests_s", 2) == 1.5


def test_large_kinds_are_folded_and_frames_share_their_shape() -> None:
    def graph(at: float, states: dict[int, str]) -> Graph:
        made = Graph(at)
        gate = made.node("gate", "g", "ok")
        for number in range(1000):
            state = states.get(number, "ok")
            made.edge(gate, made.node("worker", f"w{number}", state), "tunnel", state, 2.0)
        return made

    folded = graph(1.0, {7: "away", 8: "draining"}).collapsed(50)
    assert [one["label"] for one in folded.nodes.values()] == ["g", "1000 workers"]
    worker = folded.nodes["worker:*"]
    assert (worker["state"], worker["detail"]["states"]) == ("away", {"ok": 998, "away": 1, "draining": 1})
    assert [edge["rate"] for edge in folded.edges.values()] == [2000.0]
    history = History(3)
    for at in range(5):
        history.add(graph(float(at), {at: "gone"}).collapsed(5000))
    frames = list(history.since(0.0, 10))
    assert [one.at for one in frames] == [2.0, 3.0, 4.0]
    assert frames[0].shape is frames[2].shape
    assert [one.at for one in history.since(0.0, 2)] == [2.0, 4.0]
    assert frames[1].shown()["nodes"][4]["state"] == "gone"


async def test_rows_tell_what_each_client_has_not_seen() -> None:
    rows = {f"w{n}": {"name": f"w{n}", "n": 0} for n in range(ROWS_MAX + 5)}
    topic = RowsTopic(lambda: [(name, dict(row)) for name, row in rows.items()], dict)
    await topic.look()
    news = topic.news(0)
    assert news is not None
    place, first = news
    assert (len(first["items"]), first["more"], first["gone"]) == (ROWS_MAX, 5, [])
    await topic.look()
    assert topic.news(place) is None
    rows["w3"]["n"] = 1
    await topic.look()
    del rows["w4"]
    await topic.look()
    news = topic.news(place)
    assert news is not None
    assert [row["name"] for row in news[1]["items"]] == ["w3"]
    assert (news[1]["gone"], news[1]["total"]) == (["w4"], ROWS_MAX + 4)


async def test_a_slow_client_gets_the_newest_and_costs_no_queue() -> None:
    live = Live(turn_s=0.001, ping_s=60.0)
    number = 0

    async def count() -> dict[str, int]:
        return {"n": number}

    async def fail() -> None:
        raise OSError("away")

    live.topic("count", DocumentTopic(count, every_s=0.0))
    live.topic("broken", DocumentTopic(fail, every_s=0.0))
    live.topic("changes", ChangesTopic())
    assert live.check("count, broken,count") == ("count", "broken")
    with pytest.raises(ProblemError):
        live.check(",")
    stream = live.stream(("count", "broken"))
    assert (await anext(stream)).startswith(":")
    await live.turn()
    assert '{"n": 0}' in await anext(stream)
    while number < 49:
        number += 1
        await live.turn()
    assert '{"n": 49}' in await anext(stream)
    live.close()
    assert [one async for one in stream] == []
    assert live.clients == 0


async def test_a_sessions_stream_ends_with_its_token() -> None:
    live = Live(ping_s=0.02)
    live.topic("changes", ChangesTopic())
    told = "".join([one async for one in live.stream(("changes",), lasts_s=0.1)])
    assert told.count(": ping") >= 1
    assert "event: end" in told
