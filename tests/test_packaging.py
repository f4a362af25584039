"""What a user installs: the wheel, whose hot modules are compiled."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def compiled() -> list[str]:
    """The modules that setup.py compiles."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "COMPILED":
            found: list[str] = ast.literal_eval(statement.value)
            return found
    raise AssertionError("setup.py has no COMPILED")


def test_what_is_compiled_can_be_where_no_dependency_is_installed() -> None:
    """Wheels are built apart from what they need at run time; a fault there is silent, and the wheel slow."""
    options = ["--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent"]
    said = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *compiled()], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout
