"""The colours: dark, light, safe for colour-blind eyes, and none at all."""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

DARK: Final = Theme(
    name="dark",
    primary="#5aa9e6",
    secondary="#7f8fa6",
    accent="#f4c95d",
    warning="#f0a04b",
    error="#ef6461",
    success="#6fcf97",
    foreground="#d8dee9",
    background="#12161c",
    surface="#1a2028",
    panel="#222a34",
)
LIGHT: Final = Theme(
    name="light",
    primary="#1d5fa8",
    secondary="#51606f",
    accent="#7a4a00",
    warning="#8a5300",
    error="#b3261e",
    success="#1b6e3c",
    foreground="#1c2329",
    background="#fbfbf9",
    surface="#efefec",
    panel="#e4e5e2",
    dark=False,
)
# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision.
COLOUR_BLIND: Final = Theme(
    name="colour-blind",
    primary="#56b4e9",
    secondary="#8a8a8a",
    accent="#f0e442",
    warning="#e69f00",
    error="#d55e00",
    success="#0072b2",
    foreground="#e6e6e6",
    background="#101010",
    surface="#1b1b1b",
    panel="#262626",
    variables={"text-success": "#4aa3df", "text-error": "#ff8c3b", "text-warning": "#f0b429"},
)
MONO: Final = Theme(
    name="mono",
    primary="#c0c0c0",
    secondary="#909090",
    accent="#ffffff",
    warning="#d0d0d0",
    error="#ffffff",
    success="#c0c0c0",
    foreground="#d0d0d0",
    background="#000000",
    surface="#141414",
    panel="#202020",
    variables={"text-success": "#c0c0c0", "text-error": "#ffffff", "text-warning": "#e0e0e0"},
)
THEMES: Final = (DARK, LIGHT, COLOUR_BLIND, MONO)
