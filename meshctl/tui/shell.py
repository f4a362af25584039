"""The application around the control room: words, toasts, clipboard, colours, mouse, pictures.

What any screen may use and what knows nothing of sections; `meshctl.tui.room` is built on it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from textual.app import App
from textual.notifications import SeverityLevel

from meshctl.tui import preferences, words
from meshctl.tui.branded import POOL_THEME
from meshctl.tui.layout import clean
from meshctl.tui.palette import Palette
from meshctl.tui.preferences import Preferences
from meshctl.tui.themes import THEMES
from tunnel_proto.errors import MeshError

TOAST_S: Final = 4.0
PROBLEM_S: Final = 9.0


class Shell(App[str]):
    """Ends with the name of a context to go on with, or None. ``file`` keeps what the person likes."""

    def __init__(self, liked: Preferences, file: Path | None) -> None:
        super().__init__()
        self.preferences = liked
        self.preferences_file = file
        self.catalogue = words.catalogue(liked.language, ascii_only=liked.ascii_only)
        self.animation_level = "none"
        self._busy: list[str] = []
        self._toasted: dict[tuple[str, str], float] = {}
        self._mouse = liked.mouse
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = liked.theme if liked.theme in self.available_themes else THEMES[0].name

    @property
    def picture(self) -> str:
        """What a picture of the screen is called."""
        return "screen"

    def refresh_bars(self) -> None:
        """Draw the lines at the top and the bottom again."""

    @property
    def ascii_only(self) -> bool:
        """Whether only ASCII is drawn."""
        return self.preferences.ascii_only

    def say(self, text: str, **values: object) -> str:
        """A text in the person's language."""
        return self.catalogue.say(text, **values)

    def tell(self, text: str) -> None:
        """A word of success."""
        self._toast(clean(text), "information", TOAST_S)

    def warn(self, text: str) -> None:
        """Why something is not done."""
        self._toast(clean(text), "warning", TOAST_S)

    def fail(self, error: MeshError, *, about: str = "") -> None:
        """An error, with the next step."""
        next_step = (
            f"\n{self.say('Next: {hint}', hint=clean(self.catalogue.problem(error.hint)))}"
            if error.hint
            else ""
        )
        self._toast(
            f"{clean(self.catalogue.problem(error.message))}{next_step}", "error", PROBLEM_S, title=about
        )

    def _toast(self, text: str, severity: SeverityLevel, timeout: float, *, title: str = "") -> None:
        """Say something in passing; what was said a moment ago, and can still be read, is not said twice."""
        now = time.monotonic()
        if now - self._toasted.get((title, text), -timeout) < timeout / 2:
            return
        self._toasted = {said: at for said, at in self._toasted.items() if now - at < PROBLEM_S}
        self._toasted[title, text] = now
        self.notify(text, title=title, severity=severity, timeout=timeout, markup=False)

    def copy(self, text: str) -> None:
        """To the terminal's clipboard (OSC 52), which also works over SSH and in tmux."""
        self.copy_to_clipboard(text)
        self.tell(self.say("Copied: {count} characters", count=len(text)))

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Say in the footer that something is under way."""
        self._busy.append(what)
        self.refresh_bars()
        try:
            yield
        finally:
            self._busy.remove(what)
            self.refresh_bars()

    def action_command_palette(self) -> None:
        """Search all commands."""
        if not Palette.is_open(cast("App[object]", self)):
            self.push_screen(Palette(placeholder=self.say("search all commands"), id="--command-palette"))

    def action_next_theme(self) -> None:
        """The next theme."""
        names = [theme.name for theme in THEMES]
        names += [POOL_THEME] if POOL_THEME in self.available_themes else []
        self.use_theme(names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0])

    def use_theme(self, name: str) -> None:
        """Draw in other colours, also the next time."""
        if name not in self.available_themes:
            self.warn(self.say("There is no theme {name}.", name=name))
            return
        self.theme = name
        self.keep(theme=name)
        self.tell(self.say("Theme: {name}", name=name))

    def keep(self, **changes: Any) -> None:
        """Change what the person likes, and remember it."""
        self.preferences = self.preferences.changed(**changes)
        if self.preferences_file is not None:
            preferences.save(self.preferences_file, self.preferences)

    def action_mouse(self) -> None:
        """Free the mouse, so that the terminal selects text, or take it again."""
        self._mouse = not self._mouse
        driver = self._driver
        if driver is not None:
            modes = (1000, 1003, 1015, 1006)
            driver.write("".join(f"\x1b[?{mode}{'h' if self._mouse else 'l'}" for mode in modes))
            driver.flush()
        self.tell(
            self.say("The mouse is used here.") if self._mouse else self.say("The mouse is the terminal's.")
        )

    def action_shot(self) -> None:
        """A picture of the screen as SVG, in the working folder."""
        name = f"meshctl-{self.picture}-{time.strftime('%Y%m%d-%H%M%S')}.svg"
        try:
            path = self.save_screenshot(filename=name, path=str(Path.cwd()))
        except OSError as error:
            self.warn(self.say("The picture cannot be written: {reason}", reason=error.strerror or error))
        else:
            self.tell(self.say("Written: {path}", path=path))
