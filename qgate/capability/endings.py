"""What whoever asked is told when there is no answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qgate.capability.candidate import Candidate
from qgate.capability.work import CODES, Failure, Problem

REFUTING: Final = frozenset({"unknown_model", "model_not_found", "model_unknown", "wrong_version"})
BUSY: Final = frozenset({"busy", "queue_full", "draining", "model_loading", "shutting_down"})
"""Refusals that say nothing about a node's health."""

LOADING_RETRY_S: Final = 5.0
LOADING_RETRY_MOST_S: Final = 300.0
AGAIN_S: Final = 2.0
"""Retry-After where nobody says when it is worth while."""

_AGAIN: Final = frozenset({"unavailable", "rate_limit_exceeded", "queue_full"})
_NEXT: Final = "name another model; meshctl route explain shows an administrator what there is"


def problem_of(failure: Failure, node: str, *, begun: bool, detail: Mapping[str, Any]) -> Problem:
    """What whoever asked is told of a failure that nothing could mend."""
    status = failure.status
    if begun and failure.blame != "request":
        return Problem(
            f"the answer broke off: {failure.message}",
            code="stream_interrupted",
            detail={"node": node, **detail},
            hint=f"send it again, or {_NEXT}",
        )
    if failure.code in CODES:
        code = failure.code
    elif failure.blame == "request":
        code = "invalid_request"
    elif failure.blame == "provider":
        code = "rate_limit_exceeded" if status == 429 else "provider_error"
    else:
        code = "node_failed"
    passed_on = status if failure.blame == "request" and status is not None and 400 <= status < 500 else None
    wait = failure.retry_after_s
    return Problem(
        failure.message,
        code=code,
        status=passed_on,
        retry_after_s=AGAIN_S if wait is None and code in _AGAIN else wait,
        detail={"node": node, **detail},
        hint=""
        if failure.blame == "request"
        else f"send it again, or {_NEXT}"
        if failure.retriable
        else _NEXT,
    )


def poisonous(crashes: int) -> Problem:
    """For a request that was there each time that a process died."""
    return Problem(
        "this request was being worked on each time a model's process died; it is not tried again",
        code="poison_request",
        detail={"crashes": crashes},
        hint="send it with isolation=dedicated to find out more, or change the request",
    )


def still_loading(candidate: Candidate, progress: tuple[str, float, float | None]) -> Problem:
    """For a request that waited long enough for a load; `progress` is state, share and seconds to go."""
    state, share, eta = progress
    return Problem(
        f"{candidate.model} is still being loaded ({share:.0%})",
        code="model_loading",
        retry_after_s=max(1.0, min(eta if eta is not None else LOADING_RETRY_S, LOADING_RETRY_MOST_S)),
        detail={
            "state": state or "loading",
            "progress": round(share, 3),
            "eta_s": eta,
            "node": candidate.node,
            "model": candidate.model,
        },
        hint="send the request again after Retry-After; the load goes on",
    )


def too_late(attempts: int) -> Problem:
    """For a request whose time is over."""
    return Problem(
        "the deadline of the request has passed", code="deadline_exceeded", detail={"attempts": attempts}
    )
