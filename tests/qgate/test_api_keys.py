"""Keys of apps: shown once, kept as digests, refused at once when they are revoked."""

from __future__ import annotations

import pytest

from qgate.governance.api_keys import KEYS_MAX, ApiKeys
from qgate.governance.apps import NewApp
from qgate.governance.directory import App, CapabilityPolicy, Directory, Snapshot
from qgate.governance.policy import ApiKey, digest_of, looks_like_key
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from tests.qgate.pool import BY, Pool, everything_stored, unchecked

MODELS = NewApp("chat", (), policy=CapabilityPolicy())


async def test_a_key_opens_its_app_and_is_kept_nowhere(pool: Pool) -> None:
    made = await pool.apps.create(MODELS, by=BY)
    key = made["api_key"]
    assert looks_like_key(key)
    app = pool.directory.app_of_key(key, pool.clock())
    assert app is not None
    assert (app.name, app.policy) == ("chat", CapabilityPolicy())
    stored = await everything_stored(pool)
    assert key not in stored
    assert key[10:] not in stored
    await pool.log.flush()
    assert key not in str(await pool.trail.entries(kind="admin", after=0))
    rows = await ApiKeys(pool.office).list("chat")
    assert [(row["prefix"], row["state"]) for row in rows] == [(key[:10], "active")]


async def test_wrong_keys_open_nothing(pool: Pool) -> None:
    key = (await pool.apps.create(MODELS, by=BY))["api_key"]
    for wrong in ("", key[:-1], key + "A", key.lower(), "qg_" + 43 * "A", "sk-" + key, "\udc80", "ä" * 46):
        assert pool.directory.app_of_key(wrong, pool.clock()) is None


async def test_a_second_key_takes_over_from_the_first(pool: Pool) -> None:
    keys = ApiKeys(pool.office)
    first = (await pool.apps.create(MODELS, by=BY))["api_key"]
    second = await keys.create("chat", expires_in_s=60, by=BY)
    assert pool.directory.app_of_key(second["api_key"], pool.clock()) is not None
    await keys.revoke("chat", first[:10], by=BY)
    assert pool.directory.app_of_key(first, pool.clock()) is None
    assert pool.directory.app_of_key(second["api_key"], pool.clock()) is not None
    assert pool.directory.app_of_key(second["api_key"], pool.clock() + 61) is None
    assert {row["state"] for row in await keys.list("chat")} == {"active", "revoked"}
    with pytest.raises(UnknownNameError, match="no such key"):
        await keys.revoke("chat", first[:10], by=BY)


async def test_revoking_the_app_ends_its_keys(pool: Pool) -> None:
    key = (await pool.apps.create(MODELS, by=BY))["api_key"]
    heard: list[frozenset[str]] = []
    pool.directory.subscribe(heard.append)
    await pool.apps.revoke("chat", by=BY)
    assert pool.directory.app_of_key(key, pool.clock()) is None
    assert any("key:chat" in names for names in heard)
    # The name may be given again; the old key does not come back with it.
    await pool.apps.create(MODELS, by=BY)
    assert pool.directory.app_of_key(key, pool.clock()) is None


async def test_keys_are_for_apps_that_may_use_models(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    made = await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    assert made["api_key"] is None
    keys = ApiKeys(pool.office)
    with pytest.raises(ConflictError, match="may use no model"):
        await keys.create("web", expires_in_s=None, by=BY)
    with pytest.raises(UnknownNameError):
        await keys.create("nobody", expires_in_s=None, by=BY)
    with pytest.raises(InvalidRequestError):
        await keys.create("web", expires_in_s=0, by=BY)


async def test_a_program_that_makes_keys_without_end_is_stopped(pool: Pool) -> None:
    await pool.apps.create(MODELS, by=BY)
    keys = ApiKeys(pool.office)
    for _ in range(KEYS_MAX - 1):
        await keys.create("chat", expires_in_s=None, by=BY)
    with pytest.raises(ConflictError, match="100 keys"):
        await keys.create("chat", expires_in_s=None, by=BY)


def test_an_expired_app_has_no_good_key() -> None:
    key = ApiKey("key_1", "web", "qg_1234567", digest_of("qg_x"))
    app = App("web", (), frozenset(), expires_at=100.0, policy=CapabilityPolicy())
    directory = Directory(Snapshot(apps={"web": app}, keys={key.digest: key}))
    assert directory.app_of_key("qg_x", 99.0) is app
    assert directory.app_of_key("qg_x", 100.0) is None
    assert "digest" not in repr(key)
