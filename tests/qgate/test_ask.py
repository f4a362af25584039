"""Questions between two real pools: who may ask what, and what a hostile or slow side can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qgate.federation.ask import ANSWER_MAX, AT_ONCE, KIND_PREFIX, PARAMETERS_MAX, AskError
from qgate.federation.peer import Peer, Permissions
from qgate.gate import Gate
from qgate.governance.problems import ConflictError
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import Ear, until
from tests.qgate.peering import know, pair, peer_of, pools
from tunnel_proto.constants import StreamCode
from tunnel_proto.packing import pack, unpack


def key(gate: Gate) -> bytes:
    return gate.parts.keys.pool_key


class Desk:
    """Answers a gate's questions as a test wants; `let_go` ends those that wait."""

    def __init__(self, gate: Gate) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.waiting = 0
        self.let_go = asyncio.Event()
        asks = gate.peering.asks
        asks.question("echo", "inventory", self._echo)
        asks.question("wait", "inventory", self._wait)
        asks.question("large", "inventory", self._large)
        asks.question("odd", "inventory", self._odd)
        asks.question("problem", "inventory", self._problem)
        asks.question("notice", "admin", self._echo, gives="question")

    async def _echo(self, peer: Peer, parameters: Mapping[str, Any]) -> Any:
        self.asked.append((peer.name, dict(parameters)))
        return {"you": peer.name, **parameters}

    async def _wait(self, peer: Peer, parameters: Mapping[str, Any]) -> Any:
        self.waiting += 1
        try:
            await self.let_go.wait()
        finally:
            self.waiting -= 1
        return "at last"

    async def _large(self, peer: Peer, parameters: Mapping[str, Any]) -> Any:
        return b"x" * parameters["size"]

    async def _odd(self, peer: Peer, parameters: Mapping[str, Any]) -> Any:
        return object()

    async def _problem(self, peer: Peer, parameters: Mapping[str, Any]) -> Any:
        raise ConflictError("not now\x1b[2J", hint="come again")


@pytest.fixture
async def two(tmp_path: Path, store_server: EmbeddedPostgres) -> AsyncIterator[tuple[Gate, Gate, Desk]]:
    """A pool that asks, one that answers, and the latter's desk."""
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        Desk(hq)
        desk = Desk(branch)
        await pair(hq, branch)
        await until(lambda: hq.peering.links.up(key(branch)) and branch.peering.links.up(key(hq)))
        yield hq, branch, desk


async def code_of(gate: Gate, pool_key: bytes, name: str, parameters: dict[str, Any], **more: Any) -> str:
    with pytest.raises(AskError) as caught:
        await gate.peering.asks.ask(pool_key, name, parameters, **more)
    assert 400 <= caught.value.status < 600
    return f"{caught.value.code}: {caught.value.message}"


