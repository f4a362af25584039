"""meshctl as a user runs it: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

PATIENCE_S: Final = 400.0
"""How long one command may take: several pools start on a busy machine."""


def meshctl(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run it to its end, which has to be with this exit code; what it wrote to stdout and to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "meshctl", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr
