"""The pool's configuration for a person: documents read, changes in the manner of a diff. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from meshctl import view
from meshctl.errors import UsageError

DOCUMENT_MAX: Final = 16 * 1024 * 1024

HISTORY: Final = (
    view.Column("REVISION", "revision", right=True),
    view.Column("AT", "at", view.moment),
    view.Column("BY", "by"),
    view.Column("CHANGES", "count", right=True),
    view.Column("REVERTS", "reverts", right=True),
    view.Column("REASON", "reason"),
)


def parsed_document(text: str, source: str) -> dict[str, Any]:
    """A document in JSON or YAML; ``source`` is what errors call it. Raises UsageError, with the line."""
    if len(text) > DOCUMENT_MAX:
        raise UsageError(
            f"The document has more than {DOCUMENT_MAX // 1024 // 1024} MiB.",
            hint="meshctl config export shows what a document looks like",
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        import yaml

        try:
            found = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            where = getattr(error, "problem_mark", None)
            at = f" at line {where.line + 1}" if where is not None else ""
            raise UsageError(
                f"{source} is neither JSON nor YAML{at}.",
                hint="meshctl config export shows what a document looks like",
            ) from None
    if not isinstance(found, dict):
        raise UsageError(
            f"{source} holds no document.", hint="meshctl config export --file FILE writes one to begin with"
        )
    return found


def lines(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Changes for a person, in the manner of a diff."""
    shown = []
    for change in changes:
        where = f"{change['section']}/{change['name']}"
        if not change["fields"]:
            shown.append(f"  {where}")
            shown += _pair("", change["before"], change["after"], reset=change["effect"] == "reset")
            continue
        shown.append(f"  {where}")
        for name, (before, after) in change["fields"].items():
            shown += _pair(f"{name}: ", before, after, reset=False)
    return shown


def _pair(label: str, before: Any, after: Any, *, reset: bool) -> list[str]:
    found = []
    if before is not None:
        found.append(f"-   {label}{_text(before)}")
    found.append(f"+   {label}{'(default)' if reset else _text(after)}")
    return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
