"""The secret of a new second factor, shown once: as a QR code for a camera, as text for fingers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from rich.style import Style
from rich.text import Text
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from meshctl import qr
from meshctl.errors import UsageError
from meshctl.tui.confirm import OnceScreen, told

if TYPE_CHECKING:
    from textual.app import ComposeResult

INK: Final = Style(color="#000000", bgcolor="#ffffff")
PAPER: Final = Style(bgcolor="#ffffff")
DARK: Final = Style(bgcolor="#000000")
BESIDE: Final = 34
"""Columns for the text beside the picture: a secret of 32 letters in one line."""
FRAME: Final = 2


class SecretScreen(OnceScreen):
    """A secret and its address; the address also as a picture, where the terminal has the room."""

    DEFAULT_CSS: ClassVar[str] = """
    SecretScreen.-drawn > .modal--box { width: auto; max-width: 100%; max-height: 100%; padding: 0; }
    SecretScreen .once--picture { width: auto; height: auto; }
    SecretScreen.-drawn .once--beside { width: 34; height: auto; padding: 0 0 0 1; }
    SecretScreen Horizontal { width: auto; height: auto; }
    """

    def __init__(self, title: str, secret: str, uri: str, labels: Sequence[str]) -> None:
        super().__init__(title, f"{secret}\n{uri}", tuple(zip(labels, (secret, uri), strict=True)))
        self.uri = uri

    def compose(self) -> ComposeResult:
        """The picture and the text beside it; the text alone, and how large a terminal it wants."""
        picture, wanted = self._picture()
        with Vertical(classes="modal--box"), Horizontal():
            if picture is not None:
                self.add_class("-drawn")
                yield Static(picture, classes="once--picture")
            with Vertical(classes="once--beside"):
                yield told(self.heading, classes="modal--title")
                yield told(
                    self.say("This is shown once and kept nowhere: copy it now."), classes="modal--bad"
                )
                if picture is None:
                    yield told(self.say("Put this into an authenticator app:"), classes="modal--muted")
                    yield told(wanted, classes="modal--muted")
                else:
                    yield told(
                        self.say("Let an authenticator app read this, or type it:"), classes="modal--muted"
                    )
                for number, (name, value) in enumerate(self.parts):
                    yield told("", f"{number + 1}  {name}", classes="modal--muted")
                    yield told(value, classes="modal--code")
                yield told(
                    "",
                    self.say("1 to {last} copy one", last=len(self.parts)),
                    self.say("c copy   esc close"),
                    classes="modal--muted",
                )

    def _picture(self) -> tuple[Text | None, str]:
        """The QR code as lines, or None and what it wants; a long address makes do with a narrower margin."""
        plain, size = self.room.ascii_only, self.app.size
        for margin in (qr.MARGIN, 1):
            try:
                rows = qr.modules(self.uri, margin=margin)
            except UsageError as error:
                return None, error.message
            width = len(rows[0]) * (2 if plain else 1) + BESIDE + FRAME
            height = (len(rows) if plain else (len(rows) + 1) // 2) + FRAME
            if size.width >= width and size.height >= height:
                break
        else:
            wanted = f"{width} x {height}"
            return None, self.say("For its QR code the terminal has to be {size} or larger.", size=wanted)
        if plain:
            lines = [Text.assemble(*(("  ", DARK if dark else PAPER) for dark in row)) for row in rows]
        else:
            lines = [Text(line, INK) for line in qr.in_halves(rows)]
        return Text("\n").join(lines), ""
