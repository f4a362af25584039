"""`meshctl provider|budget|receipt|alias` and the keys and policies of apps: what is asked, what is shown."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from meshctl.__main__ import app
from meshctl.errors import ExitCode
from tests.meshctl.fake_gate import FakeGate
from tunnel_proto.certificate import issue_online
from tunnel_proto.identity import Identity
from tunnel_proto.receipt import sign_receipt

POLICY = {"models": ["*"], "team": None}
BUDGET = {
    "id": "app:web/month",
    "soft": None,
    "hard": "5",
    "spent": "1.25",
    "left": "3.75",
    "used": 0.25,
    "currency": "USD",
    "ends_at": "2026-12-01T00:00:00Z",
    "forecast": {"per_hour": 0.5, "projected": "4", "ends_in_s": 9000, "in_time": True},
}


def run(gate: FakeGate, *words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [*words, "--socket", str(gate.socket)], input=text)


def failed(result: Result, code: ExitCode) -> str:
    error = result.exception
    assert error is not None
    assert getattr(error, "code", None) == code, error
    return str(error)


def test_an_app_with_models_gets_a_key_and_what_an_sdk_needs(gate: FakeGate) -> None:
    gate.answer(
        "POST /apps",
        {"app": {"name": "chat", "databases": [], "policy": POLICY}, "password": "pw", "api_key": "qg_x"},
    )
    result = run(gate, "app", "create", "chat", "--models", "qwen*,gpt*", "--rpm", "0", "--local-only")
    assert result.exit_code == 0, result.exception
    assert gate.body_of("POST /apps")["policy"] == {"models": ["qwen*", "gpt*"], "data": "local-only"}
    assert "OPENAI_API_KEY   qg_x" in result.stdout
    assert "http://localhost:11438/v1" in result.stdout
    assert "postgresql://chat:pw@localhost:11438/qg" in result.stdout


def test_an_app_needs_something(gate: FakeGate) -> None:
    assert "--models" in str(getattr(run(gate, "app", "create", "x").exception, "hint", ""))
    assert gate.asked == []


def test_a_policy_is_shown_changed_and_removed(gate: FakeGate) -> None:
    gate.answer("GET /apps/web/policy", {"app": "web", "policy": POLICY})
    gate.answer("PATCH /apps/web/policy", {"app": "web", "policy": POLICY})
    gate.answer("DELETE /apps/web/policy", {"app": "web", "policy": None})
    assert "models" in run(gate, "app", "policy", "web").stdout
    run(gate, "app", "policy", "web", "--rpm", "0", "--team", "none", "--tasks", "any", "--no-reuse")
    assert gate.body_of("PATCH /apps/web/policy") == {
        "requests_per_minute": None,
        "team": None,
        "tasks": None,
        "reuse": False,
    }
    assert run(gate, "app", "policy", "web", "--remove", "--yes").exit_code == 0
    failed(run(gate, "app", "policy", "web", "--remove", "--rpm", "5"), ExitCode.USAGE)


def test_keys(gate: FakeGate) -> None:
    gate.answer("POST /apps/web/keys", {"id": "key_1", "api_key": "qg_new", "prefix": "qg_ne"})
    gate.answer("GET /apps/web/keys", {"items": [{"id": "key_1", "prefix": "qg_ne", "state": "active"}]})
    gate.answer("DELETE /apps/web/keys/key_1", {"app": "web", "id": "key_1"})
    assert "qg_new" in run(gate, "app", "key", "create", "web", "--expires-in", "30d").stdout
    assert gate.body_of("POST /apps/web/keys") == {"expires_in_s": 2_592_000}
    assert "qg_ne..." in run(gate, "app", "key", "list", "web").stdout
    assert run(gate, "app", "key", "revoke", "web", "key_1", "--yes").exit_code == 0


def test_a_providers_key_comes_from_a_file_and_is_not_shown(gate: FakeGate, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret\n")
    key.chmod(0o600)
    gate.answer("POST /providers", {"name": "acme", "models": [{"name": "big"}], "unpriced": 1})
    result = run(gate, "provider", "add", "acme", "--key-file", str(key), "--models", "big", "--local")
    assert result.exit_code == 0, result.exception
    assert gate.body_of("POST /providers") == {
        "name": "acme",
        "kind": "openai",
        "models": [{"name": "big"}],
        "local": True,
        "key": "sk-secret",
    }
    assert "sk-secret" not in result.output
    assert "price set" in result.output
    failed(run(gate, "provider", "add", "acme", "--kind", "smoke", "--no-key"), ExitCode.USAGE)
    failed(run(gate, "provider", "add", "acme"), ExitCode.USAGE)


def test_providers_prices_and_checks(gate: FakeGate) -> None:
    gate.answer("GET /providers", {"items": [{"name": "acme", "has_key": True, "models": [1, 2]}]})
    gate.answer("POST /providers/acme/check", {"ok": False, "steps": [{"name": "reach it", "ok": False}]})
    gate.answer("PUT /prices/acme/big", {"model": "acme/big", "input": "1", "output": "2"})
    gate.answer("GET /prices", {"items": [{"model": "gpt-4o", "as_of": "2025-08-07"}, {"model": "x"}]})
    assert "sealed" in run(gate, "provider", "list").stdout
    failed(run(gate, "provider", "check", "acme"), ExitCode.CHECK_FAILED)
    run(gate, "provider", "price", "set", "acme/big", "--in", "1", "--out", "2")
    assert gate.body_of("PUT /prices/acme/big") == {"input": "1", "output": "2"}
    listed = run(gate, "provider", "price", "list", "gpt").stdout
    assert "2025-08-07" in listed
    assert "x" not in listed.split("\n", 1)[1]


def test_budgets(gate: FakeGate) -> None:
    gate.answer("PUT /budgets/app:web/month", BUDGET)
    gate.answer("GET /budgets", {"items": [BUDGET]})
    gate.answer("GET /budgets/app:web/month", {**BUDGET, "gates": [{"gate": "g1", "granted": "1"}]})
    gate.answer("GET /budgets/shifts", {"items": [{"budget": "app:web/month", "reason": "soft"}]})
    gate.answer("DELETE /budgets/app:web/month", None, 204)
    assert run(gate, "budget", "set", "app:web/month", "--hard", "5.00").exit_code == 0
    assert gate.body_of("PUT /budgets/app:web/month") == {"hard": "5.00"}
    assert "25%" in run(gate, "budget", "list").stdout
    assert "2h 30m" in run(gate, "budget", "forecast", "app:web/month").stdout
    assert "g1" in run(gate, "budget", "show", "app:web/month").stdout
    assert "soft" in run(gate, "budget", "shifts").stdout
    assert run(gate, "budget", "remove", "app:web/month", "--yes").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("set", "app:web", "--hard", "5"),
        ("set", "app:web/year", "--hard", "5"),
        ("set", "/month", "--hard", "5"),
        ("set", "pool/day"),
        ("forecast", "pool/hour"),
    ],
)
def test_what_is_no_budget_is_said_to_be_none(gate: FakeGate, words: tuple[str, ...]) -> None:
    gate.answer("GET /budgets", {"items": []})
    failed(run(gate, "budget", *words), ExitCode.USAGE)


def test_aliases(gate: FakeGate) -> None:
    gate.answer("PUT /aliases/best", {"name": "best", "target": "qwen3"})
    gate.answer("GET /aliases", {"items": [{"name": "best", "target": "qwen3"}]})
    assert run(gate, "alias", "set", "best", "qwen3").exit_code == 0
    assert "qwen3" in run(gate, "alias", "list").stdout
    gate.answer("GET /models", {"items": [{"name": "smol"}]})
    gate.answer("GET /providers", {"items": [{"name": "acme", "models": [{"name": "big"}]}]})
    assert "No worker or provider" in run(gate, "alias", "set", "best", "qwen3").output
    gate.answer("GET /models", {"items": [{"name": "qwen3"}]})
    assert "No worker or provider" not in run(gate, "alias", "set", "best", "qwen3@12ab").output
    gate.answer("PUT /aliases/brief", {})
    assert "No worker" not in run(gate, "alias", "set", "brief", "qg://task=summarize").output


# --- receipts


def signed() -> tuple[dict[str, Any], str]:
    pool, online, now = Identity.generate(), Identity.generate(), int(time.time())
    certificate = issue_online(pool, online.verify_key, not_before=now - 9, not_after=now + 9, serial=1)
    fields = {"id": "req_1", "app": "web", "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))}
    document = sign_receipt(fields, online=online, certificate=certificate, pool_key=pool.verify_key)
    return document, pool.fingerprint


def test_a_clients_copy_is_checked_without_a_gate(tmp_path: Path) -> None:
    document, pool = signed()
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"choices": [], "qgate": {"receipt": document}}))
    nowhere = FakeGate(tmp_path / "no.sock")
    passed = run(nowhere, "receipt", "verify", str(file), "--pool", pool)
    assert passed.exit_code == 0, passed.exception
    assert "PASSED" in passed.output
    file.write_text(json.dumps(document | {"app": "api"}))
    assert "not genuine" in failed(
        run(nowhere, "receipt", "verify", str(file), "--pool", pool), ExitCode.CHECK_FAILED
    )
    assert "another pool" in failed(
        run(
            nowhere,
            "receipt",
            "verify",
            "-",
            "--pool",
            Identity.generate().fingerprint,
            text=json.dumps(document),
        ),
        ExitCode.CHECK_FAILED,
    )
    file.write_text("nonsense")
    failed(run(nowhere, "receipt", "verify", str(file), "--pool", pool), ExitCode.USAGE)
    failed(run(nowhere, "receipt", "verify", str(tmp_path / "none"), "--pool", pool), ExitCode.USAGE)


def test_a_clients_copy_of_a_stream_is_checked_too(tmp_path: Path) -> None:
    document, pool = signed()
    nowhere = FakeGate(tmp_path / "no.sock")
    end = json.dumps({"choices": [], "qgate": {"receipt": document}})
    for text in (
        f'data: {{"choices": [{{"delta": {{"content": "receipt"}}}}]}}\n\ndata: {end}\n\ndata: [DONE]\n\n',
        f'{{"message": {{"content": "a"}}, "done": false}}\n{end}\n',
    ):
        assert run(nowhere, "receipt", "verify", "-", "--pool", pool, text=text).exit_code == 0
    for text, says in (
        ('data: {"choices": []}\n\ndata: [DONE]\n', "nor a stream with a receipt"),
        ('{"choices": []}', "no object with a signature"),
        ("[1]", "no object with a signature"),
    ):
        assert says in failed(run(nowhere, "receipt", "verify", "-", text=text), ExitCode.USAGE)
    lost = run(nowhere, "receipt", "verify", "-", text=end)
    failed(lost, ExitCode.UNREACHABLE)
    assert "--pool" in getattr(lost.exception, "hint", "")


def test_receipts_of_a_gate(gate: FakeGate) -> None:
    document, pool = signed()
    gate.answer("GET /receipts", {"items": [document]})
    gate.answer("GET /receipts/req_1", document)
    gate.answer("GET /key", {"pool": {"fingerprint": pool}})
    assert "req_1" in run(gate, "receipt", "list", "--app", "web", "--since", "2h").stdout
    assert gate.query_of("GET /receipts")["app"] == "web"
    shown = run(gate, "receipt", "show", "req_1")
    assert document["signature"] not in shown.stdout
    whole = run(gate, "receipt", "show", "req_1", "-o", "json")
    assert json.loads(whole.stdout) == document
    assert run(gate, "receipt", "verify", "-", text=whole.stdout).exit_code == 0
