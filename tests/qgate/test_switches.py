"""The switches of automations that do their work elsewhere: off means that it is not done."""

from __future__ import annotations

import time
from pathlib import Path

from qgate.federation.incidents import Journal
from qgate.governance.registry import DEFAULTS
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import until
from tests.qgate.pool import BY, Pool
from tests.qgate.test_compute import ask, key, two


async def test_smart_routing_keeps_requests_in_the_pool_while_it_is_off(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        preferences = hq.administration.preferences
        await preferences.set("automation.smart_routing", False, by=BY)
        await until(lambda: key(branch) not in hq.compute._names)
        refused = await ask(hq)
        assert refused.status_code in {404, 503}, refused.text
        assert stage.plays == []
        await preferences.reset("automation.smart_routing", by=BY)
        await until(lambda: key(branch) in hq.compute._names)
        answered = await ask(hq)
        assert answered.status_code == 200, answered.text


async def test_the_failsafe_escalates_nothing_while_it_is_off(pool: Pool) -> None:
    settings = {**DEFAULTS, "incident.escalate_s": 1.0, "automation.failsafe": False}
    now = time.time()
    journal = Journal(
        pool.store,
        gate="gate-1",
        name=lambda key: key.hex(),
        setting=settings.__getitem__,
        clock=lambda: now,
    )
    await journal.raise_incident("target_dead", "hq", {})
    now += 60
    assert await journal.escalate() == []
    assert await journal.overdue() == 1
    settings["automation.failsafe"] = True
    assert len(await journal.escalate()) == 1
    assert await journal.overdue() == 0
