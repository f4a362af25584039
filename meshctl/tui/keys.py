"""The keys that mean the same everywhere. No action of a section may take one of them."""

from __future__ import annotations

from typing import Final

from textual.binding import Binding

from meshctl.tui import sections

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

DOES: Final[tuple[tuple[str, str], ...]] = (
    ("colon", "jump"),
    ("slash", "filter"),
    ("question_mark", "help"),
    ("full_stop", "menu"),
    ("escape", "back"),
    ("q", "back(True)"),
    ("u", "undo"),
    ("r", "reload"),
    ("d", "describe('described')"),
    ("y", "describe('yaml')"),
    ("J", "describe('json')"),
    ("c", "copy_shown"),
    ("x", "export"),
    ("m", "mouse"),
    ("asterisk", "mark_all"),
    ("less_than_sign", "order(-1)"),
    ("greater_than_sign", "order(1)"),
    ("s", "turn_order"),
    ("left_square_bracket", "pane_beside(-1)"),
    ("right_square_bracket", "pane_beside(1)"),
    *((str(number), f"pane({number - 1})") for number in range(1, 10)),
    *((entry.key, f"section('{entry.id}')") for entry in sections.ENTRIES),
    ("ctrl+l", "audit"),
    ("ctrl+o", "contexts"),
    ("ctrl+t", "next_theme"),
    ("ctrl+s", "shot"),
    ("ctrl+q", "quit"),
)
"""Keys of the room, as Textual names them, and the action of each."""

BINDINGS: Final = tuple(Binding(key, action, show=False, priority=True) for key, action in DOES)
"""They come before those of whatever is in front."""

OWN_ACTIONS: Final = frozenset(
    {
        *("jump", "filter", "help", "menu", "back", "undo", "reload", "describe", "copy_shown", "export"),
        *("mouse", "mark_all", "order", "turn_order", "pane_beside", "pane", "section", "audit", "contexts"),
        *("next_theme", "shot", "command_palette"),
    }
)
"""Actions of keys that mean something only where nothing is asked and nobody writes."""
