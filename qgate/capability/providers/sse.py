"""Server-sent events as they arrive: bytes in, payloads out (WHATWG HTML, 9.2.6). Pure.

Payloads are handed on as they came and are never written anew. Lines end with LF or CRLF; a lone CR, which
the standard also allows and no model API sends, is part of its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LINE_MAX: Final = 4 << 20
"""Bytes of one line. A chunk with an image or a long tool call has hundreds of kilobytes."""
EVENT_MAX: Final = 8 << 20
_BOM: Final = b"\xef\xbb\xbf"


class EventStreamError(ValueError):
    """What arrived is not an event stream that can be held in memory."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its type ("" where none was named) and its data, lines joined by LF."""

    name: str
    data: bytes


class EventStream:
    """Takes bytes in pieces of any size. `lines` counts whole lines: a peer that sends none is stalling."""

    def __init__(self, *, line_max: int = LINE_MAX, event_max: int = EVENT_MAX) -> None:
        self.lines = 0
        self._line_max = line_max
        self._event_max = event_max
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""

    @property
    def inside(self) -> bool:
        """Whether an event has begun that has not ended."""
        return bool(self._rest or self._data)

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that `data` completes. Raises EventStreamError for a line or an event without end."""
        *whole, rest = data.split(b"\n")
        if not whole:
            self._rest += rest
            self._bound(len(self._rest), self._line_max, "line")
            return []
        whole[0] = bytes(self._rest + whole[0])
        self._rest = bytearray(rest)
        self._bound(len(rest), self._line_max, "line")
        events: list[ServerEvent] = []
        for raw in whole:
            line = raw.removesuffix(b"\r")
            if self.lines == 0:
                line = line.removeprefix(_BOM)
            self.lines += 1
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _field(self, line: bytes) -> None:
        self._bound(len(line), self._line_max, "line")
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            self._bound(self._size, self._event_max, "event")
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self) -> ServerEvent | None:
        name, data = self._name, self._data
        self._name, self._data, self._size = "", [], 0
        return ServerEvent(name, data[0] if len(data) == 1 else b"\n".join(data)) if data else None

    @staticmethod
    def _bound(size: int, most: int, what: str) -> None:
        if size > most:
            raise EventStreamError(f"one {what} has more than {most} bytes")
