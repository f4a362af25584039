"""The keys that mean the same everywhere. No action of a section may take one of them."""

from __future__ import annotations

from typing import Final

EVERYWHERE: Final[tuple[tuple[str, str], ...]] = (
    ("j k  arrows", "down and up"),
    ("h l", "left and right"),
    ("g G  home end", "first and last"),
    ("ctrl+f ctrl+b  pgdn pgup", "a page"),
    ("ctrl+d ctrl+u", "half a page"),
    ("enter", "open: drill in, or describe"),
    ("esc", "back: search, marks, filter, then up"),
    ("q", "back, and at the top: quit"),
    ("space  *", "mark a row, mark all"),
    ("/", "filter: words, !not, -l key=value"),
    ("n N", "next and previous match in a text"),
    ("< >  s", "order by another column; turn it around"),
    ("d y J", "describe; as YAML; as JSON"),
    ("c x", "copy (OSC 52); export to a file"),
    (".", "everything that can be done here, and why not"),
    ("u", "take the newest change back"),
    (":", "go: a section, a row, a theme; tab completes"),
    ("ctrl+p", "search all commands"),
    ("[ ]  1 to 9", "panes of this section"),
    ("r", "ask again"),
    ("ctrl+l", "tail of the audit"),
    ("ctrl+o", "contexts: other gates and pools"),
    ("ctrl+t", "next theme"),
    ("ctrl+s", "screenshot (SVG)"),
    ("m", "free the mouse, or take it again"),
    ("?", "this help"),
)

RESERVED: Final = frozenset(
    {
        *"hjklgGnNdyJcxusmqr",
        *"0123456789",
        *("enter", "escape", "space", "tab", "home", "end", "up", "down", "left", "right"),
        *("slash", "colon", "question_mark", "full_stop", "asterisk"),
        *("less_than_sign", "greater_than_sign", "left_square_bracket", "right_square_bracket"),
        *("ctrl+p", "ctrl+d", "ctrl+u", "ctrl+f", "ctrl+b", "ctrl+l", "ctrl+o", "ctrl+t", "ctrl+s", "ctrl+c"),
        *("ctrl+q", "ctrl+z", "pageup", "pagedown"),
    }
)
"""Keys, as Textual names them, that are the screen's own; capital letters are the sections'."""
