"""From an app and what it asked for to `Work`: the one way in for HTTP, SQL and `meshctl ask`. Pure.

Who decides a value, the first that speaks wins and those below may only ask for less:

    the app's policy  >  keys of the qg:// request  >  fields of the body  >  the task's own defaults

A key or field that asks for more than the policy allows is cut to the policy where the answer is still what
was asked for (max_tokens, data, isolation, reuse, move); a model, task or pool outside it is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from qgate.capability.demand import IMAGE_TOKENS
from qgate.capability.finops.rates import RateLimits
from qgate.capability.work import Kind, Problem, Usage, Work
from qgate.governance.directory import App
from qgate.governance.policy import CapabilityPolicy, looks_like_key
from qgate.governance.registry import DEFAULTS
from qgate.http import bodies
from tunnel_proto.request import (
    TASKS,
    CapabilityRequest,
    RequestSyntaxError,
    instruction,
    is_request,
    parse,
)

ID_BYTES: Final = 12
MODEL_MAX: Final = 256
"""Characters of a plain model name."""

CHARACTERS_A_TOKEN: Final = 4
ANSWER_TOKENS: Final = 256
"""What an answer without a bound is counted for until it is known."""

_ALIAS_DEPTH: Final = 4
_DEFAULT_TASK: Final[Mapping[str, str]] = {"chat": "chat", "completion": "complete", "embedding": "embed"}
_ENDPOINTS: Final[Mapping[str, str]] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
}
_LISTS: Final = frozenset({"similarity"})
"""Analyses whose input is several texts."""


class Names(Protocol):
    """The part of the directory that is asked here."""

    def app_of_key(self, key: str, now: float, pool: bytes = b"") -> App | None:
        """The app that a key lets in, where it comes from a node of the pool of that key (empty: our own)."""

    def alias(self, name: str) -> str | None:
        """What an alias stands for."""

    def aliases(self) -> Mapping[str, str]:
        """All aliases."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Makes `Work`. ``wall`` is unix time, ``clock`` the event loop's, ``entropy(n)`` n random bytes."""

    names: Names
    wall: Callable[[], float]
    clock: Callable[[], float]
    entropy: Callable[[int], bytes]
    rates: RateLimits | None = None
    setting: Callable[[str], Any] = DEFAULTS.__getitem__

    def authenticate(self, authorization: str | None, sidecar: str, pool: bytes = b"") -> App:
        """The app behind an Authorization header that came through ``sidecar``. Raises `Problem`.

        ``pool`` is the key of the sidecar's pool, empty for our own.
        """
        if not authorization:
            raise Problem(
                "no API key was given",
                code="invalid_api_key",
                hint="send it as Authorization: Bearer qg_...; meshctl app key create APP makes one",
            )
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        app = None
        if scheme.lower() == "bearer" and looks_like_key(key):
            app = self.names.app_of_key(key, self.wall(), pool)
        if app is None:
            raise Problem(
                "the API key is not known here, or no longer valid",
                code="invalid_api_key",
                hint="meshctl app key list APP shows which keys there are",
            )
        if app.sidecars is not None and sidecar not in app.sidecars:
            raise Problem(f'app "{app.name}" may not come from this sidecar', code="permission_denied")
        return app

    def from_body(self, app: App, body: Mapping[str, Any], kind: Kind, *, source: str = "") -> Work:
        """The work of an OpenAI-shaped body that was checked for ``kind``; its ``model`` says what to do."""
        request = self._named(body.get("model"), kind)
        stream = bool(body.get("stream"))
        return self._work(resolve(app, request, body, kind, names=self.names), app, stream, source)

    def from_text(self, app: App, asked: str, texts: list[str], *, source: str = "") -> Work:
        """The work of a `qg://` request (with or without its scheme) on ``texts``, as SQL gives them."""
        request = _parsed(asked, "request")
        kind = TASKS[request.task].kind
        return self._work(
            resolve(app, request, body_of(request, texts), _kind(kind), names=self.names), app, False, source
        )

    def _named(self, model: object, kind: Kind) -> CapabilityRequest:
        if not isinstance(model, str) or not model:
            bodies.refuse("model must be a model's name, an alias or a qg:// request", "model")
        for _ in range(_ALIAS_DEPTH):
            if is_request(model):
                return _parsed(model, "model")
            stands_for = self.names.alias(model)
            if stands_for is None:
                break
            model = stands_for
        if len(model) > MODEL_MAX:
            bodies.refuse(f"model has {len(model)} characters; {MODEL_MAX} are allowed", "model")
        return CapabilityRequest(task=_DEFAULT_TASK[kind], model=model)

    def _work(self, made: Resolved, app: App, stream: bool, source: str) -> Work:
        deadline = made.request.deadline_s
        work = Work(
            id="req_" + self.entropy(ID_BYTES).hex(),
            app=app,
            request=made.request,
            kind=made.kind,
            body=made.body,
            stream=stream,
            received_at=self.wall(),
            deadline=None if deadline is None else self.clock() + deadline,
            source=source,
        )
        self._admit_rate(work)
        return work

    def used(self, work: Work, usage: Usage | None) -> None:
        """Correct the rate's estimate by what a request really used; None where it used nothing."""
        policy = self._bounded(work.app.policy)
        if self.rates is None or policy is None or policy.tokens_per_minute is None:
            return
        used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        self.rates.correct(work.app.name, policy, estimated_tokens(work), used, self.clock())

    def _bounded(self, policy: CapabilityPolicy | None) -> CapabilityPolicy | None:
        """A policy with the pool's rates where it names none itself."""
        if policy is None:
            return None
        requests = policy.requests_per_minute or self.setting("app.requests_per_minute") or None
        tokens = policy.tokens_per_minute or self.setting("app.tokens_per_minute") or None
        if (requests, tokens) == (policy.requests_per_minute, policy.tokens_per_minute):
            return policy
        return dataclasses.replace(policy, requests_per_minute=requests, tokens_per_minute=tokens)

    def _admit_rate(self, work: Work) -> None:
        if self.rates is None or (policy := self._bounded(work.app.policy)) is None:
            return
        if policy.requests_per_minute is None and policy.tokens_per_minute is None:
            return
        refused = self.rates.admit(work.app.name, policy, estimated_tokens(work), self.clock())
        if refused is not None:
            raise Problem(
                f'app "{work.app.name}" has used up its {refused.limit} {refused.what} a minute',
                code="rate_limit_exceeded",
                retry_after_s=refused.retry_after_s,
            )


