"""What a change names: why it is made, and the version that it saw, as "If-Match" (RFC 9110, 13.1.1)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Response
from pydantic import Field

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


WITHOUT_NUL: Final = r"^[^\x00]*$"
"""The store's text holds anything but this one character."""

Reason = Annotated[str, Field(max_length=500, pattern=WITHOUT_NUL)]
"""Why something is changed; it is kept with the change."""

Seen = Annotated[int | None, Depends(seen_version)]


def tagged(row: dict[str, Any], response: Response) -> dict[str, Any]:
    """The reply itself, its version in the header "ETag"."""
    response.headers["ETag"] = f'"{row["version"]}"'
    return row
