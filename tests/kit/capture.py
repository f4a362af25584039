"""Everything that passed a proxy, kept to be searched for what must not be there."""

from __future__ import annotations

import base64
from collections.abc import Iterable


class Capture:
    """A tap for `Proxy` that keeps all bytes, one string for each connection and direction."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, bool], bytearray] = {}

    def __call__(self, connection: int, *, to_server: bool, data: bytes) -> None:
        self._streams.setdefault((connection, to_server), bytearray()).extend(data)

    @property
    def size(self) -> int:
        """How many bytes were captured, both directions together."""
        return sum(map(len, self._streams.values()))

    def sent_by_client(self, connection: int) -> bytes:
        """Return what the client of this connection (counted from 1) sent."""
        return bytes(self._streams.get((connection, True), b""))

    def sent_by_server(self, connection: int) -> bytes:
        """Return what the server sent back on this connection."""
        return bytes(self._streams.get((connection, False), b""))

    def find(self, canaries: Iterable[bytes]) -> list[bytes]:
        """Return the canaries that were seen: plain, in hex, in base64 at any offset, or in UTF-16."""
        streams = list(self._streams.values())
        return [
            canary
            for canary in canaries
            if any(form in stream for form in _forms(canary) for stream in streams)
        ]


def _forms(canary: bytes) -> set[bytes]:
    """Return the ways in which `canary` would betray itself."""
    forms = {canary, canary.hex().encode(), canary.hex().upper().encode(), canary[::-1]}
    forms.add(canary.decode("latin-1").encode("utf-16-le"))
    for offset in range(3):
        # Base64 depends on where in a group of three the bytes start: keep the part that does not.
        text = base64.b64encode(b"\0" * offset + canary)
        head = -(-offset * 8 // 6)
        tail = len(text) - (4 if (offset + len(canary)) % 3 else 0)
        forms.add(text[head:tail])
    return {form for form in forms if len(form) >= 6}
