"""What a request needs of a deployment: abilities, room, time; read off its keys and its body once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qgate.capability import columns
from qgate.capability.candidate import Candidate
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.work import Work
from tunnel_proto.tasks import TASKS

BYTES_PER_TOKEN: Final = 3.6
"""Of English in UTF-8, measured with a 49k vocabulary; other scripts need more tokens for their bytes."""

ENVELOPE_TOKENS: Final = 16  # what a chat template adds to a message, at most
IMAGE_TOKENS: Final = 2_000  # an image or a file in a message, which is long and no text

_INLINE = "data:"
_OBJECT: Final = (dict, Mapping)  # nearly all are of the first, which is quick to tell
_ARRAY: Final = (list, tuple)


@dataclass(frozen=True, slots=True)
class Demand:
    """A request as the scheduler sees it.

    `need` are ability bits. Tokens are a guess, good enough for a score; what they may cost at most is for
    the ledger to say. `room` is the context that it takes, `deadline_s` the time left. `tried` are
    deployments that this request is not to see again. A stream that has begun goes on within `fingerprint`
    or `tokenizer`; vectors within `version`.
    """

    work: Work
    need: int
    input_tokens: int
    output_tokens: int
    room: int
    deadline_s: float | None = None
    tried: frozenset[tuple[str, str, str, str]] = frozenset()
    fingerprint: str = ""
    tokenizer: str = ""
    version: str = ""


def demand_of(
    work: Work, settings: ScheduleSettings, *, now: float = 0.0, input_tokens: int | None = None
) -> Demand:
    """Read a request. `now` is the time that its deadline is in."""
    tokens = input_tokens
    if tokens is None:
        size, envelope = _size(work.body)
        tokens = int(size / BYTES_PER_TOKEN) + envelope
    answer = 0 if work.kind == "embedding" else max_tokens_of(work, settings)
    asked = work.request.max_tokens or _asked(work.body) or 1
    return Demand(
        work=work,
        need=_need(work),
        input_tokens=tokens,
        output_tokens=min(answer, settings.expected_tokens),
        room=tokens + (asked if answer else 0),
        deadline_s=None if work.deadline is None else max(0.0, work.deadline - now),
    )


def max_tokens_of(work: Work, settings: ScheduleSettings) -> int:
    """The most tokens that an answer may have."""
    policy = work.app.policy
    asked = work.request.max_tokens or _asked(work.body)
    bounds = [one for one in (asked, policy.max_tokens if policy else None) if one]
    return min(bounds, default=settings.max_tokens)


def instructed(work: Work) -> bool:
    """Whether it carries what only a model can obey: a system prompt, turns, tools, or a form of answer."""
    body = work.body
    if body.get("tools") or body.get("functions") or work.request.schema:
        return True
    form = body.get("response_format")
    if isinstance(form, _OBJECT) and form.get("type") not in {None, "text"}:
        return True
    messages = body.get("messages")
    if not isinstance(messages, list | tuple):
        return bool(body.get("instructions"))
    if len(messages) > 1:
        return True
    return any(isinstance(one, _OBJECT) and one.get("role") not in {"user", None} for one in messages)


def _need(work: Work) -> int:
    need = columns.FITS
    task = TASKS.get(work.request.task)
    if work.kind == "analysis":
        # A chat model does it too when told how; which tasks the gate's own engine does is the group's.
        need |= columns.OBEYS if instructed(work) or (task is not None and task.name in _WRITTEN) else 0
    else:
        need |= {
            "chat": columns.CHAT,
            "completion": columns.COMPLETION,
            "embedding": columns.EMBEDDING,
        }[work.kind]
    policy = work.app.policy
    if work.request.data == "local-only" or (policy is not None and policy.data == "local-only"):
        need |= columns.LOCAL
    dedicated = "dedicated" in {work.request.isolation, policy.isolation if policy else None}
    return need | (columns.DEDICATED if dedicated else columns.SHARED)


_WRITTEN: Final = frozenset({"translate", "extract"})
"""Analyses that only a model does."""


def _asked(body: Mapping[str, Any]) -> int | None:
    for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = body.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _size(body: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of text in a body, and tokens that it costs beside them."""
    size, envelope = 0, ENVELOPE_TOKENS
    for key in ("messages", "prompt", "input", "tools", "functions", "instructions"):
        value = body.get(key)
        if value is None:
            continue
        if type(value) is str:
            size += _bytes(value)
            continue
        for one in _leaves(value):
            if type(one) is not str:
                size += 1  # token ids and numbers
            elif one.startswith(_INLINE):
                envelope += IMAGE_TOKENS
            else:
                size += _bytes(one)
        if key == "messages":
            envelope += ENVELOPE_TOKENS * len(value)
    return size, envelope


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if type(one) is str:
            found.append(one)
        elif isinstance(one, _OBJECT):
            waiting.extend(one.values())
        elif isinstance(one, _ARRAY):
            waiting.extend(one)
        elif one is not None:
            found.append(one)
    return found


def continuation(demand: Demand, candidate: Candidate, *, how: str) -> Demand:
    """`demand` for going on after `candidate`: `how` is "exact", "kindred" or "same" (vectors)."""
    if how == "exact":
        return replace(demand, fingerprint=candidate.fingerprint)
    if how == "kindred":
        return replace(demand, tokenizer=candidate.tokenizer)
    return replace(demand, version=candidate.version)
