"""How a pool shows itself: its title in the header, its colours as a theme, and a specimen of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.text import Text
from textual.color import Color
from textual.theme import Theme

from meshctl.tui.layout import clean

if TYPE_CHECKING:
    from meshctl.tui.room import Room

POOL_THEME: Final = "pool"
"""The theme made of a pool's colours; it is worn where a person chose no other."""

PANEL_SHARE: Final = 0.08
"""How far a panel is from the surface towards the foreground."""


def theme_of(shown: Mapping[str, Any]) -> Theme | None:
    """The theme of a branding; None where no colour of it was set, or one cannot be read."""
    colours = shown.get("theme")
    if not shown.get("colours") or not isinstance(colours, Mapping):
        return None
    try:
        found = {token: Color.parse(str(colour)) for token, colour in colours.items()}
        panel = found["surface"].blend(found["foreground"], PANEL_SHARE)
        return Theme(
            name=POOL_THEME,
            primary=found["primary"].hex,
            secondary=found["secondary"].hex,
            accent=found["accent"].hex,
            success=found["success"].hex,
            warning=found["warning"].hex,
            error=found["error"].hex,
            foreground=found["foreground"].hex,
            background=found["background"].hex,
            surface=found["surface"].hex,
            panel=panel.hex,
            dark=found["background"].brightness < 0.5,
        )
    except (KeyError, ValueError):
        return None


TOKENS: Final = (
    *("background", "surface", "foreground", "primary", "secondary", "accent"),
    *("success", "warning", "error"),
)


def wear(room: Room, shown: Mapping[str, Any]) -> None:
    """Take a pool's title and, where the person chose no theme, its colours."""
    room.brand = clean(str(shown.get("title") or room.brand))
    theme = theme_of(shown)
    mine = room.preferences.theme in {"", POOL_THEME}
    if theme is None:
        if room.theme == POOL_THEME:
            room.theme = "dark"
        if POOL_THEME in room.available_themes:
            room.unregister_theme(POOL_THEME)
        return
    if room.theme == POOL_THEME:
        room.theme = "dark"  # it is drawn anew only where the name changes
    room.register_theme(theme)
    if mine:
        room.theme = POOL_THEME


def specimen(
    shown: Mapping[str, Any], width: int, *, ascii_only: bool = False, say: Callable[[str], str] = str
) -> Text:
    """What a branding looks like, in its own colours, in lines of ``width`` cells."""
    theme = {token: str(shown["theme"][token]) for token in TOKENS}
    ground, plain = theme["background"], theme["foreground"]
    text = Text(no_wrap=True, end="")

    def line(*parts: tuple[str, str], on: str = ground) -> None:
        used = 0
        for words, token in parts:
            said = clean(words)
            text.append(said, f"{theme[token]} on {on}")
            used += cell_len(said)
        text.append(" " * max(0, width - used) + "\n", f"{plain} on {on}")

    marks = ("*", "!", "x") if ascii_only else ("●", "▲", "✖")
    line(
        (f" {shown['title']}", "foreground"),
        (f"  {say('Overview')}  {say('Workers')}  ", "secondary"),
        on=theme["surface"],
    )
    for row in shown.get("logo") or ():
        line((f" {row}", "primary"))
    line(
        (" text ", "foreground"),
        (f" {marks[0]} {say('ready')} ", "success"),
        (f" {marks[1]} {say('draining')} ", "warning"),
        (f" {marks[2]} {say('failed')} ", "error"),
        (" primary ", "primary"),
        (" secondary ", "secondary"),
        (" accent", "accent"),
    )
    if shown.get("support"):
        line((f" {shown['support']}", "foreground"), on=theme["surface"])
    text.rstrip()
    return text
