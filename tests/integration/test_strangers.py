"""A stranger gets not one byte back, costs bounded memory, and a capture of the wire tells nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest

from tests.kit.background import on_loop, running_proxy
from tests.kit.capture import Capture
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.process import rss
from tests.kit.proxy import Proxy

_PATIENCE_S = 40.0  # longer than the gate waits for a first message
_CANARIES = {
    "table": "canary_table_5b1f",
    "value": "canary value 93ae with words",
    "application": "canary-app-77c0",
    "comment": "canary-comment-1d2e",
}


@dataclass(frozen=True, slots=True)
class Watched:
    """A mesh whose tunnel runs through a proxy that records everything."""

    mesh: Mesh
    login: Login
    proxy: Proxy
    capture: Capture
    upstream_password: str


@pytest.fixture(scope="module")
def watched(upstream: Cluster) -> Iterator[Watched]:
    capture = Capture()
    plain = {"tunnel": {"compression": "off"}}
    with running_proxy(capture) as proxy:
        mesh = Mesh(advertise=f"127.0.0.1:{proxy.port}", settings=plain, sidecar_settings=plain)
        try:
            gate = mesh.add_gate(advertise=mesh.first_advertise)
            proxy.target = ("127.0.0.1", gate.port)
            gate.start()
            mesh.add_sidecar("app-host").start()
            mesh.wait_linked()
            password = upstream.create_role("watched_owner")
            upstream.create_database("watched", owner="watched_owner")
            mesh.add_database("watched", upstream.dsn("watched", user="watched_owner", password=password))
            yield Watched(mesh, mesh.add_app("app-watched", "watched"), proxy, capture, password)
        finally:
            mesh.close()


def _answer_to(port: int, send: Callable[[socket.socket], None]) -> tuple[bytes, bool]:
    """Send a stranger's bytes; return what came back, and whether the connection was closed in time."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as stranger:
        try:
            send(stranger)
            while data := stranger.recv(4096):
                received += data
        except TimeoutError:
            return received, False
        except OSError:
            pass
    return received, True


def _send(data: bytes, stranger: socket.socket) -> None:
    stranger.sendall(data)


def _tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="gate.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


_STRANGERS: dict[str, bytes] = {
    "random": os.urandom(4096),
    "a length and random": b"\x01\x00" + os.urandom(300),
    "TLS hello": _tls_hello(),
    "HTTP": b"GET / HTTP/1.1\r\nHost: gate.example\r\n\r\n",
    "PostgreSQL SSLRequest": bytes.fromhex("0000000804d2162f"),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(4096),
    "one byte": b"\x00",
    "nothing": b"",
}


def test_strange_bytes_and_silence_get_no_answer(watched: Watched) -> None:
    # Side by side, because the gate holds each of them for a random while.
    port = watched.mesh.gate.port
    with ThreadPoolExecutor(len(_STRANGERS)) as crowd:
        tries = {
            what: crowd.submit(_answer_to, port, partial(_send, data)) for what, data in _STRANGERS.items()
        }
        answers = {what: one.result() for what, one in tries.items()}
    assert answers == dict.fromkeys(_STRANGERS, (b"", True))


def _first_message(watched: Watched) -> bytes:
    """Return the first message of the newest handshake that went over the wire: `u16 length | ...`."""
    data = watched.capture.sent_by_client(watched.proxy.counts["connections"])
    return data[: 2 + int.from_bytes(data[:2], "big")]


def test_a_truncated_first_message_gets_no_answer(watched: Watched) -> None:
    first = _first_message(watched)
    for size in (len(first) // 2, len(first) - 1):

        def send(stranger: socket.socket, size: int = size) -> None:
            stranger.sendall(first[:size])
            stranger.shutdown(socket.SHUT_WR)

        assert _answer_to(watched.mesh.gate.port, send) == (b"", True)


def test_a_replayed_first_message_gets_no_answer(watched: Watched) -> None:
    first = _first_message(watched)
    assert len(first) > 100
    assert _answer_to(watched.mesh.gate.port, partial(_send, first)) == (b"", True)


def test_a_gigabyte_of_zeros_costs_nothing(watched: Watched) -> None:
    before = rss(watched.mesh.gate.pid)
    block, sent, highest = bytes(1 << 20), 0, before
    for _ in range(3):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", watched.mesh.gate.port), timeout=_PATIENCE_S) as stranger,
        ):
            while sent < 1 << 30:
                sent += stranger.send(block)
                highest = max(highest, rss(watched.mesh.gate.pid))
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    assert highest - before < 16 << 20


def test_the_gate_still_works_after_all_that(watched: Watched) -> None:
    with psycopg.connect(watched.login.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_capture_shows_no_canary(watched: Watched) -> None:
    login = watched.login
    with psycopg.connect(
        login.url(), application_name=_CANARIES["application"], autocommit=True
    ) as connection:
        table, value = _CANARIES["table"], _CANARIES["value"]
        connection.execute(f"CREATE TABLE {table} (note text)".encode())
        for _ in range(50):
            connection.execute(f"INSERT INTO {table} VALUES (%s)".encode(), (value,))
        rows = connection.execute(f"SELECT * FROM {table} /* {_CANARIES['comment']} */".encode()).fetchall()
        assert len(rows) == 50
        with connection.cursor().copy(f"COPY {table} TO STDOUT".encode()) as copy:
            assert sum(len(block) for block in copy) > 1000
    secrets = [login.password, watched.upstream_password, login.user, "app-host", "watched_owner"]
    canaries = [text.encode() for text in (*_CANARIES.values(), *secrets)]
    assert watched.capture.size > 5000
    assert watched.capture.find(canaries) == []


def test_a_replay_is_refused_after_the_gate_was_killed_too(watched: Watched) -> None:
    first = _first_message(watched)
    watched.mesh.gate.kill()
    on_loop(watched.proxy, watched.proxy.cut)
    on_loop(watched.proxy, watched.proxy.refuse)
    watched.mesh.gate.start()
    try:
        start = time.monotonic()
        assert _answer_to(watched.mesh.gate.port, partial(_send, first)) == (b"", True)
        assert time.monotonic() - start < _PATIENCE_S
    finally:
        on_loop(watched.proxy, lambda: watched.proxy.refuse(False))
    watched.mesh.wait_linked()
    with psycopg.connect(watched.login.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
