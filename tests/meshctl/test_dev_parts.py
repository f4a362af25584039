"""The dev stack's parts, each alone: state directory, child processes, the proving query, readings."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meshctl.dev import live
from meshctl.dev.children import Child, end_process, runs_module, start, wait_for, wait_gone
from meshctl.dev.models import ask
from meshctl.dev.query import QueryFailed, run_query
from meshctl.dev.state import DevRecord, DevState, free_port, require_free
from meshctl.drivers import Credential
from meshctl.errors import CommandError, RefusedError, UsageError
from meshctl.gate_directory import GateDirectory
from tunnel_proto import pgwire, scram
from tunnel_proto.identity import Identity, save_identity

RECORD = DevRecord(
    phase="ready",
    state_dir="/x",
    supervisor_pid=1,
    gate_pid=2,
    sidecar_pid=3,
    daemon_pid=5,
    port=11438,
    tunnel_port=4,
    admin_socket="/x/gate/admin.sock",
    app="demo",
    database="shop",
    password="secret-pw",
    api_key="qg_secret-key",
    started_at=0.0,
)


def test_the_record_survives_a_round_trip_and_damage_reads_as_none(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    assert state.read() is None
    state.write(RECORD)
    assert state.read() == RECORD
    assert state.file.stat().st_mode & 0o077 == 0
    assert "secret-pw" not in state.file.read_text()
    assert "secret-pw" not in repr(RECORD)
    assert RECORD.public()["postgres_dsn"] == "postgresql://demo:secret-pw@localhost:11438/shop"
    for damage in ("", "{", "[]", '{"phase": "ready"}'):
        state.file.write_text(damage)
        assert state.read() is None


def test_with_other_keys_the_password_stays_sealed_and_the_rest_can_be_read(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    state.write(RECORD)
    key = GateDirectory(state.gate).node_key
    key.unlink()
    assert state.read() == replace(RECORD, password="", api_key="")
    save_identity(key, Identity.generate())
    assert state.read() == replace(RECORD, password="", api_key="")


def prepared(root: Path) -> DevState:
    """A state directory with a gate's key in it."""
    state = DevState(root)
    state.prepare()
    state.gate.joinpath("keys").mkdir(parents=True)
    save_identity(GateDirectory(state.gate).node_key, Identity.generate())
    return state


