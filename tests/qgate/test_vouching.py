"""What a pool attests of its workers, and what a peer makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qgate.federation.attested import Attested, AttestedWorker, Speed, read_speed, read_worker, rounded
from qgate.federation.guests import GuestNode
from qgate.federation.peer import Peer, Permissions
from qgate.gate import Gate
from qgate.governance.guest_list import welcome
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.capability import model, report
from tests.qgate.gates import control
from tests.qgate.log_pools import until
from tests.qgate.peering import pair, pools
from tunnel_proto.errors import RemoteProtocolError

HQ = b"h" * 32
WORKER = AttestedWorker("box", "Some CPU", 8, 64 << 30, ("Some GPU",))
SPEED = Speed("box", "small", "ab" * 32, 42.0, 900.0)


async def tell(gate: Gate, **told: Any) -> int:
    async with gate.parts.store.store.transaction() as connection:
        attested = gate.governing.replicating.vouching._attested
        given = {"workers": (), "gone": (), "speeds": (), **told}
        return await attested.reconcile(connection, **given)


async def shown(gate: Gate, pool: str) -> dict[str, Any]:
    async with control(gate) as client:
        reply = await client.get(f"/attested/{pool}")
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


async def test_a_peer_hears_of_workers_and_speeds_and_begins_with_them(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch)
        assert await tell(branch, workers=[WORKER], speeds=[SPEED]) == 2
        assert await tell(branch, workers=[WORKER], speeds=[SPEED]) == 0, "nothing has changed"

        async def heard() -> bool:
            return bool((await shown(hq, "branch"))["speeds"])

        await until(heard)
        found = await shown(hq, "branch")
        assert [(row["name"], row["cores"], row["gpus"]) for row in found["items"]] == [
            ("box", 8, ["Some GPU"])
        ]
        # The worker comes over: it is not measured from nothing.
        inventory = hq.capabilities.inventory
        inventory.workers_changed("branch/box", report("branch/box", model(tps_measured=5.0)), 0.0)
        await hq.governing.replicating.look()
        (there,) = inventory.nodes["worker", "branch/box"].deployments.values()
        assert (there.estimate.speed.count, there.estimate.speed.value) == (1, 42.0)
        await hq.governing.replicating.look()
        assert there.estimate.speed.count == 1, "one observation, once"
        assert (await hq.logs.verify("branch"))["ok"]
        assert await tell(branch, gone=["box"]) == 1

        async def gone() -> bool:
            return not (await shown(hq, "branch"))["items"]

        await until(gone)


async def test_a_speed_is_told_again_once_it_differs(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq") as (hq,):
        attested = Attested()
        counts = []
        for speed in (40.0, 44.0, 47.0, 49.0, 30.0):
            async with hq.parts.store.store.transaction() as connection:
                told = Speed("box", "small", "", speed)
                counts.append(await attested.reconcile(connection, workers=(), gone=(), speeds=[told]))
        assert counts == [1, 0, 0, 1, 1]
    assert rounded(47.123) == 47.0


def test_a_worker_comes_only_where_workers_are_let_in() -> None:
    nodes = [GuestNode(HQ, b"x" * 32, b"v" * 32, role, role, 1) for role in ("daemon",)]
    nodes.append(GuestNode(HQ, b"y" * 32, b"v" * 32, "laptop", "client", 1))
    peer = Peer(HQ, "hq", level=2)
    assert len(welcome({HQ: peer}, apps=(), nodes=nodes, rosters={}).nodes) == 2
    closed = Peer(HQ, "hq", level=2, permissions=Permissions(deny_receive=frozenset({"workers"})))
    (left,) = welcome({HQ: closed}, apps=(), nodes=nodes, rosters={}).nodes.values()
    assert left.role == "client"


def test_entries_come_as_they_were_sent() -> None:
    assert read_worker(WORKER.payload()) == WORKER
    said = {"worker": "box", "model": "small", "sha256": "ab" * 32, "speed": 42.0, "prefill": 900.0}
    assert read_speed(said) == SPEED


@pytest.mark.parametrize(
    "changes", [{"name": "a/b"}, {"name": 7}, {"cores": -1}, {"gpus": "many"}, {"memory": "much"}]
)
def test_a_workers_entry_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read_worker({**WORKER.payload(), **changes})


@pytest.mark.parametrize(
    "changes", [{"worker": "a/b"}, {"speed": -1.0}, {"speed": float("nan")}, {"sha256": "zz"}, {"model": ""}]
)
def test_a_speeds_entry_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    said = {"worker": "box", "model": "small", "sha256": "", "speed": 42.0, "prefill": 0.0}
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read_speed({**said, **changes})
