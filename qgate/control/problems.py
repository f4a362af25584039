"""Errors of the control API as problem documents (RFC 9457), each with a stable code and the next command."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qgate.store import StoreUnavailableError
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.logs import redact_text

MEDIA_TYPE = "application/problem+json"

SHOWN_FAULTS = 5
"""Faults of one body that are listed; the rest is counted."""


class ProblemError(MeshError):
    """An error that knows its HTTP status and its code."""

    def __init__(self, status: int, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


def problem(status: int, code: str, detail: str, next_step: str = "") -> JSONResponse:
    """A problem document; ``next_step`` is the command to run, empty where there is none."""
    document = {
        "type": f"urn:qgate-mesh:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": redact_text(detail),
        "code": code,
        "next": next_step,
    }
    return JSONResponse(document, status, media_type=MEDIA_TYPE)


def install(application: FastAPI) -> None:
    """Answer every error of ``application`` with a problem document."""
    application.add_exception_handler(RequestValidationError, _invalid)
    application.add_exception_handler(HTTPException, _http)
    application.add_exception_handler(MeshError, _mesh)
    application.add_exception_handler(Exception, _defect)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    shown = [_fault(one) for one in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        shown.append(f"and {len(faults) - SHOWN_FAULTS} more")
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", "; ".join(shown))


def _fault(fault: dict[str, Any]) -> str:
    """One fault in words, without the value that was sent: it may be a password."""
    place = ".".join(str(part) for part in fault["loc"] if part not in {"body", "query", "path"})
    return f"{place or 'the body'}: {fault['msg']}"


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "method-not-allowed"}
    return problem(error.status_code, codes.get(error.status_code, "refused"), str(error.detail))


async def _mesh(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MeshError)
    return refusal(error)


def refusal(error: MeshError) -> JSONResponse:
    """The problem document of an error, with when to try again where it knows that."""
    status, code = classify(error)
    answer = problem(status, code, error.message, error.hint)
    if (seconds := getattr(error, "retry_after_s", None)) is not None:
        answer.headers["Retry-After"] = str(max(1, round(seconds)))
    if status == HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def classify(error: MeshError) -> tuple[int, str]:
    """HTTP status and code of an error: its own where it has them, else by whose fault it is."""
    status, code = getattr(error, "status", None), getattr(error, "code", None)
    if isinstance(status, int) and isinstance(code, str):
        return status, code
    if isinstance(error, StoreUnavailableError):
        return HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable"
    if isinstance(error, ConfigError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"
    return HTTPStatus.INTERNAL_SERVER_ERROR, "failed"


async def _defect(request: Request, error: Exception) -> JSONResponse:
    structlog.get_logger().error("control call failed", path=request.url.path, exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "defect",
        f"a defect of the gate: {type(error).__name__}; its log has more",
    )
