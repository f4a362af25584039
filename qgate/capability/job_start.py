"""From an attempt to the daemon's `JobStart`: what an OpenAI-shaped body means to a worker. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from qgate.capability.work import Attempt, Problem, Work
from tunnel_proto.messages import JobStart, Sampling

STOPS_MAX: Final = 16
SEED_BITS: Final = 63

_PLAIN: Final = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty")


def job_start(attempt: Attempt) -> JobStart:
    """The job of an attempt. Raises `Problem` for what no worker can be asked."""
    work, candidate = attempt.work, attempt.candidate
    body = work.body
    policy = work.app.policy
    prompt = messages = inputs = None
    if work.kind == "chat":
        messages = _listed(body, "messages")
    elif work.kind == "completion":
        prompt = _prompt(body.get("prompt"))
    else:
        inputs = _inputs(body.get("input"))
    choice = body.get("tool_choice")
    dedicated = "dedicated" in {work.request.isolation, policy.isolation if policy is not None else None}
    own = candidate.engine == "llama"
    return JobStart(
        job=attempt.id,
        model=candidate.version if own and candidate.version else candidate.model,
        kind="embedding" if inputs is not None else "chat" if messages is not None else "completion",
        app=work.app.name,
        messages=messages,
        prompt=prompt,
        inputs=inputs,
        tools=_listed(body, "tools") if body.get("tools") else None,
        tool_choice=choice if isinstance(choice, str | Mapping) else None,
        sampling=_sampling(work, attempt),
        response_format=_form(work),
        emitted=attempt.emitted,
        isolation="dedicated" if dedicated else "shared",
        reuse=work.request.reuse,
        deadline_s=attempt.deadline_s,
        stream=work.stream,
        body=None if own else {name: value for name, value in body.items() if name != "model"},
    )


def _listed(body: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    given = body.get(name)
    if not isinstance(given, list | tuple) or not all(isinstance(one, Mapping) for one in given):
        raise Problem(f"{name} must be a list of objects", code="invalid_request", param=name)
    return tuple(given)


def _prompt(given: Any) -> str | tuple[int, ...]:
    if isinstance(given, list | tuple) and len(given) == 1 and isinstance(given[0], str | list | tuple):
        given = given[0]
    if isinstance(given, str):
        return given
    if isinstance(given, list | tuple) and given and all(type(one) is int for one in given):
        return tuple(given)
    raise Problem("prompt must be one text, or one list of token ids", code="unsupported", param="prompt")


def _inputs(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise Problem("input must be a text or a list of texts", code="unsupported", param="input")
    return tuple(texts)


def _sampling(work: Work, attempt: Attempt) -> Sampling:
    body, request = work.body, work.request
    values: dict[str, Any] = {}
    for name in _PLAIN:
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = float(value)
    if request.temperature is not None:
        values["temperature"] = request.temperature
    top_k = body.get("top_k")
    if type(top_k) is int:
        values["top_k"] = top_k
    seed = request.seed if request.seed is not None else body.get("seed")
    if type(seed) is int and -(1 << SEED_BITS) <= seed < 1 << SEED_BITS:
        values["seed"] = seed
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    values["stop"] = tuple(one for one in stops[:STOPS_MAX] if isinstance(one, str) and one)
    bias = body.get("logit_bias")
    if isinstance(bias, Mapping):
        try:
            values["logit_bias"] = tuple((int(key), float(value)) for key, value in bias.items())
        except (TypeError, ValueError):
            raise Problem(
                "logit_bias maps token ids to numbers", code="invalid_request", param="logit_bias"
            ) from None
    values["logprobs"] = _logprobs(body)
    # A worker counts replayed ids among those of the answer.
    values["max_tokens"] = attempt.max_tokens + len(attempt.emitted) if attempt.max_tokens else None
    return Sampling(**values)


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted = body.get("logprobs")
    if wanted is True:
        top = body.get("top_logprobs")
        return top if type(top) is int else 0
    return wanted if type(wanted) is int else None


def _form(work: Work) -> str | None:
    form = work.body.get("response_format")
    if isinstance(form, Mapping):
        if form.get("type") == "json_object":
            schema = form.get("schema")
            return "json" if schema is None else json.dumps(schema)
        if form.get("type") == "json_schema":
            described = form.get("json_schema")
            schema = described.get("schema") if isinstance(described, Mapping) else None
            return "json" if schema is None else json.dumps(schema)
        return None
    return work.request.schema
