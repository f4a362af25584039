"""A result as text: what the content of a chat completion shows. docs/nlp.md has each form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final


def as_text(task: str, result: Any) -> str:
    """The text form of ``task``'s result; of several texts, one form after the other with a blank line.

    A result that has not the task's shape (a model made it) is shown as JSON.
    """
    if isinstance(result, Mapping) and set(result) == {"results"}:
        return "\n\n".join(as_text(task, one) for one in result["results"])
    try:
        return _FORMS[task](result)
    except (KeyError, TypeError, ValueError):
        return json.dumps(result, ensure_ascii=False)


_FORMS: Final[Mapping[str, Callable[[Any], str]]] = MappingProxyType(
    {
        "summarize": lambda result: result["summary"],
        "keywords": lambda result: "\n".join(one["text"] for one in result["keywords"]),
        "language": lambda result: result["language"],
        "sentiment": lambda result: result["label"],
        "entities": lambda result: json.dumps(
            [{"type": one["type"], "text": one["text"]} for one in result["entities"]], ensure_ascii=False
        ),
        "redact": lambda result: result["text"],
        "classify": lambda result: result["label"] or "",
        "similarity": lambda result: "\n".join(
            f"{one['a']} {one['b']} {one['score']:.4f}" for one in result["pairs"]
        ),
        "sentences": lambda result: "\n".join(" ".join(one["text"].split()) for one in result["sentences"]),
        "translate": lambda result: str(result["text"]),
        "tokens": lambda result: str(result["words"]),
    }
)
