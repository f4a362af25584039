"""Write docs/screens/*.svg: the main screens of the control room over a stand-in gate with generated data.

The screens are the real ones; what they show is made up here, so that nothing of the machine that draws them
is in a picture, and the pictures of two runs differ only where a screen does.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from meshctl.client import Gate  # noqa: E402 - after the path above
from meshctl.tui.preferences import Preferences  # noqa: E402
from meshctl.tui.room import Launch  # noqa: E402
from qgate.governance.registry import SETTINGS  # noqa: E402
from tests.tui.gate import RoomGate, incident, listed, overview, serving, setting, worker  # noqa: E402
from tests.tui.visit import visiting  # noqa: E402

INTO: Final = ROOT / "docs" / "screens"
SIZE: Final = (120, 42)
SCREENS: Final = {
    "overview": "Busiest models",
    "workers": "gpu-04",
    "topology": "gpu-02",
    "models": "qwen2.5",
    "settings": "audit.retention_days",
}
"""Sections, and what they show when they are there."""

GPUS: Final = ("RTX 4090", "RTX 3060", "L40S", "A100 80GB")
MODELS: Final = (
    ("qwen2.5-7b-instruct", "qwen2.5", "Q4_K_M", 4.7),
    ("qwen2.5-coder-32b", "qwen2.5", "Q5_K_M", 23.3),
    ("llama-3.1-8b-instruct", "llama-3.1", "Q6_K", 6.6),
    ("mistral-small-24b", "mistral", "Q4_K_M", 14.3),
    ("bge-m3", "bge", "F16", 1.2),
)


def wave(base: float, swing: float, seed: int) -> list[float]:
    """A minute of a rate."""
    chance = random.Random(seed)
    return [
        round(max(0.0, base + swing * math.sin(n / 7 + seed) + chance.uniform(-swing, swing) / 3), 1)
        for n in range(60)
    ]


def machine(number: int) -> dict[str, Any]:
    """A worker."""
    chance = random.Random(number)
    away = number == 6
    changes: dict[str, Any] = {"state": "away", "connected": False} if away else {}
    made = worker(
        f"gpu-{number:02}",
        **changes,
        labels={"site": ("lyon", "turin")[number % 2], "rack": f"b{number // 3}"},
    )
    made["hardware"]["cpu"] = "EPYC 9354"
    made["hardware"]["gpus"][0]["name"] = GPUS[number % len(GPUS)]
    made["load"]["cpu"] = round(chance.uniform(0.05, 0.9), 2)
    made["load"]["gpus"][0]["utilisation"] = round(chance.uniform(0.1, 0.98), 2)
    made["resident"] = [] if away else [MODELS[number % len(MODELS)][0]]
    return made


def graph(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Pools, gates and who hangs on them."""

    def node(kind: str, name: str, state: str = "ok", **detail: Any) -> dict[str, Any]:
        shown = {"id": f"{kind}:{name}", "kind": kind, "label": name, "state": state, "pool": ""}
        return {**shown, "count": 1, "detail": detail}

    nodes = [node("pool", "hq"), node("gate", "gate-1", this=True), node("gate", "gate-2")]
    edges = [("pool:hq", "gate:gate-1", "member", "ok", 0.0), ("pool:hq", "gate:gate-2", "member", "ok", 0.0)]
    for number, one in enumerate(workers):
        state = "away" if one["state"] == "away" else "ok"
        nodes.append(node("worker", one["name"], state))
        edges.append((f"gate:gate-{1 + number % 2}", f"worker:{one['name']}", "tunnel", state, 3.0 * number))
    for kind, name, state in (
        ("pool", "lyon", "ok"),
        ("minigate", "desk-ana", "ok"),
        ("minigate", "billing", "ok"),
        ("database", "shop", "ok"),
        ("provider", "cloud", "suspect"),
    ):
        nodes.append(node(kind, name, state))
        wire = {"pool": "link", "database": "postgres"}.get(kind, "tunnel")
        edges.append(("gate:gate-1", f"{kind}:{name}", wire, state, 12.5))
    names = ("from", "to", "kind", "state", "rate")
    drawn = [dict(zip(names, edge, strict=True)) for edge in edges]
    return {"at": time.time(), "nodes": nodes, "edges": drawn}


