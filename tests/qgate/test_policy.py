"""What an app may ask of models, and how often."""

from __future__ import annotations

from typing import Any

import pytest

from qgate.capability.finops.rates import RateLimits, RateRefusal
from qgate.governance.apps import NewApp
from qgate.governance.policy import CapabilityPolicy, checked_policy
from qgate.governance.problems import AdministrationError, ConflictError, InvalidRequestError
from tests.qgate.pool import BY, Pool, unchecked


def test_models_are_named_by_patterns() -> None:
    policy = CapabilityPolicy(models=("qwen*", "gpt-4o"))
    assert [policy.allows_model(name) for name in ("qwen3-8b", "gpt-4o", "gpt-4o-mini", "Qwen3")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_policy_survives_the_store_and_newer_versions_of_it() -> None:
    policy = CapabilityPolicy(
        models=("a*",), tasks=frozenset({"chat"}), providers=frozenset({"x", "y"}), team="red", share=3
    )
    assert CapabilityPolicy.from_json(policy.as_json()) == policy
    assert CapabilityPolicy.from_json({**policy.as_json(), "of_tomorrow": 1}) == policy
    assert CapabilityPolicy.from_json({}) == CapabilityPolicy()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"models": ()}, "no policy"),
        ({"tasks": frozenset({"sumarize"})}, "no task 'sumarize'"),
        ({"providers": frozenset({"acme"})}, "no provider acme"),
        ({"data": "nowhere"}, "any, local-only"),
        ({"isolation": "total"}, "shared, dedicated"),
        ({"requests_per_minute": 0}, "at least 1"),
    ],
)
def test_what_can_never_hold_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(AdministrationError, match=said):
        checked_policy(CapabilityPolicy(**fields), providers=())


async def test_a_change_leaves_what_it_does_not_name(pool: Pool) -> None:
    await pool.databases.add(unchecked(), by=BY)
    await pool.apps.create(NewApp("web", ("shop",)), by=BY)
    web = pool.directory.app("web")
    assert web is not None
    assert web.policy is None
    await pool.apps.change_policy("web", {"models": ["a*"], "team": "red"}, by=BY)
    changed = await pool.apps.change_policy("web", {"requests_per_minute": 5}, by=BY)
    assert changed["policy"]["models"] == ["a*"]
    web = pool.directory.app("web")
    assert web is not None
    assert web.policy == CapabilityPolicy(models=("a*",), team="red", requests_per_minute=5)
    assert await pool.apps.policy("web") == changed
    await pool.apps.change_policy("web", None, by=BY)
    assert (await pool.apps.policy("web"))["policy"] is None


async def test_an_app_needs_a_database_or_models(pool: Pool) -> None:
    with pytest.raises(InvalidRequestError, match="one database, or models"):
        await pool.apps.create(NewApp("none", ()), by=BY)
    await pool.apps.create(NewApp("chat", (), policy=CapabilityPolicy()), by=BY)
    with pytest.raises(ConflictError, match="nothing would be left"):
        await pool.apps.change_policy("chat", None, by=BY)


# --- rates


def test_a_minutes_worth_at_once_and_then_the_rate() -> None:
    limits, policy = RateLimits(), CapabilityPolicy(requests_per_minute=60)
    assert all(limits.admit("web", policy, 0, 0.0) is None for _ in range(60))
    assert limits.admit("web", policy, 0, 0.0) == RateRefusal("requests", 60, 1.0)
    assert limits.admit("web", policy, 0, 1.0) is None
    assert limits.admit("web", policy, 0, 1.0) is not None
    assert limits.admit("other", policy, 0, 1.0) is None


def test_a_refused_request_takes_nothing() -> None:
    limits = RateLimits()
    policy = CapabilityPolicy(requests_per_minute=10, tokens_per_minute=100)
    assert limits.admit("web", policy, 90, 0.0) is None
    refused = limits.admit("web", policy, 50, 0.0)
    assert refused == RateRefusal("tokens", 100, 24.0)
    assert all(limits.admit("web", policy, 0, 0.0) is None for _ in range(9))


def test_what_was_really_used_counts() -> None:
    limits, policy = RateLimits(), CapabilityPolicy(tokens_per_minute=600)
    assert limits.admit("web", policy, 100, 0.0) is None
    limits.correct("web", policy, 100, 1200, 0.0)
    refused = limits.admit("web", policy, 1, 0.0)
    assert refused is not None
    assert refused.retry_after_s == 61
    assert limits.admit("web", policy, 1, 61.0) is None


def test_a_request_larger_than_a_minutes_worth_waits_for_a_full_bucket() -> None:
    limits, policy = RateLimits(), CapabilityPolicy(tokens_per_minute=100)
    assert limits.admit("web", policy, 5_000, 0.0) is None
    refused = limits.admit("web", policy, 5_000, 0.0)
    assert refused is not None
    assert refused.retry_after_s == 3_000


def test_a_clock_that_goes_back_gives_nothing_and_a_policy_change_begins_anew() -> None:
    limits, policy = RateLimits(), CapabilityPolicy(requests_per_minute=1)
    assert limits.admit("web", policy, 0, 100.0) is None
    assert limits.admit("web", policy, 0, 40.0) is not None
    limits.forget(["web"])
    assert limits.admit("web", policy, 0, 40.0) is None


def test_gates_of_a_pool_share_a_limit() -> None:
    limits, policy = RateLimits(gates=lambda: 2), CapabilityPolicy(requests_per_minute=10)
    assert [limits.admit("web", policy, 0, 0.0) is None for _ in range(6)] == 5 * [True] + [False]
