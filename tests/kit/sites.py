"""Sites on one network: a namespace each, joined by a bridge, with lines that are cut one way or made slow.

Each site has an address that every other one, and this machine, can reach until something happens to a line.
Root only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.kit.process import Program

_NETWORK: Final = "10.205.0"
HERE: Final = f"{_NETWORK}.254"
"""This machine's own address on that network."""

_PROBE: Final = """
import contextlib, socket, sys, time
times = []
for _ in range(3):
    start = time.monotonic()
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection((sys.argv[1], 1), timeout=5)
    times.append(time.monotonic() - start)
print(min(times))
"""


class Sites:
    """A namespace for each of ``names``. Use as ``with``; everything that was done to lines ends with it."""

    def __init__(self, *names: str) -> None:
        mark = os.getpid() % 100_000
        self._bridge = f"br{mark}"
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._mark = mark
        self._slow: dict[frozenset[str], Program] = {}

    def namespace(self, name: str) -> str:
        """The name of a site's namespace."""
        return f"site-{self._mark}-{name}"

    def address(self, name: str) -> str:
        """A site's address."""
        return f"{_NETWORK}.{self._numbers[name]}"

    def command(self, name: str) -> tuple[str, ...]:
        """What to put before a program that is to run at a site."""
        return ("ip", "netns", "exec", self.namespace(name))

    # --- lines

    def cut(self, source: str, to: str) -> None:
        """Lose every packet in one direction, at an address that nobody has; nobody is told."""
        nobody = ("lladdr", "02:00:00:00:00:01", "dev", "wan", "nud", "permanent")
        _ip("-n", self.namespace(source), "neigh", "replace", self.address(to), *nobody)

    def mend(self, source: str, to: str) -> None:
        """Let packets through again."""
        _ip_if_there("-n", self.namespace(source), "neigh", "del", self.address(to), "dev", "wan")

    def part(self, one: str, other: str) -> None:
        """Cut both directions."""
        self.cut(one, other)
        self.cut(other, one)

    def join(self, one: str, other: str) -> None:
        """Mend both directions."""
        self.mend(one, other)
        self.mend(other, one)

    def slow(self, one: str, other: str, *, mbit: float, delay_s: float, loss: float) -> None:
        """Send what goes between two sites over a slow line (`tests.kit.delayline`), until `fast`."""
        near, far = self.namespace(one), self.namespace(other)
        for namespace in (near, far):
            _ip("-n", namespace, "tuntap", "add", "line0", "mode", "tun")
            _ip("-n", namespace, "link", "set", "line0", "mtu", "1500", "up")
        log = Path(tempfile.mkstemp(prefix="line-", suffix=".log")[1])
        words = ("--mbit", str(mbit), "--delay", str(delay_s), "--loss", str(loss), "--buffer", "0.5")
        pump = Program.start(
            [sys.executable, "-m", "tests.kit.delayline", near, far, *words],
            name="delay line",
            log=log,
            cwd=Path(__file__).parents[2],
        )
        self._slow[frozenset((one, other))] = pump
        pump.wait_ready(lambda: b"ready" in log.read_bytes())
        for at, to in ((one, other), (other, one)):
            way = ("route", "replace", f"{self.address(to)}/32", "dev", "line0", "src", self.address(at))
            _ip("-n", self.namespace(at), *way)

    def fast(self, one: str, other: str) -> None:
        """Take the slow line away."""
        pump = self._slow.pop(frozenset((one, other)), None)
        if pump is None:
            return
        for name in (one, other):
            _ip_if_there("-n", self.namespace(name), "link", "del", "line0")
        pump.stop()
        pump.log.unlink(missing_ok=True)

    def round_trip(self, one: str, other: str) -> float:
        """How long a closed port takes to say so, in seconds; the least of three times."""
        done = subprocess.run(
            [*self.command(one), sys.executable, "-c", _PROBE, self.address(other)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    # --- life

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{HERE}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for name, number in self._numbers.items():
                namespace, device = self.namespace(name), f"si{self._mark}-{number}"
                _ip("netns", "add", namespace)
                _ip("-n", namespace, "link", "set", "lo", "up")
                _ip("link", "add", device, "type", "veth", "peer", "name", "wan", "netns", namespace)
                _ip("link", "set", device, "master", self._bridge, "up")
                _ip("-n", namespace, "addr", "add", f"{self.address(name)}/24", "dev", "wan")
                _ip("-n", namespace, "link", "set", "wan", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        for pair in list(self._slow):
            self.fast(*pair)
        for name, number in self._numbers.items():
            _ip_if_there("link", "del", f"si{self._mark}-{number}")
            _ip_if_there("netns", "del", self.namespace(name))
        _ip_if_there("link", "del", self._bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _ip_if_there(*words: str) -> None:
    subprocess.run(["ip", *words], check=False, capture_output=True)
