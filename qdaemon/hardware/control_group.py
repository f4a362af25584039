"""What this process's control group lets it take: memory, and swap. Reads cgroup v2, else v1.

Limits may stand on any level above a process: systemd puts a unit's on /system.slice/NAME.service, a
container sees its own group as the root. The tightest of them counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_NO_LIMIT: Final = 1 << 60  # cgroup v1 says "no limit" by a number near 2^63
_FILES: Final = (
    ("memory.max", "memory.current", "memory.swap.max"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ""),
)


@dataclass(frozen=True, slots=True)
class Group:
    """``limit`` in bytes, 0 where there is none; ``available`` bytes of it are left, None without a limit."""

    limit: int = 0
    available: int | None = None
    swaps: bool = True


def read(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Group:
    """The group of the process whose folder is ``proc``/self."""
    limits: list[int] = []
    left: list[int] = []
    swaps = True
    for folder in _folders(proc, sys / "fs" / "cgroup"):
        for limit_name, used_name, swap_name in _FILES:
            limit = _number(folder / limit_name)
            if limit is not None and limit < _NO_LIMIT:
                limits.append(limit)
                used = _number(folder / used_name)
                # The page cache counts as used there and is given back under pressure.
                cached = _stat(folder).get("inactive_file", 0)
                left.append(limit if used is None else max(0, limit - used + cached))
            if swap_name and _number(folder / swap_name) == 0:
                swaps = False
    return Group(min(limits, default=0), min(left, default=None), swaps)


def _folders(proc: Path, root: Path) -> Iterator[Path]:
    """The group's folder and all above it: lines are "0::/path" (v2) and "4:memory:/path" (v1)."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    seen: set[Path] = set()
    for line in ["0::/", "0:memory:/", *lines]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        for part in (path, *map(str, PurePosixPath(path).parents)):
            folder = base / part.lstrip("/")
            if folder not in seen and ".." not in folder.parts:
                seen.add(folder)
                yield folder


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _stat(folder: Path) -> Mapping[str, int]:
    with contextlib.suppress(OSError, ValueError):
        pairs = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return {name: int(value) for name, value in pairs}
    return {}
