"""The control API's description: complete, published as it is, and kept by the gate."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qgate.control.access import PREFIX
from qgate.control.idempotency import CHANGES
from qgate.control.openapi import STREAMED, operation_id, operations
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.control_fuzz import explore, gate_in_a_thread
from tests.qgate.gates import control, gate_settings, make_directory, running

ROOT = Path(__file__).resolve().parents[2]


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("control_reference", ROOT / "tools/control_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    described: dict[str, Any] = reference().description()
    return described


def test_what_is_published_is_what_the_code_says(document: dict[str, Any]) -> None:
    written = reference()
    stale = "run: python tools/control_reference.py"
    assert json.loads((ROOT / "docs/openapi.json").read_text()) == document, stale
    assert (ROOT / "docs/control-api.md").read_text().endswith(written.table(document)), stale


async def test_a_gate_describes_itself_alike(
    document: dict[str, Any], tmp_path: Path, store_dsn: str
) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        assert (await client.get("/openapi.json")).json() == document


def test_every_operation_is_named_and_explained(document: dict[str, Any]) -> None:
    names = []
    for method, path, operation in operations(document):
        names.append(operation["operationId"])
        assert re.fullmatch(r"[a-z][a-z0-9_]*", operation["operationId"]), (method, path)
        assert len(operation["summary"]) > 5, (method, path)
        assert "application/problem+json" in operation["responses"]["default"]["content"], (method, path)
        assert path in {"/healthz", "/readyz"} or "x-role" in operation
        headers = {one["name"].lower() for one in operation.get("parameters", ()) if one["in"] == "header"}
        once = method in CHANGES and path.startswith(PREFIX) and path.removeprefix(PREFIX) not in STREAMED
        assert ("idempotency-key" in headers) == once, (method, path)
    assert len(set(names)) == len(names)


UNSEEN = {
    "admins_keys_revoke": "a key does not change, it only ends",
    "admins_password": "it is not shown",
    "admins_second_factor_drop": "it is not shown",
    "admins_second_factor_set": "it is not shown",
    "apps_keys_remove": "a key does not change, it only ends",
    "catalogue_group_set": "it says who may promote and who votes, whole",
    "logs_import": "entries are known by their hashes",
    "models_upload": "a file is known by its hash",
    "onboarding_set": "a step is skipped or not, whatever it was",
    "orders_remove": "an order does not change, it only ends",
    "pools_order": "it names all peers, in the order that is to be",
    "session_close": "a session does not change, it only ends",
    "sessions_end": "a session does not change, it only ends",
    "sidecars_remove": "a node does not change, it only ends",
}
"""Why a change of what is there names no version."""


def test_every_change_of_what_is_there_can_name_the_version_it_saw(document: dict[str, Any]) -> None:
    blind = set()
    for method, path, operation in operations(document):
        headers = {one["name"].lower() for one in operation.get("parameters", ()) if one["in"] == "header"}
        if method in {"PUT", "PATCH", "DELETE"} and path.startswith(PREFIX) and "if-match" not in headers:
            blind.add(operation["operationId"])
    assert blind == set(UNSEEN)


@pytest.mark.parametrize(
    ("method", "path", "listing", "name"),
    [
        ("GET", "/apps", True, "apps_list"),
        ("GET", "/apps/{name}", False, "apps_show"),
        ("POST", "/apps", True, "apps_create"),
        ("POST", "/apps/{name}/rotate", False, "apps_rotate"),
        ("PATCH", "/apps/{name}/policy", False, "apps_policy_change"),
        ("DELETE", "/apps/{name}/keys/{key}", False, "apps_keys_remove"),
        ("PUT", "/logs/import", False, "logs_import"),
    ],
)
def test_names_follow_from_method_and_path(method: str, path: str, listing: bool, name: str) -> None:
    assert operation_id(method, path, listing=listing) == name


@pytest.mark.timeout(300)
def test_nothing_that_can_be_asked_breaks_the_gate(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    with gate_in_a_thread(tmp_path, store_server) as gate:
        answers, wrong = explore(gate, examples=2, budget_s=25.0)
    assert answers.total() > 20
    assert answers[200] + answers[201] + answers[204] > 10
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/apps/a%00b", None),
        ("GET", "/audit?app=a%00b", None),
        ("PUT", "/aliases/a", b'{"target": "a\\u0000b"}'),
        ("PUT", "/aliases/a", b'{"target": "\\ud800"}'),
        ("PUT", "/catalogue/records/m", b'{"document": {"deep": ["\\udfff"]}}'),
        ("GET", f"/incidents/{'9' * 30}", None),
        ("GET", "/incidents/-1", None),
        ("GET", f"/audit?after={'9' * 30}", None),
    ],
)
async def test_what_the_store_cannot_hold_is_refused(
    tmp_path: Path, store_dsn: str, method: str, path: str, body: bytes | None
) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        reply = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid"), reply.text
