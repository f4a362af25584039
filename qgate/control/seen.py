"""The version that a change names: "If-Match", as the reply that was looked at gave it (RFC 9110, 13.1.1)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from qgate.control.problems import ProblemError


def seen_version(if_match: Annotated[str | None, Header(max_length=64)] = None) -> int | None:
    """The version of an If-Match header; None without one, or with "*": whatever is there is replaced."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            "invalid",
            "If-Match holds no version",
            hint='send the "version" of what you saw, in double quotes',
        )
    return int(text)


Seen = Annotated[int | None, Depends(seen_version)]


def tagged(row: dict[str, Any], response: Response) -> dict[str, Any]:
    """The reply itself, its version in the header "ETag"."""
    response.headers["ETag"] = f'"{row["version"]}"'
    return row
