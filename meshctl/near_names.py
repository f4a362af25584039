"""A name that is not there: the nearest one that is, from the gate's own list of such things."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

NOUNS: Final = frozenset(
    {"admins", "aliases", "apps", "automations", "databases", "pools", "providers", "sidecars", "workers"}
)
"""Lists of the control API whose rows have a name by which each is asked for."""

COMPARED_MAX: Final = 1000
"""Names that are looked at."""


def asked_for(path: str) -> tuple[str, str] | None:
    """The list and the name in it that a path asks for: ``/apps/web/keys`` → ``("/apps", "web")``."""
    parts = path.partition("?")[0].split("/")
    if len(parts) < 3 or parts[1] not in NOUNS or not parts[2]:
        return None
    return f"/{parts[1]}", unquote(parts[2])


def suggestion(name: str, there: Iterable[str], hint: str) -> str:
    """What to do next: the nearest name before ``hint``, only ``hint`` where none is near."""
    near = difflib.get_close_matches(name, list(there), 1)
    return f'did you mean "{near[0]}"? {hint}'.rstrip() if near and near[0] != name else hint