@dataclass(frozen=True, slots=True)
class Resolved:
    """What is to be done once policy, request and body are laid over each other."""

    request: CapabilityRequest
    kind: Kind
    body: Mapping[str, Any]


def resolve(
    app: App, request: CapabilityRequest, body: Mapping[str, Any], kind: Kind, *, names: Names
) -> Resolved:
    """Lay policy, request and body over each other. ``kind`` is the endpoint's. Raises `Problem`."""
    policy = app.policy
    if policy is None:
        raise Problem(
            f'app "{app.name}" may not ask for models',
            code="permission_denied",
            hint="the administrator allows it with: meshctl app update APP --models '*'",
        )
    request = _narrowed(request, policy, app.name, names)
    request, merged = _merged(request, body, policy)
    kind, merged = _shaped(request, kind, merged)
    return Resolved(request, kind, merged)


def _narrowed(
    request: CapabilityRequest, policy: CapabilityPolicy, app: str, names: Names
) -> CapabilityRequest:
    if not policy.allows_task(request.task):
        raise Problem(
            f'app "{app}" may not ask for the task "{request.task}"', code="permission_denied", param="model"
        )
    model = request.model
    if model is not None:
        stands_for = names.alias(model)
        model = stands_for if stands_for is not None and not is_request(stands_for) else model
        if not policy.allows_model(model.partition("@")[0]):
            raise model_not_found(model)
    if request.pool is not None and policy.pools is not None and request.pool not in policy.pools:
        raise Problem(
            f'app "{app}" may not use the pool "{request.pool}"', code="permission_denied", param="model"
        )
    data = "local-only" if policy.data == "local-only" else request.data
    isolation = "dedicated" if policy.isolation == "dedicated" else request.isolation
    reuse = request.reuse and policy.reuse
    move = "exact" if request.move == "kindred" and not policy.kindred else request.move
    if (model, data, isolation, reuse, move) == (
        request.model,
        request.data,
        request.isolation,
        request.reuse,
        request.move,
    ):
        return request
    return dataclasses.replace(request, model=model, data=data, isolation=isolation, reuse=reuse, move=move)


