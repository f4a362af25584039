"""What can be taken back, newest first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from meshctl.tui.declare import Call

DEPTH: Final = 50


@dataclass(slots=True)
class Undo:
    """The requests that would take back what was done here."""

    _calls: deque[Call] = field(default_factory=lambda: deque(maxlen=DEPTH))

    def done(self, inverse: Call) -> None:
        """Remember how to take something back."""
        self._calls.append(inverse)

    def newest(self) -> Call | None:
        """What would be taken back next."""
        return self._calls[-1] if self._calls else None

    def taken(self, call: Call) -> None:
        """It was taken back, or cannot be any more."""
        if call in self._calls:
            self._calls.remove(call)
