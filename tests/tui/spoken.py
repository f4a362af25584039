"""Which changes a package asks the control API for, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
OPEN: Final = "{}"
"""What stands for a value that is only known when it runs."""

Operation = tuple[str, str]


def same(path: str) -> str:
    """A path with every place alike: "/apps/{name}" and "/apps/{app}" are "/apps/{}"."""
    return re.sub(r"\{[^}]*\}", OPEN, path).partition("?")[0]


def spoken(folder: Path, *, without: str = "") -> dict[Operation, str]:
    """Method and path of every change that is asked for under ``folder``, and the file that does."""
    found: dict[Operation, str] = {}
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder).as_posix()
        if without and inside.startswith(without):
            continue
        for operation in Module(ast.parse(path.read_text(encoding="utf-8"))).operations():
            found.setdefault(operation, inside)
    return found


class Module:
    """One module: its constants and the functions that only make a path."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._known: dict[str, str] = {}
        for node in tree.body:
            self._assigned(node)
            if isinstance(node, ast.FunctionDef):
                returns = [one for one in ast.walk(node) if isinstance(one, ast.Return)]
                if len(returns) == 1 and returns[0].value is not None:
                    self._learn(f"{node.name}()", returns[0].value)

    def _assigned(self, node: ast.AST) -> None:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.value is not None:
                self._learn(node.target.id, node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self._learn(node.targets[0].id, node.value)

    def _learn(self, name: str, value: ast.expr) -> None:
        text = self._text(value)
        if text is not None and text.startswith("/"):
            self._known[name] = text

    def operations(self) -> Iterator[Operation]:
        """Each change as method and path."""
        whole = dict(self._known)
        for statement in self._tree.body:
            self._known = dict(whole)  # what a function names is its own
            for node in ast.walk(statement):
                self._assigned(node)
            yield from self._inside(statement)

    def _inside(self, statement: ast.stmt) -> Iterator[Operation]:
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call):
                continue
            values = [*node.args, *(one.value for one in node.keywords)]
            for method, path in pairwise(values):
                if isinstance(method, ast.Constant) and method.value in METHODS:
                    yield from self._said(str(method.value), path)
            name = node.func.attr.upper() if isinstance(node.func, ast.Attribute) else ""
            if name in METHODS and node.args:
                yield from self._said(name, node.args[0])

    def _said(self, method: str, path: ast.expr) -> Iterator[Operation]:
        text = self._text(path)
        if text is not None and text.startswith("/"):
            yield method, same(text)

    def _text(self, value: ast.expr) -> str | None:
        match value:
            case ast.Constant(value=str(text)):
                return text
            case ast.Name(id=name):
                return self._known.get(name)
            case ast.Call(func=ast.Name(id="filled"), args=[first, *_]):
                return self._text(first)
            case ast.Call(func=ast.Name(id=name)):
                return self._known.get(f"{name}()")
            case ast.JoinedStr(values=parts):
                return "".join(self._part(one) for one in parts)
            case ast.BinOp(left=left, op=ast.Add()):
                base = self._text(left)
                return None if base is None else base + OPEN
            case _:
                return None

    def _part(self, value: ast.expr) -> str:
        if isinstance(value, ast.FormattedValue):
            found = self._text(value.value)
            return found if found is not None and found.startswith("/") else OPEN
        return self._text(value) or OPEN
