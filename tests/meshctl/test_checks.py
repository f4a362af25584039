from __future__ import annotations

import pytest

from meshctl import checks
from meshctl.checks import Verdict

DAY = 86_400.0


@pytest.mark.parametrize(
    ("verdict", "expected", "following"),
    [
        (checks.python((3, 11, 0)), "PASSED", ""),
        (checks.python((3, 10, 9)), "FAILED", "make PYTHON="),
        (checks.open_files(1024, 4096), "PASSED", ""),
        (checks.open_files(1024, -1), "PASSED", ""),
        (checks.open_files(256, 1024), "FAILED", "ulimit"),
        (checks.key_mode("k", 0o600), "PASSED", ""),
        (checks.key_mode("k", 0o640), "FAILED", "chmod 600 k"),
        (checks.key_mode("k", None), "FAILED", "restore"),
        (checks.pool_key("k", True), "WARNING", "mv k"),
        (checks.pool_key("k", False), "PASSED", ""),
        (checks.expiry("c", 40 * DAY, 0, "renew"), "PASSED", ""),
        (checks.expiry("c", 10 * DAY, 0, "renew"), "WARNING", "renew"),
        (checks.expiry("c", 0, 0, "renew"), "FAILED", "renew"),
        (checks.expiry("c", None, 0, "renew"), "WARNING", "key show"),
        (checks.clock(True), "PASSED", ""),
        (checks.clock(None), "PASSED", ""),
        (checks.clock(False), "WARNING", "timedatectl"),
        (checks.store({"store": {"ok": True}}), "PASSED", ""),
        (checks.store({}), "FAILED", "journalctl"),
        (checks.gate_state({"gate": {"state": "ready"}}), "PASSED", ""),
        (checks.gate_state({"gate": {"state": "draining"}}), "WARNING", "restart"),
        (checks.audit_queue({"audit": {"dropped": 0}}), "PASSED", ""),
        (checks.audit_queue({"audit": {"dropped": 2}}), "WARNING", "audit.when_full"),
        (checks.audit_chain({"ok": True, "entries": 3}), "PASSED", ""),
        (checks.audit_chain({"ok": False, "problem": "entry 2"}), "FAILED", "audit verify"),
        (checks.route("shop", {"ok": True}), "PASSED", ""),
        (checks.route("shop", {"ok": False, "steps": [{"ok": False, "next": "do it"}]}), "FAILED", "do it"),
        (checks.route("shop", {"ok": False}), "FAILED", "db check shop"),
    ],
)
def test_each_fact_has_its_verdict_and_next_command(verdict: Verdict, expected: str, following: str) -> None:
    assert verdict.verdict == expected
    assert following in verdict.next
    assert bool(verdict.next) == (expected != "PASSED")


def test_sidecars_connected_idle_absent_and_ending() -> None:
    row = {"name": "a", "state": "active", "connected": True, "expires_at": 100 * DAY}
    assert [one.verdict for one in checks.sidecars([row], 0)] == ["PASSED"]
    assert [one.verdict for one in checks.sidecars([{**row, "connected": False}], 0)] == ["WARNING"]
    assert [one.verdict for one in checks.sidecars([{**row, "state": "revoked"}], 0)] == ["WARNING"]
    ending = [{**row, "expires_at": "1970-01-02T00:00:00Z"}]
    assert [one.verdict for one in checks.sidecars(ending, 0)] == ["PASSED", "WARNING"]


def test_workers_connected_gone_ending_and_what_they_say_of_themselves() -> None:
    assert [one.verdict for one in checks.workers([], 0)] == ["PASSED"]
    told = {"name": "memory lock", "verdict": "warning", "detail": "swap", "next": "mend WORKER"}
    row = {
        "name": "gpu1",
        "state": "present",
        "connected": True,
        "expires_at": 100 * DAY,
        "hardware": {"checks": [told]},
    }
    found = checks.workers([row], 0)
    assert [(one.name, one.verdict, one.next) for one in found] == [
        ("workers", "PASSED", ""),
        ("worker gpu1: memory lock", "WARNING", "mend gpu1"),
    ]
    (_, new, *_) = checks.workers([{**row, "connected": False, "state": "never connected"}], 0)
    assert new.detail == "not connected since this gate began"
    gone = checks.workers([{**row, "connected": False}, {**row, "hardware": None}], 99 * DAY)
    assert [one.verdict for one in gone] == ["PASSED", "FAILED", "WARNING", "WARNING"]
    assert "systemctl status qdaemon" in gone[1].next


def test_a_worker_that_moved_to_another_pool_is_no_failure() -> None:
    rows: list[dict[str, object]] = [
        {"name": "gpu1", "state": "at branch", "at": "branch", "connected": False},
        {"name": "gpu2", "state": "gone", "at": None, "connected": False},
    ]
    count, moved, lost = checks.workers(rows, 0)
    assert count.detail == "0 of 2 connected, 1 at other pools"
    assert (moved.name, moved.verdict) == ("worker gpu1", "PASSED")
    assert "branch" in moved.detail
    assert (lost.name, lost.verdict) == ("worker gpu2", "FAILED")


@pytest.mark.parametrize(("value", "seconds"), [(5, 5.0), (None, None), ("", None), ("soon", None)])
def test_times_in_each_form(value: object, seconds: float | None) -> None:
    assert checks.unix_time(value) == seconds


def test_peers_are_told_by_what_is_wrong_with_them() -> None:
    def row(**changes: object) -> dict[str, object]:
        well = {"name": "hq", "state": "paired", "level": 2, "link": "up", "health": "alive", "problem": ""}
        return {**well, **changes}

    assert {one.verdict for one in checks.peers([row(), row(health=None)])} == {"PASSED"}
    for changes, detail in (
        ({"link": "down", "problem": "connection refused"}, "connection refused"),
        ({"health": "silent"}, "silent"),
        ({"problem": "its clock is -600 s off ours"}, "-600 s"),
        ({"state": "confirmed"}, "not finished"),
    ):
        (verdict,) = checks.peers([row(**changes)])
        assert verdict.verdict == "WARNING"
        assert detail in verdict.detail
    assert checks.peers([row(state="unpaired"), row(state="revoked")]) == []