def fill(gate: RoomGate) -> None:
    """Generated data for every screen that is drawn."""
    now = time.time()
    workers = [machine(number) for number in range(1, 10)]
    bases = {"requests_s": 42, "queries_s": 310, "tokens_s": 5200, "errors_s": 0.2}
    bases |= {"running": 9, "waiting": 2, "connections": 64, "sessions": 11}
    series = {name: wave(base, base / 2, number) for number, (name, base) in enumerate(bases.items())}
    glance = overview(series=series, gate={"name": "gate-1", "version": "0.1.0", "state": "serving"})
    glance["gate"]["uptime_s"] = 19 * 86_400
    glance["gates"] = [{"name": f"gate-{n}", "seen_at": now, "serving": True} for n in (1, 2)]
    glance["peers"] = {"up": 3, "total": 3}
    for name in ("running", "waiting", "connections", "sessions"):
        series[name] = [float(round(value)) for value in series[name]]
    glance |= {name: values[-1] for name, values in series.items() if name != "sessions"}
    glance["workers"] |= {"total": 9, "serving": 8, "away": 1, "draining": 0, "slots": 36, "jobs_running": 9}
    glance["workers"] |= {"vram": 216 << 30, "vram_used": 131 << 30}
    glance["incidents"] = {"open": 1, "acknowledged": 1}
    glance["burn_down"] = [
        {"id": name, "used": used, "in_time": used < 0.8, "ends_in_s": 5 * 86_400}
        for name, used in (("research", 0.86), ("support", 0.41), ("nightly-batch", 0.12))
    ]
    glance["certificates"] = [
        {"name": "node.cert", "expires_at": now + 6 * 86_400, "expiring": True},
        {"name": "online.cert", "expires_at": now + 82 * 86_400, "expiring": False},
    ]

    def usage(query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        models = [name for name, *_ in MODELS]
        names = models if query.get("by") == "model" else ["support-bot", "search", "billing", "ide"]
        row = {"cost": "0.00", "currency": None}
        return listed(*({**row, "name": name, "requests": 9100 >> n} for n, name in enumerate(names)))

    trouble = incident(12, kind="worker_lost", subject="gpu-06", severity="warning", opened_at=now - 340)
    looked = incident(11, kind="target_dead", subject="turin", state="acknowledged", opened_at=now - 8_000)
    gate.answer("GET /overview", glance)
    gate.answers["GET /usage"] = usage
    gate.answers["GET /incidents"] = listed(trouble, looked)
    gate.answers["GET /workers"] = listed(*workers)
    gate.answer("GET /topology", graph(workers))
    gate.answer("GET /topology/history", {"items": [], "total": 0})
    gate.answers["GET /aliases"] = listed()
    gate.answers["GET /models"] = listed(
        *(
            {
                "name": name,
                "sha256": f"{number + 10:x}" * 32,
                "family": family,
                "quant": quant,
                "size": int(gib * (1 << 30)),
                "engine": "llama",
                "kinds": ["embed"] if name.startswith("bge") else ["chat"],
                "state": "resident" if number % 2 == 0 else "stored",
                "workers": [
                    {"worker": one["name"], "state": "resident"} for one in workers if name in one["resident"]
                ],
            }
            for number, (name, family, quant, gib) in enumerate(MODELS)
        )
    )
    gate.answers["GET /settings"] = listed(
        *(
            setting(
                one.name,
                one.default,
                one.type.__name__,
                description=one.description,
                minimum=one.minimum,
                maximum=one.maximum,
                choices=list(one.choices),
                restart_needed=one.restart_needed,
            )
            for one in SETTINGS.values()
        )
    )


async def draw(gate: RoomGate, folder: Path) -> None:
    """One picture a section."""
    for section, sign in SCREENS.items():
        launch = Launch(Gate(gate.socket), "local", Preferences(), folder / "tui.toml", section)
        async with visiting(launch, size=SIZE) as at:
            await at.sees(sign, "live")
            text = at.room.export_screenshot(title="meshctl tui")
        text = re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL)
        text = re.sub(r"terminal-\d+", "terminal", text)
        (INTO / f"{section}.svg").write_text(text, encoding="utf-8")
        print(f"docs/screens/{section}.svg  {len(text) >> 10} KiB")


def main() -> None:
    """Draw them all."""
    INTO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "admin.sock") as gate:
        fill(gate)
        asyncio.run(draw(gate, Path(folder)))


if __name__ == "__main__":
    main()
