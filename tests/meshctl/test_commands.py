"""Every command against a fake gate: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from meshctl.errors import ExitCode
from meshctl.sidecar_directory import offer_of
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate

LISTS = [
    ("db list", "/databases"),
    ("app list", "/apps"),
    ("sidecar list", "/sidecars"),
    ("gate list", "/gates"),
    ("settings list", "/settings"),
    ("audit tail", "/audit"),
]


def test_a_pool_that_does_not_run_is_looked_for_elsewhere(meshctl: Run, tmp_path: Path) -> None:
    code, _, err = meshctl("dev", "kill", "hq", "--state-dir", str(tmp_path / "none"))
    assert code == ExitCode.UNREACHABLE
    assert "--state-dir DIR" in err


@pytest.mark.parametrize(("command", "path"), LISTS)
@pytest.mark.parametrize("output", ["json", "yaml"])
def test_an_empty_list_prints_brackets(
    at_gate: Run, gate: FakeGate, command: str, path: str, output: str
) -> None:
    gate.answer(f"GET {path}", {"items": []})
    code, out, err = at_gate(*command.split(), "-o", output)
    assert (code, out, err) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("command", "path", "following"),
    [
        ("db list", "/databases", "meshctl db add"),
        ("app list", "/apps", "meshctl app create"),
        ("sidecar list", "/sidecars", "meshctl sidecar offer"),
        ("worker list", "/workers", "meshctl worker offer"),
        ("model list", "/models", "meshctl model add"),
        ("provider list", "/providers", "meshctl provider add"),
        ("budget list", "/budgets", "meshctl budget set"),
        ("budget forecast", "/budgets", "meshctl budget set"),
        ("alias list", "/aliases", "meshctl alias set"),
        ("people list", "/people", "meshctl people add"),
        ("incident list", "/incidents", "--all"),
        ("receipt list", "/receipts", ""),
        ("budget shifts", "/budgets/shifts", ""),
    ],
)
def test_a_person_is_told_what_comes_next_where_there_is_nothing(
    at_gate: Run, gate: FakeGate, command: str, path: str, following: str
) -> None:
    gate.answer(f"GET {path}", {"items": []})
    code, out, err = at_gate(*command.split())
    assert (code, out) == (0, "")
    assert err.startswith("No ")
    assert following in err


def test_an_app_with_what_it_may_do(at_gate: Run, gate: FakeGate) -> None:
    policy = {"models": ["qwen*"], "data": "local-only"}
    row = {"name": "web", "state": "active", "created_at": "2026-11-21T17:00:00Z", "policy": policy}
    keys = [{"id": "key_1", "prefix": "qg_abc", "state": "active"}]
    gate.answer("GET /apps", {"items": [row, {"name": "other"}]})
    gate.answer("GET /apps/web/keys", {"items": keys})
    _, out, _ = at_gate("app", "show", "web")
    for said in ("active", "2026-11-21 17:00:00Z", "qwen*", "local-only", "key_1", "qg_abc..."):
        assert said in out
    assert json.loads(at_gate("app", "show", "web", "-o", "json")[1]) == row | {"keys": keys}
    code, _, err = at_gate("app", "show", "wep")
    assert code == 4
    assert 'did you mean "web"?' in err


@pytest.mark.parametrize(("command", "path"), LISTS)
def test_machine_output_is_what_the_gate_said(at_gate: Run, gate: FakeGate, command: str, path: str) -> None:
    rows = [{"name": "a", "seq": 1}, {"name": "b", "seq": 2}]
    gate.answer(f"GET {path}", {"items": rows})
    assert json.loads(at_gate(*command.split(), "-o", "json")[1]) == rows
    assert yaml.safe_load(at_gate(*command.split(), "-o", "yaml")[1]) == rows
    assert at_gate(*command.split())[0] == 0


APP = {"name": "web", "databases": ["shop"], "state": "active"}


def test_app_create_sends_what_was_given_and_shows_the_password_once(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("POST /apps", {"app": APP, "password": "pw/1"}, 201)
    code, out, err = at_gate(
        "app", "create", "web", "--db", "shop", "--expires-in", "30d", "--max-connections", "5", "--read-only"
    )
    assert code == 0
    assert gate.body_of("POST /apps") == {
        "name": "web",
        "databases": ["shop"],
        "expires_in_s": 30 * 86_400,
        "limits": {"max_connections": 5},
        "read_only": True,
    }
    assert "postgresql://web:pw%2F1@localhost:11438/shop" in out
    assert "jdbc:postgresql://localhost:11438/shop" in out
    assert "pw/1" not in err


def test_app_create_shows_the_port_of_the_dev_stack_it_belongs_to(
    at_gate: Run, gate: FakeGate, tmp_path: Path
) -> None:
    (tmp_path / "dev.json").write_text('{"port": 12345}')
    gate.answer("POST /apps", {"app": APP, "password": "pw"}, 201)
    urls = json.loads(at_gate("app", "create", "web", "--db", "shop", "-o", "json")[1])["urls"]
    assert urls["shop"]["asyncpg"] == "postgresql://web:pw@localhost:12345/shop"


@pytest.mark.parametrize("word", ["soon", "5 parsecs", "-1h", "", "1e3d"])
def test_a_duration_that_is_none_is_a_usage_error(at_gate: Run, word: str) -> None:
    code, out, err = at_gate("app", "create", "web", "--db", "shop", f"--expires-in={word}")
    assert (code, out) == (2, "")
    assert "--expires-in" in err


def test_app_rotate_leaves_the_overlap_to_the_gate_unless_it_is_given(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("POST /apps/web/rotate", {"app": APP, "password": "new", "old_valid_until": 1})
    assert at_gate("app", "rotate", "web")[0] == 0
    assert gate.body_of("POST /apps/web/rotate") == {}
    code, _, err = at_gate("app", "rotate", "web", "--overlap", "1h 30m")
    assert code == 0
    assert gate.body_of("POST /apps/web/rotate") == {"overlap_s": 5400}
    assert "1970-01-01" in err


DESTRUCTIVE = [
    ("app revoke web", "DELETE /apps/web", {"name": "web", "sessions_ended": 3}),
    ("db remove shop", "DELETE /databases/shop", None),
    ("sidecar revoke dev", "DELETE /sidecars/dev", {"name": "dev"}),
    ("settings reset a.b", "DELETE /settings/a.b", {"name": "a.b"}),
    ("gate drain", "POST /drain", {}),
    ("gate rekey", "POST /vault/rekey", {"key": "k2"}),
]


@pytest.mark.parametrize(("command", "call", "reply"), DESTRUCTIVE)
def test_the_destructive_asks_or_wants_yes(
    at_gate: Run, gate: FakeGate, command: str, call: str, reply: object
) -> None:
    gate.answer(call, reply)
    code, _, err = at_gate(*command.split())
    assert code == 5
    assert "--yes" in err
    assert call not in [name for name, _, _ in gate.asked]
    assert at_gate(*command.split(), "--yes")[0] == 0
    assert call in [name for name, _, _ in gate.asked]


def test_names_travel_quoted(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("GET /databases/a%2Fb", {"name": "a/b"})
    assert at_gate("db", "show", "a/b")[0] == 0


def test_db_add_takes_the_dsn_from_a_file_or_stdin_only(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    gate.answer("POST /databases", {"name": "shop"}, 201)
    secret = tmp_path / "dsn"
    secret.write_text("postgresql://o:pw@db/shop\n")
    code, _, err = at_gate("db", "add", "shop", "--dsn-file", secret)
    assert (code, "can be read by others" in err) == (0, True)
    assert gate.body_of("POST /databases") == {
        "name": "shop",
        "check": True,
        "dsn": "postgresql://o:pw@db/shop",
    }
    secret.chmod(0o600)
    code, _, err = at_gate("db", "add", "shop", "--dsn-file", "-", "--no-check", stdin="host=db user=o\r\n")
    assert (code, "can be read by others" in err) == (0, False)
    assert gate.body_of("POST /databases") == {"name": "shop", "check": False, "dsn": "host=db user=o"}
    code, _, err = at_gate("db", "add", "shop")
    assert (code, "--dsn-file" in err) == (2, True)
    assert at_gate("db", "add", "shop", "postgresql://o:pw@db/shop")[0] == 2


def test_db_add_builds_a_dsn_without_the_password(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("POST /databases", {"name": "shop"}, 201)
    arguments = ["--host", "db1:5433", "--host", "::1", "--user", "o w", "--password-file", "-"]
    code, _, _ = at_gate("db", "add", "shop", *arguments, "--target-session-attrs", "primary", stdin="p w\n")
    assert code == 0
    body = gate.body_of("POST /databases")
    assert body["dsn"] == "postgresql://o%20w@db1:5433,[::1]/shop?target_session_attrs=primary"
    assert body["password"] == "p w"


def test_db_add_refuses_what_cannot_both_be_meant(at_gate: Run, tmp_path: Path) -> None:
    assert at_gate("db", "add", "s", "--dsn-file", "x", "--host", "h")[0] == 2
    twice = ["--host", "h", "--password-file", "-", "--read-only-user", "r", "--read-only-password-file", "-"]
    assert at_gate("db", "add", "s", *twice, stdin="x")[0] == 2
    assert at_gate("db", "add", "s", "--dsn-file", tmp_path / "none")[0] == 2
    assert at_gate("db", "add", "s", "--dsn-file", "-", stdin="\n")[0] == 2


def test_db_check_ends_with_six_and_the_next_command(at_gate: Run, gate: FakeGate) -> None:
    steps = [
        {"name": "resolve", "ok": True},
        {"name": "login", "ok": False, "detail": "28P01", "next": "do x"},
    ]
    gate.answer("POST /databases/shop/check", {"ok": False, "steps": steps})
    code, out, _ = at_gate("db", "check", "shop")
    assert code == 6
    assert out.splitlines()[1].split()[:2] == ["PASSED", "resolve"]
    assert out.splitlines()[2].endswith("28P01   do x")


def test_audit_verify_ends_with_six(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("POST /audit/verify", {"ok": True, "entries": 4, "head": {"seq": 4}})
    assert at_gate("audit", "verify")[0] == 0
    gate.answer("POST /audit/verify", {"ok": False, "entries": 4, "first_bad_seq": 2, "problem": "hash"})
    code, out, err = at_gate("audit", "verify")
    assert (code, "FAILED" in out, "hash" in err) == (6, True, True)


def test_audit_export_writes_a_whole_private_file(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    gate.answer("GET /audit/export", '{"seq": 1, "app": "ö"}\n{"head": 1}\n')
    target = tmp_path / "audit.ndjson"
    assert at_gate("audit", "export", "--out", target)[0] == 0
    assert target.read_text() == '{"seq": 1, "app": "ö"}\n{"head": 1}\n'
    assert target.stat().st_mode & 0o077 == 0
    assert at_gate("audit", "export")[1] == target.read_text()


def test_audit_follow_filters_and_goes_on(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("GET /audit", {"items": [{"seq": 7, "app": "web"}]})
    gate.answer("GET /audit/stream", '{"seq": 8, "app": "web"}\n{"seq": 9, "app": "other"}\n')
    code, out, _ = at_gate("audit", "tail", "-f", "--app", "web", "-o", "json")
    assert code == 0
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [7, 8]
    assert gate.query_of("GET /audit/stream") == {"after": "7"}
    assert gate.query_of("GET /audit") == {"app": "web", "limit": "20"}


def test_settings_set_sends_text_and_tells_of_a_restart(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("PUT /settings/audit.when_full", {"name": "audit.when_full", "restart_needed": True})
    code, _, err = at_gate("settings", "set", "audit.when_full", "-5")
    assert (code, "restarted" in err) == (0, True)
    assert gate.body_of("PUT /settings/audit.when_full") == {"value": "-5"}


def test_a_value_that_is_refused_without_a_word_on_it_leads_to_the_help(at_gate: Run, gate: FakeGate) -> None:
    gate.problem("PUT /budgets/app:x/month", 422, "hard: must be a number")
    code, _, err = at_gate("budget", "set", "app:x/month", "--hard", "1")
    assert (code, err) == (ExitCode.USAGE, "Error: hard: must be a number\nNext: meshctl budget set --help\n")


def test_a_file_that_cannot_be_read_is_told_in_words(meshctl: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(128, 256)))
    (tmp_path / "folder").mkdir()
    for name, why in (
        ("noise", "it is not UTF-8 text"),
        ("folder", "Is a directory"),
        ("none", "No such file"),
    ):
        for command in (("config", "check"), ("onboard", "--answers"), ("sidecar", "enroll")):
            code, _, err = meshctl(*command, name)
            assert code in {ExitCode.USAGE, ExitCode.CHECK_FAILED}, err
            assert why in err
            assert "\nNext: " in err


def test_enrolling_compares_the_fingerprint(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    text, fingerprint = offer_of(tmp_path / "side", name="web1", now=time.time())
    offer = tmp_path / "offer.json"
    offer.write_text(text)
    gate.answer("POST /sidecars", {"name": "web1", "fingerprint": fingerprint, "bundle": "{}"}, 201)
    assert at_gate("sidecar", "enroll", offer)[0] == 5
    assert at_gate("sidecar", "enroll", offer, "--fingerprint", "aaaa")[0] == 5
    assert at_gate("sidecar", "enroll", "-", stdin=text)[0] == 5
    assert gate.asked == []
    out = tmp_path / "bundle.json"
    code, _, _ = at_gate(
        "sidecar", "enroll", offer, "--fingerprint", fingerprint, "--out", out, "--days", "9"
    )
    assert (code, out.read_text()) == (0, "{}")
    assert gate.body_of("POST /sidecars") == {"offer": text, "valid_days": 9}
    assert at_gate("sidecar", "enroll", "-", "--yes", stdin=text)[1] == "{}\n"
    offer.write_text(text.replace("web1", "web2"))
    assert at_gate("sidecar", "enroll", offer, "--yes")[0] == 2


def test_secret_rotate_backup_and_key(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    gate.answer("POST /databases/shop/rotate", {"name": "shop", "role": "shop_owner", "sessions_on_old": 0})
    assert "shop_owner" in at_gate("secret", "rotate", "shop")[1]
    gate.answer("POST /backup", {"path": str(tmp_path / "b")})
    assert at_gate("gate", "backup", "b")[0] == 0
    assert gate.body_of("POST /backup") == {"path": str(tmp_path / "b")}
    gate.answer("GET /key", {"pool": {"fingerprint": "abcd"}, "online": {"expires_at": 0}})
    code, out, _ = at_gate("key", "show")
    assert (code, "abcd" in out, "1970" in out) == (0, True, True)


def test_status_in_three_forms(at_gate: Run, gate: FakeGate) -> None:
    reply = {"gate": {"name": "g"}, "store": {"ok": True}, "sessions": [], "streams": [], "totals": {}}
    gate.answer("GET /status", reply)
    assert "PostgreSQL" in at_gate("status")[1]
    assert json.loads(at_gate("status", "-o", "json")[1]) == reply
    assert yaml.safe_load(at_gate("status", "-o", "yaml")[1]) == reply


def test_config_check_tells_the_file_apart_and_the_line(meshctl: Run, tmp_path: Path) -> None:
    assert meshctl("init", "--dir", tmp_path / "g")[0] == 0
    assert meshctl("config", "check", tmp_path / "g" / "qgate.toml")[0] == 0
    other = tmp_path / "b.toml"
    other.write_text('[listen]\nhosts = ["127.0.0.1"]\nprot = 1\n')
    code, _, err = meshctl("config", "check", other)
    assert (code, "b.toml:3" in err, '"port"' in err) == (6, True, True)
    assert json.loads(meshctl("config", "check", other, "-o", "json")[1])["kind"] == "minigate"
    other.write_text("[listen]\nport = 1\n")
    assert meshctl("config", "check", other)[0] == 6
    assert meshctl("config", "check", tmp_path / "none.toml")[0] == 6


def test_init_with_an_external_store_reads_the_dsn_from_a_file(meshctl: Run, tmp_path: Path) -> None:
    dsn = "postgresql://q:pw@db/qgate"
    code, out, err = meshctl(
        "init",
        "--dir",
        "g",
        "--store",
        "external",
        "--dsn-file",
        "-",
        "--listen",
        "[::1]:7000",
        stdin=dsn + "\n",
    )
    assert code == 0
    assert "pw@" not in out + err
    settings, kept = tmp_path / "g" / "qgate.toml", tmp_path / "g" / "store.dsn"
    assert "pw" not in settings.read_text()
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (dsn + "\n", 0o600)
    assert meshctl("config", "check", settings)[0] == 0
    assert meshctl("init", "--dir", "g")[0] == 5
    assert meshctl("init", "--dir", "h", "--store", "external")[0] == 2
    assert meshctl("init", "--dir", "h", "--dsn-file", "-")[0] == 2
    assert meshctl("init", "--dir", "h", "--listen", "nowhere")[0] == 2
    assert meshctl("init", "--dir", "h", "--store", "external", "--dsn-file", "-", stdin="host=db")[0] == 2
    assert not (tmp_path / "h").exists()


def test_init_joins_a_further_gate_from_the_first_ones_directory_or_from_carried_keys(
    meshctl: Run, tmp_path: Path
) -> None:
    dsn = "postgresql://q:pw@db/qgate"
    first = json.loads(
        meshctl("init", "--dir", "g", "--store", "external", "--dsn-file", "-", "-o", "json", stdin=dsn)[1]
    )
    code, out, err = meshctl("init", "--dir", "h", "--join", "g", "--name", "two", "-o", "json")
    assert code == 0
    assert "sidecar bundle" in err
    second = json.loads(out)
    assert second["pool_fingerprint"] == first["pool_fingerprint"]
    assert second["node_fingerprint"] != first["node_fingerprint"]
    assert second["pool_key"] is None
    assert not (tmp_path / "h" / "keys" / "pool.key").exists()
    assert (tmp_path / "h" / "store.dsn").read_text().strip() == dsn
    assert meshctl("config", "check", "h/qgate.toml")[0] == 0
    for path in ("keys/vault.key", "keys/online.key", "keys/online.cert"):
        assert (tmp_path / "h" / path).read_bytes() == (tmp_path / "g" / path).read_bytes()

    carried = tmp_path / "carried"
    carried.mkdir()
    for name in ("online.key", "online.cert", "vault.key"):
        (carried / name).write_bytes((tmp_path / "g" / "keys" / name).read_bytes())
        (carried / name).chmod(0o600)
    join = ("init", "--dir", "i", "--join", carried, "--name", "three")
    assert meshctl(*join)[0] == 2  # the store is not known from here
    assert meshctl(*join, "--dsn-file", "-", stdin=dsn)[0] == 0
    assert meshctl("config", "check", "i/qgate.toml")[0] == 0


def test_init_refuses_to_join_what_cannot_be_shared(meshctl: Run, tmp_path: Path) -> None:
    assert meshctl("init", "--dir", "g")[0] == 0
    code, _, err = meshctl("init", "--dir", "h", "--join", "g", "--name", "two")
    assert (code, "embedded" in err) == (5, True)
    assert meshctl("init", "--dir", "h", "--join", "nowhere", "--name", "two")[0] == 4
    dsn = "postgresql://q:pw@db/qgate"
    external = ("--store", "external", "--dsn-file", "-")
    assert meshctl("init", "--dir", "e", *external, stdin=dsn)[0] == 0
    assert meshctl("init", "--dir", "h", "--join", "e")[0] == 5  # the same name
    assert meshctl("init", "--dir", "f", *external, stdin=dsn)[0] == 0
    for name in ("online.cert",):
        (tmp_path / "e" / "keys" / name).write_bytes((tmp_path / "f" / "keys" / name).read_bytes())
    code, _, err = meshctl("init", "--dir", "h", "--join", "e", "--name", "two")
    assert (code, "not the certificate of" in err) == (5, True)
    assert not (tmp_path / "h").exists()


def test_a_sidecar_bundle_is_written_again(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    gate.answer("POST /sidecars/web/bundle", {"name": "web", "bundle": "{}\n"})
    assert at_gate("sidecar", "bundle", "web")[:2] == (0, "{}\n")
    assert at_gate("sidecar", "bundle", "web", "--out", "b.json")[0] == 0
    assert (tmp_path / "b.json").read_text() == "{}\n"


def test_without_a_gate_every_command_says_so_with_three(meshctl: Run) -> None:
    for command in ("status", "db list", "app list", "audit tail", "key show", "settings list"):
        code, out, err = meshctl(*command.split())
        assert (code, out) == (3, "")
        assert "meshctl dev" in err


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("statsu", "status"),
        ("db lst", "list"),
        ("app create w --bd x", "--db"),
        ("sidecar enrol x", "enroll"),
    ],
)
def test_a_mistyped_word_suggests_the_near_one(meshctl: Run, line: str, near: str) -> None:
    code, out, err = meshctl(*line.split())
    assert (code, out) == (2, "")
    assert near in err


def test_version_help_and_completion_work_without_a_gate(meshctl: Run) -> None:
    assert meshctl("--version")[1].startswith("meshctl ")
    code, out, _ = meshctl("--help")
    assert (code, "Exit codes" in out) == (0, True)
    for shell in ("bash", "zsh", "fish"):
        assert "_MESHCTL_COMPLETE" in meshctl("completion", shell)[1]
    assert meshctl("completion", "csh")[0] == 2


def test_a_name_that_is_not_there_brings_the_nearest(at_gate: Run, gate: FakeGate) -> None:
    gate.problem("GET /databases/ordres", 404, "there is no database ordres", "meshctl db list", "not-found")
    gate.answer("GET /databases", {"items": [{"name": "orders"}, {"name": "stock"}]})
    code, _, err = at_gate("db", "show", "ordres")
    assert (code, err.splitlines()[1:]) == (4, ['Next: did you mean "orders"? meshctl db list'])
    gate.problem("GET /databases", 503, "the store is away")
    assert at_gate("db", "show", "ordres")[2].splitlines()[1:] == ["Next: meshctl db list"]


@pytest.mark.parametrize(("place", "why"), [("nowhere", "No such file"), ("file", "Not a directory")])
def test_a_gate_directory_that_is_none(meshctl: Run, tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "file").touch()
    code, _, err = meshctl("db", "list", "--gate-dir", tmp_path / place)
    assert code == 3
    assert why in err
    assert "qgate.toml" in err


@pytest.mark.parametrize(
    ("option", "given", "wanted"),
    [("--language", "xx", "en, fr"), ("--theme", "drak", '"dark"'), ("--section", "workrs", '"workers"')],
)
def test_the_control_room_refuses_what_there_is_not(
    meshctl: Run, monkeypatch: pytest.MonkeyPatch, option: str, given: str, wanted: str
) -> None:
    monkeypatch.setattr("meshctl.cli.tui.refuse_terminal", lambda: None)
    code, _, err = meshctl("tui", option, given)
    assert (code, given in err, wanted in err) == (2, True, True)
