"""Results of jobs for other pools: kept until acknowledged, and recorded once, also for a gate that died."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.federation.result_streams import STREAMS_MAX
from qgate.federation.results import (
    AGAIN_S,
    GATE_GONE_S,
    RECORD_PAUSE_S,
    TELLING_MAX,
    Docket,
    Home,
    Telling,
    docket_purpose,
    judge,
    receipt_id,
    recovered_fields,
    request_of,
)
from qgate.gate import Gate
from qgate.governance.docket_keys import KEPT, DocketKeys, docket_key, forget_docket_keys
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.results import ResultRow, add_results, list_results
from qgate.vault import Vault, VaultError
from tests.qgate.gates import control, until
from tests.qgate.test_compute import ask, key, two
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import KIND_RESULTS
from tunnel_proto.receipt import spell

DOCKET = Docket("web", "chat", "gate-1", "run-1", 1.8e9)
HOME = Home("gate-1", "run-1", {"gate-1": 1.0, "gate-2": 20.0})


# --- what is decided ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "home", "recorded", "underway", "word"),
    [
        ({}, HOME, True, False, "known"),
        ({}, HOME, True, True, "known"),
        ({}, HOME, False, True, "wait"),
        ({}, HOME, False, False, "record"),
        ({"run": "run-0"}, HOME, False, False, "record"),  # whoever had the name before
        ({"gate": "gate-2"}, HOME, False, False, "wait"),  # it will say so itself
        ({"gate": "gate-2"}, Home("gate-1", "run-1", {"gate-2": GATE_GONE_S + 1}), False, False, "record"),
        ({"gate": "gate-3"}, HOME, False, False, "record"),  # nobody has that name any more
    ],
)
def test_what_is_done_with_a_result(
    changes: dict[str, str], home: Home, recorded: bool, underway: bool, word: str
) -> None:
    docket = dataclasses.replace(DOCKET, **changes)  # type: ignore[arg-type]
    assert judge(docket, home, recorded=recorded, underway=underway) == word


def test_a_docket_comes_back_as_it_was() -> None:
    assert Docket.load(DOCKET.dump()) == DOCKET
    with pytest.raises(ValueError, match="another version"):
        Docket.load(json.dumps({"app": "web"}).encode())
    assert request_of("req_1.2") == "req_1"
    assert docket_purpose(b"\1", "req_1.1") != docket_purpose(b"\1", "req_1.2")


def test_a_result_is_told_again_ever_more_rarely_until_it_is_acknowledged() -> None:
    telling, times, now = Telling(), [], 0.0
    while now < 200:
        if telling.due(["req_1.1"], now):
            times.append(now)
        now += 0.1
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert times[0] == pytest.approx(RECORD_PAUSE_S, abs=0.11)
    assert gaps[0] == pytest.approx(AGAIN_S[0], abs=0.11)
    assert max(gaps) == pytest.approx(AGAIN_S[1], abs=0.11)
    assert [round(gap) for gap in gaps] == sorted(round(gap) for gap in gaps)
    telling.acknowledged("req_1.1")
    assert not telling.due([], now)
    assert not telling.told


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(0, 600))
def test_only_so_many_are_told_and_not_acknowledged(steps: list[int], count: int) -> None:
    telling, now, kept = Telling(), 0.0, [f"req_{n}.1" for n in range(count)]
    for step in steps:
        now += step / 10
        due = telling.due(kept, now)
        assert len(due) == len(set(due)) <= TELLING_MAX
    assert len(telling.told) <= count


def test_a_peers_receipt_cannot_put_anything_but_words_and_numbers_into_ours() -> None:
    theirs: dict[str, Any] = {
        "id": "req_x",
        "model": "m" * 10_000,
        "model_version": ["ab"],
        "tokens_in": "7",
        "tokens_out": -1,
        "tokens_cached": True,
        "nodes": ["no node"],
        "outcome": None,
    }
    fields = recovered_fields("req_1", DOCKET, theirs, pool="gpu", gate="gate-1", now=1.8e9)
    assert len(fields["model"]) == 256
    assert fields["model_version"] is fields["outcome"] is None
    assert fields["tokens_in"] is fields["tokens_out"] is fields["tokens_cached"] is None
    assert set(fields["nodes"][0]) == {"node", "kind", "model", "version", "tokens_in", "tokens_out"}
    assert (fields["app"], fields["recovered"]) == ("web", {"from": "req_x", "by": "gate-1"})


class Asked(Ignore):
    """A stream on which results are asked for; how it was refused."""

    stream: Stream
    code: int | None = None

    def stream_closed(self, error: StreamError | None) -> None:
        self.code = StreamCode.CANCELLED if error is None else error.code


# --- two gates ----------------------------------------------------------------------------------------------


def dockets(gate: Gate) -> DocketKeys:
    return DocketKeys(gate.parts.vault, gate.parts.directory)


async def kept_at(gate: Gate) -> list[ResultRow]:
    async with gate.parts.store.store.connection() as connection:
        rows = await connection.fetch("SELECT DISTINCT pool FROM results")
        return [one for row in rows for one in await list_results(connection, row["pool"], 1000)]


async def receipts_of(gate: Gate) -> list[dict[str, Any]]:
    async with gate.parts.store.store.connection() as connection:
        rows = await connection.fetch("SELECT document FROM receipts ORDER BY at")
    return [json.loads(row["document"]) for row in rows]


async def kept_and_forgotten(gate: Gate, count: int) -> None:
    """Wait until nothing is kept there any more, although that many jobs ran."""
    for _ in range(1000):
        if not await kept_at(gate):
            break
        await asyncio.sleep(0.05)
    assert not await kept_at(gate)
    assert len(await receipts_of(gate)) == count


async def test_a_result_is_kept_until_home_has_recorded_its_request(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _):
        reply = await ask(hq)
        assert reply.status_code == 200
        (row,) = await kept_at(branch)  # in the store before the answer's end was said
        request = request_of(row.job)
        assert (row.pool, row.job) == (key(hq), f"{reply.headers['x-qgate-receipt']}.1")
        assert json.loads(row.receipt)["id"] == receipt_id(key(hq), row.job)
        # It says nothing of who asked but to whom it belongs.
        assert b"admin" not in row.docket
        with pytest.raises(VaultError):
            dockets(branch).unseal(row.docket, docket_purpose(key(branch), row.job))
        await kept_and_forgotten(branch, 1)
        (receipt,) = await receipts_of(hq)
        assert receipt["id"] == request
        assert "recovered" not in receipt
        assert hq.compute.results.recovered == 0


async def told_again(
    hq: Gate, branch: Gate, *, run: str, jobs: int = 1, sealer: Vault | DocketKeys | None = None
) -> None:
    """Let branch keep results of jobs that a process of hq had sent before it died."""
    rows = []
    for number in range(1, jobs + 1):
        docket = Docket("web", "chat", hq.settings.name, run, time.time())
        job = f"req_lost.{number}"
        signed = branch.capabilities.receipts.recover(
            {
                "id": receipt_id(key(hq), job),
                "app": "pool:hq",
                "model": "small",
                "model_version": "ab" * 32,
                "nodes": [{"node": "gpu0"}],
                "tokens_in": 7,
                "tokens_out": 5,
                "tokens_cached": 0,
                "duration_ms": 1200,
                "first_token_ms": 80,
                "ended_at": spell(time.time()),
                "outcome": "cancelled",
                "finish_reason": "",
            }
        )
        sealed = (sealer or dockets(hq)).seal(docket.dump(), docket_purpose(key(branch), job))
        document = json.loads(signed.document)
        assert document["id"] == receipt_id(key(hq), job)
        rows.append(ResultRow(key(hq), job, sealed, signed.document, time.time()))
    async with branch.parts.store.store.connection() as connection:
        await add_results(connection, rows)
    for told in branch.compute.results._told[key(hq)]:
        told.stirred = True


async def test_what_a_gate_that_died_had_asked_for_is_recorded_once(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _):
        await until(lambda: branch.compute.results._told.get(key(hq)))
        await told_again(hq, branch, run="the one before", jobs=2)
        await until(lambda: hq.compute.results.recovered)
        await asyncio.sleep(0)
        for _ in range(100):
            if not await kept_at(branch):
                break
            await asyncio.sleep(0.05)
        assert not await kept_at(branch)
        (receipt,) = await receipts_of(hq)
        assert (receipt["id"], receipt["app"], receipt["tokens_out"]) == ("req_lost", "web", 5)
        assert receipt["outcome"] == "cancelled"
        (hop,) = receipt["nodes"]
        assert (hop["node"], hop["worker"]) == ("branch", "gpu0")
        assert receipt["recovered"]["by"] == hq.settings.name
        assert hq.compute.results.recovered == 1


async def test_a_docket_opens_after_the_vault_was_rekeyed(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _), control(hq) as client:
        await until(lambda: branch.compute.results._told.get(key(hq)))
        before = Vault((docket_key(hq.parts.vault),))  # what sealed dockets that are at the branch by now
        for _ in range(2):
            assert (await client.post("/vault/rekey")).status_code == 200
        await told_again(hq, branch, run="the one before", sealer=before)
        await until(lambda: hq.compute.results.recovered)
        (receipt,) = await receipts_of(hq)
        assert (receipt["id"], receipt["app"]) == ("req_lost", "web")
        # After their time the keys are gone, and what they sealed is none of ours any more.
        kept = [name for name in hq.parts.directory.snapshot.secrets if name.startswith(KEPT)]
        assert len(kept) == 2
        office = hq.governing.administering.logins._office
        async with office.store.transaction() as connection:
            assert await forget_docket_keys(connection, office.now()) == 0
            assert await forget_docket_keys(connection, office.now() + timedelta(days=32)) == 2
        await office.watch.refresh()
        box = before.seal(b"docket", "purpose")
        with pytest.raises(VaultError):
            dockets(hq).unseal(box, "purpose")


async def test_a_pool_asks_on_a_few_streams_at_once_and_no_more(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _):
        held = branch.compute.results._told
        await until(lambda: held.get(key(hq)))
        asked: list[Asked] = []
        for _ in range(2 * STREAMS_MAX):
            one = Asked()
            one.stream = hq.compute.results._links.open(key(branch), KIND_RESULTS, {}, one)
            asked.append(one)
        await until(lambda: sum(one.code == StreamCode.LIMIT for one in asked) == STREAMS_MAX + 1)
        assert len(held[key(hq)]) == STREAMS_MAX
        next(one for one in asked if one.code is None).stream.reset(StreamCode.CANCELLED, "")
        await until(lambda: len(held[key(hq)]) == STREAMS_MAX - 1)
        again = Asked()
        again.stream = hq.compute.results._links.open(key(branch), KIND_RESULTS, {}, again)
        await until(lambda: len(held[key(hq)]) == STREAMS_MAX)
        assert again.code is None


async def test_a_request_that_goes_on_is_not_recorded_for_its_first_attempt(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: None
        asked = asyncio.create_task(ask(hq))
        await until(lambda: stage.plays)
        request = stage.plays[0].attempt.work.id
        own = next(iter(hq.capabilities.engine._runs)).work.id
        assert hq.capabilities.engine.underway(own)
        assert not hq.capabilities.engine.underway(request)
        docket = Docket("web", "chat", hq.settings.name, hq.compute.results.run_id, 1.8e9)
        home = Home(hq.settings.name, hq.compute.results.run_id, {})
        assert judge(docket, home, recorded=False, underway=hq.capabilities.engine.underway(own)) == "wait"
        stage.plays[0].say("Hello")
        assert (await asked).status_code == 200
        await kept_and_forgotten(branch, 1)


async def test_results_that_are_none_of_ours_are_not_recorded(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _):
        await until(lambda: branch.compute.results._told.get(key(hq)))
        docket = Docket("web", "chat", hq.settings.name, "before", 1.8e9)
        good = dockets(hq).seal(docket.dump(), docket_purpose(key(branch), "req_a.1"))
        rows = [
            ResultRow(key(hq), "req_a.1", b"made up", "{}", 1.8e9),
            ResultRow(key(hq), "req_b.1", good, "{}", 1.8e9),  # a docket of another job
            ResultRow(key(hq), "req_a.2", good, "no receipt", 1.8e9),
        ]
        async with branch.parts.store.store.connection() as connection:
            await add_results(connection, rows)
        for told in branch.compute.results._told[key(hq)]:
            told.stirred = True
        for _ in range(100):
            if not await kept_at(branch):
                break
            await asyncio.sleep(0.05)
        assert not await kept_at(branch)
        assert not await receipts_of(hq)
        assert hq.compute.results.recovered == 0


async def test_without_a_store_an_answer_ends_all_the_same(
    tmp_path: Path, store_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qgate.store import StoreUnavailableError

    async def away(*_: object) -> None:
        raise StoreUnavailableError("the store is unavailable: a test")

    async with two(tmp_path, store_server) as (hq, branch, _):
        with monkeypatch.context() as patch:
            patch.setattr("qgate.federation.result_streams.add_results", away)
            assert (await ask(hq)).status_code == 200
            assert branch.compute.results._waiting
        await until(lambda: not branch.compute.results._waiting)  # written as soon as it is back
        await kept_and_forgotten(branch, 1)


def test_a_gate_that_nobody_knows_is_gone() -> None:
    home = Home("gate-9", "x", {"gate-1": math.inf})
    assert judge(DOCKET, home, recorded=False, underway=False) == "record"
