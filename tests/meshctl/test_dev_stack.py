"""`meshctl dev` for real: store, sample database, gate and sidecar as processes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from meshctl.dev.children import runs_module
from meshctl.dev.state import DevState, free_port
from tests.meshctl.command import ROOT, meshctl

pytestmark = pytest.mark.timeout(180)


def orders(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert row is not None
    return int(row[0])


def gone(pid: int) -> None:
    """Wait until a process ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor) as ended:
        assert select.select([ended], [], [], 60)[0], f"{pid} still runs"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A detached stack, as `-o json` describes it."""
    state = tmp_path_factory.mktemp("a")
    out, _ = meshctl("dev", "--detach", "--state-dir", state, "--port", free_port(), "-o", "json")
    yield json.loads(out)
    meshctl("dev", "stop", "--state-dir", state)


def test_a_driver_reaches_the_sample_database(first: dict[str, Any]) -> None:
    assert orders(first["postgres_dsn"]) > 1000
    assert set(first) >= {
        "postgres_dsn",
        "openai_base_url",
        "openai_api_key",
        "state_dir",
        "admin_socket",
        "pids",
    }
    assert all(runs_module(pid, name) for name, pid in first["pids"].items() if name != "supervisor")


def test_the_state_directory_holds_no_password_in_the_clear(first: dict[str, Any]) -> None:
    state = Path(first["state_dir"])
    told = json.loads(meshctl("dev", "status", "--state-dir", state, "-o", "json")[0])
    assert told["postgres_dsn"] == first["postgres_dsn"]
    password = unquote(urlsplit(first["postgres_dsn"]).password or "")
    secrets = [password, first["openai_api_key"]]
    assert all(secrets)
    files = [path for path in state.rglob("*") if path.is_file()]
    assert files
    for path in files:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # the server's own, recycled meanwhile
            continue
        assert not any(secret.encode() in content for secret in secrets), path
    assert not list(state.rglob("superuser.password"))


def test_a_second_stack_runs_beside_it_and_goes_on_where_it_was(
    first: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    out, err = meshctl("dev", "-d", "--state-dir", tmp_path, "--port", port)
    try:
        assert "one query through the wire" in out
        held = DevState(tmp_path).read()
        assert held is not None
        with psycopg.connect(held.credential.url()) as connection:
            connection.execute("DELETE FROM order_items WHERE order_id = 1")
            connection.execute("DELETE FROM orders WHERE id = 1")
        left = orders(held.credential.url())
        assert orders(first["postgres_dsn"]) == left + 1
        out, err = meshctl("dev", "-d", "--state-dir", tmp_path, "--port", free_port(), code=5)
        assert "runs in" in err

        os.kill(held.supervisor_pid, signal.SIGKILL)
        for pid in (held.gate_pid, held.sidecar_pid, held.daemon_pid):
            gone(pid)
        meshctl("dev", "status", "--state-dir", tmp_path, code=3)
        out, _ = meshctl("dev", "-d", "--state-dir", tmp_path, "--port", port, "-o", "json")
        again = json.loads(out)["postgres_dsn"]
        assert orders(again) == left
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            orders(held.credential.url())
    finally:
        meshctl("dev", "stop", "--state-dir", tmp_path)
    meshctl("dev", "status", "--state-dir", tmp_path, code=3)
    assert not list((tmp_path / "gate" / "pg").glob("**/postmaster.pid"))


def test_a_half_made_directory_is_made_afresh_and_a_taken_port_told(
    first: dict[str, Any], tmp_path: Path
) -> None:
    keys = tmp_path / "gate" / "keys"
    keys.mkdir(parents=True)
    (keys / "pool.key").write_text("half")
    (tmp_path / "dev.json").write_text("{")
    _, err = meshctl("dev", "-d", "--state-dir", tmp_path, "--port", first["port"], code=5)
    assert "is taken" in err
    out, _ = meshctl("dev", "-d", "--state-dir", tmp_path, "--port", free_port(), "-o", "json")
    assert orders(json.loads(out)["postgres_dsn"]) > 1000
    meshctl("dev", "stop", "--state-dir", tmp_path)


def test_ctrl_c_ends_the_foreground_with_zero_and_a_dead_gate_with_one(tmp_path: Path) -> None:
    for how, code in (("interrupt", 0), ("kill the gate", 1)):
        with subprocess.Popen(
            [sys.executable, "-m", "meshctl", "dev", "--state-dir", tmp_path, "--port", str(free_port())],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as stack:
            assert stack.stdout is not None
            assert stack.stderr is not None
            for line in stack.stdout:
                if line.startswith("links 2/2 up"):  # the sidecar and the daemon
                    break
            held = DevState(tmp_path).read()
            assert held is not None
            os.kill(stack.pid, signal.SIGINT) if how == "interrupt" else os.kill(
                held.gate_pid, signal.SIGKILL
            )
            _, err = stack.communicate(timeout=60)
            assert stack.returncode == code, err
        assert "stopped" in err
        gone(held.sidecar_pid)
        assert not list((tmp_path / "gate" / "pg").glob("**/postmaster.pid"))
    assert "qgate was ended by SIGKILL" in err


def test_doctor_passes_and_every_list_answers(first: dict[str, Any]) -> None:
    where = ("--gate-dir", first["state_dir"])
    out, _ = meshctl("doctor", *where)
    assert "FAILED" not in out
    for command in ("db list", "app list", "sidecar list", "settings list", "audit tail"):
        assert isinstance(json.loads(meshctl(*command.split(), "-o", "json", *where)[0]), list)
    meshctl("audit", "verify", *where)
    meshctl("db", "check", "shop", *where)
    meshctl("secret", "rotate", "shop", *where)
    assert orders(first["postgres_dsn"]) > 1000


def test_an_app_from_creation_to_revocation(first: dict[str, Any]) -> None:
    where = ("--gate-dir", first["state_dir"])
    out, _ = meshctl("app", "create", "web", "--db", "shop", "--read-only", "-o", "json", *where)
    dsn = json.loads(out)["urls"]["shop"]["asyncpg"]
    assert orders(dsn) > 1000
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM orders")
    out, _ = meshctl("app", "rotate", "web", "--overlap", "1h", "-o", "json", *where)
    rotated = json.loads(out)["urls"]["shop"]["asyncpg"]
    assert orders(dsn) == orders(rotated)
    meshctl("app", "create", "web", "--db", "shop", *where, code=5)
    meshctl("app", "create", "other", "--db", "nowhere", *where, code=4)
    meshctl("app", "revoke", "web", "--yes", *where)
    with pytest.raises(psycopg.OperationalError):
        orders(rotated)


def test_a_wrong_password_of_a_database_is_told(first: dict[str, Any], tmp_path: Path) -> None:
    where = ("--gate-dir", first["state_dir"])
    row = json.loads(meshctl("db", "show", "shop", "-o", "json", *where)[0])
    password = tmp_path / "password"
    password.write_text("wrong")
    password.chmod(0o600)
    directory, port = row["hosts"][0]
    _, err = meshctl(
        "db", "add", "again", "--host", directory, "--user", "shop_owner", "--dbname", "shop",
        "--password-file", password, "--sslmode", "disable", *where, code=6,
    )  # fmt: skip
    assert port
    assert "Next:" in err
    meshctl("db", "show", "again", *where, code=4)