def test_one_stack_a_directory_and_a_stale_record_is_not_a_running_one(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    assert not state.running()
    held = state.lock()
    state.write(RECORD)
    assert state.running()
    with pytest.raises(RefusedError, match=r"runs in .* already .pid 1, port 11438"):
        state.lock()
    os.close(held)
    assert not state.running()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        DevState(tmp_path / ("d" * 120)).prepare()


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(CommandError, match="cannot be made"):
        DevState(tmp_path / "f").prepare()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_taken_port_is_told_with_a_free_one(family: socket.AddressFamily, host: str) -> None:
    require_free(free_port())
    with socket.socket(family) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        taken.listen()
        with pytest.raises(RefusedError, match="is taken") as caught:
            require_free(taken.getsockname()[1])
        assert "--port" in caught.value.hint


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start ``python -m module``; ended at the end whatever happened."""
    started: list[Child] = []

    def go(module: str, *arguments: str) -> Child:
        one = start(module, arguments, log=tmp_path / f"{module}.log")
        started.append(one)
        return one

    yield go
    for one in started:
        if one.alive:
            one.end(signal.SIGKILL)
        one.process.wait()


def test_a_child_that_fails_is_quoted(child: Callable[..., Child]) -> None:
    one = child("json.tool", "/nowhere/at/all.json")
    with pytest.raises(CommandError, match="exit code 2") as caught:
        wait_for(lambda: False, what="It", timeout=20, children=[one])
    assert "/nowhere/at/all.json" in caught.value.message


def test_a_child_is_known_waited_for_and_ended(child: Callable[..., Child], tmp_path: Path) -> None:
    port = free_port()
    one = child("http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers, what="It", timeout=20, children=[one])
    assert runs_module(one.pid, "http.server")
    assert not runs_module(one.pid, "qgate")
    assert not end_process(one.pid, module="qgate", timeout=1)
    assert not wait_gone(one, timeout=60, hurry=lambda: True)
    reaper = threading.Thread(target=one.process.wait)
    reaper.start()
    assert end_process(one.pid, module="http.server", timeout=10)
    reaper.join()
    assert wait_gone(one, timeout=1, hurry=lambda: False)
    with pytest.raises(CommandError, match="ended by SIGTERM"):
        one.require_alive()


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import sys; from pathlib import Path; from meshctl.dev.children import start\n"
        f"one = start('http.server', ['{port}', '--bind', '127.0.0.1'], log=Path({str(tmp_path / 'l')!r}))\n"
        "print(one.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        parent.kill()
    with os.fdopen(descriptor) as ended:
        assert select.select([ended], [], [], 20)[0], "the child still runs"


def message(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


def row(*cells: bytes | None) -> bytes:
    body = b"".join(struct.pack("!i", -1) if c is None else struct.pack("!i", len(c)) + c for c in cells)
    return message(b"D", struct.pack("!H", len(cells)) + body)


@contextmanager
def postgres(password: str, answer: bytes) -> Iterator[Credential]:
    """A server of one connection: SCRAM, then ``answer`` to any query."""

    def serve(sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            (size,) = struct.unpack("!I", file.read(4))
            file.read(size - 4)
            sock.sendall(pgwire.authentication_sasl(["SCRAM-SHA-256"]))
            verifier = scram.parse_verifier(scram.make_verifier(password.encode(), salt=b"s" * 16))
            server = scram.ScramServer(
                [verifier], nonce="abc", mechanism="SCRAM-SHA-256", plus=False, binding=None
            )

            def read() -> bytes:
                _, length = struct.unpack("!cI", file.read(5))
                return file.read(length - 4)

            _, data = pgwire.parse_sasl_initial_response(read())
            assert data is not None
            sock.sendall(pgwire.authentication_sasl_continue(server.first(data)))
            try:
                final = server.final(read())
            except Exception:
                sock.sendall(pgwire.error_response("FATAL", "28P01", "password authentication failed"))
                return
            sock.sendall(pgwire.authentication_sasl_final(final) + pgwire.AUTHENTICATION_OK)
            sock.sendall(pgwire.notice_response("NOTICE", "00000", "hello") + pgwire.ready_for_query(b"I"))
            read()
            sock.sendall(answer)
            file.read()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: serve(listener.accept()[0]))
        thread.start()
        yield Credential("demo", "pw", "shop", "127.0.0.1", listener.getsockname()[1])
        thread.join()


def field(name: bytes) -> bytes:
    return name + b"\0" + bytes(18)


READY = b"Z\0\0\0\5I"


def test_the_query_reads_columns_rows_and_nulls() -> None:
    columns = message(b"T", struct.pack("!H", 2) + field(b"a") + field("ö".encode()))
    with postgres(
        "pw", columns + row(b"1", None) + row(b"2", b"x") + message(b"C", b"SELECT 2\0") + READY
    ) as c:
        result = run_query(c, "select", timeout=10)
    assert (result.columns, result.rows) == (("a", "ö"), (("1", None), ("2", "x")))


def test_a_wrong_password_and_a_failed_statement_keep_their_sqlstate() -> None:
    with postgres("other", b"") as c, pytest.raises(QueryFailed) as caught:
        run_query(c, "select", timeout=10)
    assert caught.value.sqlstate == "28P01"
    failing = pgwire.error_response("ERROR", "42P01", "no table") + READY
    with postgres("pw", failing) as c, pytest.raises(QueryFailed, match="no table") as caught:
        run_query(c, "select", timeout=10)
    assert caught.value.sqlstate == "42P01"


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as quiet:
        quiet.bind(("127.0.0.1", 0))
        with pytest.raises(QueryFailed, match="does not serve"):
            run_query(Credential("demo", "pw", "shop", "127.0.0.1", quiet.getsockname()[1]), "x", timeout=10)


@pytest.mark.parametrize(
    ("said", "told"), [(b"", "closed"), (b"D\xff\xff\xff\xff", "impossible length"), (b"R\0\0", "closed")]
)
def test_a_server_that_hangs_up_or_babbles_is_told(said: bytes, told: str) -> None:
    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1024):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(QueryFailed, match=told):
            run_query(
                Credential("demo", "pw", "shop", "127.0.0.1", listener.getsockname()[1]), "x", timeout=10
            )
        thread.join()


Said = tuple[int, object, dict[str, str]]
BUSY: Said = (503, {"error": {"message": "still being loaded"}}, {"Retry-After": "7"})
GONE: Said = (404, {"error": {"message": "no such model"}}, {})
SAID: Said = (200, {"choices": [{"message": {"content": "hello"}}]}, {"x-qgate-node": "local"})


@contextmanager
def answering(*answers: Said) -> Iterator[int]:
    """A port that gives these answers, in order."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, document, headers = left.pop(0)
            body = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_chat_is_asked_again_while_its_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("meshctl.dev.models.time.sleep", waited.append)
    with answering(BUSY, BUSY, SAID) as port:
        answer = ask(port, "key", "model", "hi", timeout=60)
    assert (answer.text, answer.node, waited) == ("hello", "local", [7, 7])
    with answering(GONE) as port, pytest.raises(CommandError, match="no such model") as refused:
        ask(port, "key", "model", "hi", timeout=60)
    assert refused.value.hint
    with answering(BUSY) as port, pytest.raises(CommandError, match="still being loaded"):
        ask(port, "key", "model", "hi", timeout=5)


def test_readings_turn_totals_into_rates() -> None:
    first = live.reading({"totals": {"queries": 10, "bytes_app": 100, "bytes_wire": 50}}, None, 1.0)
    reply = {
        "sessions": [{"connected": True}, {"connected": False}],
        "totals": {"queries": 30, "bytes_app": 300, "bytes_wire": 100, "streams": 2, "resumes": 1},
    }
    second = live.reading(reply, first, 3.0)
    assert (first.queries_per_s, second.queries_per_s, second.app_per_s) == (0.0, 10.0, 100.0)
    assert live.line(second) == (
        "links 1/2 up  streams 2  10 queries/s (30 in all)  app 300 B -> wire 100 B (3.0x)  resumes 1"
    )
    restarted = live.reading({"totals": {"queries": 1}}, second, 4.0)
    assert restarted.queries_per_s == 0.0
