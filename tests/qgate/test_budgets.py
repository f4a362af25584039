"""Budgets, prices and forecasts: the arithmetic by itself, and what administrators do with it."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.finops.bounds import answer_bound, cost_bound, prompt_bound
from qgate.capability.finops.budgets import PERIODS, concerned, period_of
from qgate.capability.finops.forecast import BurnRate, forecast, pressure
from qgate.capability.finops.prices import ListedPrice, PriceTable, plain, read
from qgate.capability.finops.purse import Purse
from qgate.capability.work import Usage
from qgate.governance.apps import NewApp
from qgate.governance.budgets import Budgets, named
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.problems import AdministrationError, InvalidRequestError, UnknownNameError
from tests.qgate.pool import BY, Pool
from tests.qgate.spending import CLOUD, budget, ledger, tokens, work

MOMENT = dt.datetime(2026, 2, 18, 13, 45, 10, tzinfo=dt.UTC)  # a Wednesday


# --- periods


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", "2026-02-18T13:00", "2026-02-18T14:00"),
        ("day", "2026-02-18T00:00", "2026-02-19T00:00"),
        ("week", "2026-02-16T00:00", "2026-02-23T00:00"),
        ("month", "2026-02-01T00:00", "2026-03-01T00:00"),
    ],
)
def test_periods_are_calendar_periods_in_utc(period: str, start: str, end: str) -> None:
    zone = dt.timezone(dt.timedelta(hours=-9))
    for at in (MOMENT, MOMENT.astimezone(zone)):
        assert [one.strftime("%Y-%m-%dT%H:%M") for one in period_of(period, at)] == [start, end]


@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1)), st.sampled_from(PERIODS))  # noqa: DTZ001 - made aware below
def test_every_moment_is_in_one_period(naive: dt.datetime, period: str) -> None:
    at = naive.replace(tzinfo=dt.UTC)
    start, end = period_of(period, at)
    assert start <= at < end
    assert period_of(period, end)[0] == end
    assert period_of(period, start) == (start, end)


def test_a_request_counts_in_every_budget_that_is_about_it() -> None:
    budgets = [
        budget(f"{who}/day", "1") for who in ("pool", "app:web", "app:api", "team:red", "provider:acme")
    ]
    found = concerned(budgets, app="web", team="red", provider="acme")
    assert [one.id for one in found] == ["app:web/day", "pool/day", "provider:acme/day", "team:red/day"]
    assert [one.id for one in concerned(budgets, app="x", team=None, provider="y")] == ["pool/day"]


# --- prices


def test_the_shipped_prices_are_dated_and_say_where_they_are_from() -> None:
    table = PriceTable.load()
    assert len(table.shipped) >= 15
    for price in table.shipped.values():
        assert dt.date.fromisoformat(price.as_of) <= dt.datetime.now(dt.UTC).date()
        assert price.source
        assert price.input > 0
        assert price.output >= 0


def test_the_nearest_word_on_a_price_counts() -> None:
    table = PriceTable(
        {
            "gpt-4o": ListedPrice(Decimal(2), Decimal(3)),
            "gpt-4o-2024-05-13": ListedPrice(Decimal(5), Decimal(5)),
        }
    )
    own = {"acme/gpt-4o": ListedPrice(Decimal(1), Decimal(1))}

    def cost(provider: str, model: str, mine: dict[str, ListedPrice] = own) -> Decimal | None:
        found = table.find(provider, model, mine)
        return None if found is None else found.input

    assert cost("acme", "gpt-4o") == 1
    assert cost("openai", "gpt-4o") == 2
    assert cost("openai", "gpt-4o-2024-08-06") == 2
    assert cost("openai", "gpt-4o-2024-05-13") == 5
    assert cost("openai", "gpt-4o-mini") is None
    assert cost("openai", "gpt-4o-20240806", {"gpt-4o": ListedPrice(Decimal(7), Decimal(7))}) == 7


def test_costs_are_exact_and_rounded_against_the_spender() -> None:
    price = ListedPrice(Decimal("0.15"), Decimal("0.60"), cached=Decimal("0.075"))
    assert price.of(Usage(1_000_000, 1_000_000)) == Decimal("0.75")
    assert price.of(Usage(1000, 0, 400)) == Decimal("0.00012")
    assert price.of(Usage(1, 0, 50)) == Decimal("0.000000075")
    assert ListedPrice(Decimal("0.0001"), Decimal(0)).of(Usage(1)) == Decimal("0.000000001")
    assert (plain(Decimal("1E+3")), plain(Decimal("0.500")), plain(Decimal(0))) == ("1000", "0.5", "0")


def test_a_price_file_without_a_date_is_not_read() -> None:
    source = {"name": "x", "as_of": "yesterday", "models": {}}
    with pytest.raises(ValueError, match="no date"):
        read({"currency": "USD", "source": [source]})


# --- bounds


@given(st.text(max_size=200), st.integers(1, 5))
def test_the_prompts_bound_is_at_least_its_bytes(text: str, times: int) -> None:
    body = {"messages": times * [{"role": "user", "content": text}]}
    assert prompt_bound(body) >= times * len(text.encode("utf-8", "surrogatepass"))
    assert prompt_bound({"prompt": text}) >= len(text.encode("utf-8", "surrogatepass"))
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "https://x"}}]
    assert prompt_bound({"messages": [{"role": "user", "content": parts}]}) >= 10_000


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": 5},
        {"messages": [None, 7]},
        {"messages": [{"content": {"a": 1}}]},
        {"input": [[1, 2], [3]]},
    ],
)
def test_any_body_has_a_bound(body: dict[str, Any]) -> None:
    assert prompt_bound(body) > 0


def test_the_answers_bound_is_the_least_of_what_is_said() -> None:
    assert answer_bound({}) == 4096
    assert answer_bound({"max_tokens": 10, "max_completion_tokens": 5}, 100) == 5
    assert answer_bound({"max_tokens": 10_000}, 100, None, 0) == 100
    assert answer_bound({"max_tokens": "x"}, None) == 4096
    price = ListedPrice(Decimal(0), Decimal(1_000_000))
    assert cost_bound(price, {"n": 3}, 7) == 21
    assert cost_bound(price, {"n": True, "best_of": 5}, 7) == 35


# --- forecasts


def test_the_rate_follows_what_is_burnt() -> None:
    burn = BurnRate("hour")
    burn.sample(Decimal(6), 0.0, elapsed_s=600)
    assert burn.per_s == pytest.approx(0.01)
    for minute in range(1, 61):
        burn.sample(Decimal(6 + minute * 6), minute * 60.0, elapsed_s=0)
    assert burn.per_s == pytest.approx(0.1, rel=0.01)
    burn.sample(Decimal(0), 3700.0, elapsed_s=0)  # the next period begins
    assert 0 < burn.per_s < 0.1


def test_a_clock_that_stands_still_changes_nothing() -> None:
    burn = BurnRate("day")
    burn.sample(Decimal(1), 5.0, elapsed_s=100)
    before = burn.per_s
    burn.sample(Decimal(50), 5.0, elapsed_s=100)
    assert burn.per_s == before


def test_where_a_period_goes() -> None:
    coming = forecast(Decimal(4), Decimal(10), 0.01, 1000.0)
    assert (coming.projected, coming.in_time) == (Decimal(14), False)
    assert coming.ends_in_s == pytest.approx(600)
    assert forecast(Decimal(4), None, 0.01, 1000.0).in_time
    assert forecast(Decimal(4), Decimal(10), 0.0, 1000.0).ends_in_s is None
    assert forecast(Decimal(12), Decimal(10), 0.0, 1000.0).ends_in_s == 0


def judged(spent: str, per_s: float, *, shifting: bool = False, soft: str | None = None) -> float:
    return pressure(
        spent=Decimal(spent),
        soft=None if soft is None else Decimal(soft),
        hard=Decimal(10),
        coming=forecast(Decimal(spent), Decimal(10), per_s, 1000.0),
        shifting=shifting,
        watch_from=0.25,
    ).strength


def test_work_shifts_before_the_money_is_spent_and_comes_back_without_flapping() -> None:
    assert judged("4", 0.005) == 0  # 9 at the end
    assert judged("4", 0.0061) > 0  # 10.1 at the end
    assert judged("4", 0.1) > judged("4", 0.01)
    assert judged("1", 0.1) == 0  # too early to tell
    assert judged("4", 0.0055, shifting=True) > 0  # 9.5: not yet recovered
    assert judged("4", 0.0049, shifting=True) == 0
    assert judged("5", 0.0, soft="5") > 0
    assert judged("9", 0.0, soft="5") > judged("6", 0.0, soft="5")


# --- a purse


def test_a_purse_never_holds_less_than_it_owes() -> None:
    purse = Purse("x")
    start = MOMENT
    assert purse.take(Decimal(1), 0.0) is None
    purse.add(Decimal(3), start, 100.0, 0.0)
    first, second = purse.take(Decimal(2), 1.0), purse.take(Decimal(1), 1.0)
    assert first is not None
    assert second is not None
    assert purse.take(Decimal("0.1"), 1.0) is None
    purse.settled(first, Decimal("0.5"))
    purse.settled(first, Decimal("0.5"))
    assert purse.free(1.0) == Decimal("1.5")
    assert purse.give_back(1.0, idle_s=10) == 0
    assert purse.give_back(20.0, idle_s=10) == Decimal("1.5")
    assert purse.free(20.0) == 0
    purse.settled(second, Decimal(1))
    assert purse.slices[0].spent == Decimal("1.5")
    assert purse.take(Decimal(0), 100.0) is None  # its period is over


# --- administration


async def test_from_setting_a_budget_to_lifting_it(pool: Pool) -> None:
    await pool.apps.create(NewApp("web", (), policy=CapabilityPolicy()), by=BY)
    budgets = Budgets(pool.office)
    row = await budgets.set("app", "web", "month", soft=Decimal(4), hard=Decimal(5), currency=None, by=BY)
    assert (row["id"], row["hard"], row["spent"], row["currency"]) == ("app:web/month", "5", "0", "USD")
    gate = ledger(pool.store, pool.directory.snapshot)
    gate.settle(await gate.reserve(work(), CLOUD, Decimal(1)), tokens("0.25"))
    await gate.close()
    shown = await budgets.show("app:web/month")
    assert (shown["spent"], shown["committed"], shown["left"]) == ("0.25", "0.25", "4.75")
    assert [one["gate"] for one in shown["gates"]] == ["gate-1"]
    assert shown["history"][0]["spent"] == "0.25"
    assert shown["forecast"]["per_hour"] > 0
    await budgets.set("app", "web", "month", soft=None, hard=Decimal(6), currency=None, by=BY)
    assert (await budgets.list())[0]["left"] == "5.75"
    await budgets.remove("app:web/month", by=BY)
    assert await budgets.list() == []
    with pytest.raises(UnknownNameError):
        await budgets.remove("app:web/month", by=BY)
    with pytest.raises(UnknownNameError):
        await budgets.show("app:web/month")
    assert await pool.told() == [
        ("app.create", "web"),
        ("budget.set", "app:web/month"),
        ("budget.set", "app:web/month"),
        ("budget.remove", "app:web/month"),
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scope": "app", "subject": "nobody"}, "no app nobody"),
        ({"scope": "provider", "subject": "nobody"}, "no provider nobody"),
        ({"scope": "galaxy"}, "is no budget"),
        ({"period": "year"}, "is no budget"),
        ({"scope": "pool", "subject": "x"}, "nobody in particular"),
        ({"soft": None, "hard": None}, "a soft limit, a hard one"),
        ({"soft": Decimal(9)}, "above the hard one"),
    ],
)
async def test_what_can_never_hold_is_refused(pool: Pool, fields: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "scope": "pool",
        "subject": "",
        "period": "day",
        "soft": Decimal(1),
        "hard": Decimal(2),
    } | fields
    scope, subject, period = given.pop("scope"), given.pop("subject"), given.pop("period")
    with pytest.raises(AdministrationError, match=said):
        await Budgets(pool.office).set(scope, subject, period, currency=None, by=BY, **given)


@pytest.mark.parametrize("text", ["", "app", "app:", "pool:x", "galaxy:x", ":x"])
def test_what_names_nobody_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        named(text)
    assert named("pool") == ("pool", "")
    assert named("team:red") == ("team", "red")
