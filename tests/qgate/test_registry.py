"""The settings registry: declarations are sound, values are refused in words, changes are heard."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qgate.governance.problems import UnknownNameError
from qgate.governance.registry import DEFAULTS, SETTINGS, SettingError, declared
from tests.qgate.pool import BY, Pool


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_every_declaration_accepts_its_own_default(setting: Any) -> None:
    assert setting.accept(setting.default) == setting.default
    assert setting.description.endswith(".")


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("audit.queue_max", 500, 500),
        ("audit.queue_max", "500", 500),
        ("audit.batch_interval_s", 1, 1.0),
        ("audit.batch_interval_s", "0.5", 0.5),
        ("audit.when_full", "drop", "drop"),
    ],
)
def test_values_are_taken_as_their_type(name: str, value: Any, accepted: Any) -> None:
    taken = declared(name).accept(value)
    assert taken == accepted
    assert type(taken) is type(accepted)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("audit.queue_max", 99, "at least 100"),
        ("audit.queue_max", 10**9, "at most"),
        ("audit.queue_max", "many", "whole number"),
        ("audit.queue_max", True, "whole number"),
        ("audit.queue_max", 500.5, "whole number"),
        ("audit.batch_interval_s", "NaN", "a number"),
        ("audit.batch_interval_s", float("nan"), "a number"),
        ("audit.when_full", "explode", "one of refuse, drop"),
        ("audit.when_full", 1, "text"),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        declared(name).accept(value)


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as refused:
        declared("audit.when_ful")
    assert refused.value.hint == "did you mean audit.when_full?"


async def test_a_change_is_served_shown_and_told(pool: Pool) -> None:
    row = await pool.settings.set("audit.when_full", "drop", by=BY)
    assert (row["value"], row["source"], row["changed_by"]) == ("drop", "database", BY)
    assert pool.directory.setting("audit.when_full") == "drop"
    row = await pool.settings.reset("audit.when_full", by=BY)
    assert (row["value"], row["source"], row["changed_at"]) == ("refuse", "default", None)
    assert pool.directory.setting("audit.when_full") == "refuse"
    await pool.settings.reset("audit.when_full", by=BY)
    assert await pool.told() == [("setting.set", "audit.when_full"), ("setting.reset", "audit.when_full")]
    assert {row["name"] for row in await pool.settings.list()} == set(SETTINGS)


async def test_a_refused_value_changes_nothing(pool: Pool) -> None:
    with pytest.raises(SettingError):
        await pool.settings.set("audit.queue_max", 1, by=BY)
    with pytest.raises(UnknownNameError):
        await pool.settings.set("no.such", 1, by=BY)
    assert pool.directory.setting("audit.queue_max") == DEFAULTS["audit.queue_max"]
    assert await pool.told() == []


async def test_a_setting_of_a_later_version_is_not_served(pool: Pool) -> None:
    async with pool.store.connection() as connection:
        await connection.execute("INSERT INTO settings VALUES ('later.one', '1', 'x', now())")
    await pool.watch.refresh()
    with pytest.raises(KeyError):
        pool.directory.setting("later.one")
    await asyncio.sleep(0)
