"""What a person likes on the screen, kept in a file of their own between runs."""

from __future__ import annotations

import contextlib
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from meshctl.tui.words import ENGLISH
from tunnel_proto.errors import MeshError
from tunnel_proto.node_directory import replace_file


@dataclass(frozen=True, slots=True)
class Preferences:
    """Theme ("" for the pool's colours, else dark), language, ASCII alone or not, and the mouse or not."""

    theme: str = ""
    language: str = ENGLISH
    ascii_only: bool = False
    mouse: bool = True

    def changed(self, **changes: Any) -> Preferences:
        """These with some of them changed."""
        return replace(self, **changes)


def place() -> Path:
    """The file that holds them."""
    return Path.home() / ".config" / "qgate-mesh" / "tui.toml"


def load(path: Path) -> Preferences:
    """What the file says; the defaults for whatever it does not say, or says wrongly."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Preferences()
    known = {one.name: getattr(Preferences(), one.name) for one in fields(Preferences)}
    return Preferences(
        **{name: given[name] for name, own in known.items() if isinstance(given.get(name), type(own))}
    )


def save(path: Path, preferences: Preferences) -> None:
    """Keep them; a file that cannot be written is no reason to stop."""
    import tomli_w

    with contextlib.suppress(OSError, MeshError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, tomli_w.dumps(asdict(preferences)), 0o600)
