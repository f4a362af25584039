"""What minigate says itself to an app that speaks HTTP."""

from __future__ import annotations

import json
import struct
from http import HTTPStatus
from typing import Final

RETRY_AFTER_S: Final = 1
"""What Retry-After says while no gate can be used; a link that is up again takes less."""

_SETTINGS: Final = 0x04
_GOAWAY: Final = 0x07
_HTTP_1_1_REQUIRED: Final = 0x0D  # RFC 9113, section 7


def http_error(status: HTTPStatus, code: str, message: str, *, head_only: bool = False) -> bytes:
    """A whole response, in the shape that OpenAI's SDKs show to people; the connection closes after it.

    503 says when to try again. ``head_only``: the request was HEAD, whose answer has no body.
    """
    error = {"message": message, "type": "gateway_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode() + b"\n"
    retry = f"Retry-After: {RETRY_AFTER_S}\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)


def http2_refusal() -> bytes:
    """SETTINGS and GOAWAY(HTTP_1_1_REQUIRED): what an HTTP/2 client understands (RFC 9113, 6.8 and 7)."""
    payload = struct.pack("!II", 0, _HTTP_1_1_REQUIRED) + b"this port speaks HTTP/1.1"
    return _frame(_SETTINGS, b"") + _frame(_GOAWAY, payload)


def _frame(kind: int, payload: bytes) -> bytes:
    """A frame of stream 0 without flags: u24 length, type, flags, u32 stream (RFC 9113, section 4.1)."""
    return struct.pack("!IBBI", len(payload), kind, 0, 0)[1:] + payload
