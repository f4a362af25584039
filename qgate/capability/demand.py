"""What a request needs of a deployment: abilities, room, time; read off its keys and its body once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qgate.capability import columns
from qgate.capability.candidate import Candidate
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.work import Usage, Work
from tunnel_proto.tasks import TASKS

BYTES_PER_TOKEN: Final = 3.6
"""Of English in UTF-8, measured with a 49k vocabulary; other scripts need more tokens for their bytes."""

ENVELOPE_TOKENS: Final = 16  # what a chat template adds to a message, at most
IMAGE_TOKENS: Final = 2_000  # an image or a file in a message, which is long and no text

_INLINE = "data:"


@dataclass(frozen=True, slots=True)
class Demand:
    """A request as the scheduler sees it.

    `need` are ability bits. `input_tokens` is a guess, `input_most` a bound (a token has at least one byte).
    `deadline_s` is the time left. `tried` are deployments that this request is not to see again. A stream
    that has begun goes on within `fingerprint` or `tokenizer`; vectors within `version`.
    """

    work: Work
    need: int
    input_tokens: int
    input_most: int
    output_tokens: int
    output_most: int
    deadline_s: float | None = None
    tried: frozenset[tuple[str, str, str, str]] = frozenset()
    fingerprint: str = ""
    tokenizer: str = ""
    version: str = ""

    def usage_most(self) -> Usage:
        """The most that it can use: what a budget sets aside."""
        return Usage(prompt_tokens=self.input_most, completion_tokens=self.output_most)


def demand_of(
    work: Work, settings: ScheduleSettings, *, now: float = 0.0, input_tokens: int | None = None
) -> Demand:
    """Read a request. `now` is the time that its deadline is in."""
    request, body = work.request, work.body
    size, envelope = _size(body)
    policy = work.app.policy
    embeds = work.kind == "embedding"
    asked = request.max_tokens or _asked(body)
    bound = min(
        (one for one in (asked, policy.max_tokens if policy else None) if one), default=settings.max_tokens
    )
    return Demand(
        work=work,
        need=_need(work),
        input_tokens=input_tokens if input_tokens is not None else int(size / BYTES_PER_TOKEN) + envelope,
        input_most=input_tokens if input_tokens is not None else size + envelope,
        output_tokens=0 if embeds else min(bound, settings.expected_tokens),
        output_most=0 if embeds else bound * _answers(body),
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
    if isinstance(form, Mapping) and form.get("type") not in {None, "text"}:
        return True
    messages = body.get("messages")
    if not isinstance(messages, list | tuple):
        return bool(body.get("instructions"))
    return len(messages) > 1 or any(
        isinstance(one, Mapping) and one.get("role") not in {"user", None} for one in messages
    )


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


def _answers(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 128 else 1


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


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)
        elif one is not None:
            yield one


def continuation(demand: Demand, candidate: Candidate, *, how: str) -> Demand:
    """`demand` for going on after `candidate`: `how` is "exact", "kindred" or "same" (vectors)."""
    if how == "exact":
        return replace(demand, fingerprint=candidate.fingerprint)
    if how == "kindred":
        return replace(demand, tokenizer=candidate.tokenizer)
    return replace(demand, version=candidate.version)
