"""The compatibility table names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_of_the_compatibility_table_names_existing_tests() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "postgres.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| feature", "| what it"))
    ]
    known = set()
    for path in (ROOT / "tests").glob("*/test_*.py"):
        known |= set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(rows) > 40
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1]))
        assert named, f"no test proves: {row}"
        assert named <= known, f"unknown tests: {named - known}"
