"""Errors of the control API as problem documents (RFC 9457), each with a stable code and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qgate.governance.principal import AccessError
from qgate.store import StoreUnavailableError
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.logs import redact_text

MEDIA_TYPE = "application/problem+json"

SHOWN_FAULTS = 5
"""Faults of one body that are listed; the rest is counted."""

AGAIN: Final = (
    "correct what is named and send it again; docs/control-api.md, or the command's --help, says more"
)

_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "string": "a text",
        "list": "a list",
        "tuple": "a list",
        "set": "a list",
        "frozen_set": "a list",
        "dict": "an object",
        "model": "an object",
        "model_attributes": "an object",
        "date": "a date",
        "datetime": "a date with a time",
    }
)
"""What a value must be, by the first part of the fault's type."""

_FORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$": "must be a name: letters, digits, dots, hyphens and "
        "underscores, a letter or digit first, 63 at most",
        r"^[^\x00]*$": "must not hold the character 0",
        r"^/": "must be an absolute path, on the gate's machine",
        r"^[0-9a-f]{32}$": "must be 32 hexadecimal digits, in small letters",
        r"^([0-9a-fA-F]{64})?$": "must be 64 hexadecimal digits",
        r"^[A-Z]{3}$": "must be the three capital letters of a currency, as USD",
        r"^[^\x00-\x20\x7f]+$": "must be a name without blanks",
    }
)
"""What texts must look like, by the pattern that they did not match."""

_BOUNDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "greater_than": ("gt", "must be more than {}"),
        "greater_than_equal": ("ge", "must be {} or more"),
        "less_than": ("lt", "must be less than {}"),
        "less_than_equal": ("le", "must be {} or less"),
        "string_too_long": ("max_length", "may have {} characters at most"),
        "string_too_short": ("min_length", "must have {} characters at least"),
        "too_long": ("max_length", "may have {} entries at most"),
        "too_short": ("min_length", "must have {} entries at least"),
    }
)

_SAID: Final[Mapping[str, str]] = MappingProxyType(
    {
        "missing": "is missing: it must be given",
        "extra_forbidden": "is not known here: leave it out, or look for a slip in its name",
        "finite_number": "must be a finite number",
        "none_required": "must be null, or left out",
        "int_from_float": "must be a whole number, without a fraction",
        "string_unicode": "must be text in UTF-8",
        "json_type": "must be JSON, as a text",
    }
)


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
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", faults_said(error.errors()), AGAIN)


def faults_said(faults: Sequence[Any]) -> str:
    """What is wrong with what was sent, in words, without the values: one of them may be a password.

    ``faults`` are those of pydantic's `ValidationError.errors`.
    """
    said: dict[str, list[str]] = {}
    for fault in faults:
        words = said.setdefault(_place(fault), [])
        if (one := _fault(fault)) not in words:
            words.append(one)
    shown = [f"{place} {_either(words)}" for place, words in list(said.items())[:SHOWN_FAULTS]]
    if len(said) > SHOWN_FAULTS:
        shown.append(f"and {len(said) - SHOWN_FAULTS} more")
    return "; ".join(shown)


def _place(fault: Mapping[str, Any]) -> str:
    """Where: the field's path. Of a value that may be of several kinds, each kind would be a place below."""
    parts = [part for part in fault["loc"] if part not in {"body", "query", "path", "header"}]
    if fault["type"] == "json_invalid" or not parts:
        return "the body"
    if len(parts) > 1 and parts[-1] in _KINDS.keys() | {"str", "constrained-str"}:
        parts.pop()
    return ".".join(str(part) for part in parts)


def _either(words: list[str]) -> str:
    """One field's faults: all of them, or what it may be where several kinds are allowed."""
    if len(words) > 1 and all(one.startswith("must be ") for one in words):
        *more, last = (one.removeprefix("must be ") for one in words)
        return f"must be {', '.join(more)} or {last}"
    return ", and ".join(words)


def _fault(fault: Mapping[str, Any]) -> str:
    """One fault: what must be so."""
    kind, context = str(fault["type"]), fault.get("ctx", {})
    if kind in _SAID:
        return _SAID[kind]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        most = context.get(name)
        return "must not be empty" if kind.endswith("_short") and most == 1 else words.format(_number(most))
    if kind in {"literal_error", "enum"}:
        return f"must be one of {str(context['expected']).replace(' or ', ', ')}".replace("'", '"')
    if kind == "string_pattern_mismatch":
        return _FORMS.get(str(context["pattern"]), f"must look like {context['pattern']}")
    if kind == "json_invalid":
        at = next((part for part in fault["loc"] if isinstance(part, int)), None)
        where = f" at character {at}" if at is not None else ""
        return f"is not JSON{where}: {context.get('error', 'it cannot be read')}"
    if kind == "value_error":
        return f"cannot be taken: {context['error']}" if "error" in context else "cannot be taken"
    for ending in ("_type", "_parsing"):
        if (wanted := _KINDS.get(kind.removesuffix(ending))) is not None:
            return f"must be {wanted}"
    return "cannot be read as what it should be"


def _number(value: object) -> str:
    return (
        f"{value:,.10g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "method-not-allowed"}
    return problem(error.status_code, codes.get(error.status_code, "refused"), str(error.detail))


async def _mesh(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MeshError)
    refused = getattr(request.state, "refused", None)
    if isinstance(error, AccessError) and refused is not None:
        refused(error)  # for the audit
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
