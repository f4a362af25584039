"""Write docs/openapi.json and the table of docs/control-api.md, or with --check say if they are current."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from meshctl.gate_directory import make_gate  # noqa: E402 - after the path above
from qgate.control.api import PREFIX, control_api  # noqa: E402
from qgate.control.openapi import operations  # noqa: E402
from qgate.governing import Governing  # noqa: E402
from qgate.keys import GateKeys  # noqa: E402
from qgate.settings import GateFiles, GateSettings  # noqa: E402
from tunnel_proto.certificate import OnlineKey  # noqa: E402

PAGE = ROOT / "docs" / "control-api.md"
DESCRIPTION = ROOT / "docs" / "openapi.json"
BEGIN = "<!-- operations: written by tools/control_reference.py -->"


def description() -> dict[str, Any]:
    """The description of the API over a gate that is not there but for its keys: routes need no more."""
    with tempfile.TemporaryDirectory() as name:
        make_gate(Path(name), name="gate", settings_text="", now=time.time())
        keys = GateKeys.load(GateFiles.of(GateSettings(state_dir=Path(name))), now=time.time())
    gate, office = MagicMock(), MagicMock()
    gate.parts.keys, gate.files.state_dir = keys, Path("/")
    office.online = OnlineKey(keys.online, keys.online_certificate)
    gate.governing = Governing(gate, office)
    return control_api(gate).openapi()


def description_text(document: dict[str, Any]) -> str:
    """docs/openapi.json."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def table(document: dict[str, Any]) -> str:
    """All operations, a section a tag."""
    sections: dict[str, list[str]] = {}
    for method, path, operation in operations(document):
        tag = (operation.get("tags") or ["other"])[0]
        shown = path.removeprefix(PREFIX)
        role = operation.get("x-role", "-")
        sections.setdefault(tag, []).append(
            f"| {method} | `{shown}` | `{operation['operationId']}` | {role} | {operation['summary']} |"
        )
    lines = [BEGIN, ""]
    for tag in sorted(sections):
        lines += [f"### {tag.capitalize()}", "", "| | path | operation | least role | what |"]
        lines += ["|---|---|---|---|---|", *sections[tag], ""]
    return "\n".join(lines)


def main() -> int:
    """Write or check the files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if they are not current")
    document = description()
    prose = PAGE.read_text().partition(BEGIN)[0]
    wanted = {PAGE: prose + table(document), DESCRIPTION: description_text(document)}
    if parser.parse_args().check:
        stale = [str(file.relative_to(ROOT)) for file, text in wanted.items() if file.read_text() != text]
        if stale:
            print(f"not current: {', '.join(stale)}; run python tools/control_reference.py", file=sys.stderr)
        return bool(stale)
    for file, text in wanted.items():
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
