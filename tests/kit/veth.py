"""Links of their own between a namespace and this machine, each of which can lose every packet one way."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Self

_NETWORK = "10.204"


class Spokes:
    """A namespace with one link to here for each of ``names``; `here(name)` is this end's address.

    `drop(name)` lets nothing go from here to the namespace on that link any more, without telling anybody:
    what comes in is received and the answers vanish, as behind a firewall that drops. Needs root.
    """

    def __init__(self, *names: str) -> None:
        self.namespace = f"spokes-{os.getpid()}-{id(self) & 0xFFFF:04x}"
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._dropped: set[str] = set()

    @property
    def command(self) -> tuple[str, ...]:
        """What to put before a program that is to run in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def here(self, name: str) -> str:
        """The address of this end of a link."""
        return f"{_NETWORK}.{self._numbers[name]}.1"

    def there(self, name: str) -> str:
        """The address of the namespace's end."""
        return f"{_NETWORK}.{self._numbers[name]}.2"

    def drop(self, name: str) -> None:
        """Lose every packet to the namespace on that link."""
        _ip("route", "add", "blackhole", f"{self.there(name)}/32")
        self._dropped.add(name)

    def heal(self, name: str) -> None:
        """Let packets through again."""
        if name in self._dropped:
            self._dropped.remove(name)
            _ip("route", "del", "blackhole", f"{self.there(name)}/32")

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self.namespace)
            _ip("-n", self.namespace, "link", "set", "lo", "up")
            for name, number in self._numbers.items():
                device = self._device(number)
                _ip("link", "add", device, "type", "veth", "peer", "name", "far", "netns", self.namespace)
                _ip("-n", self.namespace, "link", "set", "far", "name", f"to-{number}")
                _ip("addr", "add", f"{self.here(name)}/24", "dev", device)
                _ip("-n", self.namespace, "addr", "add", f"{self.there(name)}/24", "dev", f"to-{number}")
                _ip("link", "set", device, "up")
                _ip("-n", self.namespace, "link", "set", f"to-{number}", "up")
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
        for name in list(self._dropped):
            self.heal(name)
        for number in self._numbers.values():
            subprocess.run(["ip", "link", "del", self._device(number)], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)

    def _device(self, number: int) -> str:
        return f"sp{os.getpid() % 100_000}-{number}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
