"""What a gate, or the way to it, says where something is not done, and the next step: found in the source."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Final

import meshctl
import qgate

PLACE: Final = "7"
"""What stands in every place of a text."""

NOT_SAID: Final = frozenset(
    {
        *("RemoteProtocolError", "LocalProtocolError", "TunnelError", "ShapeError", "StreamError"),
        *("AskError", "VaultError", "RevokedKeyError", "ConfigError", "_OverError"),
    }
)
"""Errors between gates, of one log's reader, or of a gate's own machine at its start: none is an answer."""

MAKERS: Final = frozenset({"problem", "_problem", "unauthenticated", "forbidden"})
"""Functions that make an answer from its words."""

Constants = Mapping[str, list[str]]


def modules() -> list[Path]:
    """Where what a person at the control room may be answered is written."""
    gate, here = Path(qgate.__file__).parent, Path(meshctl.__file__).parent
    found = [path for name in ("control", "governance", "federation") for path in (gate / name).rglob("*.py")]
    return [
        *sorted(found),
        *(here / name for name in ("client.py", "dialling.py", "admin_session.py", "proofs.py")),
    ]


def refusals() -> dict[str, str]:
    """Each text with its places filled, and the module that says it. Commands alone are no texts."""
    found: dict[str, str] = {}
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _answers(node):
                given = [*node.args, *(one.value for one in node.keywords if one.arg != "detail")]
                for text in (one for value in given for one in _texts(value, known)):
                    if " " in text and any(map(str.isalpha, text)) and not text.startswith("meshctl "):
                        found.setdefault(text, path.name)
    return found


def _answers(call: ast.Call) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    error = name.endswith("Error") and name not in NOT_SAID and not hasattr(builtins, name)
    return error or name in MAKERS


def _constants(tree: ast.Module) -> Constants:
    known: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = list(_texts(node.value, {}))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            known[node.target.id] = list(_texts(node.value, {}))
    return known


def _texts(node: ast.expr, known: Constants) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name):
            yield from known.get(name, ())
        case ast.IfExp(body=one, orelse=other):
            yield from _texts(one, known)
            yield from _texts(other, known)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from map("".join, product([*_texts(left, known)], [*_texts(right, known)]))
        case ast.JoinedStr(values=parts):
            yield from map("".join, product(*([*_part(one, known)] for one in parts)))


def _part(node: ast.expr, known: Constants) -> Iterator[str]:
    if isinstance(node, ast.FormattedValue):
        chosen = [*_texts(node.value, known)] if isinstance(node.value, ast.IfExp) else []
        yield from chosen or [PLACE]
    else:
        yield from _texts(node, known)
