"""licence, branding, orders, automations and the configuration document, as commands send and show them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshctl.cli.config_pool import lines
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate

BRANDING: dict[str, Any] = {
    "name": "Example AI",
    "logo": [" /\\", "/__\\"],
    "colours": {"primary": "#80c0ff"},
    "support": "help@example.org",
    "white_label": False,
    "title": "Example AI (qgate-mesh)",
    "white_label_in_force": False,
    "theme": {"background": "#101418", "primary": "#80c0ff"},
    "version": 3,
    "changed_by": "alice",
}
CHANGE: dict[str, Any] = {
    "section": "apps",
    "name": "web",
    "effect": "set",
    "before": {"read_only": False},
    "after": {"read_only": True},
    "fields": {"read_only": [False, True]},
    "problem": "",
}
DIFF: dict[str, Any] = {
    "changes": [CHANGE],
    "refused": [],
    "kept": ["apps/late"],
    "etag": "abc",
    "owner": False,
}


# --- licence


def test_a_licence_of_one_s_own_is_issued_and_verified(meshctl: Run, tmp_path: Path) -> None:
    code, out, err = meshctl("license", "issue", "--key", "vendor.pem", "--new-key", "--issuer", "acme")
    assert (code, out) == (0, "")
    vendor = next(word for word in err.split() if word.startswith("acme="))
    assert (tmp_path / "vendor.pem").stat().st_mode & 0o777 == 0o600
    code, token, _ = meshctl(
        *("license", "issue", "--key", "vendor.pem", "--licensee", "Example Ltd"),
        *("--seats", 5, "--feature", "white-label", "--valid", "30d"),
    )
    assert code == 0
    code, out, _ = meshctl("license", "verify", "-", "--vendor", vendor, "-o", "json", stdin=token)
    row = json.loads(out)
    assert (code, row["state"], row["seats"], row["features"]) == (0, "valid", 5, ["white-label"])
    code, _, err = meshctl("license", "verify", "-", "--vendor", vendor, stdin=token.replace(".", ".A", 1))
    assert (code, "changed after it was signed" in err) == (6, True)
    code, token, _ = meshctl(
        *("license", "issue", "--key", "vendor.pem", "--licensee", "X", "--begins-in", "2d")
    )
    code, _, err = meshctl("license", "verify", "-", "--vendor", vendor, stdin=token)
    assert (code, "not-yet" in err) == (6, True)


def test_a_key_is_not_overwritten_nor_read_where_others_can(meshctl: Run, tmp_path: Path) -> None:
    path = tmp_path / "vendor.pem"
    path.write_text("hello")
    path.chmod(0o600)
    assert meshctl("license", "issue", "--key", path, "--new-key")[0] == 2
    code, _, err = meshctl("license", "issue", "--key", path)
    assert (code, "no Ed25519 key" in err) == (2, True)
    path.chmod(0o644)
    code, _, err = meshctl("license", "issue", "--key", path)
    assert (code != 0, "chmod 600" in err) == (True, True)


def test_a_licence_is_installed_shown_and_removed(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    (tmp_path / "licence.txt").write_text("a.b.c\n")
    gate.answer("PUT /licence", {"state": "valid", "licensee": "Example Ltd"})
    code, out, _ = at_gate("license", "install", "licence.txt")
    assert (code, "Example Ltd" in out) == (0, True)
    assert gate.body_of("PUT /licence") == {"token": "a.b.c", "force": False}
    gate.problem("PUT /licence", 422, "the licence was changed", "take the file again", code="licence")
    code, _, err = at_gate("license", "install", "licence.txt", "--force")
    assert (code, "take the file again" in err) == (2, True)
    gate.answer("GET /licence", {"state": "none", "ends": ["x"]})
    assert at_gate("license", "show")[1].split() == [
        "state",
        "none",
        "seats",
        "used",
        "-",
        "ends",
        "with",
        "it",
        "x",
    ]
    gate.answer("DELETE /licence", {"state": "none"})
    assert at_gate("license", "remove")[0] == 5
    assert at_gate("license", "remove", "--yes")[0] == 0
    gate.answer("POST /licence/verify", {"state": "expired", "problem": "it has ended"})
    assert at_gate("license", "verify", "licence.txt")[0] == 6


# --- branding


def test_branding_is_shown_with_its_logo(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("GET /branding", BRANDING)
    code, out, _ = at_gate("branding", "show")
    assert code == 0
    assert out.startswith(" /\\\n/__\\\n")
    assert "Example AI (qgate-mesh)" in out


def test_branding_changes_what_is_named(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    gate.answer("GET /branding", BRANDING)
    gate.answer("PATCH /branding", BRANDING)
    (tmp_path / "logo.txt").write_text(" *\n***\n")
    assert at_gate("branding", "set", "--logo", "logo.txt", "--colour", "accent=#00ffaa")[0] == 0
    assert gate.body_of("PATCH /branding") == {
        "logo": [" *", "***"],
        "colours": {"primary": "#80c0ff", "accent": "#00ffaa"},
    }
    assert at_gate("branding", "set")[0] == 2
    assert at_gate("branding", "set", "--colour", "red")[0] == 2
    gate.answer("POST /branding/preview", BRANDING)
    assert at_gate("branding", "preview", "--name", "X", "--white-label")[0] == 0
    assert gate.body_of("POST /branding/preview") == {"name": "X", "white_label": True}
    gate.answer("DELETE /branding", BRANDING)
    assert at_gate("branding", "reset", "-y")[0] == 0


# --- orders and automations


def test_an_order_is_given_for_a_time(at_gate: Run, gate: FakeGate) -> None:
    row = {"number": 4, "at": "2027-01-31T02:00:00Z", "what": "drain", "arguments": {"worker": "w1"}}
    gate.answer("POST /orders", row, 201)
    assert at_gate("order", "add", "drain", "--worker", "w1", "--at", "2027-01-31T02:00")[0] == 0
    assert gate.body_of("POST /orders") == {
        "what": "drain",
        "arguments": {"worker": "w1"},
        "reason": "",
        "dry_run": False,
        "at": 1801360800.0,
    }
    before = time.time()
    assert at_gate("order", "add", "failover", "--to", "hq", "--node", "a", "--in", "2h")[0] == 0
    body = gate.body_of("POST /orders")
    assert body["arguments"] == {"pool": "hq", "nodes": ["a"]}
    assert before + 7190 < body["at"] < time.time() + 7210
    for wrong in ([], ["--at", "noon"], ["--at", "2027-01-31", "--in", "2h"], ["--in", "soon"]):
        assert at_gate("order", "add", "drain", *wrong)[0] == 2
    gate.answer("POST /orders", {**row, "problem": "w1 is not connected", "able_now": False}, 201)
    code, _, err = at_gate("order", "add", "drain", "--worker", "w1", "--in", "1h", "--dry-run")
    assert (code, "w1 is not connected" in err) == (0, True)
    gate.answer("GET /orders", {"items": [row]})
    assert "worker=w1" in at_gate("order", "list", "--all")[1]
    gate.answer("GET /orders/4", row)
    gate.answer("DELETE /orders/4", row)
    assert at_gate("order", "show", 4)[0] == 0
    assert at_gate("order", "cancel", 4)[0] == 5
    assert at_gate("order", "cancel", 4, "-y")[0] == 0


def test_an_automation_is_switched_and_tried(at_gate: Run, gate: FakeGate) -> None:
    row = {"name": "purge-peers", "on": True, "would": ["old would be unpaired"], "description": "x"}
    gate.answer("PUT /automations/purge-peers", row)
    code, _, err = at_gate("automation", "on", "purge-peers")
    assert (code, err) == (0, "purge-peers is on.\n")
    assert gate.body_of("PUT /automations/purge-peers") == {"on": True}
    gate.answer("GET /automations/purge-peers", row)
    assert "old would be unpaired" in at_gate("automation", "run", "purge-peers", "--dry-run")[1]
    gate.answer("GET /automations/purge-peers", {**row, "would": []})
    assert "would do nothing" in at_gate("automation", "run", "purge-peers", "--dry-run")[2]
    gate.answer("POST /automations/purge-peers/run", {"name": "purge-peers", "outcome": "nothing to do"})
    assert "nothing to do" in at_gate("automation", "run", "purge-peers")[2]
    gate.answer("GET /automations", {"items": [row]})
    assert at_gate("automation", "list")[0] == 0


# --- the configuration


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (DIFF, 1),
        ({**DIFF, "changes": []}, 0),
        ({**DIFF, "changes": [], "refused": [{**CHANGE, "problem": "no"}]}, 2),
    ],
)
def test_diff_says_by_its_exit_code(at_gate: Run, gate: FakeGate, reply: dict[str, Any], code: int) -> None:
    gate.answer("POST /configuration/diff", reply)
    assert at_gate("config", "diff", "-", stdin="apps:\n  web: {read_only: true}\n")[0] == code
    assert gate.body_of("POST /configuration/diff") == {"apps": {"web": {"read_only": True}}}


def test_a_diff_reads_like_one() -> None:
    reset = {**CHANGE, "section": "settings", "name": "a.b", "effect": "reset", "before": 5, "fields": {}}
    assert lines([CHANGE, reset]) == [
        "  apps/web",
        "-   read_only: false",
        "+   read_only: true",
        "  settings/a.b",
        "-   5",
        "+   (default)",
    ]


def test_apply_asks_and_applies_what_was_seen(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text("settings: {app.queue: 5}\n")
    gate.answer("POST /configuration/diff", DIFF)
    gate.answer("POST /configuration/apply", {**DIFF, "revision": 7})
    assert at_gate("config", "apply", "pool.yaml")[0] == 5
    assert not any(call.endswith("/apply") for call, _, _ in gate.asked)
    code, out, err = at_gate("config", "apply", "pool.yaml", "--yes", "--reason", "why not")
    assert (code, "+   read_only: true" in out, "meshctl config revert 6" in err) == (0, True, True)
    assert gate.body_of("POST /configuration/apply") == {
        "document": {"settings": {"app.queue": 5}, "etag": "abc"},
        "reason": "why not",
        "force": False,
    }
    gate.problem("POST /configuration/apply", 412, "it was changed", "look again", code="changed")
    assert at_gate("config", "apply", "pool.yaml", "--yes")[0] == 5


def test_export_is_what_apply_reads(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    document = {"format": 1, "etag": "abc", "settings": {"app.queue": 5}}
    gate.answer("GET /configuration", document)
    assert yaml.safe_load(at_gate("config", "export")[1]) == document
    assert json.loads(at_gate("config", "export", "-o", "json")[1]) == document
    assert at_gate("config", "export", "-f", "pool.yaml")[0] == 0
    assert yaml.safe_load((tmp_path / "pool.yaml").read_text()) == document


@pytest.mark.parametrize("text", ["[1]", "a: [", "\x00", "!!python/object:os.system {}", "[" * 100_000])
def test_what_is_no_document_is_refused_here(at_gate: Run, gate: FakeGate, text: str) -> None:
    assert at_gate("config", "diff", "-", stdin=text[:60_000])[0] == 2
    assert gate.asked == []


def test_revisions_are_listed_shown_and_reverted(at_gate: Run, gate: FakeGate) -> None:
    row = {
        "revision": 3,
        "at": "2027-01-31T02:00:00Z",
        "by": "alice",
        "reason": "x",
        "count": 1,
        "reverts": None,
        "changes": [CHANGE],
        "document": {"settings": {}, "etag": "old"},
    }
    gate.answer("GET /configuration/revisions", {"items": [row]})
    gate.answer("GET /configuration/revisions/3", row)
    gate.answer("POST /configuration/diff", DIFF)
    gate.answer("POST /configuration/revisions/3/revert", {**DIFF, "revision": 4})
    assert "alice" in at_gate("config", "history")[1]
    assert "+   read_only: true" in at_gate("config", "show", 3)[1]
    assert "settings" in at_gate("config", "show", 3, "--document")[1]
    assert at_gate("config", "revert", 3)[0] == 5
    code, _, err = at_gate("config", "revert", 3, "-y")
    assert (code, "Revision 4" in err) == (0, True)
    assert gate.body_of("POST /configuration/diff") == {"settings": {}}


def test_a_setting_s_history_and_reason(at_gate: Run, gate: FakeGate) -> None:
    row = {
        "name": "app.queue",
        "at": "2027-01-31T02:00:00Z",
        "by": "bob",
        "before": 1,
        "after": 2,
        "what": "set",
    }
    gate.answer("GET /settings/history", {"items": [row]})
    assert "bob" in at_gate("settings", "history", "app.queue")[1]
    assert gate.query_of("GET /settings/history") == {"name": "app.queue", "limit": "50"}
    gate.answer("PUT /settings/app.queue", {"name": "app.queue", "value": 2})
    code, out, err = at_gate("settings", "set", "app.queue", "2", "--reason", "more")
    assert (code, out, err) == (0, "", "app.queue is 2.\n")
    assert gate.query_of("PUT /settings/app.queue") == {"reason": "more"}


def test_status_begins_with_the_pool_s_own_name(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("GET /status", {"gate": {"name": "gate-1"}})
    assert "gate-1" in at_gate("status")[1]
    gate.answer("GET /branding", BRANDING)
    out = at_gate("status")[1]
    assert out.splitlines()[0].split() == ["pool", "Example", "AI", "(qgate-mesh)"]
    assert "help@example.org" in out
    gate.answer("GET /branding", {**BRANDING, "name": ""})
    assert "Example AI" not in at_gate("status")[1]
