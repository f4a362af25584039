"""Real gates over real tunnels: logs, the catalogue and its authority, archives, through the control API."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.federation.log.problems import LogConflict
from qgate.federation.pairings import announce
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.outbox import publish
from tests.qgate.gates import control
from tests.qgate.log_pools import until
from tests.qgate.peering import know, pair, peer_of, pools


async def rows(gate: Gate) -> dict[str, Any]:
    return {row["name"]: row["document"] for row in await gate.catalogue.records()}


async def names(gate: Gate) -> list[str]:
    return sorted(await rows(gate))


async def has(gate: Gate, *wanted: str) -> None:
    """Wait until a gate's catalogue has exactly these names."""

    async def there() -> bool:
        return await names(gate) == sorted(wanted)

    await until(there)


async def test_the_catalogue_of_one_pool_is_read_at_the_other(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        with pytest.raises(LogConflict, match="no master"):
            await hq.catalogue.put("llama", {"quant": "Q4"}, by="test")
        status = await hq.catalogue.promote(None, by="test")
        assert (status["epoch"], status["master"], status["members"]) == (1, "hq", status["members"])
        assert sorted(status["members"]) == ["branch", "hq"]
        await hq.catalogue.put("llama", {"quant": "Q4"}, by="test")
        await hq.catalogue.put("qwen", {"quant": "Q8"}, by="test")
        await has(branch, "llama", "qwen")
        await hq.catalogue.put("llama", {"quant": "Q5"}, by="test")
        await hq.catalogue.remove("qwen", by="test")
        await has(branch, "llama")
        assert await rows(branch) == {"llama": {"quant": "Q5"}}
        await hq.parts.audit.flush()
        details = [row["detail"] for row in await hq.parts.trail.entries(kind="admin", after=0)]
        changes = [(one["what"], one["name"]) for one in details if one["what"].startswith("catalogue.")]
        put = ("catalogue.put", "llama")
        assert changes[1:] == [put, ("catalogue.put", "qwen"), put, ("catalogue.remove", "qwen")]
        with pytest.raises(LogConflict, match="written at hq"):
            await branch.catalogue.put("gemma", {}, by="test")


async def test_a_promotion_moves_the_pen_and_strands_what_nobody_had(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        await hq.catalogue.put("shared", {"n": 1}, by="test")
        await has(branch, "shared")
        # The branch fetches nothing more of headquarters, which goes on writing.
        await branch.administration.preferences.set("automation.replication", False, by="test")
        await hq.catalogue.put("stranded", {"n": 2}, by="test")
        await hq.catalogue.put("shared", {"n": "too late"}, by="test")
        await until(lambda: hq.replication.signed >= 5)
        status = await branch.catalogue.promote(None, by="test", reason="hq is gone")
        assert (status["epoch"], status["master"]) == (2, "branch")
        await branch.catalogue.put("new", {"n": 3}, by="test")
        await branch.administration.preferences.reset("automation.replication", by="test")
        await has(hq, "shared", "new")
        await has(branch, "shared", "new")
        assert (await rows(hq))["shared"] == (await rows(branch))["shared"] == {"n": 1}
        in_review = await hq.catalogue.reviews()
        assert sorted(row["name"] for row in in_review) == ["shared", "stranded"]
        stranded = next(row for row in in_review if row["name"] == "stranded")
        await until(lambda: _reviews(branch, 2))
        await branch.catalogue.decide_review("hq", stranded["seq"], accept=True, by="test")
        await has(hq, "shared", "new", "stranded")


async def test_what_a_pool_decided_is_said_for_it_where_it_lost_its_log(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        await until(lambda: _epoch(branch, 1))
        for gate in (hq, branch):
            async with gate.parts.store.store.transaction() as connection:
                await connection.execute("DELETE FROM log_entries WHERE stream = 'authority'")
        async with hq.parts.store.store.transaction() as connection:
            await connection.execute("DELETE FROM catalogue_authority")
        await branch.replication.replicas.rebuild(peer_of(hq, level=3))
        await until(lambda: _epoch(hq, 1))


async def _epoch(gate: Gate, epoch: int) -> bool:
    return bool((await gate.catalogue.status())["epoch"] == epoch)


async def _reviews(gate: Gate, count: int) -> bool:
    return len(await gate.catalogue.reviews()) == count


async def test_two_promotions_at_one_epoch_freeze_until_somebody_picks(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        await hq.catalogue.put("shared", {"n": 1}, by="test")
        await has(branch, "shared")
        await know(hq, peer_of(branch, level=0))
        await know(branch, peer_of(hq, level=0))
        await branch.catalogue.promote(None, by="test", reason="I think hq is dead")
        await hq.catalogue.demote(by="test")
        await know(hq, peer_of(branch, level=3))
        await know(branch, peer_of(hq, level=3))

        async def frozen() -> bool:
            both = [await gate.catalogue.status() for gate in (hq, branch)]
            return all(one["frozen"] for one in both)

        await until(frozen)
        for gate in (hq, branch):
            with pytest.raises(LogConflict, match="contradict") as caught:
                await gate.catalogue.put("x", {}, by="test")
            assert "resolve" in caught.value.hint
        with pytest.raises(LogConflict, match="frozen"):
            await hq.catalogue.promote("branch", by="test")
        for gate in (hq, branch):
            await until(functools.partial(_open_incident, gate))
            (incident,) = await gate.movement.journal.incidents()
            assert (incident["kind"], incident["severity"]) == ("catalogue_frozen", "critical")
            assert "meshctl catalog resolve POOL" in str(await gate.movement.journal.show(incident["id"]))
        assert (await hq.catalogue.resolve("branch", by="test"))["epoch"] == 3

        async def settled() -> bool:
            both = [await gate.catalogue.status() for gate in (hq, branch)]
            return all(one["master"] == "branch" and not one["frozen"] for one in both)

        await until(settled)
        await branch.catalogue.put("after", {}, by="test")
        await has(hq, "shared", "after")
        for gate in (hq, branch):
            await until(functools.partial(_no_open_incident, gate))


async def _open_incident(gate: Gate) -> bool:
    return any(row["state"] == "open" for row in await gate.movement.journal.incidents())


async def _no_open_incident(gate: Gate) -> bool:
    return not await _open_incident(gate)


async def test_the_authority_never_moves_by_itself_between_two_pools(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        async with control(hq) as client:
            reply = await client.put("/failover/mode", json={"mode": "auto", "authority": True})
            assert (reply.status_code, reply.json()["code"]) == (409, "no-majority")
            assert "two pools and no witness have no majority" in reply.json()["detail"]
            assert "routing failover stays automatic" in reply.json()["detail"]
            dry = await client.put(
                "/failover/mode", json={"mode": "auto", "authority": True, "dry_run": True}
            )
            assert dry.status_code == 409
            assert (await client.get("/failover")).json()["mode"] == "auto", "of routing, as it was"
        assert hq.parts.directory.setting("failover.authority") == "manual"


async def test_an_archive_goes_by_hand_and_its_receipt_back(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await know(hq, peer_of(branch, level=3, gates=()))
        await know(branch, peer_of(hq, level=3, gates=()))
        await hq.catalogue.promote(None, by="test")
        for n in range(30):
            await hq.catalogue.put(f"model-{n}", {"n": n}, by="test")

        async def signed() -> bool:
            return bool((await hq.logs.status())["unsigned"] == 0)

        await until(signed)
        async with control(hq) as here, control(branch) as there:
            archive = (await here.get("/logs/branch/archive")).content
            for name, cut in (
                ("half", len(archive) // 2),
                ("head", 40),
                ("nothing", 0),
                ("last", len(archive) - 1),
            ):
                reply = await there.put("/logs/import", content=archive[:cut])
                assert reply.status_code == 422, (name, reply.text)
                assert reply.json()["code"] in {"archive-cut", "archive-format"}, name
                assert await names(branch) == []
            reply = await there.put("/logs/import", content=archive[: len(archive) // 2])
            assert "in the middle" in reply.json()["detail"]
            assert "export" in reply.json()["next"]
            flipped = bytearray(archive)
            flipped[-200] ^= 1
            reply = await there.put("/logs/import", content=bytes(flipped))
            assert reply.json()["code"] == "archive-damaged"
            wrong = await here.put("/logs/import", content=archive)
            assert wrong.json()["code"] == "archive-recipient"

            first = (await there.put("/logs/import", content=archive)).json()
            assert first["new"] == first["entries"] >= 33
            assert len(await names(branch)) == 30
            again = (await there.put("/logs/import", content=archive)).json()
            assert (again["new"], again["applied"], again["head"]) == (0, 0, first["head"])

            receipt = (await here.put("/logs/import", content=first["receipt"].encode())).json()
            assert (receipt["kind"], receipt["head"]) == ("receipt", first["head"])
            state = (await here.get("/logs/redundancy")).json()
            assert state["items"][0]["how"] == "archive"
            await hq.catalogue.put("later", {"n": 99}, by="test")
            await until(lambda: hq.replication.head(hq.parts.keys.pool_key).seq > first["head"])
            less = (await here.get("/logs/branch/archive")).content
            assert len(less) < len(archive) // 3, "only what is new"
            assert (await there.put("/logs/import", content=less)).json()["new"] >= 1
            await has(branch, *(f"model-{n}" for n in range(30)), "later")
            verified = (await there.post("/logs/verify", json={})).json()
            assert verified["ok"], verified


async def test_a_table_that_differs_from_its_log_is_found_and_mended(
    tmp_path: Path, store_server: EmbeddedPostgres
) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        for name in ("llama", "qwen", "gemma"):
            await hq.catalogue.put(name, {"quant": "Q4", "limits": {"b": 1, "a": [2, 3.5]}}, by="test")
        async with hq.parts.store.store.transaction() as connection:
            await announce(connection, peer_of(branch))
        await has(branch, "llama", "qwen", "gemma")
        key = hq.parts.keys.pool_key
        await until(lambda: hq.replication.head(key).seq == branch.replication.head(key).seq > 6)
        found = await branch.logs.verify("hq")
        assert found["ok"], found
        assert await branch.replication.compare() == 0
        for damage in (
            "DELETE FROM catalogue WHERE name = 'qwen'",
            "UPDATE catalogue SET document = '{}' WHERE name = 'llama'",
        ):
            async with branch.parts.store.store.connection() as connection:
                await connection.execute(damage)
            found = await branch.logs.verify("hq")
            assert not found["ok"]
            assert "catalogue" in found["items"][0]["problem"]
            assert await branch.replication.compare() == 1
            assert (await branch.logs.verify("hq"))["ok"]
        assert await rows(branch) == await rows(hq)
        async with branch.parts.store.store.connection() as connection:
            await connection.execute("ALTER TABLE log_entries DISABLE TRIGGER append_only")
            await connection.execute("UPDATE log_entries SET hash = '\\x00' || substr(hash, 2) WHERE seq = 3")
            await connection.execute("UPDATE log_entries SET payload = payload || '\\x00' WHERE seq = 4")
        found = await branch.logs.verify("hq")
        assert found["items"][0]["first_bad_seq"] == 4


@pytest.mark.timeout(300)
async def test_a_long_catalogue_goes_over_a_tunnel(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    """Several answers' worth of entries; `tests.bench.replication` measures 10,000."""
    count = 1_500
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        await hq.catalogue.promote(None, by="test")
        key = hq.parts.keys.pool_key
        await until(lambda: hq.replication.head(key).seq >= 3)
        document = {"quant": "Q4_K_M", "context": 8192}
        async with hq.parts.store.store.transaction() as connection:
            for n in range(count):
                await publish(
                    connection,
                    stream="catalogue",
                    record=n.to_bytes(16, "big"),
                    payload={"name": f"model-{n}", "document": document | {"size": n}, "by": "test", "at": 1},
                    epoch=1,
                )
        await until(lambda: branch.replication.head(key).seq >= count + 3, timeout_s=240)
        assert len(await names(branch)) == count


async def test_the_control_api_names_what_is_wrong(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq") as (hq,), control(hq) as here:

        async def problem(call: Any) -> tuple[int, str]:
            reply: httpx.Response = await call
            return reply.status_code, reply.json()["code"]

        assert await problem(here.get("/logs/nowhere/archive")) == (404, "not-found")
        assert await problem(here.get("/logs/entries", params={"pool": "nowhere"})) == (404, "not-found")
        assert await problem(here.post("/catalogue/resolve", json={})) == (409, "not-frozen")
        assert await problem(here.post("/catalogue/promote", json={"pool": "nowhere"})) == (404, "not-found")
        assert await problem(here.put("/logs/import", content=b"hello")) == (422, "archive-format")
        assert await problem(here.delete("/catalogue/records/x")) == (409, "not-master")
        assert (await here.get("/logs")).json()["publishing"] is True
        assert (await here.post("/logs/verify", json={})).json()["ok"] is True
        assert (await here.get("/logs/redundancy")).json()["state"] == "alone"
        streams = {row["name"] for row in (await here.get("/logs/streams")).json()["items"]}
        assert "catalogue" in streams
        assert "audit" not in streams
