"""Every text of the control room that a person may read, found in its source."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import meshctl.tui
from meshctl.tui import keys, sections, words

ROOT: Final = Path(meshctl.tui.__file__).parent
MARKS: Final = frozenset({"t", "say", "_say"})
"""Functions whose first argument is a text."""


def messages() -> dict[str, str]:
    """Each text, and the file of a language that it belongs into: a section's id, or "shell"."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        home = path.stem.replace("_", "-") if path.parent.name == "screens" else "shell"
        for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            if found.get(text) != "shell":
                found[text] = "shell" if text in found and found[text] != home else home
    for text in (
        *words.SPOKEN,
        *(entry.title for entry in sections.ENTRIES),
        *(text for line in keys.EVERYWHERE for text in line if any(map(str.isalpha, text)) and len(text) > 5),
        *("enter", "esc", "del", "ins"),
    ):
        found[text] = "shell"
    return found


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in MARKS:
            yield from _constants(node.args[0])


def _constants(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


def problems() -> set[str]:
    """Each error that the control room makes itself, and its next step, with its places."""
    found: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = ast.unparse(node.exc.func)
                if called.endswith("Error") and called != "FieldError" and not hasattr(builtins, called):
                    hints = [one.value for one in node.exc.keywords if one.arg == "hint"]
                    found.update(_template(one) for one in (*node.exc.args[:1], *hints))
    return {text for text in found if any(char.isspace() for char in text) and "meshctl " not in text}


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(one) if isinstance(one, ast.Constant) else "{place}" for one in node.values)
    return ""
