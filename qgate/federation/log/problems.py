"""Why an entry, a snapshot or an archive is not taken: each error carries a word for counters and clients."""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from tunnel_proto.errors import MeshError


class LogProblem(MeshError):  # noqa: N818 - reads as what it is
    """Something in a log is not as it must be; ``code`` is stable, the text is for people."""

    status: ClassVar[int] = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class StreamRefused(LogProblem):
    """Something was to be published on a stream that does not exist, or that is not ours to write."""

    status = HTTPStatus.CONFLICT


class LogConflict(LogProblem):
    """The request is sound and the state of a log or of an authority stands in its way."""

    status = HTTPStatus.CONFLICT
