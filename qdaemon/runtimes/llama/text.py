"""Text from tokens: no half character, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Assembles the bytes of tokens into text that may be shown.

    Bytes that are no UTF-8 become U+FFFD; a character that is still incomplete is held back, and so is a tail
    that could be the beginning of a stop string. The state is a function of the bytes fed: feeding the same
    tokens again rebuilds it.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False
        """A stop string has come: nothing is shown after it."""

    def feed(self, data: bytes) -> str:
        """Text that is certain now that ``data`` has come."""
        if self.stopped:
            return ""
        text = self._decoder.decode(data)
        if not self._stops:
            return text
        held = self._held + text
        first = min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=-1)
        if first >= 0:
            self.stopped = True
            self._held = ""
            return held[:first]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and is text after all. An incomplete character is dropped."""
        if self.stopped:
            return ""
        held, self._held = self._held, ""
        self._decoder.reset()
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
