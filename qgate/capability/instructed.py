"""An analysis done by a chat model: the request as a conversation, and its answer in the task's shape. Pure.

The gate's own engine has exact spans and scores; a model has words. What it cannot know is left empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from qgate.capability.work import Work
from tunnel_proto.request import instruction

ANALYSIS_KEYS: Final = frozenset({"input", "model"})

_BULLET: Final = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s+")
_FENCE: Final = re.compile(r"^```[a-z]*\s*\n(.*?)\n?```\s*$", re.DOTALL)


class UnreadableAnswerError(Exception):
    """The model's answer has not the form that the task asks for."""


def as_chat(work: Work) -> Work:
    """The same request for a chat model: the task's instruction, then the text. No seed of chance: greedy."""
    body = {name: value for name, value in work.body.items() if name not in ANALYSIS_KEYS}
    given = work.body.get("input")
    text = given if isinstance(given, str) else "\n\n".join(str(one) for one in given or ())
    body["messages"] = [
        {"role": "system", "content": instruction(work.request)},
        {"role": "user", "content": text},
    ]
    body.setdefault("temperature", 0)
    if work.request.task == "extract" and work.request.schema is not None:
        schema = {"name": "extract", "schema": json.loads(work.request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return replace(work, kind="chat", body=body)


def as_result(work: Work, text: str) -> Any:
    """The answer in the shape that the task has. UnreadableAnswerError where it cannot be."""
    text = text.strip()
    match work.request.task:
        case "summarize":
            return {"summary": text, "sentences": []}
        case "keywords":
            lines = [_BULLET.sub("", line).strip(" .,;") for line in text.splitlines()]
            if len(lines) == 1 and "," in lines[0]:
                lines = [one.strip() for one in lines[0].split(",")]
            return {
                "keywords": [{"text": one, "score": None, "count": None, "spans": []} for one in lines if one]
            }
        case "language":
            return {"language": text.split()[0].strip(".,'\"`") if text else "und", "candidates": []}
        case "sentiment":
            return _labelled(text, ("positive", "neutral", "negative"))
        case "classify":
            return _labelled(text, [label.partition(":")[0].strip() for label in work.request.labels])
        case "entities":
            found = _json(text)
            if not isinstance(found, list):
                raise UnreadableAnswerError("a list of entities was expected")
            return {"entities": [dict(one) for one in found if isinstance(one, Mapping)]}
        case "redact":
            return {"text": text, "redactions": []}
        case "extract":
            return _json(text)
    return {"text": text}


def _labelled(text: str, labels: Any) -> dict[str, Any]:
    said = text.casefold()
    exact = [label for label in labels if said.strip(" .'\"") == label.casefold()]
    found = exact or [label for label in labels if label.casefold() in said]
    if len(found) != 1:
        raise UnreadableAnswerError("one of the labels was expected")
    return {"label": found[0], "score": None}


def _json(text: str) -> Any:
    fenced = _FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except ValueError:
        raise UnreadableAnswerError("JSON was expected") from None
