"""Receipts: signed by the pool, found by their app only, checked without a gate, and without content."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from qgate.capability.receipts import Receipts, fields_of
from qgate.capability.work import Hop, Outcome, Usage
from qgate.store import Store
from qgate.store.receipts import (
    ReceiptRow,
    add_receipts,
    drop_receipts,
    list_receipts,
    read_documents,
    sum_receipts,
)
from tests.qgate.pool import Pool, everything_stored
from tests.qgate.spending import app, work
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import Identity
from tunnel_proto.receipt import check_receipt, read_receipt

CANARY = "canary-zebra-3141"
OUTCOME = Outcome(
    outcome="ok",
    finish_reason="stop",
    usage=Usage(20, 30, 5, 15),
    hops=(
        Hop("w1", "worker", "small", "abc", Usage(20, 10), reason="it was drained"),
        Hop("w2", "worker", "small", "abc", Usage(20, 20)),
    ),
    began_at=time.time() - 2,
    ended_at=time.time(),
    first_token_s=0.25,
    cost=Decimal("0.00012"),
    currency="USD",
)


def issuer(pool: Pool, **more: Any) -> Receipts:
    return Receipts(pool.store, gate="gate-1", online=pool.signing, pool_key=pool.identity.verify_key, **more)


def asked(**fields: Any) -> Any:
    return work(body={"messages": [{"role": "user", "content": CANARY}]}, **fields)


async def test_a_receipt_is_found_before_and_after_it_is_written(pool: Pool) -> None:
    receipts = issuer(pool)
    request = asked()
    made = receipts.issue(request, outcome=OUTCOME)
    assert made.id == request.id
    assert await receipts.get(made.id, "web") == made.document
    await receipts.flush()
    for app_name, found in (("web", made.document), (None, made.document), ("other", None)):
        assert await receipts.get(made.id, app_name) == found
    assert await receipts.get("req_" + 24 * "0", "web") is None
    assert await receipts.get("\x00", None) is None
    assert CANARY not in await everything_stored(pool)
    assert CANARY not in json.dumps(made.document)


async def test_anybody_who_knows_the_pool_can_check_it(pool: Pool) -> None:
    made = dict(issuer(pool).issue(asked(), outcome=OUTCOME).document)
    fingerprint = pool.identity.fingerprint
    assert check_receipt(made, pool=fingerprint).id == made["id"]
    # It survives a round through any JSON library, and a body that carries it.
    body = json.dumps({"choices": [], "qgate": {"receipt": made}}, indent=3, ensure_ascii=False)
    assert check_receipt(read_receipt(body), pool=fingerprint.upper()).id == made["id"]
    assert made["nodes"][0]["left_because"] == "it was drained"
    assert (made["price"], made["currency"], made["tokens_in"]) == ("0.00012", "USD", 20)


@pytest.mark.parametrize("field", ["app", "tokens_out", "price", "nodes", "pool", "certificate", "signature"])
async def test_every_word_of_it_is_signed(pool: Pool, field: str) -> None:
    made = dict(issuer(pool).issue(asked(), outcome=OUTCOME).document)
    strange = {"tokens_out": 31, "nodes": [], "certificate": made["signature"], "signature": 86 * "A" + "=="}
    for changed in ({**made, field: strange.get(field, "else")}, {**made, "added": 1}):
        with pytest.raises(AuthenticationFailed):
            check_receipt(changed, pool=pool.identity.fingerprint)
    del made[field]
    with pytest.raises((AuthenticationFailed, ValueError)):
        check_receipt(made, pool=pool.identity.fingerprint)


async def test_another_pools_receipt_is_not_ours(pool: Pool) -> None:
    stranger, online = Identity.generate(), Identity.generate()
    now = int(time.time())
    certificate = issue_online(stranger, online.verify_key, not_before=now - 60, not_after=now + 60, serial=1)
    theirs = Receipts(
        pool.store,
        gate="x",
        online=OnlineKey(online, certificate),
        pool_key=pool.identity.verify_key,  # a lie, within what is signed
    )
    made = theirs.issue(asked(), outcome=OUTCOME).document
    for trusted in (pool.identity.fingerprint, stranger.fingerprint):
        with pytest.raises(AuthenticationFailed, match="pool"):
            check_receipt(made, pool=trusted)


async def test_a_signature_for_another_purpose_is_none(pool: Pool) -> None:
    made = dict(issuer(pool).issue(asked(), outcome=OUTCOME).document)
    import base64

    from tunnel_proto.receipt import canonical

    unsigned = {name: value for name, value in made.items() if name != "signature"}
    made["signature"] = base64.b64encode(pool.online.sign("audit head", canonical(unsigned))).decode()
    with pytest.raises(AuthenticationFailed):
        check_receipt(made, pool=pool.identity.fingerprint)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "{}", '{"v": 1}', '{"receipt": 5}', "[" * 100_000])
def test_what_is_no_receipt_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        check_receipt(read_receipt(text), pool="x")


async def test_receipts_are_listed_newest_first_in_pages(pool: Pool) -> None:
    receipts = issuer(pool)
    ids = []
    for number in range(5):
        one = work(app("web" if number % 2 else "api"))
        ids.append(one.id)
        outcome = Outcome("ok", "stop", Usage(), (), 1000.0 + number, 2000.0 + number)
        receipts.issue(one, outcome=outcome)
    await receipts.close()
    async with pool.store.connection() as connection:
        page = await list_receipts(connection, app=None, since=None, before=None, limit=2)
        assert [row.id for row in page] == ids[:2:-1]
        rest = await list_receipts(connection, app=None, since=None, before=page[-1].id, limit=9)
        assert [row.id for row in rest] == ids[2::-1]
        mine = await list_receipts(connection, app="web", since=None, before=None, limit=9)
        assert [row.id for row in mine] == [ids[3], ids[1]]
        from datetime import UTC, datetime

        assert await drop_receipts(connection, datetime.fromtimestamp(2003, UTC)) == 3


async def test_what_an_earlier_version_wrote_adds_up_the_same(pool: Pool) -> None:
    documents = [
        {"team": "a", "model": "m", "task": "chat", "currency": "USD", "outcome": "ok", "tokens_in": 3,
         "tokens_out": 4, "price": "0.25"},
        {"team": None, "model": "m", "task": "chat", "currency": "EUR", "outcome": "failed", "tokens_in": 1,
         "tokens_out": None, "price": None},
        {"model": "n", "outcome": "ok", "price": "1"},
        {},
    ]  # fmt: skip
    rows = [
        ReceiptRow(f"req_{number}", 1.8e9 + 40_000 * number, f"app-{number % 2}", json.dumps(document))
        for number, document in enumerate(documents * 3)
    ]

    async def sums() -> list[list[dict[str, Any]]]:
        async with pool.store.connection() as connection:
            return [
                await sum_receipts(connection, by=by, since=datetime.fromtimestamp(1.8e9, UTC), app=app)
                for by in ("app", "team", "model", "task", "day")
                for app in (None, "app-1")
            ]

    async with pool.store.connection() as connection:
        await connection.executemany(
            "INSERT INTO receipts (id, at, app, document) VALUES ($1, to_timestamp($2), $3, $4)",
            [(row.id, row.at, row.app, row.document) for row in rows],
        )
    unread = await sums()
    usd = next(row for row in unread[2] if row["currency"] == "USD")
    assert (usd["name"], usd["requests"], usd["failed"], usd["tokens_in"], usd["cost"]) == (
        "a",
        3,
        0,
        9,
        "0.75",
    )
    assert [row["name"] for row in unread[8]][:1] == ["2027-01-15"]
    async with pool.store.transaction() as connection:
        assert await read_documents(connection, 5) == 5
    assert await sums() == unread  # some read, some not
    async with pool.store.transaction() as connection:
        assert await read_documents(connection, 100) == 7
        assert await read_documents(connection, 100) == 0
    assert await sums() == unread
    async with pool.store.transaction() as connection:
        await connection.execute("DELETE FROM receipts")
        await add_receipts(connection, rows)
        assert await connection.fetchval("SELECT count(*) FROM receipts WHERE day IS NULL") == 0
    assert await sums() == unread  # and as this version writes them


async def test_a_shift_is_told_on(pool: Pool) -> None:
    told: list[str] = []
    receipts = issuer(pool, on_shift=lambda _work, outcome: told.append(outcome.shift))
    import dataclasses

    made = receipts.issue(asked(), outcome=dataclasses.replace(OUTCOME, shift="app:web/day: soft"))
    assert told == ["app:web/day: soft"]
    assert made.document["shift"] == "app:web/day: soft"


async def test_a_store_that_is_away_drops_the_oldest_and_counts_them(
    pool: Pool, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgate.capability.receipts.QUEUE_MAX", 2)
    away = await Store.open(store_dsn)
    await away.close()
    receipts = Receipts(away, gate="g", online=pool.signing, pool_key=pool.identity.verify_key)
    made = [receipts.issue(asked(), outcome=OUTCOME) for _ in range(3)]
    await receipts.close()
    assert receipts.dropped == 1
    assert await receipts.get(made[2].id, None) == made[2].document


def test_a_request_that_never_ran_has_a_receipt_too() -> None:
    failed = Outcome("no_candidate", "error", Usage(), (), 10.0, 10.0)
    fields = fields_of(asked(), failed, gate="g")
    assert (fields["model"], fields["nodes"], fields["outcome"]) == (None, [], "no_candidate")