async def test_a_question_is_answered_or_says_why_not(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, desk = two
    asks, there = hq.peering.asks, key(branch)
    assert await asks.ask(there, "echo", {"n": 1}) == {"you": "hq", "n": 1}
    assert desk.asked == [("hq", {"n": 1})]
    large = await asks.ask(there, "large", {"size": ANSWER_MAX - 64}, timeout=20)
    assert len(large) == ANSWER_MAX - 64
    assert (await code_of(hq, there, "large", {"size": ANSWER_MAX}, timeout=20)).startswith("peer-too-long")
    assert (await code_of(hq, there, "echo", {"x": b"y" * PARAMETERS_MAX})).startswith("peer-too-long")
    assert "a defect of the gate" in await code_of(hq, there, "odd", {})
    with pytest.raises(AskError) as told:
        await asks.ask(there, "problem", {})
    assert (told.value.code, told.value.told, told.value.hint) == ("peer-failed", "conflict", "come again")
    assert told.value.message == "the pool branch: not now·[2J"
    assert (await code_of(hq, b"?" * 32, "echo", {})).startswith("peer-unknown")
    assert (await code_of(hq, there, "nothing", {})).startswith("peer-refused")
    assert await asks.ask(there, "echo", {}) == {"you": "hq"}  # the link has outlived all of it


async def test_who_is_too_slow_is_not_waited_for(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, desk = two
    there = key(branch)
    assert (await code_of(hq, there, "wait", {}, timeout=0.1)).startswith("peer-slow")
    await until(lambda: desk.waiting == 0)  # the reset has stopped the search
    asked = [asyncio.create_task(hq.peering.asks.ask(there, "wait", {}, timeout=20)) for _ in range(AT_ONCE)]
    await until(lambda: desk.waiting == AT_ONCE)
    assert "answered at once" in await code_of(hq, there, "echo", {})
    asked[0].cancel()
    await until(lambda: desk.waiting == AT_ONCE - 1)
    assert await hq.peering.asks.ask(there, "echo", {}) == {"you": "hq"}
    desk.let_go.set()
    assert await asyncio.gather(*asked[1:]) == ["at last"] * (AT_ONCE - 1)
    assert branch.peering.asks._at_once == {}


async def test_each_side_decides_in_its_own_direction(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, _ = two
    there = key(branch)
    # "admin" goes with the question: level 2 is not enough on either side
    assert "admin may not go to" in await code_of(hq, there, "notice", {})
    await know(hq, peer_of(branch, permissions=Permissions(allow_send=frozenset({"admin"}))))
    assert "admin is not accepted from" in await code_of(hq, there, "notice", {})
    await know(branch, peer_of(hq, permissions=Permissions(allow_receive=frozenset({"admin"}))))
    assert await hq.peering.asks.ask(there, "notice", {}) == {"you": "hq"}
    # "inventory" comes with the answer: the branch must let it out, hq must let it in
    await know(branch, peer_of(hq, permissions=Permissions(deny_send=frozenset({"inventory"}))))
    assert "inventory is not given to" in await code_of(hq, there, "echo", {})
    assert await branch.peering.asks.ask(key(hq), "echo", {}) == {"you": "branch"}
    await know(hq, peer_of(branch, permissions=Permissions(deny_receive=frozenset({"inventory"}))))
    assert "inventory may not come from" in await code_of(hq, there, "echo", {})


async def test_lowering_trust_stops_an_answer_on_its_way(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, desk = two
    asked = asyncio.create_task(hq.peering.asks.ask(key(branch), "wait", {}, timeout=20))
    await until(lambda: desk.waiting == 1)
    await know(branch, peer_of(hq, level=0))
    desk.let_go.set()
    with pytest.raises(AskError, match="no longer allowed"):
        await asked
    assert desk.waiting == 0


async def test_a_pool_that_goes_away_is_told_as_such(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, desk = two
    there = key(branch)
    asked = asyncio.create_task(hq.peering.asks.ask(there, "wait", {}, timeout=20))
    await until(lambda: desk.waiting == 1)
    await branch.peering.links.close()
    await branch.tunnel.close()
    with pytest.raises(AskError) as caught:
        await asked
    assert caught.value.code == "peer-away"
    await until(lambda: not hq.peering.links.up(there))
    assert (await code_of(hq, there, "echo", {})).startswith("peer-away: no link to the pool branch is up")


@pytest.mark.parametrize("said", [b"", b"\xc1", b"x" * (PARAMETERS_MAX + 1), pack([1, 2]), b"\x81\x01" * 9])
async def test_a_malformed_question_ends_alone(two: tuple[Gate, Gate, Desk], said: bytes) -> None:
    hq, branch, desk = two
    ear = Ear()
    stream = hq.peering.links.open(key(branch), KIND_PREFIX + "echo", {}, ear)
    stream.write(said)
    stream.write_eof()
    await until(ear.closed.is_set)
    assert ear.error is not None
    assert ear.error.code in {StreamCode.PROTOCOL, StreamCode.LIMIT}
    assert not desk.asked
    assert await hq.peering.asks.ask(key(branch), "echo", {}) == {"you": "hq"}


async def test_a_question_that_never_ends_is_ended(two: tuple[Gate, Gate, Desk]) -> None:
    hq, branch, _ = two
    branch.peering.asks._answer_s = 0.1
    ear = Ear()
    hq.peering.links.open(key(branch), KIND_PREFIX + "echo", {}, ear).write(b"\x81")
    await until(ear.closed.is_set)
    assert "took too long" in str(ear.error)


@pytest.mark.parametrize(
    "said", [b"", b"\x92", pack([2, "x"]), pack({"a": 1}), pack([1, "code", 7, ""]), b"y" * (ANSWER_MAX + 1)]
)
async def test_a_malformed_answer_is_an_error_and_no_more(two: tuple[Gate, Gate, Desk], said: bytes) -> None:
    hq, branch, _ = two

    def liar(peer: Peer, carrier: Any, stream: Any) -> None:
        del peer, carrier
        stream.receiver = Ear()
        stream.write(said)
        stream.write_eof()

    branch.peering.links.serve(KIND_PREFIX + "echo", "inventory", liar, taking=True)
    code = await code_of(hq, key(branch), "echo", {}, timeout=20)
    assert code.split(":")[0] in {"peer-malformed", "peer-too-long"}
    Desk(branch)
    assert await hq.peering.asks.ask(key(branch), "echo", {}) == {"you": "hq"}


def test_what_is_asked_and_answered_is_plain_msgpack() -> None:
    assert unpack(pack([0, {"a": [1.5, None, b"x"]}]), max_bytes=64) == [0, {"a": [1.5, None, b"x"]}]
