"""Topology: the picture as text, and the section over a fake gate and a real one."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from meshctl.__main__ import app
from meshctl.tui.pager import plain
from meshctl.tui.screens import graph
from meshctl.tui.screens.graph import Sight
from meshctl.tui.screens.topology import GraphView
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate


def node(kind: str, name: str, state: str = "ok", pool: str = "", **detail: Any) -> dict[str, Any]:
    return {
        "id": f"{kind}:{name}",
        "kind": kind,
        "label": name,
        "state": state,
        "pool": pool,
        "count": 1,
        "detail": detail,
    }


def document(*more: dict[str, Any], rate: float = 0.0) -> dict[str, Any]:
    own = [node("pool", "hq"), node("gate", "gate-1", this=True)]
    edges = [{"from": "pool:hq", "to": "gate:gate-1", "kind": "member", "state": "ok", "rate": 0.0}]
    for one in more:
        kind = "postgres" if one["kind"] == "database" else "tunnel"
        edges.append(
            {"from": "gate:gate-1", "to": one["id"], "kind": kind, "state": one["state"], "rate": rate}
        )
    return {"at": 1_790_000_000.0, "nodes": [*own, *more], "edges": edges}


SMALL = document(
    node("pool", "lyon", pool="lyon"),
    node("pool", "paris", "gone", pool="paris"),
    node("minigate", "web-1"),
    node("worker", "gpu-1", "busy", jobs_running=2),
    node("worker", "gpu-2", "draining"),
    node("provider", "openai", "suspect"),
    node("database", "shop", active=3),
    rate=2048.0,
)


def say(text: str, **values: object) -> str:
    return text.format(**values)


def drawn(found: dict[str, Any], width: int = 76, *, ascii_only: bool = False) -> list[str]:
    picture = graph.layered(Sight(found), width, "gate:gate-1", say, ascii_only=ascii_only)
    return [plain(line) for line in picture.lines]


@pytest.mark.parametrize("width", [60, 76, 116, 196])
def test_layers_fit_their_width_and_name_everything(width: int) -> None:
    lines = drawn(SMALL, width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for one in SMALL["nodes"]:
        assert one["label"] in text
    assert ("2.0 KiB/s" in text) == (width > 60)
    assert ("2048 conn" in text) == (width > 60)


def test_every_state_has_a_shape_of_its_own_also_in_ascii() -> None:
    assert len({shape for shape, _, _ in graph.STATES.values()}) == len(graph.STATES)
    assert len({plain for _, plain, _ in graph.STATES.values()}) == len(graph.STATES)
    text = "\n".join(drawn(SMALL, ascii_only=True))
    assert text.isascii()
    assert re.search(r"x paris \.+", text), "a line to what is gone is dashed"
    assert re.search(r"\* lyon -+", text)


def test_a_filter_hides_and_the_gates_stay() -> None:
    assert set(Sight(SMALL, "gpu").nodes) == {"pool:hq", "gate:gate-1", "worker:gpu-1", "worker:gpu-2"}
    assert "worker:gpu-1" not in Sight(SMALL, "!gpu").nodes
    troubled = Sight(SMALL, troubled=True).nodes
    assert set(troubled) == {"pool:hq", "gate:gate-1", "pool:paris", "provider:openai"}


def test_a_gate_alone_is_drawn_without_lines() -> None:
    text = "\n".join(drawn(document()))
    assert "gate-1" in text
    assert "├" not in text
    assert "┤" not in text


def test_a_large_kind_is_folded_to_what_is_in_trouble() -> None:
    many = document(*(node("worker", f"w{n:03}", "gone" if n == 7 else "ok") for n in range(100)))
    folded = graph.tree(Sight(many), 76, "", (), say, ascii_only=False)
    text = "\n".join(plain(line) for line in folded.lines)
    assert "Workers 100" in text
    assert "w007" in text
    assert "w008" not in text
    assert "and 99 that are well" in text
    unfolded = graph.tree(Sight(many), 76, "", {"worker"}, say, ascii_only=False)
    assert len(unfolded.places) == 100 + 1 + 2  # workers, their group, the gate and its group


async def test_arrows_go_from_node_to_node_and_enter_drills_in(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /topology", SMALL)
    async with visit("topology") as at:
        await at.sees("as it is now", "5 ok", "┌─ hq", "▸● gate-1", "paris")
        await at.press("right")
        await at.sees("▸▲ openai", "openai  provider  suspect  2.0 KiB/s")
        await at.press("left", "left", "up", "up")
        await at.sees("▸● lyon")
        await at.press("right", "right", "up", "up")
        await at.sees("▸◆ gpu-1", "gpu-1  worker  busy  2.0 KiB/s  jobs running 2")
        await at.press("enter")
        await at.sees("Workers › gpu-1", "EPYC 7402P")


async def test_news_are_drawn_filtered_and_laid_out_as_a_tree(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /topology", SMALL)
    async with visit("topology") as at:
        await at.sees("gpu-2")
        gate.tell("topology", document(node("worker", "gpu-9"), node("minigate", "web-1")))
        await at.sees("gpu-9")
        await at.sees_no("gpu-2")
        gate.tell("topology", SMALL)
        await at.sees("gpu-2")
        await at.press("o")
        await at.sees("only what is in trouble", "paris")
        await at.sees_no("gpu-2")
        await at.press("escape")
        await at.type("/web")
        await at.press("enter")
        await at.sees("/web", "web-1")
        await at.sees_no("lyon")
        await at.press("escape", "t")
        await at.sees("├─ Workers 2", "├─ ◆ gpu-1")
        many = document(*(node("worker", f"w{n:03}") for n in range(40)))
        gate.tell("topology", many)
        await at.sees("Workers 40", "and 40 that are well")
        await at.press("down", "down", "enter")
        await at.sees("w000")


async def test_the_past_is_played_and_left(visit: Open, gate: RoomGate) -> None:
    gate.answer("GET /topology", SMALL)
    frames = [
        {**document(node("worker", "gpu-1", "gone" if n == 2 else "ok")), "at": 1_790_000_000.0 + 5 * n}
        for n in range(6)
    ]
    gate.answer("GET /topology/history", {"items": frames, "total": 6})
    async with visit("topology", size=(120, 40)) as at:
        await at.sees("gpu-2")
        await at.press("b")
        await at.sees("frame 6 of 6", "2026-09-21 14:13:45Z")
        await at.sees_no("gpu-2")
        gate.tell("topology", SMALL)  # news do not take its place
        await at.press("b", "b", "b")
        await at.sees("frame 3 of 6", "✖ gpu-1", "15s ago")
        await at.press("p")
        await at.sees("frame 6 of 6")
        await at.press("escape")
        await at.sees("as it is now", "gpu-2")
        gate.answer("GET /topology/history", {"items": [], "total": 0})
        await at.press("p")
        await at.told("Nothing is kept yet")


async def test_a_gate_that_does_not_answer_is_named(visit: Open, gate: RoomGate) -> None:
    gate.problem("GET /topology", 503, "the store is away", "meshctl doctor", "store-unavailable")
    async with visit("topology") as at:
        await at.sees("! the store is away")
        gate.answer("GET /topology", SMALL)
        await at.press("r")
        await at.sees("as it is now", "gpu-1")


async def test_a_real_gate_and_its_past(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("topology") as at:
        await at.sees("gate-1", "gpu-1", "app-host", "Minigates", "Workers")
        mesh.control.post("/workers/gpu-1/drain")
        await at.sees("▼ gpu-1")
        await asyncio.to_thread(
            wait_until,
            lambda: len(mesh.control.get("/topology/history")["items"]) > 1,
            timeout_s=20,
            what="two frames",
            every_s=0.1,
        )
        mesh.control.post("/workers/gpu-1/undrain")
        await at.sees("● gpu-1")
        await at.press("b")
        await at.sees(" ago  frame")
        view = at.room.pane
        assert isinstance(view, GraphView)
        assert view.past
        await at.press("e", "2")
        await at.sees("minigate", "app-host")
        await at.press("3")
        await at.sees("gate:gate-1", "tunnel")


def test_the_command_shows_the_same(mesh: Mesh) -> None:
    socket = ["--socket", str(mesh.gate.directory / "admin.sock")]
    nodes = CliRunner().invoke(app, ["topology", *socket, "-o", "json"])
    assert nodes.exit_code == 0, nodes.output
    found = {one["id"]: one["state"] for one in json.loads(nodes.stdout)["nodes"]}
    assert found["gate:gate-1"] == "ok"
    assert "worker:gpu-1" in found
    lines = CliRunner().invoke(app, ["topology", "--lines", *socket])
    assert "minigate:app-host" in lines.stdout
    past = CliRunner().invoke(app, ["topology", "--history", "10m", *socket])
    assert "SUSPECT" in past.stdout
    wrong = CliRunner().invoke(app, ["topology", "--history", "3d", *socket])
    assert "3d is not kept" in f"{wrong.output}{wrong.exception}"
