"""Why a request would go where it would go: every candidate, judged as placing judges it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from qgate.capability.scheduler import Explanation, Judgement
from qgate.capability.work import Problem, Work
from qgate.control.bodies import Body, Name
from qgate.governance.problems import UnknownNameError
from qgate.http.intake import body_of, resolve
from tunnel_proto.request import TASKS, CapabilityRequest, RequestSyntaxError, canonical, is_request, parse

if TYPE_CHECKING:
    from qgate.capability.engine import Engine
    from qgate.governance.directory import App, Directory

ITEMS_MAX = 1000


class ExplainBody(Body):
    """A request to explain. ``app`` None asks as an administrator; ``input_tokens`` None is a short text."""

    request: Annotated[str, Field(min_length=1, max_length=131_072)]
    app: Name | None = None
    input_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    limit: Annotated[int, Field(ge=1, le=ITEMS_MAX)] = 200


def routers(engine: Engine, directory: Directory, administrator: App) -> tuple[APIRouter, ...]:
    """The router of this noun. ``administrator`` is who asks where no app is named."""
    router = APIRouter(prefix="/route", tags=["route"])

    @router.post("/explain")
    async def explain(body: ExplainBody) -> dict[str, Any]:
        """Every candidate for a request with its score and the reasons; nothing is started or reserved."""
        app = administrator if body.app is None else directory.app(body.app)
        if app is None:
            raise UnknownNameError(f"there is no app {body.app!r}", hint="meshctl app list")
        work = _work(app, body.request, directory)
        explanation = engine.explain(work, input_tokens=body.input_tokens, limit=body.limit)
        return _shown(work, explanation)

    return (router,)


def _work(app: App, text: str, directory: Directory) -> Work:
    """The work that this request would be, without a text. Raises `Problem` as the request itself would."""
    alias = directory.alias(text)
    text = alias if alias is not None else text
    try:
        asked = parse(text) if is_request(text) or "=" in text else CapabilityRequest("chat", model=text)
    except RequestSyntaxError as error:
        raise Problem(
            error.message, code="request_syntax", detail={"position": error.position}, hint=error.hint
        ) from None
    kind = TASKS[asked.task].kind
    resolved = resolve(app, asked, body_of(asked, [""]), kind, names=directory)  # type: ignore[arg-type]
    return Work(id="req_explain", app=app, request=resolved.request, kind=resolved.kind, body=resolved.body)


def _shown(work: Work, explanation: Explanation) -> dict[str, Any]:
    demand, problem, chosen = explanation.demand, explanation.problem, explanation.chosen
    return {
        "request": canonical(work.request),
        "app": work.app.name,
        "input_tokens": demand.input_tokens,
        "output_tokens": demand.output_tokens,
        "items": [_item(one) for one in explanation.items],
        "total": explanation.total,
        "chosen": None
        if chosen is None
        else {"node": chosen.node, "kind": chosen.kind, "model": chosen.model},
        "equals": explanation.equals,
        "weights": dataclasses.asdict(explanation.weights),
        "problem": None
        if problem is None
        else {"code": problem.code, "status": problem.status, "message": problem.message},
    }


def _item(one: Judgement) -> dict[str, Any]:
    candidate = one.candidate
    return {
        "node": candidate.node,
        "kind": candidate.kind,
        "model": candidate.model,
        "version": candidate.version,
        "verdict": one.verdict,
        "score": round(one.score, 3),
        "seconds": round(one.seconds, 3),
        "price": round(one.price, 9),
        "quality": round(candidate.quality, 3),
        "resident": candidate.resident,
        "queue_s": round(candidate.queue_s, 3),
        "load_s": round(candidate.load_cost_s, 3),
        "speed": round(candidate.speed, 1),
        "context": candidate.context,
        "isolation": candidate.isolation,
        "reasons": list(one.reasons),
    }
