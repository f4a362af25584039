"""A real terminal for tests: tmux at a size with a program in it, keys going in, the screen coming out."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PATIENCE_S: Final = 20.0
AVAILABLE: Final = shutil.which("tmux") is not None
MESHCTL: Final = Path(sys.executable).parent / "meshctl"


class Terminal:
    """One tmux server with one window; everything of it ends with the block."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        home: Path | None = None,
        term: str = "",
    ) -> None:
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="tmux-"))
        self._socket = self.folder / "tmux"
        home = home or self.folder
        words = [
            "env",
            "-u",
            "COLUMNS",
            "-u",
            "LINES",
            f"HOME={home}",
            *([f"TERM={term}"] if term else []),
            *argv,
        ]
        self._line = f"cd {shlex.quote(str(self.folder))}; {shlex.join(words)}; echo ended $?; exec sleep 600"

    def __enter__(self) -> Self:
        width, height = self.size
        options = ("-x", str(width), "-y", str(height))
        self._tmux("-f", "/dev/null", "new-session", "-d", *options, self._line)
        self._tmux("set-option", "-g", "focus-events", "on")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tmux("kill-server", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tmux(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *words], capture_output=True, text=True, check=check, timeout=20
        )
        return done.stdout

    @property
    def pid(self) -> int:
        """The process of the window: the shell around the program."""
        return int(self._tmux("list-panes", "-F", "#{pane_pid}").strip())

    def text(self) -> str:
        """What the screen shows."""
        return self._tmux("capture-pane", "-p")

    def keys(self, *names: str) -> None:
        """Press keys by tmux's names; one letter is itself."""
        self._tmux("send-keys", *names)

    def type(self, text: str) -> None:
        """Type a text as it is."""
        self._tmux("send-keys", "-l", text)

    def drop(self, text: str) -> None:
        """Paste a text in brackets, as terminals do with the path of a dropped file."""
        self._tmux("set-buffer", text)
        self._tmux("paste-buffer", "-p")

    def until(self, condition: Callable[[str], bool], what: str) -> str:
        """Wait until the screen fulfils something; fails with the screen as it is then."""
        end = time.monotonic() + PATIENCE_S
        while not condition(text := self.text()):
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come:\n{text}")
            time.sleep(0.05)  # between two looks at another process's screen
        return text

    def sees(self, *texts: str) -> str:
        """Wait until the screen shows these texts."""
        return self.until(lambda text: all(one in text for one in texts), ", ".join(texts))
