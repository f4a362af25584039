"""The audit log: nothing waits, nothing is lost that need not be, and nothing can be changed unnoticed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.governance.audit import AuditEvent, AuditLog, entry_of
from qgate.governance.registry import DEFAULTS
from qgate.governance.trail import AuditTrail
from qgate.store import Store, StoreUnavailableError
from tunnel_proto.audit_chain import (
    GENESIS,
    ExportCheck,
    canonical,
    check_export,
    link,
    sign_head,
)
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import Identity, fingerprint

POOL, ONLINE = Identity.generate(), Identity.generate()
NOW = int(time.time())
CERTIFICATE = issue_online(POOL, ONLINE.verify_key, not_before=NOW - 60, not_after=NOW + 86_400, serial=1)


class Gate:
    """One gate's writer and reader over a store."""

    def __init__(self, store: Store, name: str = "gate-1", head_file: Path | None = None) -> None:
        self.settings: dict[str, Any] = {**DEFAULTS, "audit.batch_interval_s": 0.02}
        self.log = AuditLog(
            store,
            gate=name,
            online=OnlineKey(ONLINE, CERTIFICATE),
            setting=self.settings.__getitem__,
            head_file=head_file,
        )
        self.trail = AuditTrail(
            store,
            self.log,
            pool_key=POOL.verify_key,
            online=OnlineKey(ONLINE, CERTIFICATE),
            head_file=head_file,
        )

    async def write(self, count: int, **fields: Any) -> None:
        for number in range(count):
            self.log.record(AuditEvent("query", app="web", database="shop", rows=number, **fields))
        await self.log.flush()


@pytest.fixture
def gate(store: Store) -> Gate:
    return Gate(store)


