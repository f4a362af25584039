"""Every change of a setting is kept, and nobody overwrites a change that they did not see."""

from __future__ import annotations

import asyncio

import pytest

from qgate.governance.problems import ChangedError
from qgate.governance.registry import SETTINGS
from qgate.governance.setting import SECTIONS, SettingError
from tests.qgate.pool import BY, Pool

NAME = "audit.queue_max"


def test_every_setting_is_in_a_section_that_has_a_title() -> None:
    assert {setting.group for setting in SETTINGS.values()} <= SECTIONS.keys()


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("audit.retention_days", "days"),
        ("replication.backfill_kb_s", "kB/s"),
        ("finops.slice_percent", "%"),
        ("failover.mode", ""),
        ("failover.rebalance", ""),
        ("app.requests_per_minute", "per minute"),
        ("schedule.max_tokens", "tokens"),
        ("federation.heartbeat_s", "s"),
    ],
)
def test_numbers_say_what_they_count(name: str, unit: str) -> None:
    assert SETTINGS[name].unit == unit


@pytest.mark.parametrize("value", ["[" * 100_000, 10**400, "1e999", "x" * 100_000])
def test_monstrous_values_are_refused_in_few_words(value: object) -> None:
    with pytest.raises(SettingError) as refused:
        SETTINGS["audit.batch_interval_s"].accept(value)
    assert len(refused.value.message) < 300


def test_text_is_bounded() -> None:
    with pytest.raises(SettingError, match="at most 4096"):
        SETTINGS["incident.hook"].accept("x" * 5000)
    with pytest.raises(SettingError, match="NUL"):
        SETTINGS["incident.hook"].accept("a\0b")


async def test_every_change_is_kept_with_who_made_it_and_why(pool: Pool) -> None:
    await pool.settings.set(NAME, 500, by="alice", reason="a small machine")
    await pool.settings.set(NAME, 900, by="bob")
    await pool.settings.reset(NAME, by="carol")
    found = await pool.settings.history(NAME)
    assert [(row["by"], row["before"], row["after"], row["what"]) for row in found] == [
        ("carol", 900, 50_000, "reset"),
        ("bob", 500, 900, "set"),
        ("alice", 50_000, 500, "set"),
    ]
    assert found[-1]["reason"] == "a small machine"
    row = await pool.settings.get(NAME)
    assert (row["source"], row["changed_by"], row["last_changed_by"]) == ("default", None, "carol")
    assert row["version"] == found[0]["version"]
    assert await pool.settings.history(NAME, limit=1, before=found[1]["version"]) == [found[2]]
    await pool.log.flush()
    entries = await pool.trail.entries(kind="admin", after=0)
    assert [(one["detail"]["before"], one["detail"]["after"]) for one in entries] == [
        (50_000, 500),
        (500, 900),
        (900, 50_000),
    ]


async def test_the_same_value_again_is_no_change(pool: Pool) -> None:
    await pool.settings.set(NAME, 500, by=BY)
    await pool.settings.set(NAME, "500", by="bob")
    assert len(await pool.settings.history(NAME)) == 1


async def test_a_change_names_the_version_that_it_saw(pool: Pool) -> None:
    seen = (await pool.settings.get(NAME))["version"]
    assert seen == 0
    await pool.settings.set(NAME, 500, by="alice", expected=seen)
    with pytest.raises(ChangedError, match=r"is 500 now.*alice"):
        await pool.settings.set(NAME, 900, by="bob", expected=seen)
    with pytest.raises(ChangedError):
        await pool.settings.reset(NAME, by="bob", expected=seen)
    now = (await pool.settings.get(NAME))["version"]
    assert (await pool.settings.set(NAME, 900, by="bob", expected=now))["value"] == 900


async def test_of_two_who_saw_the_same_one_changes_it(pool: Pool) -> None:
    done = await asyncio.gather(
        *(pool.settings.set(NAME, 500 + who, by=str(who), expected=0) for who in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, ChangedError) for one in done) == 7
    assert len(await pool.settings.history(NAME)) == 1
