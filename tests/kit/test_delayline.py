"""The delay line keeps the delay and the rate it was given."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.delayline import DelayLine

_SINK = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000))
print("listening", flush=True)
connection, _ = listener.accept()
total = 0
while data := connection.recv(65536):
    total += len(data)
connection.sendall(b"%d" % total)
"""
_SOURCE = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000))
start = time.monotonic()
connection.sendall(bytes(1_500_000))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode(), time.monotonic() - start)
"""


@pytest.mark.root
def test_delay_and_rate() -> None:
    with DelayLine(mbit=20, delay_s=0.020) as line:
        assert 0.040 <= min(line.round_trip() for _ in range(5)) < 0.048
        sink = subprocess.Popen(
            [*line.far.command, sys.executable, "-c", _SINK, line.far.address], stdout=subprocess.PIPE
        )
        with sink:
            assert sink.stdout is not None
            assert sink.stdout.readline() == b"listening\n"
            done = subprocess.run(
                [*line.near.command, sys.executable, "-c", _SOURCE, line.far.address],
                capture_output=True,
                text=True,
            )
        received, elapsed = done.stdout.split()
        assert received == "1500000"
    assert 12 < 1_500_000 * 8 / float(elapsed) / 1e6 < 20
