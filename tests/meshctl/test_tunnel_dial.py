"""Sockets through a tunnel: bytes both ways, credit both ways, several programs of one context."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshctl.contexts import Context
from meshctl.tunnel_dial import TunnelDial, instance_of
from tests.meshctl.fake_pools import FakePools
from tunnel_proto.enrolment import GateAddress

SIZE = 6 << 20


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def echo(pools: FakePools, tmp_path: Path) -> Iterator[FakePools]:
    """The pools, with an echo behind hq."""
    path = tmp_path / "echo.sock"
    with _EchoServer(str(path), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        pools["hq"].gate.socket = path
        try:
            yield pools
        finally:
            server.shutdown()
            thread.join()


def dial_of(context: Context) -> TunnelDial:
    identity, bundle = context.load(now=time.time())
    return TunnelDial(identity, bundle.chain, context.mark)


def received(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 16))
        assert part, f"{size} bytes are missing"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def test_more_than_any_window_comes_through_whole(ops: Context, echo: FakePools) -> None:
    dial = dial_of(ops)
    data = os.urandom(SIZE)
    try:
        with dial.dial([echo["hq"].address], 30) as sock:
            writer = threading.Thread(target=sock.sendall, args=(data,))
            writer.start()
            assert received(sock, SIZE) == data
            writer.join()
    finally:
        dial.close()


def test_a_reader_who_stops_stops_the_writer_and_loses_nothing(ops: Context, echo: FakePools) -> None:
    dial = dial_of(ops)
    data = os.urandom(SIZE)
    try:
        with dial.dial([echo["hq"].address], 30) as slow, dial.dial([echo["hq"].address], 30) as quick:
            slow.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):  # nobody reads: credit runs out before memory does
                while sent < 1 << 28:
                    sent += slow.send(data[:65536])
            assert sent < 1 << 28
            quick.sendall(data[:1000])
            assert received(quick, 1000) == data[:1000]
            slow.settimeout(30)
            assert received(slow, sent) == (data[:65536] * (sent // 65536 + 1))[:sent]
    finally:
        dial.close()


def test_programs_of_one_context_do_not_end_each_other(ops: Context, echo: FakePools) -> None:
    first, second = dial_of(ops), dial_of(ops)
    try:
        with first.dial([echo["hq"].address], 10) as one, second.dial([echo["hq"].address], 10) as two:
            for sock in (one, two, one):
                sock.sendall(b"here")
                assert received(sock, 4) == b"here"
    finally:
        first.close()
        second.close()
    identity, _ = ops.load(now=time.time())
    assert instance_of(identity) == instance_of(identity)


def test_each_gate_of_a_pool_is_tried_and_each_cause_is_told(ops: Context, echo: FakePools) -> None:
    good = echo["hq"].address
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = GateAddress("none-1", "127.0.0.1", taken.getsockname()[1], good.handshake_public)
        stranger = GateAddress("other-1", good.host, good.port, b"\x05" * 32)
        dial = dial_of(ops)
        try:
            with dial.dial([nobody, good], 10) as sock:
                sock.sendall(b"x")
                assert received(sock, 1) == b"x"
            with pytest.raises(OSError, match=r"none-1 at .*; other-1 at "):
                dial.dial([nobody, stranger])
            with pytest.raises(ConnectionError, match="no gate is known"):
                dial.dial([])
        finally:
            dial.close()


def test_closing_twice_and_before_use_is_fine(ops: Context) -> None:
    dial = dial_of(ops)
    dial.close()
    dial.close()


def test_a_socket_that_hangs_on_a_lost_link_is_closed_and_a_new_dial_begins_afresh(
    ops: Context, echo: FakePools
) -> None:
    dial = dial_of(ops)
    gates = [echo["hq"].address]
    try:
        with dial.dial(gates, 10) as sock:
            echo.stop("hq")
            assert sock.recv(1) == b""
        with pytest.raises(OSError, match="hq-1"):
            dial.dial(gates)
        echo.start("hq")
        with dial.dial(gates, 10) as sock:
            sock.sendall(b"y")
            assert received(sock, 1) == b"y"
    finally:
        dial.close()
