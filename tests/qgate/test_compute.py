"""Two paired gates: what one has no worker for is answered by the other, where both allow it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.capability.pools import offloaded
from qgate.capability.work import Attempt, Chunk, Failure, Running, Sink, Usage
from qgate.federation.offers import offer_of
from qgate.federation.peer import Permissions
from qgate.federation.results import receipt_id
from qgate.gate import Gate
from qgate.governance.directory import App
from qgate.governance.policy import CapabilityPolicy
from qgate.http.offloaded import READING_MAX
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.calling import Ear as Calling
from tests.qgate.capability import model, report, work
from tests.qgate.gates import Ear, until
from tests.qgate.peering import know, pair, peer_of, pools
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.messages import Decoder, JobRefused, encode

QUESTION = {"model": "small", "messages": [{"role": "user", "content": "secret words"}], "user": "alice"}


@dataclass(eq=False)
class Play:
    """An attempt at a worker that a test plays."""

    attempt: Attempt
    sink: Sink
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def say(self, *texts: str, done: bool = True) -> None:
        for at, text in enumerate(texts):
            self.sink.chunk(Chunk(text, (at + 1,)))
        if done:
            self.sink.done("stop", Usage(7, len(texts), 0, 7), model_version=self.attempt.candidate.version)


@dataclass(eq=False)
class Stage:
    """The workers of a gate, played."""

    gate: Gate
    plays: list[Play] = field(default_factory=list)
    answer: Callable[[Play], None] = lambda play: play.say("Hello", " there")

    def start(self, attempt: Attempt, sink: Sink) -> Running:
        play = Play(attempt, sink)
        self.plays.append(play)
        sink.accepted()
        asyncio.get_running_loop().call_soon(self.answer, play)
        return play

    def hire(self, name: str = "gpu0", **changes: Any) -> None:
        """Have one worker with one model."""
        capabilities = self.gate.capabilities
        capabilities.executors["worker"] = self
        now = asyncio.get_running_loop().time()
        capabilities.inventory.workers_changed(name, report(name, model(**changes)), now)


@contextlib.asynccontextmanager
async def two(
    directory: Path, server: EmbeddedPostgres, *, level: int = 2, **changes: Any
) -> AsyncIterator[tuple[Gate, Gate, Stage]]:
    """ "hq" without workers and "branch" with one, paired."""
    async with pools(directory, server, "hq", "branch", **changes) as (hq, branch):
        stage = Stage(branch)
        stage.hire()
        await pair(hq, branch, level=level)
        await until(lambda: hq.peering.links.up(key(branch)) and branch.peering.links.up(key(hq)))
        hq.compute.offers.look()
        branch.compute.offers.look()
        await until(lambda: key(branch) in hq.compute.offers.heard)
        yield hq, branch, stage


def key(gate: Gate) -> bytes:
    return gate.parts.keys.pool_key


@contextlib.asynccontextmanager
async def asking(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(gate.files.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
        yield client


async def ask(gate: Gate, **changes: Any) -> httpx.Response:
    async with asking(gate) as client:
        return await client.post("/v1/chat/completions", json=QUESTION | changes)


async def broken(gate: Gate) -> str:
    """What a stream says whose connection is cut, as one is that is not whole."""
    said = ""
    body = {**QUESTION, "stream": True}
    async with asking(gate) as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        with contextlib.suppress(httpx.RemoteProtocolError):
            async for part in reply.aiter_text():
                said += part
            raise AssertionError("it ended as if it were whole")
    return said


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said_by(text: str) -> str:
    """The words of a stream."""
    chosen = [one["choices"][0]["delta"] for one in events(text) if one.get("choices")]
    return "".join(delta.get("content") or "" for delta in chosen)


async def test_a_chat_is_answered_by_the_other_pool(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        reply = await ask(hq, stream=True)
        assert reply.status_code == 200, reply.text
        assert said_by(reply.text) == "Hello there"
        (play,) = stage.plays
        there = play.attempt.work
        # The peer sees what has to be worked on, and nothing of who asked.
        assert there.app.name == "pool:hq"
        assert there.body["messages"] == QUESTION["messages"]
        assert "user" not in there.body
        assert "admin" not in json.dumps(dict(there.body))
        # Each side has a receipt of its own, and each knows the other's id.
        async with asking(hq) as client:
            own = (await client.get(f"/v1/receipts/{reply.headers['x-qgate-receipt']}")).json()
        async with asking(branch) as client:
            theirs = (await client.get(f"/v1/receipts/{receipt_id(key(hq), own['id'] + '.1')}")).json()
        (hop,) = own["nodes"]
        assert (hop["node"], hop["kind"], hop["worker"]) == ("branch", "pool", "gpu0")
        assert (own["tokens_in"], own["tokens_out"]) == (7, 2)
        assert (theirs["app"], theirs["tokens_out"]) == ("pool:hq", 2)
        assert [one["node"] for one in theirs["nodes"]] == ["gpu0"]


async def test_an_answer_that_is_not_streamed_and_embeddings(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        whole = await ask(hq)
        assert whole.json()["choices"][0]["message"]["content"] == "Hello there"
        stage.hire(name="small", kinds=("embedding",))
        stage.gate.capabilities.inventory.workers_changed(
            "gpu0", report("gpu0", model("vectors", kinds=("embedding",), sha256="cd" * 32))
        )
        branch.compute.offers.look()
        await until(lambda: ("vectors", "cd" * 32) in hq.capabilities.inventory.groups)
        stage.answer = lambda play: play.sink.done(
            "stop", Usage(3, 0, 0, 3), result=[[1.0, -2.0]], model_version="cd" * 32
        )
        async with asking(hq) as client:
            reply = await client.post("/v1/embeddings", json={"model": "vectors", "input": "text"})
        assert reply.json()["data"][0]["embedding"] == [1.0, -2.0]


async def test_what_the_peer_offers_is_shown(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, _):
        async with asking(hq) as client:
            rows = (await client.get("/control/v1/workers")).json()["pools"]
            names = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
            explained = (await client.post("/control/v1/route/explain", json={"request": "small"})).json()
            barred = await client.post(
                "/control/v1/route/explain", json={"request": "qg://task=chat;data=local-only"}
            )
            elsewhere = await client.post(
                "/control/v1/route/explain", json={"request": "qg://task=chat;pool=hq"}
            )
            there = await client.post(
                "/control/v1/route/explain", json={"request": "qg://task=chat;pool=branch"}
            )
        assert [(row["name"], row["pool"], row["state"]) for row in rows] == [
            ("branch/*", "branch", "offered")
        ]
        assert "small" in names
        assert explained["chosen"] == {"node": "branch", "kind": "pool", "model": "small"}
        (peer,) = [one for one in barred.json()["items"] if one["kind"] == "pool"]
        assert any("leave the company" in reason for reason in peer["reasons"])
        (peer,) = [one for one in elsewhere.json()["items"] if one["kind"] == "pool"]
        assert peer["reasons"] == ["another pool was asked for"]
        (peer,) = [one for one in there.json()["items"] if one["kind"] == "pool"]
        assert peer["verdict"] == "chosen"
        # Nothing is offered on: what hq has is what branch offers it.
        assert not offer_of(hq.capabilities.inventory, jobs=True).models
        assert not [one for one in branch.capabilities.inventory.candidates() if one.kind == "pool"]


async def test_a_pool_that_wants_money_is_weighed_charged_and_held_to_budgets(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        async with asking(branch) as client:
            for name, value in (("input", 2.0), ("output", 10)):
                reply = await client.put(
                    f"/control/v1/settings/federation.price_{name}", json={"value": value}
                )
                assert reply.status_code == 200, reply.text
        branch.compute.offers.look()
        await until(lambda: hq.compute.rows()[0]["price_output"] == "10")
        async with asking(hq) as client:
            assert (await client.put("/control/v1/budgets/pool/month", json={"hard": 1})).is_success
            asked = {"request": "qg://task=chat;pool=branch"}
            explained = (await client.post("/control/v1/route/explain", json=asked)).json()
        (judged,) = [one for one in explained["items"] if one["kind"] == "pool"]
        assert judged["price"] > 0
        reply = await ask(hq)
        assert reply.status_code == 200, reply.text
        async with asking(hq) as client:
            own = (await client.get(f"/v1/receipts/{reply.headers['x-qgate-receipt']}")).json()
            await hq.capabilities.ledger.flush()
            budget = (await client.get("/control/v1/budgets/pool/month")).json()
        assert (own["price"], own["currency"]) == ("0.000034", "USD"), "7 tokens for 2 and 2 for 10 a million"
        assert budget["spent"] == "0.000034"
        async with asking(hq) as client:
            assert (await client.put("/control/v1/budgets/pool/month", json={"hard": 0.00001})).is_success
        await hq.capabilities.ledger.refresh()
        refused = await ask(hq, max_tokens=1000)
        assert refused.status_code in {402, 403, 429}, refused.text
        assert len(stage.plays) == 1, "nothing is asked for that cannot be paid"
        async with asking(branch) as client:
            for name in ("input", "output"):
                await client.put(f"/control/v1/settings/federation.price_{name}", json={"value": 0})
        branch.compute.offers.look()
        await until(lambda: hq.compute.rows()[0]["price_output"] == "0")
        assert (await ask(hq)).status_code == 200, "for nothing it needs no budget"


async def test_local_only_is_never_sent(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, _, stage):
        reply = await ask(hq, model="qg://task=chat;data=local-only")
        assert reply.status_code == 403
        assert "local-only" in reply.json()["error"]["message"]
        assert not stage.plays


async def test_level_1_sees_and_may_not_use(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server, level=1) as (hq, branch, stage):
        assert [row["state"] for row in hq.compute.rows()] == ["seen"]
        reply = await ask(hq)
        assert reply.status_code == 404
        # Sent all the same, as a gate would that had been changed: the other side refuses.
        with pytest.raises(LocalProtocolError, match="may not go to the pool branch"):
            hq.peering.links.open(key(branch), "jobs", {}, Ear())
        await know(hq, peer_of(branch, level=2))
        ear = Ear()
        hq.peering.links.open(key(branch), "jobs", {}, ear)
        await until(ear.closed.is_set)
        assert ear.error is not None
        assert "jobs is not accepted" in ear.error.message
        assert not stage.plays


async def test_lowering_the_level_withdraws_the_offer(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: play.say("one", done=False)
        asked = asyncio.create_task(broken(hq))
        await until(lambda: stage.plays)
        await know(branch, peer_of(hq, permissions=Permissions(deny_receive=frozenset({"jobs"}))))
        assert '"code":"stream_interrupted"' in await asked
        await until(lambda: stage.plays[0].cancelled)
        branch.compute.offers.look()
        await until(lambda: hq.compute.rows()[0]["state"] == "seen")
        assert (await ask(hq)).status_code == 404


async def test_a_link_that_dies_before_the_first_token(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    brief = TunnelSettings(resume_window_s=2, retry_min_s=0.02, retry_max_s=0.05)
    async with two(tmp_path, store_server, tunnel=brief) as (hq, branch, stage):
        own = Stage(hq)
        stage.answer = lambda play: None
        asked = asyncio.create_task(ask(hq, stream=True))
        await until(lambda: stage.plays)
        own.hire("laptop")
        await branch.peering.links.close()  # both directions: what branch dialled could be used as well
        await branch.tunnel.close()
        reply = await asked
        assert said_by(reply.text) == "Hello there"
        assert [play.attempt.candidate.node for play in own.plays] == ["laptop"]


async def test_a_stream_goes_on_at_an_own_worker_from_its_very_tokens(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: play.say("one ", "two ", done=False)
        asked = asyncio.create_task(ask(hq, stream=True))
        await until(lambda: stage.plays)
        own = Stage(hq)
        own.hire("laptop")
        own.answer = lambda play: play.say("three")
        await know(branch, peer_of(hq, state="unpaired"))
        reply = await asked
        assert said_by(reply.text) == "one two three"
        (play,) = own.plays
        assert play.attempt.emitted == (1, 2)
        last = events(reply.text)[-1]
        assert [(one["from"], one["to"], one["how"]) for one in last["qgate"]["route"]] == [
            ("branch", "laptop", "exact")
        ]
        assert [one["kind"] for one in last["qgate"]["receipt"]["nodes"]] == ["pool", "worker"]


async def test_where_nobody_else_can_it_says_why(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: play.sink.failed(
            Failure("node_lost", "the worker is gone", retriable=True, blame="network")
        )
        reply = await ask(hq)
        assert reply.status_code in {502, 503}, reply.text
        assert "worker is gone" in reply.json()["error"]["message"]
        await know(branch, peer_of(hq, state="unpaired"))
        await until(lambda: not hq.peering.links.up(key(branch)))
        assert not hq.peering.links.up(key(branch))
        reply = await ask(hq)
        assert reply.status_code == 503, reply.text
        # Which of the two depends on whether the inventory has heard of it yet.
        assert re.search("not connected|no link to the pool", reply.json()["error"]["message"])


async def test_a_job_runs_once_and_only_so_many(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: None
        (candidate,) = [one for one in hq.capabilities.inventory.candidates() if one.kind == "pool"]
        start = offloaded(Attempt("req_1.1", work(max_tokens=9), candidate, max_tokens=5))
        assert start.body is not None
        assert start.body["max_tokens"] == 5
        ears = []
        for _ in range(2):
            ear = Ear()
            stream = hq.peering.links.open(key(branch), "jobs", {}, ear)
            stream.write(encode(start))
            stream.write_eof()
            ears.append(ear)
        await until(lambda: b"job-refused" in ears[1].data)
        refused = Decoder().feed(ears[1].data)[-1]
        assert isinstance(refused, JobRefused)
        assert refused.message == "this attempt came already"
        assert len(stage.plays) == 1
        branch.parts.directory.setting("federation.jobs")
        async with asking(branch) as client:
            assert (await client.put("/control/v1/settings/federation.jobs", json={"value": 1})).is_success
        reply = await ask(hq)
        assert reply.status_code == 429, reply.text
        assert branch.compute.jobs.running(key(hq)) == 1


async def test_what_is_no_job_is_turned_away(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        halves = [Ear() for _ in range(READING_MAX + 1)]
        opened = [hq.peering.links.open(key(branch), "jobs", {}, ear) for ear in halves]
        for stream in opened:
            stream.write(b"\xff\xff")
        await until(halves[-1].closed.is_set)
        assert halves[-1].error is not None
        assert "not whole yet" in halves[-1].error.message
        opened[0].write_eof()
        opened[1].write(b"\xff\xff")
        for ear in halves[:2]:
            await until(ear.closed.is_set)
        for stream in opened[2:-1]:
            stream.reset(StreamCode.CANCELLED, "")
        later = Ear()
        hq.peering.links.open(key(branch), "inventory", {}, later).write(encode(JobRefused("x", "no", "no")))
        await until(later.closed.is_set)
        assert later.error is not None
        assert later.error.message == "only offers are said on this stream"
        assert (await ask(hq)).status_code == 200
        assert len(stage.plays) == 1


async def test_a_cancelled_request_is_cancelled_there(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, branch, stage):
        stage.answer = lambda play: None
        asked = asyncio.create_task(ask(hq, stream=True))
        await until(lambda: stage.plays)
        asked.cancel()
        await until(lambda: stage.plays[0].cancelled)
        await until(lambda: branch.compute.jobs.running(key(hq)) == 0)


async def test_a_request_of_a_pool_is_not_sent_on(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with two(tmp_path, store_server) as (hq, _, stage):
        (candidate,) = [one for one in hq.capabilities.inventory.candidates() if one.kind == "pool"]
        for app in (App("pool:other", (), frozenset(), policy=CapabilityPolicy()),):
            ear = Calling()
            hq.capabilities.executors["pool"].start(Attempt("req_1.1", work(app=app), candidate), ear)
            assert ear.failure is not None
            assert ear.failure.message == "a request of another pool is not sent on"
        assert not stage.plays
