"""The most that a request can cost before anybody knows what it will. Pure.

A byte-level tokenizer makes at least one byte into a token, so the bytes of what is sent bound the tokens of
the prompt, but for the few that a chat template puts around each message and for images, which cost by area.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from qgate.capability.work import Price, Usage

TEMPLATE_TOKENS: Final = 512  # around a conversation: its begin, tool instructions, a default system prompt
MESSAGE_TOKENS: Final = 16  # around a message: role, separators
IMAGE_TOKENS: Final = 12_288  # above what the published formulas of the large APIs give for one image
ANSWER_TOKENS: Final = 4_096
"""The bound put on an answer for which neither the request nor the policy names one."""

_IMAGES: Final = frozenset({"image_url", "image", "input_image", "file", "input_file", "input_audio"})


def prompt_bound(body: Mapping[str, Any]) -> int:
    """The most tokens that an OpenAI-shaped body can come to as a prompt."""
    tokens = TEMPLATE_TOKENS
    for name in ("prompt", "input", "instructions", "tools", "functions", "response_format"):
        if body.get(name) is not None:
            tokens += _size(body[name])
    messages = body.get("messages")
    for message in messages if isinstance(messages, list | tuple) else ():
        tokens += MESSAGE_TOKENS + _message(message)
    return tokens


def answer_bound(body: Mapping[str, Any], *ceilings: int | None) -> int:
    """The most tokens that an answer may have: what the body asks for, within every ceiling that is set."""
    asked = [body.get("max_completion_tokens"), body.get("max_tokens"), *ceilings]
    known = [one for one in asked if isinstance(one, int) and not isinstance(one, bool) and one > 0]
    return min(known) if known else ANSWER_TOKENS


def cost_bound(price: Price, body: Mapping[str, Any], answer_tokens: int) -> Decimal:
    """The most that a request can cost. `n` answers are paid for, where the body asks for several."""
    asked = body.get("n")
    answers = asked if isinstance(asked, int) and not isinstance(asked, bool) and asked > 1 else 1
    best_of = body.get("best_of")
    if isinstance(best_of, int) and not isinstance(best_of, bool):
        answers = max(answers, best_of)
    return price.of(Usage(prompt_bound(body), answer_tokens * answers))


def _message(message: Any) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return _size(message)
    rest = {name: value for name, value in message.items() if name != "content"}
    tokens = _size(rest)
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in _IMAGES:
            tokens += IMAGE_TOKENS
        else:
            tokens += _size(part)
    return tokens


def _size(value: Any) -> int:
    """Bytes of UTF-8 of all text within `value`, keys and punctuation included."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    try:
        return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    except (TypeError, ValueError, RecursionError):
        return len(repr(value))