def _merged(
    request: CapabilityRequest, body: Mapping[str, Any], policy: CapabilityPolicy
) -> tuple[CapabilityRequest, dict[str, Any]]:
    """Let the request's keys replace the body's fields, and fill its gaps from them."""
    merged = dict(body)
    named = next((name for name in ("max_completion_tokens", "max_output_tokens") if name in body), None)
    asked = body.get(named or "max_tokens") if request.max_tokens is None else request.max_tokens
    most = min((one for one in (asked, policy.max_tokens) if one is not None), default=None)
    if most is not None:
        merged[named if named == "max_completion_tokens" else "max_tokens"] = most
    merged.pop("max_output_tokens", None)
    merged.pop("qgate", None)  # said to the gate, not to whoever runs the request
    for name in ("temperature", "seed"):
        value = getattr(request, name)
        if value is not None:
            merged[name] = value
    if request.schema is not None and TASKS[request.task].kind != "analysis":
        schema = json.loads(request.schema)
        merged["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        }
    merged["model"] = request.model or ""
    seed = merged.get("seed")
    if not isinstance(seed, int) or seed < 0:
        seed = request.seed
    temperature = merged.get("temperature")
    if (most, temperature, seed) == (request.max_tokens, request.temperature, request.seed):
        return request, merged
    return dataclasses.replace(request, max_tokens=most, temperature=temperature, seed=seed), merged


def _shaped(request: CapabilityRequest, kind: Kind, body: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """Bring the body into its task's shape; a task that an endpoint cannot answer is refused."""
    wanted = _kind(TASKS[request.task].kind)
    if wanted == kind:
        return kind, body
    if wanted != "analysis" or kind == "embedding":
        place = _ENDPOINTS.get(wanted, "/v1/chat/completions")
        bodies.refuse(
            f'the task "{request.task}" is not answered here',
            "model",
            code="unsupported",
            hint=f"use {place}",
        )
    if kind == "completion":
        return "analysis", _analysis(request, [body["prompt"]], body, "prompt")
    texts = bodies.only_text(body["messages"])
    plain = body.get("tools") is None and body.get("response_format") is None
    if texts is not None and plain:
        return "analysis", _analysis(request, texts, body, "messages")
    return "chat", _instructed(request, body)


def _analysis(
    request: CapabilityRequest, texts: list[str], body: dict[str, Any], source: str
) -> dict[str, Any]:
    shaped = {name: value for name, value in body.items() if name != source}
    shaped["input"] = _input(request, texts)
    return shaped


def _input(request: CapabilityRequest, texts: list[str]) -> str | list[str]:
    if request.task not in _LISTS:
        return "\n\n".join(texts)
    if len(texts) == 1:  # one text that is a JSON list of texts, as SQL and plain messages have to say it
        try:
            listed = json.loads(texts[0])
        except ValueError:
            listed = None
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return listed
    return texts


def _instructed(request: CapabilityRequest, body: dict[str, Any]) -> dict[str, Any]:
    """A conversation about a task: what the task is stands first, what the client said follows."""
    words = instruction(request)
    if not words:
        bodies.refuse(
            f'the task "{request.task}" takes one user message with text, without tools or response_format',
            "messages",
            code="unsupported",
        )
    return {**body, "messages": [{"role": "system", "content": words}, *body["messages"]]}


def body_of(request: CapabilityRequest, texts: list[str]) -> dict[str, Any]:
    """A body in the shape of the task's kind, for callers that have only texts."""
    match TASKS[request.task].kind:
        case "chat":
            return {"messages": [{"role": "user", "content": "\n\n".join(texts)}]}
        case "completion":
            return {"prompt": "\n\n".join(texts)}
        case "embedding":
            return {"input": texts}
    return {"input": _input(request, texts)}


def _parsed(text: str, param: str) -> CapabilityRequest:
    try:
        return parse(text)
    except RequestSyntaxError as error:
        code = "unknown_task" if error.code == "unknown_task" else "request_syntax"
        detail = {"position": error.position, "reason": error.code}
        raise Problem(error.message, code=code, param=param, detail=detail, hint=error.hint) from None


def _kind(word: str) -> Kind:
    match word:
        case "chat" | "completion" | "embedding":
            return word
    return "analysis"


def estimated_tokens(work: Work) -> int:
    """What a request may use, before anybody has counted: its text, and the longest answer it allows."""
    size = sum(_characters(work.body.get(name)) for name in ("input", "prompt", "messages"))
    answer = 0 if work.kind == "embedding" else work.request.max_tokens or ANSWER_TOKENS
    return size // CHARACTERS_A_TOKEN + answer


def _characters(value: object) -> int:
    """How long the texts in a value are; an image counts as what it costs, not as what it weighs."""
    if isinstance(value, str):
        return CHARACTERS_A_TOKEN * IMAGE_TOKENS if value.startswith("data:") else len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 1


def model_not_found(name: str) -> Problem:
    """What OpenAI says, too, of a model that the key may not use."""
    return Problem(
        f'the model "{name}" does not exist or you do not have access to it',
        code="model_not_found",
        param="model",
        hint="GET /v1/models lists what there is",
    )
