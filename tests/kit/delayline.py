"""A slow link between two network namespaces, made of a TUN device in each and one process between them.

It stands in for `tc netem` where the kernel has none. Packets wait for the line (rate), then travel (delay),
and a full buffer drops them, as on a real link; so TCP's own behaviour is what is measured. Root only.

    with DelayLine(mbit=20, delay_s=0.020) as line:
        subprocess.run([*line.near.command, "ping", "-c", "3", line.far.address])
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import random
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kit.process import Program

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
_DEVICE = "line0"
_PROBE = """
import contextlib, socket, sys, time
times = []
for _ in range(5):
    start = time.monotonic()
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection((sys.argv[1], 1), timeout=5)
    times.append(time.monotonic() - start)
print(min(times))
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the line: its namespace, its address, and the words that run a command there."""

    namespace: str
    address: str

    @property
    def command(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)


class DelayLine:
    """Two namespaces, `near` and `far`, whose only way to each other is the slow line.

    `mbit` is the rate of each direction in Mbit/s (0: unlimited), `delay_s` the one-way delay in seconds,
    `loss` the part of packets lost at random, `buffer_s` how many seconds of traffic wait before packets
    are dropped.
    """

    def __init__(
        self, *, mbit: float = 20.0, delay_s: float = 0.020, loss: float = 0.0, buffer_s: float = 0.1
    ) -> None:
        self.mbit = mbit
        self.delay_s = delay_s
        self.loss = loss
        self.buffer_s = buffer_s
        mark = f"{os.getpid()}-{id(self) & 0xFFFF:04x}"
        self.near = Side(f"line-n-{mark}", "10.203.0.1")
        self.far = Side(f"line-f-{mark}", "10.203.0.2")
        self._pump: Program | None = None

    def __enter__(self) -> Self:
        for side in (self.near, self.far):
            _ip("netns", "add", side.namespace)
            _ip("-n", side.namespace, "link", "set", "lo", "up")
            _ip("-n", side.namespace, "tuntap", "add", _DEVICE, "mode", "tun")
            _ip("-n", side.namespace, "addr", "add", f"{side.address}/30", "dev", _DEVICE)
            _ip("-n", side.namespace, "link", "set", _DEVICE, "mtu", str(_MTU), "up")
        log = Path(tempfile.mkstemp(prefix="line-", suffix=".log")[1])
        self._pump = Program.start(
            [
                *(sys.executable, "-m", "tests.kit.delayline", self.near.namespace, self.far.namespace),
                *("--mbit", str(self.mbit), "--delay", str(self.delay_s)),
                *("--loss", str(self.loss), "--buffer", str(self.buffer_s)),
            ],
            name="delay line",
            log=log,
            cwd=Path(__file__).parents[2],
        )
        self._pump.wait_ready(lambda: b"ready" in log.read_bytes())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pump is not None:
            self._pump.stop()
            self._pump.log.unlink(missing_ok=True)
        for side in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", side.namespace], capture_output=True)

    def round_trip(self) -> float:
        """Return the measured idle round trip in seconds: how long a closed port takes to say so."""
        done = subprocess.run(
            [*self.near.command, sys.executable, "-c", _PROBE, self.far.address],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class _Direction:
    """One direction of the line: packets with the time at which they come out."""

    def __init__(self, source: int, sink: int, options: argparse.Namespace, dice: random.Random) -> None:
        self.source = source
        self.sink = sink
        self.bytes_per_s = options.mbit * 125_000
        self.delay_s = options.delay
        self.loss = options.loss
        self.buffer_s = options.buffer
        self.dice = dice
        self.queue: deque[tuple[float, bytes]] = deque()
        self.free_at = 0.0
        self.bytes = self.dropped = 0

    def take(self, now: float) -> None:
        """Read what is there and put it on the line."""
        for _ in range(64):
            try:
                packet = os.read(self.source, _MTU + 64)
            except BlockingIOError:
                return
            if self.loss and self.dice.random() < self.loss:
                self.dropped += 1
                continue
            sent = max(now, self.free_at)
            if sent - now > self.buffer_s:
                self.dropped += 1
                continue
            if self.bytes_per_s:
                self.free_at = sent = sent + len(packet) / self.bytes_per_s
            self.bytes += len(packet)
            self.queue.append((sent + self.delay_s, packet))

    def give(self, now: float) -> None:
        """Let out what has arrived."""
        while self.queue and self.queue[0][0] <= now:
            with contextlib.suppress(OSError):
                os.write(self.sink, self.queue[0][1])
            self.queue.popleft()


def _open_tun(namespace: str) -> int:
    """Enter `namespace` and return its TUN device, which stays ours wherever we go next."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open("rb") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def main() -> int:
    """Carry packets between the two namespaces until terminated, then print what was carried."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.delayline", description="a slow link (root only)"
    )
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("--mbit", type=float, default=20.0)
    parser.add_argument("--delay", type=float, default=0.020)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--buffer", type=float, default=0.1)
    options = parser.parse_args()
    near, far = _open_tun(options.near), _open_tun(options.far)
    dice = random.Random(1)
    directions = (_Direction(near, far, options, dice), _Direction(far, near, options, dice))
    selector = selectors.DefaultSelector()
    for direction in directions:
        selector.register(direction.source, selectors.EVENT_READ, direction)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    print("ready", flush=True)
    while not stopping:
        due = min((direction.queue[0][0] for direction in directions if direction.queue), default=None)
        ready = selector.select(None if due is None else max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for key, _events in ready:
            key.data.take(now)
        for direction in directions:
            direction.give(now)
    print(json.dumps([{"bytes": d.bytes, "dropped": d.dropped} for d in directions]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
