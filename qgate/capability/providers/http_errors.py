"""What a provider's refusal means for a request: whose fault, and whether another may do better. Pure.

A provider's own words are passed on only where the request is at fault, cut short and with the key taken
out; they go to the client who sent the request and into no log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from qgate.capability.work import Failure

RETRY_MOST_S: Final = 3600.0
TEXT_MAX: Final = 500
_OVERLOADED: Final = 529  # Anthropic's

_REQUEST_STATUS: Final = frozenset({400, 413, 422})
_SAID_FOR_ANOTHER: Final = frozenset({408, 502, 504, 520, 522, 524})
_QUOTA_WORDS: Final = frozenset({"insufficient_quota", "billing_error", "billing_hard_limit_reached"})
_CONTEXT_WORDS: Final = frozenset({"context_length_exceeded", "string_above_max_length"})


@dataclass(frozen=True, slots=True)
class _Said:
    """The error that a body holds, as far as one can be found."""

    message: str = ""
    words: frozenset[str] = frozenset()


def failure_of(
    status: int, headers: Mapping[str, str], body: bytes, *, provider: str, key: str, now: float
) -> Failure:
    """The failure that an answer with an error status tells of.

    `body` is at most its beginning; `now` is unix time, for a Retry-After that names a date.
    """
    said = _said(body, key)
    wait = retry_after(headers, now)
    told = f": {said.message}" if said.message else ""
    if 300 <= status < 400:
        return _provider(
            status, f"{provider} answers with a redirect ({status}), which is not followed", None
        )
    if status in {401, 403}:
        return _provider(
            status, f"{provider} refuses the key that this gate has for it (HTTP {status})", None
        )
    if status == 402 or said.words & _QUOTA_WORDS:
        return _provider(status, f"the account at {provider} has no credit left (HTTP {status})", wait)
    if status == 404:
        return Failure(
            "model_not_found",
            f"{provider} does not serve this (HTTP 404){told}",
            retriable=True,
            blame="provider",
            status=status,
        )
    if status == 429:
        return Failure(
            "rate_limit_exceeded",
            f"{provider} has had enough requests for now (HTTP 429)",
            retriable=True,
            retry_after_s=wait,
            blame="provider",
            status=status,
        )
    if said.words & _CONTEXT_WORDS or (status in _REQUEST_STATUS and _too_long(said.message)):
        return Failure(
            "context_length_exceeded",
            f"{provider} finds the request too long{told}",
            blame="request",
            status=400,
        )
    if status in _REQUEST_STATUS:
        code = "payload_too_large" if status == 413 else "invalid_request"
        return Failure(
            code, f"{provider} refuses the request (HTTP {status}){told}", blame="request", status=status
        )
    if status in {408, 409, 425} or status >= 500:
        what = "is overloaded" if status in {503, _OVERLOADED} else "failed"
        # Whoever says so for a server behind it does not know what that has done, and charged.
        known = None if status in _SAID_FOR_ANOTHER else status
        return _provider(known, f"{provider} {what} (HTTP {status})", wait)
    return Failure(
        "provider_error",
        f"{provider} answered HTTP {status}{told}",
        blame="provider",
        status=status,
    )


def stream_failure(error: Any, *, provider: str, key: str, now: float) -> Failure:
    """The failure that an error event within a stream tells of; `error` is its JSON `error` member."""
    said = _read(error, key)
    words = {
        "overloaded_error": _OVERLOADED,
        "rate_limit_error": 429,
        "rate_limit_exceeded": 429,
        "invalid_request_error": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found_error": 404,
    }
    status = next((words[word] for word in sorted(said.words) if word in words), 500)
    return failure_of(status, {}, json.dumps({"error": error}).encode(), provider=provider, key=key, now=now)


def invalid(provider: str, what: str) -> Failure:
    """An answer that is not what the API promises."""
    return Failure(
        "invalid_response",
        f"{provider} gave an answer that cannot be used: {what}",
        retriable=True,
        blame="provider",
    )


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """How long a peer asks us to wait, in seconds: Retry-After as a number or a date, or OpenAI's in ms."""
    given = {name.lower(): value for name, value in headers.items()}
    wait: float | None = None
    try:
        if "retry-after-ms" in given:
            wait = float(given["retry-after-ms"]) / 1000
        elif "retry-after" in given:
            text = given["retry-after"].strip()
            wait = float(text) if text[:1].isdigit() else _until(text, now)
    except (ValueError, TypeError, OverflowError):
        return None
    if wait is None or not math.isfinite(wait):
        return None
    return min(max(wait, 0.0), RETRY_MOST_S)


def _until(date: str, now: float) -> float:
    at = parsedate_to_datetime(date)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now


def _provider(status: int | None, message: str, wait: float | None) -> Failure:
    return Failure(
        "provider_error", message, retriable=True, retry_after_s=wait, blame="provider", status=status
    )


def _too_long(message: str) -> bool:
    lowered = message.lower()
    return "context length" in lowered or "prompt is too long" in lowered or "context window" in lowered


def _said(body: bytes, key: str) -> _Said:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _Said()
    return _read(document.get("error") if isinstance(document, dict) else None, key)


def _read(error: Any, key: str) -> _Said:
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return _Said()
    message = error.get("message")
    words = frozenset(str(error[name]) for name in ("type", "code") if isinstance(error.get(name), str))
    text = " ".join(message.split()) if isinstance(message, str) else ""
    if key:
        text = text.replace(key, "***")
    return _Said(text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + " ...", words)