async def tamper(dsn: str, sql: str) -> None:
    """What a superuser of the store can do: switch the triggers off and write."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "qgate"})
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(sql)
    await connection.close()


async def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


async def test_events_become_a_chain_that_verifies(gate: Gate) -> None:
    await gate.write(250, fingerprint="SELECT $1", fingerprint_id="abcd")
    result = await gate.trail.verify()
    assert result["ok"]
    assert result["entries"] == 250
    assert result["head"]["seq"] == 250
    rows = await gate.trail.entries(after=10, limit=3)
    assert [row["seq"] for row in rows] == [11, 12, 13]
    assert rows[0]["app"] == "web"
    assert rows[0]["gate"] == "gate-1"
    assert rows[0]["fingerprint"] == "SELECT $1"


async def test_rows_are_found_by_app_database_and_kind(gate: Gate) -> None:
    await gate.write(5)
    gate.log.record(AuditEvent("denied", app="cron", database="shop", outcome="42501"))
    gate.log.record(AuditEvent("admin", detail={"what": "app.create"}))
    await gate.log.flush()
    assert [row["kind"] for row in await gate.trail.entries(app="cron", after=0)] == ["denied"]
    assert [row["seq"] for row in await gate.trail.entries(kind="admin", after=0)] == [7]
    assert len(await gate.trail.entries(database="shop", after=0)) == 6
    assert [row["seq"] for row in await gate.trail.entries(limit=2)] == [6, 7]


async def test_several_gates_share_one_chain(store: Store) -> None:
    gates = [Gate(store, f"gate-{number}") for number in range(4)]
    await asyncio.gather(*(gate.write(120) for gate in gates for _ in range(3)))
    result = await gates[0].trail.verify()
    assert (result["ok"], result["entries"]) == (True, 4 * 360)


async def test_the_table_refuses_update_delete_and_truncate(gate: Gate, store: Store) -> None:
    await gate.write(3)
    for sql in (
        "UPDATE audit_entries SET entry = '{}'",
        "DELETE FROM audit_entries WHERE seq = 3",
        "TRUNCATE audit_entries",
        "DELETE FROM audit_signed_heads",
    ):
        if "signed" in sql:
            await gate.log.sign()
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            async with store.connection() as connection:
                await connection.execute(sql)


@pytest.mark.parametrize(
    ("sql", "seq", "words"),
    [
        (
            "UPDATE audit_entries SET entry = replace(entry, '\"rows\":4', '\"rows\":5') WHERE seq = 5",
            5,
            "changed",
        ),
        ("UPDATE audit_entries SET hash = decode(repeat('ab', 32), 'hex') WHERE seq = 7", 7, "changed"),
        ("DELETE FROM audit_entries WHERE seq = 4", 4, "entry 4 is missing"),
        ("DELETE FROM audit_entries WHERE seq BETWEEN 4 AND 6", 4, "entries 4 to 6 are missing"),
        ("DELETE FROM audit_entries WHERE seq = 1", 1, "entry 1 is missing"),
        (
            "UPDATE audit_entries a SET entry = b.entry, hash = b.hash FROM audit_entries b "
            "WHERE (a.seq, b.seq) IN ((3, 4), (4, 3))",
            3,
            "order was changed",
        ),
        ("DELETE FROM audit_entries WHERE seq > 8", 9, "removed from the end"),
        (
            "DELETE FROM audit_entries WHERE seq > 8;"
            "UPDATE audit_head SET seq = 8, hash = (SELECT hash FROM audit_entries WHERE seq = 8)",
            9,
            "a signed head names them",
        ),
        ("DELETE FROM audit_entries; UPDATE audit_head SET seq = 0", 1, "a signed head names them"),
        ("UPDATE audit_head SET seq = 9", 10, "head does not name"),
        ("UPDATE audit_signed_heads SET signature = decode(repeat('00', 64), 'hex')", 10, "not genuine"),
    ],
)
async def test_verify_finds(gate: Gate, store_dsn: str, sql: str, seq: int, words: str) -> None:
    await gate.write(10)
    assert (await gate.trail.verify())["ok"]
    await tamper(store_dsn, sql)
    result = await gate.trail.verify()
    assert not result["ok"]
    assert words in result["problem"]
    assert result["first_bad_seq"] == seq


async def test_a_chain_written_anew_is_found_by_its_signed_heads(gate: Gate, store_dsn: str) -> None:
    await gate.write(10)
    await gate.log.sign()
    connection = await asyncpg.connect(store_dsn, server_settings={"search_path": "qgate"})
    digest, forged = GENESIS, []
    for row in await connection.fetch("SELECT seq, entry FROM audit_entries ORDER BY seq"):
        entry = row["entry"].replace('"app":"web"', '"app":"bob"')
        digest = link(digest, entry)
        forged.append((row["seq"], entry, digest))
    await connection.execute("SET session_replication_role = replica")
    await connection.executemany("UPDATE audit_entries SET entry = $2, hash = $3 WHERE seq = $1", forged)
    await connection.execute("UPDATE audit_head SET hash = $1", digest)
    await connection.close()
    result = await gate.trail.verify()
    assert "written anew" in result["problem"]


async def test_heads_kept_elsewhere_find_a_tail_removed_with_its_heads(
    store: Store, store_dsn: str, tmp_path: Path
) -> None:
    gate = Gate(store, head_file=tmp_path / "audit.head")
    await gate.write(10)
    exported = await gate.log.sign()
    assert exported is not None
    await tamper(
        store_dsn,
        "DELETE FROM audit_entries WHERE seq > 6; DELETE FROM audit_signed_heads;"
        "UPDATE audit_head SET seq = 6, hash = (SELECT hash FROM audit_entries WHERE seq = 6)",
    )
    assert "removed from the end" in (await gate.trail.verify())["problem"]
    elsewhere = Gate(store, "gate-2")
    assert "removed from the end" in (await elsewhere.trail.verify(heads=(exported,)))["problem"]
    assert (tmp_path / "audit.head").stat().st_mode & 0o777 == 0o600


async def test_a_head_signed_by_another_pool_is_not_genuine(gate: Gate) -> None:
    await gate.write(2)
    stranger, key = Identity.generate(), Identity.generate()
    certificate = issue_online(stranger, key.verify_key, not_before=NOW - 60, not_after=NOW + 60, serial=1)
    forged = sign_head(key, certificate, seq=2, hash=bytes(32), at=NOW)
    assert "another pool" in (await gate.trail.verify(heads=(forged,)))["problem"]


async def test_export_ends_with_a_signed_head_and_can_be_checked_without_the_store(
    gate: Gate, tmp_path: Path
) -> None:
    await gate.write(25)
    lines = [line async for line in gate.trail.export()]
    pool = fingerprint(POOL.verify_key)
    found = check_export(lines, lines, pool=pool)
    assert (found.finding, found.entries) == (None, 25)
    assert found.head is not None
    file = tmp_path / "audit.ndjson"
    command = [sys.executable, "-m", "meshctl", "audit", "verify", "--file", str(file), "--pool", pool]

    def verified() -> int:
        return subprocess.run(command, capture_output=True, check=False).returncode

    file.write_text("".join(lines))
    assert verified() == 0
    changed = lines[9].replace("shop", "till")
    file.write_text("".join([*lines[:9], changed, *lines[10:]]))
    assert verified() == 6
    assert "entry 10 was changed" in _problem(
        check_export(lines, [*lines[:9], changed, *lines[10:]], pool=pool)
    )
    assert "missing" in _problem(check_export(lines, [*lines[:3], *lines[5:]], pool=pool))
    with pytest.raises(ValueError, match="cut short"):
        check_export(lines[:-1], lines[:-1], pool=pool)
    with pytest.raises(AuthenticationFailed, match="another pool"):
        check_export(lines, lines, pool=fingerprint(ONLINE.verify_key))


def _problem(found: ExportCheck) -> str:
    assert found.finding is not None
    return found.finding.problem


async def test_follow_gives_new_entries_as_they_come(gate: Gate) -> None:
    await gate.write(2)
    stream = gate.trail.follow(after=1)
    assert (await anext(stream))["seq"] == 2
    waiting = asyncio.ensure_future(anext(stream))
    await gate.write(1)
    assert (await asyncio.wait_for(waiting, 60))["seq"] == 3
    await stream.aclose()  # type: ignore[attr-defined]


async def test_retention_cuts_the_front_behind_a_signed_marker(gate: Gate, store_dsn: str) -> None:
    old = time.time() - 40 * 86_400
    await gate.write(6, started_at=old)
    await gate.write(4)
    assert await gate.trail.retire(days=30) == 6
    assert await gate.trail.retire(days=30) == 0
    await gate.log.flush()
    result = await gate.trail.verify()
    assert (result["ok"], result["entries"]) == (True, 5)
    lines = [json.loads(line) async for line in gate.trail.export()]
    assert lines[0]["marker"]["seq"] == 6
    await tamper(store_dsn, "DELETE FROM audit_entries WHERE seq = 7")
    assert (await gate.trail.verify())["first_bad_seq"] == 7


async def test_a_forged_marker_hides_nothing(gate: Gate, store_dsn: str) -> None:
    await gate.write(6)
    await tamper(
        store_dsn,
        "INSERT INTO audit_markers SELECT 3, hash, 1, decode(repeat('00', 64), 'hex'), '\\x01' "
        "FROM audit_entries WHERE seq = 3; DELETE FROM audit_entries WHERE seq <= 3",
    )
    assert "marker at 3 is not genuine" in (await gate.trail.verify())["problem"]


async def test_the_running_log_writes_within_its_interval_and_signs(gate: Gate) -> None:
    gate.settings["audit.sign_interval_s"] = 0.0
    running = asyncio.ensure_future(gate.log.run())
    gate.log.record(AuditEvent("query"))
    await until(lambda: gate.log.written == 1)
    gate.log.record(AuditEvent("query"))
    await until(lambda: gate.log.written == 2)

    async def signed() -> bool:
        head = await gate.trail.head()
        return head is not None and head["seq"] == 2

    async with asyncio.timeout(60):
        while not await signed():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON audit_entries FOR EACH STATEMENT EXECUTE FUNCTION full_disk()
"""


