from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from meshctl.client import Gate, find_socket, socket_of
from meshctl.errors import ExitCode, GateError, UnreachableError
from tests.meshctl.fake_gate import FakeGate, refuse_connections, serving


def test_answers_are_decoded_and_lists_unwrapped(gate: FakeGate) -> None:
    gate.answer("GET /apps", {"items": [{"name": "web"}]})
    gate.answer("DELETE /databases/shop", None, 204)
    client = Gate(gate.socket)
    assert client.items("/apps") == [{"name": "web"}]
    assert client.delete("/databases/shop", {"force": True, "nothing": None}) is None
    assert gate.query_of("DELETE /databases/shop") == {"force": "true"}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ExitCode.USAGE),
        (422, ExitCode.USAGE),
        (404, ExitCode.NOT_FOUND),
        (403, ExitCode.REFUSED),
        (409, ExitCode.REFUSED),
        (500, ExitCode.FAILED),
        (503, ExitCode.FAILED),
    ],
)
def test_a_problem_document_becomes_an_error_with_its_exit_code(
    gate: FakeGate, status: int, code: ExitCode
) -> None:
    gate.problem("POST /apps", status, "no database shop", "meshctl db list", "unknown-database")
    with pytest.raises(GateError) as caught:
        Gate(gate.socket).post("/apps", {})
    assert (caught.value.code, caught.value.message, caught.value.hint, caught.value.problem) == (
        code,
        "no database shop",
        "meshctl db list",
        "unknown-database",
    )


@pytest.mark.parametrize("body", ["<html>busy</html>", "[1]", "", '{"detail": null}'])
def test_an_error_that_is_no_problem_document_is_still_told(gate: FakeGate, body: str) -> None:
    gate.answer("GET /status", body, 503)
    with pytest.raises(GateError, match="503"):
        Gate(gate.socket).get("/status")


def test_a_success_that_is_not_json_is_an_error(gate: FakeGate) -> None:
    gate.answer("GET /status", "hello")
    with pytest.raises(GateError, match="not JSON"):
        Gate(gate.socket).get("/status")


def test_lines_arrive_one_by_one(gate: FakeGate) -> None:
    gate.answer("GET /audit/export", '{"seq": 1}\n\n{"seq": 2}\n')
    assert [line["seq"] for line in Gate(gate.socket).lines("/audit/export")] == [1, 2]


def test_no_socket_a_dead_socket_and_a_silent_gate_each_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="does not exist"):
        Gate(tmp_path / "admin.sock").get("/status")
    refuse_connections(tmp_path / "dead.sock")
    with pytest.raises(UnreachableError, match="nobody listens"):
        Gate(tmp_path / "dead.sock").get("/status")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent.sock"))
        listener.listen()
        with pytest.raises(UnreachableError, match="did not answer"):
            Gate(tmp_path / "silent.sock", timeout=0.05).get("/status")


def test_a_gate_that_hangs_up_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(UnreachableError):
            Gate(tmp_path / "s").get("/status")
        thread.join()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with serving(Path("admin.sock")) as fake:
        fake.answer("GET /status", {"gate": {}})
        assert Gate(deep / "admin.sock").get("/status") == {"gate": {}}


def test_the_gate_is_found_by_option_then_dev_stack_then_system(tmp_path: Path) -> None:
    assert find_socket(None, Path("/s"), here=tmp_path) == Path("/s")
    assert find_socket(tmp_path, None, here=tmp_path) == tmp_path / "admin.sock"
    with pytest.raises(UnreachableError, match="No gate is running here"):
        find_socket(None, None, here=tmp_path)
    dev = tmp_path / ".mesh" / "gate"
    dev.mkdir(parents=True)
    (dev / "admin.sock").touch()
    assert find_socket(None, None, here=tmp_path) == dev / "admin.sock"
    assert socket_of(tmp_path / ".mesh") == dev / "admin.sock"


def test_a_socket_named_in_the_settings_is_used(tmp_path: Path) -> None:
    (tmp_path / "qgate.toml").write_text(f"[control]\nsocket = {json.dumps('/run/qgate/a.sock')}\n")
    assert socket_of(tmp_path) == Path("/run/qgate/a.sock")
    (tmp_path / "qgate.toml").write_text("not toml")
    assert socket_of(tmp_path) == tmp_path / "admin.sock"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_told_and_is_no_defect() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        here = Path(name)
        (here / ".mesh" / "gate").mkdir(parents=True)
        (here / ".mesh").chmod(0o700)
        here.chmod(0o755)
        os.seteuid(65534)
        try:
            assert find_socket(here / ".mesh", None, here=here) == here / ".mesh" / "admin.sock"
            with pytest.raises(UnreachableError, match="another user's") as refused:
                find_socket(None, None, here=here)
        finally:
            os.seteuid(0)
    assert "sudo -u" in refused.value.hint
