"""The ceremony over the network, between two real gates that do not know each other yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgate.federation.ceremony import PairingError
from qgate.federation.introduction import WAITING_MAX, Talk
from qgate.federation.transcript import FILE_MAX
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.gates import Ear, control, until
from tests.qgate.log_pools import PipeStream
from tests.qgate.peering import pools
from tunnel_proto.errors import RemoteProtocolError, TunnelError

BY = "uid=1000"


def key(gate: Gate) -> bytes:
    return gate.parts.keys.pool_key


async def test_one_file_and_two_strings_pair_two_reachable_pools(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with (
        pools(tmp_path, store_server, "hq", "branch") as (hq, branch),
        control(hq) as at_hq,
        control(branch) as at_branch,
    ):
        offer = (await at_hq.post("/pairings/offer", json={"online": True})).json()
        reply = await at_branch.post("/pairings/online", json={"file": offer["offer"]})
        assert reply.status_code == 201, reply.text
        there = reply.json()
        here = (await at_hq.get(f"/pairings/{offer['id']}")).json()
        assert (here["state"], there["state"]) == ("confirmed", "confirmed")
        assert here["peer"]["name"] == "branch"
        for client, name, string in (
            (at_hq, "branch", there["string"]),
            (at_branch, "hq", here["string"]),
        ):
            trust = await client.put(f"/pools/{name}/trust", json={"level": 2, "string": string})
            assert trust.status_code == 200, trust.text
        await until(lambda: hq.peering.links.up(key(branch)) and branch.peering.links.up(key(hq)))
        again = await at_branch.post("/pairings/online", json={"file": offer["offer"]})
        assert again.json()["state"] == "done"
        rows = (await at_hq.get("/pools")).json()["items"]
        assert [(row["name"], row["link"], row["level"]) for row in rows] == [("branch", "up", 2)]


async def test_a_stranger_fills_no_memory() -> None:
    near, far = PipeStream("pairing"), PipeStream("pairing")
    near.other, far.other = far, near
    talk, stranger = Talk(), Talk()
    near.receiver, talk.stream = talk, near  # type: ignore[assignment]
    far.receiver, stranger.stream = stranger, far  # type: ignore[assignment]
    for _ in range(3 * WAITING_MAX):
        stranger.say("x" * 1000)
    for _ in range(WAITING_MAX):
        assert await talk.hear(10) == "x" * 1000
    with pytest.raises(RemoteProtocolError, match="more files"):
        await talk.hear(10)
    assert near.over
    stranger.say("x" * FILE_MAX)
    with pytest.raises(TunnelError):
        await talk.hear(0.05)


async def test_nobody_is_let_in_without_an_open_offer(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        pairing = hq.administration.pools.pairing
        closed = await pairing.offer(valid_s=None, online=False, new=False, by=BY)
        there = branch.administration.pools.pairing
        with pytest.raises(PairingError, match="not made to be answered over the network"):
            await there.answer_online(closed["offer"], name=None, by=BY)
        answer = (await there.answer(closed["offer"], name=None, by=BY))["answer"]
        with pytest.raises(PairingError, match="no gate of hq took the answer"):
            await branch.peering.introduction.answer(closed["offer"], answer)
        assert hq.authorisation.refused["unpaired"] > 0
        # With another offer open the gate lets strangers knock, and yet takes no answer to the closed one.
        await pairing.offer(valid_s=60, online=True, new=True, by=BY)
        with pytest.raises(PairingError, match="no offer here is open to answers over the network"):
            await branch.peering.introduction.answer(closed["offer"], answer)
        # Nor anything else: a tunnel gives no right.
        client = await branch.peering.links.knock(hq.gate_addresses()[0], 5.0)
        ear = Ear()
        client.open_stream("heartbeat", {}, ear)
        await until(ear.closed.is_set)
        assert ear.error is not None
        await client.close()