async def run_sql(store: Store, sql: str) -> None:
    async with store.connection() as connection:
        await connection.execute(sql)


@pytest.mark.parametrize("policy", ["refuse", "drop"])
async def test_a_full_disk_holds_entries_back_up_to_a_bound(gate: Gate, store: Store, policy: str) -> None:
    gate.settings |= {"audit.queue_max": 100, "audit.when_full": policy}
    await run_sql(store, FULL)
    for _ in range(99):
        gate.log.record(AuditEvent("query"))
    with pytest.raises(StoreUnavailableError, match="No space left"):
        await gate.log.flush()
    assert gate.log.accepting
    for _ in range(101):
        gate.log.record(AuditEvent("query"))
    assert gate.log.accepting is (policy == "drop")
    room = 125 if policy == "refuse" else 100
    assert (gate.log.queued, gate.log.dropped) == (room, 200 - room)

    await run_sql(store, "DROP TRIGGER full_disk ON audit_entries")
    await gate.log.flush()
    assert gate.log.accepting
    assert gate.log.written == room + 1
    lost = await gate.trail.entries(kind="audit.dropped", after=0)
    assert [row["count"] for row in lost] == [200 - room]
    assert (await gate.trail.verify())["ok"]


async def test_a_commit_whose_answer_was_lost_is_not_written_twice(
    gate: Gate, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = Store.transaction

    class Lossy:
        """A transaction that commits and then claims that the connection broke."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.inner: Any = transaction(store, **kwargs)

        async def __aenter__(self) -> Any:
            return await self.inner.__aenter__()

        async def __aexit__(self, *error: object) -> None:
            await self.inner.__aexit__(*error)
            raise StoreUnavailableError("the answer to COMMIT was lost")

    for number in range(7):
        gate.log.record(AuditEvent("query", rows=number))
    with monkeypatch.context() as patched:
        patched.setattr(Store, "transaction", Lossy)
        with pytest.raises(StoreUnavailableError):
            await gate.log.flush()
    assert gate.log.queued == 7
    await gate.log.flush()
    result = await gate.trail.verify()
    assert (result["ok"], result["entries"], gate.log.queued, gate.log.written) == (True, 7, 0, 7)


async def test_the_log_recovers_by_itself(gate: Gate, store: Store) -> None:
    await run_sql(store, FULL)
    running = asyncio.ensure_future(gate.log.run())
    gate.log.record(AuditEvent("query"))
    failed = asyncio.Event()
    flush: Callable[[], Awaitable[None]] = gate.log.flush

    async def watched() -> None:
        try:
            await flush()
        except StoreUnavailableError:
            failed.set()
            raise

    gate.log.flush = watched  # type: ignore[method-assign]
    await asyncio.wait_for(failed.wait(), 60)
    await run_sql(store, "DROP TRIGGER full_disk ON audit_entries")
    await until(lambda: gate.log.written == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_event_that_cannot_be_spelled_holds_nothing_up(gate: Gate) -> None:
    gate.log.record(AuditEvent("query", detail={"x": object()}))
    gate.log.record(AuditEvent("query", duration_s=float("nan")))
    gate.log.record(AuditEvent("query", fingerprint="a\x00b \ud800 \N{GRINNING FACE}"))
    await gate.log.flush()
    rows = await gate.trail.entries(after=0)
    assert len(rows) == 3
    assert rows[2]["fingerprint"].endswith("\N{GRINNING FACE}")
    assert (await gate.trail.verify())["ok"]


async def test_a_killed_gate_loses_no_more_than_its_last_batch(store: Store, store_dsn: str) -> None:
    gate = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.qgate.recorder", store_dsn, stdout=asyncio.subprocess.PIPE
    )
    assert gate.stdout is not None
    pool_key = bytes.fromhex((await gate.stdout.readline()).decode())
    said: list[tuple[int, float]] = []
    while not said or said[-1][1] < said[0][1] + 2.0:
        number, at = (await gate.stdout.readline()).split()
        said.append((int(number), float(at)))
    gate.kill()
    killed_at = time.time()
    while line := await gate.stdout.readline():
        number, at = line.split()
        said.append((int(number), float(at)))
    await gate.wait()

    reader = Gate(store, "reader")
    reader.trail._pool_key = pool_key
    rows = await reader.trail.entries(after=0, limit=10_000)
    kept = [row["rows"] for row in rows]
    assert kept == list(range(1, len(kept) + 1))
    assert (await reader.trail.verify())["ok"]
    oldest_lost = min((at for number, at in said if number > len(kept)), default=killed_at)
    # One interval to gather, one for an insert under way; the rest is this machine being busy.
    assert killed_at - oldest_lost < 4 * DEFAULTS["audit.batch_interval_s"]


def test_recording_is_cheap(gate: Gate) -> None:
    event = AuditEvent("query", started_at=1.0)
    began = time.process_time()
    for _ in range(10_000):
        gate.log.record(event)
    assert (time.process_time() - began) / 10_000 < 50e-6


@given(
    st.fixed_dictionaries(
        {
            "app": st.text(),
            "fingerprint": st.none() | st.text(),
            "rows": st.integers(0),
            "duration_s": st.floats(allow_nan=False, allow_infinity=False),
            "detail": st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()),
        }
    )
)
def test_every_entry_has_one_spelling(fields: dict[str, Any]) -> None:
    entry = entry_of(AuditEvent("query", started_at=1.5, **fields), seq=3, gate="g")
    assert canonical(json.loads(entry)) == entry
    assert entry.isascii()
    said = json.loads(entry)
    detail = said.get("detail", {})
    words = (said.get("app", ""), said.get("fingerprint", ""), *detail, *map(str, detail.values()))
    assert not any("\x00" in word for word in words)
