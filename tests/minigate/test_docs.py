"""docs/minigate.md says what the code does: every SQLSTATE, metric, exit code and reload."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from minigate.connections import Connections
from minigate.metrics import MinigateCollector
from minigate.relay import SQLSTATES
from minigate.uplink import Uplink
from tests.minigate.gates import Pool, address

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "minigate.md").read_text()


def test_every_sqlstate_that_an_app_can_be_told_is_explained() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "minigate").glob("*.py"))
    used = set(re.findall(r'"(\d[0-9A-Z]{4}|XX000)"', sources)) | set(SQLSTATES.values())
    explained = set(re.findall(r"^\| ([0-9A-Z]{5}) \|", PAGE, re.MULTILINE))
    assert used <= explained, used - explained


async def test_every_metric_is_listed() -> None:
    loop = asyncio.get_running_loop()
    uplink = Uplink(Pool().connect, lambda: None, loop)
    uplink.configure([address("hq")], b"c")
    registry = CollectorRegistry()
    registry.register(
        MinigateCollector(Connections(loop, max_connections=1, startup_timeout_s=1, patience_s=1), uplink)
    )
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in PAGE, name
    await uplink.close(0)
